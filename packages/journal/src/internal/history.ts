/** What is stored of one entity: the newest snapshot, the index after it, and what this process holds in memory. */
import { type Clock, Effect, Option, Result } from "effect"
import type { EntityKey, EventEnvelope, KnownCommand, Loaded, LoadOptions, Snapshot } from "../Journal.ts"
import { DataCorrupt, DataLost, JournalError } from "../JournalError.ts"
import { deletedType, type Entry, isDeletable, itemOf } from "./block.ts"
import { readIndex } from "./entityIndex.ts"
import { attempt, type EventFormat } from "./events.ts"
import { storeFailure } from "./failure.ts"
import type { ShardLog } from "./shardLog.ts"
import type { Store, StoredSnapshot, TypeRecord } from "./store.ts"

/** How far back commands are known again. */
export interface Window {
  readonly events: number
  readonly millis: number
}

const damaged = (log: ShardLog, entityId: string, what: string) =>
  new JournalError({
    reason: new DataCorrupt({
      ...log.log,
      message: `the history of ${log.log.entityType} "${entityId}" is damaged: ${what}`
    })
  })

/** The entity's events after a sequence number, up to an offset: each once and without a hole. */
const entriesAfter = Effect.fnUntraced(function* (store: Store, log: ShardLog, entityId: string, after: number) {
  // Memory first: what leaves it while the index is read is in the index by then.
  const recent = log.unindexed(entityId)
  const found = yield* readIndex(store, log.log, recent.generation, entityId, after, recent.through)
  for (const entry of recent.entries) if (entry.sequence > after) found.push(entry)
  // Rows of several writers may overlap.
  if (found.some((entry, i) => i > 0 && entry.sequence !== found[i - 1]!.sequence + 1)) {
    found.sort((a, b) => a.sequence - b.sequence)
  }
  const entries: Array<Entry> = []
  let last: Entry | undefined
  for (const entry of found) {
    if (entry.sequence === last?.sequence) {
      if (entry.offset !== last.offset) {
        const what = `event ${entry.sequence} stands at offsets ${last.offset} and ${entry.offset}`
        return yield* damaged(log, entityId, what)
      }
      // Of a deleted event there may be a copy that a slower process wrote.
      if (entry.item?.d === 1) entries[entries.length - 1] = entry
      continue
    }
    const expected = (last?.sequence ?? after) + 1
    if (entry.sequence !== expected) {
      return yield* damaged(log, entityId, `event ${expected} is missing, ${entry.sequence} is there`)
    }
    last = entry
    entries.push(entry)
  }
  return { entries, through: recent.through }
})

/** The newest snapshot that can be read, at a sequence number or before. */
const newestSnapshot = Effect.fnUntraced(function* (
  store: Store,
  record: TypeRecord,
  log: ShardLog,
  format: EventFormat,
  entity: EntityKey,
  upTo: number
) {
  const { entityId, entityType } = entity
  let found: StoredSnapshot | undefined
  for (let sequence = upTo; ; sequence = found.sequence - 1) {
    found = yield* store.readSnapshot(entityType, entityId, sequence).pipe(Effect.mapError(storeFailure))
    if (found === undefined) return undefined
    // One of another epoch may rest on events that are no more.
    if (found.epoch !== record.epoch) continue
    if (found.offset > log.head) {
      yield* log.sync
      if (found.offset > log.head) {
        const message = `${entityType} "${entityId}" has a snapshot at offset ${found.offset}, its log ends at ${log.head}`
        return yield* new JournalError({ reason: new DataLost({ ...log.log, message }) })
      }
    }
    const state = format.decodeState(found, entity)
    if (Result.isSuccess(state)) {
      const { offset, sequence, version } = found
      return { sequence, validThrough: offset, version, state: state.success } satisfies Snapshot
    }
    yield* Effect.logWarning(
      `the snapshot of ${entityType} "${entityId}" at ${found.sequence} is passed over: ${state.failure}`
    )
  }
})

export const load = Effect.fnUntraced(function* (
  store: Store,
  record: TypeRecord,
  log: ShardLog,
  format: EventFormat,
  window: Window,
  clock: Clock.Clock,
  entity: EntityKey,
  options: LoadOptions
): Effect.fn.Return<Loaded, JournalError> {
  const { entityId, entityType } = entity
  let snapshot =
    options.after === undefined
      ? yield* newestSnapshot(
          store,
          record,
          log,
          format,
          entity,
          Math.max(0, options.snapshotsUpTo ?? Number.MAX_SAFE_INTEGER)
        )
      : undefined
  const start = options.after?.sequence ?? snapshot?.sequence ?? 0
  const after = options.commands === true && options.after === undefined ? Math.max(0, start - window.events) : start
  const recent = options.after === undefined ? undefined : log.recent(entityId, after)
  const { entries, through } =
    recent === undefined ? yield* entriesAfter(store, log, entityId, after) : { entries: recent, through: log.head }
  const sequence = entries.at(-1)?.sequence ?? start
  if (sequence < start) {
    return yield* damaged(log, entityId, `there is a snapshot after event ${start}, and no event after ${sequence}`)
  }

  const commands = new Map<string, KnownCommand>()
  let deletedThrough = 0
  const oldest = (clock.currentTimeMillisUnsafe() - window.millis) * 1000
  // Without a command in the window it begins after the newest event.
  let commandsFrom = { sequence: sequence + 1, stamp: sequence === 0 ? 0 : oldest }
  for (const entry of entries) {
    if (entry.type === deletedType) {
      const deleted = (itemOf(entry).p as { readonly through: number }).through
      deletedThrough = Math.max(deletedThrough, deleted)
      // A state before a deletion of everything is deleted too.
      if (deleted === entry.sequence - 1 && snapshot !== undefined && snapshot.sequence < entry.sequence) {
        snapshot = undefined
      }
    }
    if (options.commands === true && entry.sequence > sequence - window.events && entry.stamp >= oldest) {
      if (entry.sequence < commandsFrom.sequence) {
        // The one before is out of the window by count or by age.
        const first = sequence - window.events + 1
        const stamp = entry.sequence === 1 ? 0 : entry.sequence === first ? entry.stamp : oldest
        commandsFrom = { sequence: entry.sequence, stamp }
      }
      const { a, m } = itemOf(entry)
      if (m?.commandId !== undefined) commands.set(m.commandId, { sequence: entry.sequence, answer: a })
    }
  }
  const events = yield* attempt(() => {
    const list: Array<EventEnvelope> = []
    for (const entry of entries) {
      if (entry.sequence <= start) continue
      list.push(format.envelope(entityType, log.log.shard, entry, isDeletable(entry, deletedThrough)))
    }
    return list
  })
  return {
    snapshot: Option.fromUndefinedOr(snapshot),
    events,
    commands,
    commandsFrom,
    deletedThrough,
    sequence,
    validThrough: through
  }
})
