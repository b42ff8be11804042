/**
 * Deletes payloads: first the fact is logged, then they are taken out of the log's blocks by conditional updates, out of the
 * index, and snapshots go. Every step can be done again, by whoever finds a deletion that was not completed.
 */
import { Effect } from "effect"
import type { EntityKey, Loaded, LoadOptions } from "../Journal.ts"
import type { JournalError } from "../JournalError.ts"
import { afterDeletion, deletedType, encodeBlock, isDeletable } from "./block.ts"
import { deleteFromIndex, readIndex } from "./entityIndex.ts"
import { corrupt, storeFailure } from "./failure.ts"
import type { ShardLog } from "./shardLog.ts"
import type { Deletion, Store } from "./store.ts"

/** Takes the payloads of an entity's events out of the block that holds an offset; gives the block's last offset. */
const deleteFromBlock = Effect.fnUntraced(function* (store: Store, log: ShardLog, deletion: Deletion, offset: number) {
  for (;;) {
    const found = yield* log.reader.find(offset, true)
    if (found === undefined) return yield* corrupt(log.log, `no block holds offset ${offset}, which the index names`)
    const { block, stored } = found
    const { entityId, through } = deletion
    if (!block.entries.some((entry) => entry.entityId === entityId && isDeletable(entry, through))) return block.to
    const events = encodeBlock(
      block.entries.map((entry) => (entry.entityId === entityId ? afterDeletion(entry, through) : entry))
    )
    const revised = yield* store
      .reviseBlock(log.log, block.place, { ...stored, events })
      .pipe(Effect.mapError(storeFailure))
    if (revised) return block.to
  }
})

/** Does what is left to do of a deletion whose fact is in the log. */
export const carryOut = Effect.fnUntraced(function* (
  store: Store,
  log: ShardLog,
  deletion: Deletion
): Effect.fn.Return<void, JournalError> {
  const { entityId, marker, through } = deletion
  const { entityType } = log.log
  // The events that this process holds reach the index without their payloads: the one in use, which may be another by then.
  let { generation } = log
  for (;;) {
    yield* log.index.pipe(Effect.mapError(storeFailure))
    if (generation === log.generation) break
    generation = log.generation
  }
  const entries = yield* readIndex(store, log.log, generation, entityId, 0, log.head)
  let done = 0
  for (const { offset, sequence } of entries) {
    if (sequence <= through && offset > done) done = yield* deleteFromBlock(store, log, deletion, offset)
  }
  yield* deleteFromIndex(store, log.log, generation, entityId, through).pipe(
    Effect.catchTag("CassandraError", (error) => Effect.fail(storeFailure(error)))
  )
  // The snapshot at `through` itself stands for what is deleted, unless all is.
  const whole = through === marker - 1
  yield* store
    .removeSnapshots(entityType, entityId, whole ? through : through - 1)
    .pipe(Effect.andThen(store.removeDeletion(log.log, deletion)), Effect.mapError(storeFailure))
})

/** What became of a deletion that some process had begun. */
export type Outcome = "finished" | "not logged" | "void"

/**
 * Goes on with a deletion that a process began which is no more. One that was not logged may be about to be; another event
 * may also have taken its place, then it is void.
 */
export const goOn = Effect.fnUntraced(function* (
  store: Store,
  log: ShardLog,
  load: (entity: EntityKey, options: LoadOptions) => Effect.Effect<Loaded, JournalError>,
  deletion: Deletion
): Effect.fn.Return<Outcome, JournalError> {
  yield* log.sync
  const { entityId, marker, through } = deletion
  // With the events from the marker on, which may be behind a snapshot.
  const { events, sequence } = yield* load(
    { entityType: log.log.entityType, entityId },
    { snapshotsUpTo: Math.max(0, marker - 1) }
  )
  if (sequence < marker) return "not logged"
  const fact = events.find((event) => event.sequence === marker)
  if (fact?.type === deletedType && (fact.payload as Deletion).through === through) {
    yield* carryOut(store, log, deletion)
    return "finished"
  }
  yield* store.removeDeletion(log.log, deletion).pipe(Effect.mapError(storeFailure))
  return "void"
})
