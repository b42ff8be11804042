/** Computes the index of entities anew from the log, beside the one in use; services go over to it when it is complete. */
import { Effect } from "effect"
import type { Progress } from "../JournalAdmin.ts"
import type { JournalError } from "../JournalError.ts"
import { EntityIndex } from "./entityIndex.ts"
import { lost, storeFailure } from "./failure.ts"
import { type Cursor, firstPlace, LogReader, placeAfter } from "./logReader.ts"
import type { LogId, Place, Store, TypeRecord } from "./store.ts"

/** Events in memory before they are written. */
const batch = 10_000

/** Where a log ends. */
interface End {
  readonly head: number
  /** Of the last event, in microseconds; 0 when there is none. */
  readonly stamp: number
  /** Of the next block. */
  readonly place: Place
}

/** Finds the end of a log from a place on that is not behind it. */
export const endOf = Effect.fnUntraced(function* (store: Store, log: LogId, record: TypeRecord, start: Cursor) {
  let end: End = { head: start.after, stamp: 0, place: start.place }
  for (;;) {
    const { place } = end
    const head = yield* store.readHead(log, place, true).pipe(Effect.mapError(storeFailure))
    if (head === null) return end
    const [last] = yield* store.readBlocks(log, place, head - 1, 1, true).pipe(Effect.mapError(storeFailure))
    if (last === undefined || last.offset !== head) {
      return yield* lost(
        log,
        `the head of bucket ${place.bucket}, part ${place.part} is ${head}, and no block ends there`
      )
    }
    const next = placeAfter(record, { place, to: head, written: last.written })
    end = { head, stamp: last.stamp, place: next }
    if (next.bucket === place.bucket && next.part === place.part) return end
  }
})

/**
 * Brings a generation of the index up to the end that the log has now, from where it ends: what was begun and broken off goes
 * on there. Gives how many events it took.
 */
export const indexLog = Effect.fnUntraced(function* (
  store: Store,
  log: LogId,
  record: TypeRecord,
  generation: number,
  onProgress: (progress: Progress) => Effect.Effect<void>
): Effect.fn.Return<number, JournalError> {
  const index = new EntityIndex(store, log, generation)
  const reader = new LogReader(store, log, record)
  const start = yield* store.readWatermark(log, generation).pipe(Effect.mapError(storeFailure))
  const found = yield* reader.locate(start, true)
  if (found === undefined)
    return yield* lost(log, `its index is complete up to ${start}, and the log has no event there`)
  let cursor: Cursor = start === 0 ? { after: 0, place: firstPlace } : found
  const { head } = yield* endOf(store, log, record, cursor)
  while (cursor.after < head) {
    const page = yield* reader.demand(cursor, head)
    for (const block of page.blocks) index.add(block.entries)
    cursor = page.cursor
    if (index.count >= batch || cursor.after >= head) {
      yield* index.flush(cursor.after).pipe(Effect.mapError(storeFailure))
      yield* onProgress({ what: "index", ...log, done: cursor.after, total: head })
    }
  }
  return cursor.after - start
})
