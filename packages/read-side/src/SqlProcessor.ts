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
import { ReadSideError, SqlFailure } from "./ReadSideError.ts"

/** Where the offsets are, in the SQL database. */
const table = "read_side_offsets"

const sqlFailure = (cause: unknown) =>
  new ReadSideError({
    reason: new SqlFailure({ message: cause instanceof Error ? cause.message : String(cause), cause })
  })

/** Another process has stored an offset in the meantime, so that what was done here is rolled back. */
class Outrun {
  readonly _tag = "Outrun"
}

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
  definition: Omit<Common, "tables"> & {
    readonly events: ReadonlyArray<Event>
    readonly handlers: H
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

  const open: Open<R> = Effect.fnUntraced(function* ({ epoch: current, place }) {
    const sql = yield* SqlClient.SqlClient
    const context = yield* Effect.context<R>()
    const { entityType, processor, shard } = place
    yield* Effect.suspend(() =>
      prepared.has(sql)
        ? Effect.void
        : Effect.andThen(
            sql`CREATE TABLE IF NOT EXISTS ${sql(table)} (
              processor VARCHAR(200) NOT NULL, entity_type VARCHAR(200) NOT NULL, shard INT NOT NULL,
              epoch BIGINT NOT NULL, last_offset BIGINT NOT NULL, change_id VARCHAR(36) NOT NULL,
              PRIMARY KEY (processor, entity_type, shard))`,
            Effect.andThen(
              definition.prepare ?? Effect.void,
              Effect.sync(() => prepared.add(sql))
            )
          )
    ).pipe(Effect.mapError(sqlFailure), preparing.withPermits(1))

    const key = sql.and([sql`processor = ${processor}`, sql`entity_type = ${entityType}`, sql`shard = ${shard}`])
    let stored: Reached | undefined
    const reached = Effect.mapError(
      Effect.map(
        sql<{ epoch: number | bigint; last_offset: number | bigint }>`
          SELECT epoch, last_offset FROM ${sql(table)} WHERE ${key}`,
        ([row]) => {
          stored = row === undefined ? undefined : { epoch: Number(row.epoch), offset: Number(row.last_offset) }
          return stored
        }
      ),
      sqlFailure
    )

    /** Moves the offset on from where this process left it; the transaction fails if another has moved it. */
    const store = Effect.fnUntraced(function* (next: Reached) {
      const change = crypto.randomUUID()
      const values = { epoch: next.epoch, last_offset: next.offset, change_id: change }
      if (stored === undefined) {
        yield* sql`INSERT INTO ${sql(table)} ${sql.insert({ processor, entity_type: entityType, shard, ...values })}`
        return
      }
      const { epoch, offset } = stored
      const current = sql.and([key, sql`epoch = ${epoch}`, sql`last_offset = ${offset}`])
      yield* sql`UPDATE ${sql(table)} SET ${sql.update(values)} WHERE ${current}`
      // How many rows a statement changed is told by each database in its own way; whose change stands there is not.
      const [row] = yield* sql<{ change_id: string }>`SELECT change_id FROM ${sql(table)} WHERE ${key}`
      if (row?.change_id !== change) return yield* Effect.fail(new Outrun())
    })

    /** Some events and the offset of the last one, all or nothing. */
    const transact = (events: ReadonlyArray<EventEnvelope>, retried: boolean) => {
      let at: EventEnvelope | undefined
      const run = Effect.gen(function* () {
        let written = 0
        // First, so that of two processes the second one waits, and then sees that it came too late.
        if (!retried) yield* store({ epoch: current, offset: events.at(-1)!.offset })
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
        const there = !retried && stored?.epoch === current ? stored.offset : 0
        // Another process may have been here.
        if (there >= last) return { done: last, written: 0 }
        if (there >= events[0]!.offset)
          return yield* handle(
            events.filter(({ offset }) => offset > there),
            retried
          )
        const before = events[0]!.offset - 1
        const { at, exit } = yield* transact(events, retried)
        if (Exit.isSuccess(exit)) {
          if (!retried) stored = { epoch: current, offset: last }
          return { done: last, written: exit.value }
        }
        if (Exit.hasInterrupts(exit)) return yield* Effect.interrupt
        // The events before the one that failed are stored without it.
        const good = at === undefined ? [] : events.filter(({ offset }) => offset < at.offset)
        if (good.length > 0) return yield* handle(good, retried)
        if (at !== undefined) {
          return { done: before, written: 0, failure: { error: handlerFailure(name, at, exit.cause), event: at } }
        }
        // Where the view stands now is asked before the next try.
        const again = yield* Effect.result(reached)
        const now = Result.isSuccess(again) ? again.success : undefined
        if (!retried && now?.epoch === current && now.offset > before) return yield* handle(events, retried)
        return { done: before, written: 0, failure: { error: sqlFailure(causeOf(exit)), event: undefined } }
      })

    return { handle, reached }
  })
  return define(name, definition, definition.onFailure, open)
}

const causeOf = (exit: Exit.Failure<unknown, unknown>): unknown => {
  const reason = exit.cause.reasons[0]
  return reason?._tag === "Fail" ? reason.error : reason?._tag === "Die" ? reason.defect : exit.cause
}
