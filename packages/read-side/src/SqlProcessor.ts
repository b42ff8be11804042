/**
 * Processors that keep their view in a SQL database: view and offset are stored in one transaction, so that every event is
 * in the view exactly once.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import { Effect, Exit, Result, Semaphore } from "effect"
import { SqlClient } from "effect/sql"
import { provideBelow } from "./internal/effects.ts"
import { makeDecode } from "./internal/events.ts"
import { handlerFailure } from "./internal/failures.ts"
import type { Open, Outcome, Reached } from "./internal/sink.ts"
import { type Common, define, type FailurePolicy, type Handlers, type Processor, type ServicesOf } from "./Processor.ts"
import { ReadSideError, RequestRefused, SqlFailure } from "./ReadSideError.ts"

/** Where the offsets are, in the SQL database. */
const table = "read_side_offsets"

const sqlFailure = (cause: unknown) =>
  new ReadSideError({
    reason: new SqlFailure({ message: cause instanceof Error ? cause.message : String(cause), cause })
  })

/** What is done here is rolled back. */
class Outrun {
  readonly _tag = "Outrun"
  readonly message = "another process has come further with this shard meanwhile"
}

/** A shard's row. */
interface Row {
  readonly entity_type: string
  readonly shard: number
  readonly generation: number | bigint
  readonly epoch: number | bigint
  readonly last_offset: number | bigint
  readonly last_retried: number | bigint
  readonly change_id: string
}

type Stored = Reached & { readonly retried: number }

/** Before all epochs: of a row whose tables were emptied, and that has no event since. */
const none = -1

/**
 * Runs an Effect for each event, in a transaction of the `SqlClient`, together with the offset.
 *
 * **Example**
 *
 * ```ts
 * const Orders = SqlProcessor.make("orders", {
 *   entityType: "Order",
 *   events: [Placed],
 *   prepare: Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE TABLE IF NOT EXISTS orders (id text PRIMARY KEY, cents int)`),
 *   handlers: {
 *     Placed: ({ cents }, { entityId }) =>
 *       Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO orders ${sql.insert({ id: entityId, cents })}`)
 *   }
 * })
 * ```
 */
export const make = <
  const Event extends EventSchema,
  const H extends Handlers<Event["Type"], Effect.Effect<unknown, unknown, any>>
>(
  name: string,
  definition: Omit<Common, "tables" | "migrations"> & {
    readonly events: ReadonlyArray<Event>
    readonly handlers: H
    /** Their names, for `rewind` with truncate, which empties them in the transaction that puts the offsets back. */
    readonly tables?: ReadonlyArray<string> | undefined
    /** Makes the tables of the view where they are missing; run before the first event, by each process. */
    readonly prepare?: Effect.Effect<unknown, unknown, SqlClient.SqlClient> | undefined
    readonly onFailure?: FailurePolicy | undefined
  }
): Processor<ServicesOf<H> | SqlClient.SqlClient> => {
  type R = ServicesOf<H> | SqlClient.SqlClient
  const decode = makeDecode(name, definition.events, Object.keys(definition.handlers))
  const handlers = definition.handlers as Record<
    string,
    (event: unknown, envelope: EventEnvelope) => Effect.Effect<unknown, unknown, R>
  >
  // A shard at a time: that is what small databases and their connections bear.
  const preparing = Semaphore.makeUnsafe(1)
  const prepared = new WeakSet<SqlClient.SqlClient>()

  const tables = definition.tables ?? []
  if (tables.some((name) => name === "" || name === table)) {
    throw new Error(`processor "${name}" cannot empty ${JSON.stringify(tables)}: give the names of its own tables`)
  }
  const entityTypes = typeof definition.entityType === "string" ? [definition.entityType] : definition.entityType

  /** Empties the tables, if nobody has done so for this generation; who is at work with an older one is rolled back. */
  const empty = (sql: SqlClient.SqlClient, processor: string, generation: number, shards: number) =>
    Effect.gen(function* () {
      const change = crypto.randomUUID()
      const emptied = { generation, epoch: none, last_offset: 0, last_retried: 0, change_id: change }
      // First, so that transactions under way end before, and what they have written is seen.
      yield* sql`UPDATE ${sql(table)} SET ${sql.update(emptied)}
                 WHERE processor = ${processor} AND generation < ${generation}`
      const rows = yield* sql<Row>`SELECT entity_type, shard, generation, change_id FROM ${sql(table)}
                                   WHERE processor = ${processor}`
      for (const entity_type of entityTypes) {
        for (let shard = 0; shard < shards; shard++) {
          if (rows.some((row) => row.entity_type === entity_type && row.shard === shard)) continue
          yield* sql`INSERT INTO ${sql(table)} ${sql.insert({ processor, entity_type, shard, ...emptied })}`
        }
      }
      if (rows.some((row) => row.change_id !== change)) return
      for (const name of tables) yield* sql`DELETE FROM ${sql(name)}`
    }).pipe(sql.withTransaction)

  const open: Open<R> = Effect.fnUntraced(function* ({ epoch: current, generation, place, shards }) {
    const sql = yield* SqlClient.SqlClient
    const context = yield* Effect.context<R>()
    const { entityType, processor, shard } = place
    yield* Effect.suspend(() =>
      prepared.has(sql)
        ? Effect.void
        : Effect.andThen(
            sql`CREATE TABLE IF NOT EXISTS ${sql(table)} (
              processor VARCHAR(200) NOT NULL, entity_type VARCHAR(200) NOT NULL, shard INT NOT NULL,
              generation BIGINT NOT NULL, epoch BIGINT NOT NULL, last_offset BIGINT NOT NULL,
              last_retried BIGINT NOT NULL, change_id VARCHAR(36) NOT NULL,
              PRIMARY KEY (processor, entity_type, shard))`,
            Effect.andThen(
              definition.prepare ?? Effect.void,
              Effect.sync(() => prepared.add(sql))
            )
          )
    ).pipe(Effect.mapError(sqlFailure), preparing.withPermits(1))

    const key = sql.and([sql`processor = ${processor}`, sql`entity_type = ${entityType}`, sql`shard = ${shard}`])
    let stored: Stored | undefined
    const read = Effect.map(sql<Row>`SELECT * FROM ${sql(table)} WHERE ${key}`, ([row]) => row)
    const reached = Effect.gen(function* () {
      let row = yield* read
      if (generation > Number(row?.generation ?? 0)) {
        yield* empty(sql, processor, generation, shards)
        row = yield* read
      }
      if (row !== undefined && Number(row.generation) > generation) {
        const message = `a request for processor "${processor}" is not known here yet`
        return yield* Effect.fail(new ReadSideError({ reason: new RequestRefused({ message }) }))
      }
      stored =
        row === undefined
          ? undefined
          : { epoch: Number(row.epoch), offset: Number(row.last_offset), retried: Number(row.last_retried) }
      return stored?.epoch === none ? undefined : stored
    }).pipe(Effect.mapError((error) => (error instanceof ReadSideError ? error : sqlFailure(error))))

    /** Moves the row on from where this process left it; the transaction fails if another has moved it. */
    const store = Effect.fnUntraced(function* (next: Stored) {
      const change = crypto.randomUUID()
      const values = { epoch: next.epoch, last_offset: next.offset, last_retried: next.retried, change_id: change }
      if (stored === undefined) {
        const row = { processor, entity_type: entityType, shard, generation, ...values }
        yield* sql`INSERT INTO ${sql(table)} ${sql.insert(row)}`
        return
      }
      const { epoch, offset, retried } = stored
      const unmoved = sql.and([
        key,
        sql`generation = ${generation}`,
        sql`epoch = ${epoch}`,
        sql`last_offset = ${offset}`,
        sql`last_retried = ${retried}`
      ])
      yield* sql`UPDATE ${sql(table)} SET ${sql.update(values)} WHERE ${unmoved}`
      // How many rows a statement changed is told by each database in its own way; whose change stands there is not.
      const row = yield* read
      if (row?.change_id !== change) return yield* Effect.fail(new Outrun())
    })

    /** The row after some events; one that was put aside does not move the offset. */
    const rowAfter = (events: ReadonlyArray<EventEnvelope>, retried: boolean): Stored => {
      const { offset } = events.at(-1)!
      return retried
        ? { epoch: stored?.epoch ?? current, offset: stored?.offset ?? 0, retried: offset }
        : { epoch: current, offset, retried: stored?.retried ?? 0 }
    }

    /** Some events and the row after them, all or nothing. */
    const transact = (events: ReadonlyArray<EventEnvelope>, next: Stored) => {
      let at: EventEnvelope | undefined
      const run = Effect.gen(function* () {
        let written = 0
        // First, so that of two processes the second one waits, and then sees that it came too late.
        yield* store(next)
        for (const envelope of events) {
          const decoded = decode(envelope)
          at = envelope
          if (Result.isFailure(decoded)) return yield* Effect.fail(decoded.failure)
          for (const event of decoded.success) {
            const handler = handlers[event._tag]
            if (handler === undefined) continue
            written++
            yield* handler(event, envelope)
          }
        }
        at = undefined
        return written
      })
      return Effect.map(Effect.exit(sql.withTransaction(run).pipe(provideBelow(context))), (exit) => ({
        exit,
        at
      }))
    }

    const handle = (events: ReadonlyArray<EventEnvelope>, retried: boolean): Effect.Effect<Outcome> =>
      Effect.gen(function* () {
        const last = events.at(-1)!.offset
        const there = retried ? 0 : stored?.epoch === current ? stored.offset : 0
        // Another process may have been here, or this one before it could say so.
        if (there >= last || (retried && stored?.retried === last)) return { done: last, written: 0 }
        if (there >= events[0]!.offset)
          return yield* handle(
            events.filter(({ offset }) => offset > there),
            retried
          )
        const before = events[0]!.offset - 1
        const next = rowAfter(events, retried)
        const { at, exit } = yield* transact(events, next)
        if (Exit.isSuccess(exit)) {
          stored = next
          return { done: last, written: exit.value }
        }
        if (Exit.hasInterrupts(exit)) return yield* Effect.interrupt
        if (at !== undefined) {
          const failure = { error: handlerFailure(name, at, exit.cause), event: at }
          // The events before the one that failed are stored without it.
          const good = events.filter(({ offset }) => offset < at.offset)
          if (good.length === 0) return { done: before, written: 0, failure }
          const outcome = yield* handle(good, retried)
          return outcome.failure === undefined ? { ...outcome, failure } : outcome
        }
        // Where the view stands now is asked before the next try.
        const now = yield* Effect.result(reached)
        if (Result.isFailure(now))
          return { done: before, written: 0, failure: { error: now.failure, event: undefined } }
        const moved = retried ? stored?.retried === last : now.success?.epoch === current && now.success.offset > before
        if (moved) return yield* handle(events, retried)
        return { done: before, written: 0, failure: { error: sqlFailure(causeOf(exit)), event: undefined } }
      })

    return { handle, reached }
  })
  return {
    ...define(name, { ...definition, tables: [] }, definition.onFailure, open),
    truncates: tables.length > 0
  }
}

const causeOf = (exit: Exit.Failure<unknown, unknown>): unknown => {
  const reason = exit.cause.reasons[0]
  return reason?._tag === "Fail" ? reason.error : reason?._tag === "Die" ? reason.defect : exit.cause
}
