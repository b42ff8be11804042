/**
 * The history of each entity, derived from a shard's log: events wait here until they are written, as one row per entity and
 * write, then the watermark moves.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Effect, Exit } from "effect"
import type { JournalError } from "../JournalError.ts"
import {
  afterDeletion,
  decodeIndexRow,
  deletedType,
  type Entry,
  encodeIndexEvent,
  isDeletable,
  itemOf
} from "./block.ts"
import { corrupt, nameOf, storeFailure } from "./failure.ts"
import type { IndexRow, LogId, Store } from "./store.ts"

/** A row's events are cut where the sequence number passes a multiple of this, so that a reader knows where to begin. */
const rowEvents = 100
const rowSize = 64 * 1024
/** Events of an entity per partition; a multiple of `rowEvents`. */
export const partitionEvents = 10_000

export const partitionOf = (sequence: number): number => Math.floor((sequence - 1) / partitionEvents)
const rowOf = (sequence: number): number => Math.floor((sequence - 1) / rowEvents)

/** The lowest sequence number at which the row that holds an event can begin. */
export const rowStart = (sequence: number): number => rowOf(sequence) * rowEvents + 1

/** Rows that are written in one request: the server warns of more than 10 partitions, and of more than 5 KiB. */
const requestRows = 10
const requestSize = 4096
/**
 * Where so many entities wait, the index waits until each has some events: with a row for each event or two, it would cost the
 * server as much as plain INSERTs do. Not with so many events in all, long before appends have to wait for the index.
 */
const manyEntities = 1000
const eventsEach = 8
const manyEvents = 50_000
/** So many writes are remembered, as far as the log's blocks are in memory. */
const maxWritten = 16
/** Requests of a flush at once: few, as appends want the server too, but enough that these do not wait for the index. */
const flushConcurrency = (entities: number) => Math.min(64, Math.max(8, Math.ceil(entities / 100)))

/** The events of an entity, in order, as rows. */
function* rowsOf(entityType: string, entityId: string, entries: ReadonlyArray<Entry>): Generator<IndexRow> {
  const row = (from: number, to: number, events: string): IndexRow => {
    const first = entries[from]!.sequence
    let deleted = 0
    for (let i = from; i < to; i++) if (entries[i]!.item?.d === 1) deleted++
    return {
      entityType,
      entityId,
      partition: partitionOf(first),
      sequence: first,
      lastSequence: entries[to - 1]!.sequence,
      deleted,
      events: `[${events}]`
    }
  }
  let from = 0
  let events = ""
  for (let i = 0; i < entries.length; i++) {
    let text = encodeIndexEvent(entries[i]!)
    if (i > from) {
      if (rowOf(entries[from]!.sequence) === rowOf(entries[i]!.sequence) && events.length + text.length <= rowSize) {
        events += `,${text}`
        continue
      }
      yield row(from, i, events)
      from = i
      // Anew, for it may have been deleted since the row before was asked for.
      text = encodeIndexEvent(entries[i]!)
    }
    events = text
  }
  if (entries.length > 0) yield row(from, entries.length, events)
}

/** The rows of many entities by request, made when they are asked for: all at once would keep the process busy for long. */
function* requestsOf(
  entityType: string,
  entities: Iterable<readonly [entityId: string, entries: ReadonlyArray<Entry>]>
): Generator<Array<IndexRow>> {
  let rows: Array<IndexRow> = []
  let size = 0
  for (const [entityId, entries] of entities) {
    for (const row of rowsOf(entityType, entityId, entries)) {
      if (rows.length === requestRows || (rows.length > 0 && size + row.events.length > requestSize)) {
        yield rows
        rows = []
        size = 0
      }
      rows.push(row)
      size += row.events.length
    }
  }
  if (rows.length > 0) yield rows
}

/** The rows of an entity's history that hold events after a sequence number, page by page; they may overlap. */
const readRows = Effect.fnUntraced(function* (
  store: Store,
  log: LogId,
  generation: number,
  entityId: string,
  after: number,
  onRow: (entries: ReadonlyArray<Entry>) => Effect.Effect<void, CassandraError | JournalError>
) {
  let next = after + 1
  for (let more = true; more; ) {
    const start = rowStart(next)
    const rows = yield* store.readIndexRows(generation, log.entityType, entityId, partitionOf(next), start)
    let last = 0
    for (const { events } of rows) {
      let entries: ReadonlyArray<Entry>
      try {
        entries = decodeIndexRow(entityId, events)
      } catch (cause) {
        return yield* corrupt(log, `the index of "${entityId}" holds a row that is not readable: ${cause}`)
      }
      last = Math.max(last, entries.at(-1)?.sequence ?? 0)
      yield* onRow(entries)
    }
    more = last >= next && last % partitionEvents === 0
    next = last + 1
  }
})

/** What the index holds of an entity after a sequence number, up to an offset; in the order of its rows. */
export const readIndex = Effect.fnUntraced(function* (
  store: Store,
  log: LogId,
  generation: number,
  entityId: string,
  after: number,
  through: number
) {
  const found: Array<Entry> = []
  yield* readRows(store, log, generation, entityId, after, (entries) => {
    for (const entry of entries) if (entry.sequence > after && entry.offset <= through) found.push(entry)
    return Effect.void
  }).pipe(Effect.catchTag("CassandraError", (error) => Effect.fail(storeFailure(error))))
  return found
})

/** Takes the payloads of an entity's events up to a sequence number out of the index. */
export const deleteFromIndex = (store: Store, log: LogId, generation: number, entityId: string, through: number) =>
  readRows(store, log, generation, entityId, 0, (entries) => {
    if (!entries.some((entry) => isDeletable(entry, through))) return Effect.void
    const kept = entries.map((entry) => afterDeletion(entry, through))
    return Effect.forEach(rowsOf(log.entityType, entityId, kept), (row) => store.writeIndexRows(generation, [row]), {
      discard: true
    })
  })

export class EntityIndex {
  readonly #store: Store
  readonly #log: LogId
  readonly #generation: number
  #waiting = new Map<string, Array<Entry>>()
  #writing = new Map<string, Array<Entry>>()
  /** What has been written before that, by whomever, up to which offset each; for states that are only a little behind. */
  #written: Array<{ readonly entries: Map<string, Array<Entry>>; readonly through: number }> = []
  /** Deletions that this process has seen and not yet carried into the rows that it has written. */
  #deletions = new Map<string, number>()
  /** Events that wait. */
  count = 0

  constructor(store: Store, log: LogId, generation: number) {
    this.#store = store
    this.#log = log
    this.#generation = generation
  }

  /** Takes events of the log, in order. */
  add(entries: ReadonlyArray<Entry>): void {
    for (const entry of entries) {
      const waiting = this.#waiting.get(entry.entityId)
      if (waiting === undefined) this.#waiting.set(entry.entityId, [entry])
      else waiting.push(entry)
      if (entry.type === deletedType) this.#delete(entry)
    }
    this.count += entries.length
  }

  /** Whether it can wait some more until it is written. */
  get isPatient(): boolean {
    const { size } = this.#waiting
    return size >= manyEntities && this.count < Math.min(size * eventsEach, manyEvents) && !this.hasDeletions
  }

  get hasDeletions(): boolean {
    return this.#deletions.size > 0
  }

  /** The events of an entity that are not surely in the index yet. */
  entriesOf(entityId: string): ReadonlyArray<Entry> {
    return [...(this.#writing.get(entityId) ?? []), ...(this.#waiting.get(entityId) ?? [])]
  }

  /** The events of an entity after a sequence number, if all of them are in memory. */
  recentOf(entityId: string, after: number): ReadonlyArray<Entry> | undefined {
    const recent: Array<Entry> = []
    for (const map of this.#newestFirst()) {
      const entries = map.get(entityId) ?? []
      for (let i = entries.length - 1; i >= 0; i--) {
        const entry = entries[i]!
        if (entry.sequence > after) recent.push(entry)
        if (entry.sequence <= after + 1) return recent.reverse()
      }
    }
    return undefined
  }

  *#newestFirst(): Generator<Map<string, Array<Entry>>> {
    yield this.#waiting
    yield this.#writing
    for (let i = this.#written.length - 1; i >= 0; i--) yield this.#written[i]!.entries
  }

  #keep(entries: Map<string, Array<Entry>>, through: number): void {
    this.#written.push({ entries, through })
    if (this.#written.length > maxWritten) this.#written.shift()
  }

  /** Forgets what has been written up to an offset, but the last of it. */
  forget(through: number): void {
    while (this.#written.length > 1 && this.#written[0]!.through <= through) this.#written.shift()
  }

  /** Leaves out the events up to an offset, which another process has written. */
  drop(through: number): void {
    const dropped = new Map<string, Array<Entry>>()
    for (const [entityId, entries] of this.#waiting) {
      const count = entries.findIndex(({ offset }) => offset > through)
      if (count === 0) continue
      dropped.set(entityId, count < 0 ? entries : entries.slice(0, count))
      this.count -= count < 0 ? entries.length : count
      if (count < 0) this.#waiting.delete(entityId)
      else this.#waiting.set(entityId, entries.slice(count))
    }
    if (dropped.size > 0) this.#keep(dropped, through)
  }

  #delete(marker: Entry): void {
    const { entityId } = marker
    const { through } = itemOf(marker).p as { readonly through: number }
    for (const map of this.#newestFirst()) {
      const entries = map.get(entityId)
      entries?.forEach((entry, i) => {
        entries[i] = afterDeletion(entry, through)
      })
    }
    this.#deletions.set(entityId, Math.max(through, this.#deletions.get(entityId) ?? 0))
  }

  /** Writes what waits into the index, then the watermark, which is the log's head. One at a time. */
  flush(head: number): Effect.Effect<void, CassandraError> {
    if (this.#waiting.size + this.#deletions.size === 0) return Effect.void
    const entries = this.#waiting
    const { count } = this
    this.#writing = entries
    this.#waiting = new Map()
    this.count = 0
    const deletions = this.#deletions
    this.#deletions = new Map()
    const requests = requestsOf(this.#log.entityType, entries)
    const write: Effect.Effect<void, CassandraError> = Effect.suspend(() => {
      const next = requests.next()
      return next.done === true
        ? Effect.void
        : Effect.andThen(this.#store.writeIndexRows(this.#generation, next.value), write)
    })
    return Effect.all(
      Array.from({ length: flushConcurrency(entries.size) }, () => write),
      {
        concurrency: "unbounded",
        discard: true
      }
    ).pipe(
      Effect.andThen(
        Effect.forEach(
          deletions,
          ([entityId, through]) => deleteFromIndex(this.#store, this.#log, this.#generation, entityId, through),
          { discard: true }
        )
      ),
      Effect.andThen(this.#store.writeWatermark(this.#log, this.#generation, head)),
      Effect.catchTag("JournalError", (error) =>
        Effect.logError(`a deletion in the index of ${nameOf(this.#log)} is not complete: ${error.message}`)
      ),
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (Exit.isFailure(exit)) {
            for (const [entityId, list] of this.#waiting)
              entries.set(entityId, [...(entries.get(entityId) ?? []), ...list])
            this.#waiting = entries
            this.count += count
            for (const [entityId, through] of deletions)
              this.#deletions.set(entityId, Math.max(through, this.#deletions.get(entityId) ?? 0))
          }
          this.#writing = new Map()
          if (Exit.isSuccess(exit)) this.#keep(entries, head)
        })
      )
    )
  }
}
