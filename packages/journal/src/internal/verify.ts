/**
 * Compares what is stored of a shard with the rules of the log, and everything derived with the log. The log is read in
 * windows, so that the events in memory are few however long it is; of each entity a few numbers are remembered, and where
 * there are too many entities the log is read several times, each time for a part of them.
 */
import { Effect, Result, Stream } from "effect"
import type { Finding, Progress } from "../JournalAdmin.ts"
import type { JournalError } from "../JournalError.ts"
import { decodeIndexRow, deletedType, type Entry, itemOf } from "./block.ts"
import { partitionEvents, partitionOf, rowStart } from "./entityIndex.ts"
import { storeFailure } from "./failure.ts"
import { LogReader } from "./logReader.ts"
import { type Found, walkLog } from "./logWalk.ts"
import type { Scans } from "./scans.ts"
import { hash, shardOf } from "./shardOf.ts"
import type { LogId, Place, Store, TypeRecord } from "./store.ts"

/** Events in memory at once. */
const windowEvents = 20_000
const concurrency = 16

/** What is remembered of an entity on the way through the log. */
interface Seen {
  last: number
  offset: number
  deletedThrough: number
  /** Sequence number and offset of the first event that has its payload; 0 when none has. */
  payload: number
  payloadAt: number
  /** A deletion that came upon a payload which should be gone: where. */
  left: number | undefined
  /** The highest event without payload in the index that has one in the log. */
  indexDeleted: number
  /** The lowest event with payload in the index that has none in the log; 0 when there is none. */
  indexPayload: number
}

/** What a walk tells of a shard. */
export interface Walked {
  readonly head: number
  readonly watermark: number
  readonly events: number
  readonly entities: number
}

/** Everything of an event but its place and whether it is deleted. */
const contentOf = (entry: Entry): string => {
  const { a, m, p, t, v, x } = itemOf(entry)
  return JSON.stringify([t, v ?? 1, m, a, x, p])
}

const isDeleted = (entry: Entry) => itemOf(entry).d === 1

export const verifyShard = Effect.fnUntraced(function* (
  store: Store,
  scans: Scans,
  log: LogId,
  record: TypeRecord,
  /** Entities that are remembered at once. */
  maxEntities: number,
  now: number,
  report: (finding: Finding) => void,
  onProgress: (progress: Progress) => Effect.Effect<void>
): Effect.fn.Return<Walked, JournalError> {
  const { entityType, shard } = log
  const generation = record.indexGeneration
  const found = (one: Found) => report({ entityType, shard, ...one })
  const reader = new LogReader(store, log, record)
  const mine = (entityId: string) => shardOf(entityId, record.shards) === shard
  const rebuild = `compute the index anew from the log: journal rebuild-index ${entityType}`
  const finish = `journal finish-deletions ${entityType}`

  // ------------------------------------------------------------------------------------------- what there is

  const watermarks = yield* Stream.runCollect(
    Stream.filter(scans.watermarks(entityType), (one) => one.shard === shard && one.generation === generation)
  )
  const recorded = watermarks[0]?.offset ?? 0
  const watermark = Number.isNaN(recorded) ? 0 : recorded
  if (recorded !== watermark) {
    found({ kind: "unreadable", table: "index_watermarks", message: "the watermark has no offset", remedy: rebuild })
  }
  const partitions = yield* Stream.runCollect(
    Stream.filter(scans.logPartitions(entityType), (one) => one.shard === shard && one.generation === 1)
  )
  const headOf = (place: Place) => store.readHead(log, place, true).pipe(Effect.mapError(storeFailure))
  let through = 0
  for (const place of partitions) through = Math.max(through, (yield* headOf(place)) ?? 0)

  // ---------------------------------------------------------------------------------------------- the walk

  const seen = new Map<string, Seen>()
  let slice = 0
  let slices = 1
  const others: Array<readonly [slice: number, slices: number]> = []
  const inSlice = (entityId: string) => slices === 1 || Math.floor(hash(entityId) / record.shards) % slices === slice

  /** Halves what is remembered; the other half has a walk of its own. */
  const split = () => {
    others.push([slice + slices, slices * 2])
    slices *= 2
    for (const entityId of seen.keys()) if (!inSlice(entityId)) seen.delete(entityId)
  }

  const follow = (entry: Entry, lost: number): boolean => {
    const { entityId, offset, sequence } = entry
    const known = seen.get(entityId)
    const expected = (known?.last ?? 0) + 1
    const place = { table: "event_log", entityId, sequence, offset } as const
    const remedy = "restore event_log from a backup, then accept the restore"
    if (known !== undefined && sequence <= known.last) {
      const message = `event ${sequence} of "${entityId}" stands at offset ${offset}, after its event ${known.last}: a sequence number twice`
      found({ kind: "doubled", ...place, message, remedy })
      return false
    }
    // What is missing may be among what is known to be lost.
    if (sequence > expected && (known?.offset ?? 0) >= lost) {
      const message = `event ${expected} of "${entityId}" is missing in the log, its event ${sequence} stands at offset ${offset}`
      found({ kind: "missing", ...place, sequence: expected, message, remedy })
    }
    const deleted = isDeleted(entry)
    const payload = !deleted && entry.type !== deletedType
    if (known === undefined) {
      seen.set(entityId, {
        last: sequence,
        offset,
        deletedThrough: 0,
        payload: payload ? sequence : 0,
        payloadAt: payload ? offset : 0,
        left: undefined,
        indexDeleted: 0,
        indexPayload: 0
      })
      return true
    }
    known.last = sequence
    known.offset = offset
    if (payload && known.payload === 0) {
      known.payload = sequence
      known.payloadAt = offset
    }
    if (entry.type === deletedType) {
      const deletedThrough = (itemOf(entry).p as { readonly through?: unknown } | null)?.through
      if (!Number.isSafeInteger(deletedThrough) || Number(deletedThrough) >= sequence || Number(deletedThrough) < 1) {
        const message = `event ${sequence} of "${entityId}" says that events up to ${deletedThrough} are deleted, which it cannot`
        found({ kind: "unreadable", ...place, message, remedy })
        return true
      }
      known.deletedThrough = Math.max(known.deletedThrough, Number(deletedThrough))
      if (known.payload > 0 && known.payload <= known.deletedThrough) known.left = known.payloadAt
      // Later deletions reach further.
      known.payload = 0
    }
    return true
  }

  /** The events of some rows; what is not readable is named. */
  const decoded = (
    entityId: string,
    rows: ReadonlyArray<{ readonly sequence: number; readonly events: string | null }>
  ) => {
    const entries: Array<Entry> = []
    for (const { events, sequence } of rows) {
      const unreadable = (what: unknown) => {
        const message = `the index row of "${entityId}" that begins with event ${sequence} is not readable: ${what}`
        found({ kind: "unreadable", table: "entity_events", entityId, sequence, message, remedy: rebuild })
      }
      try {
        const row = decodeIndexRow(entityId, events ?? "null")
        if (row.some((entry, i) => entry.sequence !== sequence + i)) unreadable("its events do not count on from there")
        else entries.push(...row)
      } catch (cause) {
        unreadable(cause)
      }
    }
    return entries
  }

  /** The events of the index rows of an entity that can hold those from one to another. */
  const indexEntries = Effect.fnUntraced(function* (entityId: string, from: number, to: number) {
    const entries: Array<Entry> = []
    for (let partition = partitionOf(from); partition <= partitionOf(to); partition++) {
      const rows = yield* scans.indexRows(entityType, { entityId, generation, partition }, rowStart(from), to)
      entries.push(...decoded(entityId, rows))
    }
    return entries
  })

  const compare = Effect.fnUntraced(function* (entityId: string, entries: ReadonlyArray<Entry>) {
    const first = entries[0]!.sequence
    const last = entries.at(-1)!.sequence
    const copies = new Map<number, Array<Entry>>()
    for (const copy of yield* indexEntries(entityId, first, last)) {
      const present = copies.get(copy.sequence)
      if (present === undefined) copies.set(copy.sequence, [copy])
      else present.push(copy)
    }
    const known = seen.get(entityId)!
    let missing: Entry | undefined
    let missed = 0
    for (const entry of entries) {
      const { offset, sequence } = entry
      const mirrored = copies.get(sequence)
      if (mirrored === undefined) {
        if (offset > watermark) continue
        missing ??= entry
        missed++
        continue
      }
      for (const copy of mirrored) {
        const place = { table: "entity_events", entityId, sequence, offset, remedy: rebuild } as const
        if (copy.offset !== offset || copy.stamp !== entry.stamp) {
          const message = `event ${sequence} of "${entityId}" has offset ${copy.offset} and stamp ${copy.stamp} in the index, ${offset} and ${entry.stamp} in the log`
          found({ kind: "different", ...place, message })
        } else if (isDeleted(copy) !== isDeleted(entry)) {
          if (isDeleted(copy)) known.indexDeleted = Math.max(known.indexDeleted, sequence)
          else if (known.indexPayload === 0 || sequence < known.indexPayload) known.indexPayload = sequence
        } else if (contentOf(copy) !== contentOf(entry)) {
          const message = `event ${sequence} of "${entityId}" is another in the index than in the log (offset ${offset})`
          found({ kind: "different", ...place, message })
        }
      }
    }
    if (missing !== undefined) {
      const { offset, sequence } = missing
      const more = missed > 1 ? ` and ${missed - 1} more` : ""
      const message = `event ${sequence} of "${entityId}"${more} is not in the index, which should be complete up to offset ${watermark} (offset ${offset})`
      found({ kind: "missing", table: "entity_events", entityId, sequence, offset, message, remedy: rebuild })
    }
  })

  let window = new Map<string, Array<Entry>>()
  let inWindow = 0
  const compareWindow = Effect.suspend(() => {
    const entities = [...window].filter(([entityId]) => seen.has(entityId))
    window = new Map()
    inWindow = 0
    return Effect.forEach(entities, ([entityId, entries]) => compare(entityId, entries), { concurrency, discard: true })
  })

  // ------------------------------------------------------------------------------------ after it: what is derived

  /** The newest event that the log has now, for what was not there on the way. */
  const laterHead = (position: number) =>
    Effect.gen(function* () {
      let head = position
      for (const place of yield* Stream.runCollect(
        Stream.filter(scans.logPartitions(entityType), (one) => one.shard === shard && one.generation === 1)
      )) {
        head = Math.max(head, (yield* headOf(place)) ?? 0)
      }
      return head
    })

  /** Events in the index that the log does not have; those that came since the walk are none. */
  const checkBeyond = Effect.fnUntraced(function* (entityId: string, beyond: ReadonlyArray<Entry>, position: number) {
    if (beyond.length === 0) return
    const head = yield* laterHead(position)
    const wrong = beyond.find(({ offset }) => offset <= position || offset > head)
    if (wrong === undefined) return
    const { offset, sequence } = wrong
    const place = { table: "entity_events", entityId, sequence, offset, remedy: rebuild } as const
    const what = `the index has event ${sequence} of "${entityId}" at offset ${offset}`
    if (offset > head) found({ kind: "ahead", ...place, message: `${what}, the log ends at ${head}` })
    else found({ kind: "different", ...place, message: `${what}, where the log does not have it` })
  })

  /** What the index has of an entity after its last event. */
  const checkTail = Effect.fnUntraced(function* (entityId: string, last: number, position: number) {
    const entries = yield* indexEntries(entityId, last + 1, (partitionOf(last + 1) + 1) * partitionEvents)
    const beyond = entries.filter(({ sequence }) => sequence > last)
    yield* checkBeyond(entityId, beyond, position)
  })

  /** What the index has where nobody would look for it. */
  const checkStray = Effect.fnUntraced(function* (entityId: string, partition: number, position: number) {
    const all = [Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER] as const
    const rows = yield* scans.indexRows(entityType, { entityId, generation, partition }, ...all)
    yield* checkBeyond(entityId, decoded(entityId, rows), position)
  })

  /** Whether the event at an offset has its payload still: a deletion may have been under way. */
  const hasPayload = (offset: number) =>
    reader.find(offset, true).pipe(
      Effect.map((at) => at?.block.entries.some((entry) => entry.offset === offset && !isDeleted(entry)) ?? true),
      Effect.orElseSucceed(() => true)
    )

  const checkDeletion = Effect.fnUntraced(function* (entityId: string, known: Seen, pending: boolean) {
    const place = { table: "event_log", entityId } as const
    const remedy = pending ? `finish it: ${finish}` : `delete again: journal delete ${entityType} ${entityId}`
    if (known.left !== undefined && (yield* hasPayload(known.left))) {
      const message = `a deletion of events of "${entityId}" up to ${known.deletedThrough} is not finished: the log has a payload at offset ${known.left}`
      return found({ kind: "deletion", ...place, offset: known.left, message, remedy })
    }
    if (known.indexDeleted > known.deletedThrough) {
      const sequence = known.indexDeleted
      const message = `event ${sequence} of "${entityId}" has a payload in the log and none in the index, and was not deleted`
      return found({ kind: "different", table: "entity_events", entityId, sequence, message, remedy: rebuild })
    }
    if (known.indexPayload === 0) return
    // It may have been under way.
    const sequence = known.indexPayload
    const copies = yield* indexEntries(entityId, sequence, sequence)
    if (!copies.some((copy) => copy.sequence === sequence && !isDeleted(copy))) return
    const message = `a deletion of events of "${entityId}" is not finished: the index has the payload of event ${sequence}`
    const again = pending ? remedy : rebuild
    found({ kind: "deletion", table: "entity_events", entityId, sequence, message, remedy: again })
  })

  const checkSnapshots = Effect.fnUntraced(function* (entityId: string, position: number) {
    const known = seen.get(entityId)
    for (const { encoding, epoch, offset, sequence, state, version } of yield* scans.snapshots(entityType, entityId)) {
      const wrong = (kind: Finding["kind"], message: string) =>
        found({
          kind,
          table: "snapshots",
          entityId,
          sequence,
          message: `the snapshot of "${entityId}" after event ${sequence} ${message}`,
          remedy: "remove its row: states are computed from the events again"
        })
      if (!(epoch >= 1) || !(offset >= 1) || !(version >= 1) || sequence < 1 || state === null) {
        wrong("unreadable", "is damaged: it lacks a column or has an impossible one")
        continue
      }
      // Those of earlier epochs are not used.
      if (epoch < record.epoch) continue
      if (epoch > record.epoch) {
        wrong("ahead", `is of epoch ${epoch}, the entity type is in epoch ${record.epoch}`)
        continue
      }
      if (encoding === null && Result.isFailure(Result.try(() => JSON.parse(state)))) {
        wrong("unreadable", "is not readable: its state is not JSON")
      }
      if (known === undefined || sequence > known.last || offset > position) {
        const head = yield* laterHead(position)
        if (offset > head) wrong("ahead", `was made at offset ${offset}, the log ends at ${head}`)
        // It may be of events that came since.
        else if (offset <= position) {
          wrong("ahead", `stands for more than the ${known?.last ?? 0} events that the entity has at offset ${offset}`)
        }
        continue
      }
      const around = yield* indexEntries(entityId, sequence, sequence + 1)
      const own = around.find((entry) => entry.sequence === sequence)
      const following = around.find((entry) => entry.sequence === sequence + 1)
      if ((own !== undefined && own.offset > offset) || (following !== undefined && following.offset <= offset)) {
        wrong(
          "different",
          `says that it stands for everything up to offset ${offset}, where the entity has other events (${own?.offset ?? "?"}, ${following?.offset ?? "none"})`
        )
      }
    }
  })

  let events = 0
  let entities = 0
  let head = 0
  for (let first = true; ; first = false) {
    let atWatermark = watermark <= 0
    // Of a log that is read again the findings are known.
    const onLog = first ? found : () => {}
    const misplaced = new Set<string>()
    head = yield* walkLog(store, log, record, partitions, through, now, onLog, ({ entries, lost }) =>
      Effect.gen(function* () {
        const end = entries.at(-1)!.offset
        if (end === watermark) atWatermark = true
        if (first) events += entries.length
        for (const entry of entries) {
          const { entityId, offset } = entry
          if (first && !mine(entityId) && !misplaced.has(entityId) && misplaced.size < 1000) {
            misplaced.add(entityId)
            const message = `event ${entry.sequence} of "${entityId}" stands at offset ${offset}, the entity belongs to shard ${shardOf(entityId, record.shards)}`
            const remedy = "the type was used with another number of shards, or by another program: restore event_log"
            onLog({ kind: "misplaced", table: "event_log", entityId, offset, message, remedy })
          }
          if (!inSlice(entityId) || !follow(entry, lost)) continue
          if (seen.size > maxEntities) split()
          const own = window.get(entityId)
          if (own === undefined) window.set(entityId, [entry])
          else own.push(entry)
          inWindow++
        }
        if (inWindow >= windowEvents) yield* compareWindow
        yield* onProgress({ what: "verify", entityType, shard, done: end, total: through })
      })
    )
    yield* compareWindow
    entities += seen.size
    if (first && watermark > head) {
      const message = `the index says that it is complete up to offset ${watermark}, the log ends at ${head}`
      const remedy = `if an older backup was restored: journal accept-restore ${entityType}; else restore event_log`
      found({ kind: "ahead", table: "index_watermarks", offset: watermark, message, remedy })
    } else if (first && !atWatermark && watermark > 0) {
      const message = `the index says that it is complete up to offset ${watermark}, where no block ends`
      found({ kind: "different", table: "index_watermarks", offset: watermark, message, remedy: rebuild })
    }

    const said = (yield* scans.heads(entityType)).find((one) => one.shard === shard)?.offset ?? 0
    if (first && said > head && said > (yield* laterHead(head))) {
      const message = `processes have said that the log ends at ${said}, it ends at ${head}`
      const remedy = `if an older backup was restored: journal accept-restore ${entityType}; else remove the row`
      found({ kind: "ahead", table: "log_heads", offset: said, message, remedy })
    }

    const pending = yield* scans.deletions(entityType, shard)
    yield* Effect.forEach(
      seen,
      ([entityId, known]) =>
        Effect.andThen(
          checkTail(entityId, known.last, head),
          checkDeletion(
            entityId,
            known,
            pending.some((one) => one.entityId === entityId)
          )
        ),
      { concurrency, discard: true }
    )
    for (const { entityId, marker, through } of pending) {
      if (!inSlice(entityId)) continue
      const known = seen.get(entityId)
      const place = { table: "deletions", entityId, sequence: marker, remedy: `finish it: ${finish}` } as const
      if (!(marker >= 2) || !(through >= 1) || through >= marker || !mine(entityId)) {
        const message = `a deletion of events of "${entityId}" up to ${through}, to be logged as event ${marker}, cannot be`
        found({ kind: "unreadable", ...place, message })
      } else if (known === undefined || known.last < marker) {
        const message = `a deletion of events of "${entityId}" up to ${through} was begun and not logged: it is under way, or nothing was deleted`
        found({ kind: "deletion", ...place, message })
      } else if (known.left === undefined && known.indexPayload === 0) {
        const message = `a deletion of events of "${entityId}" up to ${through} is not finished`
        found({ kind: "deletion", ...place, message })
      }
    }
    // Whatever the tables have of entities that the log does not know, or where nobody looks for it.
    yield* Stream.runForEach(
      Stream.filter(
        scans.indexPartitions(entityType),
        (one) => one.generation === generation && mine(one.entityId) && inSlice(one.entityId)
      ),
      ({ entityId, partition }) => {
        const last = seen.get(entityId)?.last ?? 0
        return partition < 0 || partition > partitionOf(last + 1) || last === 0
          ? checkStray(entityId, partition, head)
          : Effect.void
      }
    )
    yield* Stream.runForEach(
      Stream.filter(scans.snapshotEntities(entityType), (entityId) => mine(entityId) && inSlice(entityId)),
      (entityId) => checkSnapshots(entityId, head)
    )
    seen.clear()
    const next = others.pop()
    if (next === undefined) return { head, watermark, events, entities }
    ;[slice, slices] = next
  }
})
