/** Goes through a log from its first event on, names everything that is not as it must be, and goes on behind it. */
import { Effect } from "effect"
import type { Finding } from "../JournalAdmin.ts"
import type { JournalError } from "../JournalError.ts"
import { decodeBlock, type Entry, stampStep } from "./block.ts"
import { storeFailure } from "./failure.ts"
import { firstPlace, placeAfter } from "./logReader.ts"
import type { LogId, Place, Store, StoredBlock, TypeRecord } from "./store.ts"

/** What is found of a shard; entity type and shard are added. */
export type Found = Omit<Finding, "entityType" | "shard">

/** Consecutive events of the log, and the offset before which some are lost: 0 when none are. */
export interface Stretch {
  readonly entries: ReadonlyArray<Entry>
  readonly lost: number
}

const pageSize = 1_000_000
const maxSkewMicros = 60_000_000

const nameOf = ({ bucket, part }: Place) => `bucket ${bucket}, part ${part}`
const same = (a: Place, b: Place) => a.bucket === b.bucket && a.part === b.part
const inOrder = (a: Place, b: Place) => a.bucket - b.bucket || a.part - b.part

/** The events of a block, or why it cannot be read. */
const entriesOf = ({ blockId, events, offset, stamp, written }: StoredBlock): ReadonlyArray<Entry> | string => {
  if (blockId === "null" || !(stamp > 0) || !(written > 0)) {
    return "it lacks one of the columns block_id, stamp, written"
  }
  try {
    const entries = decodeBlock(events, offset, stamp)
    return entries.length === 0 ? "it has no events" : entries
  } catch (cause) {
    return `it is not readable: ${cause}`
  }
}

const remedy =
  "the log is the truth, it cannot be computed from anything else: restore event_log from a backup, then accept the restore"

export const walkLog = Effect.fnUntraced(function* (
  store: Store,
  log: LogId,
  record: TypeRecord,
  /** The partitions that there are. */
  partitions: ReadonlyArray<Place>,
  /** Where to end, at the end of a partition at the latest. */
  through: number,
  now: number,
  report: (found: Found) => void,
  onStretch: (stretch: Stretch) => Effect.Effect<void, JournalError>
) {
  const left = partitions.toSorted(inOrder)
  const headOf = (at: Place) => store.readHead(log, at, true).pipe(Effect.mapError(storeFailure))
  const found = (kind: Finding["kind"], offset: number, message: string) =>
    report({ kind, table: "event_log", offset, message, remedy })

  let place = firstPlace
  let position = 0
  let stamp = 0
  let lost = 0
  let limit = 32
  // The place of the next block, as everybody computes it.
  let next: Place = place
  for (;;) {
    const at = left.findIndex((one) => same(one, place))
    if (at >= 0) left.splice(at, 1)
    const head = yield* headOf(place)
    let written = 0
    // Of the blocks that continue the log, and of all.
    let last: number | undefined
    let end = 0
    let after = Number.MIN_SAFE_INTEGER
    for (let serial = false; ; ) {
      const page = yield* store.readBlocks(log, place, after, limit, serial).pipe(Effect.mapError(storeFailure))
      if (page.length === 0) break
      let size = 0
      let again = false
      for (const stored of page) {
        const entries = entriesOf(stored)
        const { offset } = stored
        size += stored.events?.length ?? 0
        const from = typeof entries === "string" ? position : offset - entries.length
        // A quorum read may show a block and not yet the one before it.
        if (from > position && !serial) {
          again = true
          break
        }
        after = offset
        end = offset
        if (offset <= position) {
          found(
            "doubled",
            offset,
            `a block ends at offset ${offset}, where the log already has events (${nameOf(place)})`
          )
          continue
        }
        last = offset
        if (typeof entries === "string") {
          found("unreadable", offset, `the block of events ${position + 1} to ${offset} is damaged: ${entries}`)
          lost = offset
        } else {
          if (from > position) {
            found("missing", position + 1, `events ${position + 1} to ${from} are missing, ${from + 1} follows`)
            lost = from
          } else if (from < position) {
            found(
              "doubled",
              from + 1,
              `a block of events ${from + 1} to ${offset} begins before the end of the one before it, ${position}`
            )
          }
          if (from <= position && lost < position && !same(next, place)) {
            found(
              "misplaced",
              offset,
              `the block that ends at ${offset} stands in ${nameOf(place)}, its place is ${nameOf(next)}`
            )
          }
          if (stored.revision === 0 && stored.written !== written + stored.events.length && lost < position) {
            found(
              "different",
              offset,
              `the block that ends at ${offset} says that its partition has ${stored.written} characters, it has ${written + stored.events.length}`
            )
          }
          const first = entries[0]!.stamp
          if (first < stamp + stampStep) {
            found("order", from + 1, `event ${from + 1} has the stamp ${first}, the one before it ${stamp}`)
          }
          if (stored.stamp > now + maxSkewMicros) {
            const seconds = Math.round((stored.stamp - now) / 1e6)
            found("order", offset, `event ${offset} is stamped ${seconds} s ahead of this process's clock`)
          }
          yield* onStretch({ entries: from < position ? entries.slice(position - from) : entries, lost })
        }
        if (stored.stamp > stamp) stamp = stored.stamp
        position = offset
        if (stored.written > 0) written = stored.written
        next = placeAfter(record, { place, to: position, written })
      }
      serial = again
      if (!again) limit = Math.min(2000, Math.max(4, Math.ceil((pageSize * page.length) / size)))
    }

    if (head !== null && end < head) {
      found("missing", end + 1, `the head of ${nameOf(place)} is ${head}, its last block ends at ${end || "none"}`)
      if (head > position) {
        position = head
        lost = head
        next = placeAfter(record, { place, to: head, written })
      }
    } else if (end > (head ?? 0)) {
      const later = (yield* headOf(place)) ?? 0
      if (later < end) {
        found("ahead", end, `a block ends at ${end}, beyond the head of ${nameOf(place)}, which is ${later || "none"}`)
      }
    }
    if (last !== undefined && !same(next, place) && !(position >= through && left.length === 0)) place = next
    else if (left.length > 0) place = left[0]!
    else return position
  }
})
