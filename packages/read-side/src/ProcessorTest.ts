/**
 * Tests of processors: see the statements for some events without a database, or run a processor to the current end of the
 * logs, and look at the view.
 */
import { deepStrictEqual } from "node:assert/strict"
import { type EventSchema, make as makeEventCodec } from "@effect-cassandra/journal/EventCodec"
import { type EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Statement } from "@effect-cassandra/session/Statement"
import { Effect, Result, Stream } from "effect"
import { makeCluster } from "./internal/cluster.ts"
import { initial, startOf } from "./internal/control.ts"
import { createTables, prepareTables, tables } from "./internal/engine.ts"
import { journalFailure, storeFailure } from "./internal/failures.ts"
import { makeOffsets } from "./internal/offsets.ts"
import { startAt } from "./internal/runner.ts"
import type { Processor, StatementProcessor } from "./Processor.ts"
import type { ReadSideError } from "./ReadSideError.ts"

/** An event of an entity; the rest of its envelope is made up where it is left out. */
export interface Given extends Partial<Omit<EventEnvelope, "type" | "payload">> {
  readonly entityId: string
  readonly event: { readonly _tag: string }
}

/** What a processor would write. */
export interface Written {
  readonly text: string
  readonly params: ReadonlyArray<unknown>
}

/** An event of an entity. */
export const event = (
  entityId: string,
  event: { readonly _tag: string },
  envelope: Partial<Omit<EventEnvelope, "entityId" | "type" | "payload">> = {}
): Given => ({ ...envelope, entityId, event })

/** Envelopes as a journal would have made them, all in shard 0. */
const envelopes = (
  entityType: string,
  schemas: ReadonlyArray<EventSchema>,
  events: ReadonlyArray<Given>
): ReadonlyArray<EventEnvelope> => {
  const codec = makeEventCodec(schemas)
  const sequences = new Map<string, number>()
  return events.map(({ event, ...given }, i) => {
    const key = `${given.entityType ?? entityType} ${given.entityId}`
    const sequence = given.sequence ?? (sequences.get(key) ?? 0) + 1
    sequences.set(key, sequence)
    return {
      entityType,
      sequence,
      shard: 0,
      offset: i + 1,
      stamp: Date.UTC(2000, 0, 1) * 1000 + i * 10,
      metadata: {},
      deleted: false,
      ...codec.encode(event),
      ...given
    } as EventEnvelope
  })
}

/**
 * The statements that a processor gives for some events, in order, without a database; throws the `ReadSideError` of an
 * event that it cannot handle, or of a statement that is refused.
 *
 * **Example**
 *
 * ```ts
 * assert.deepStrictEqual(
 *   ProcessorTest.statements(Balances, [ProcessorTest.event("ada", Deposited.make({ cents: 5 }))]),
 *   [{ text: "INSERT INTO balances (account, balance) VALUES (?, ?)", params: ["ada", 5n] }]
 * )
 * ```
 */
export const statements = (processor: StatementProcessor, events: ReadonlyArray<Given>): ReadonlyArray<Written> =>
  envelopes(processor.entityTypes[0]!, processor.events, events).flatMap((envelope) =>
    Result.getOrThrow(processor.writes(envelope)).map(({ statement: { params, text } }) => ({ text, params }))
  )

/** Stores events in the journal of the context, whatever is stored of their entities already. */
export const store = Effect.fnUntraced(function* (
  processor: Pick<Processor, "entityTypes" | "events">,
  events: ReadonlyArray<Given>
) {
  const journal = yield* Journal
  for (const { entityId, entityType, metadata, payload, type, version } of envelopes(
    processor.entityTypes[0]!,
    processor.events,
    events
  )) {
    yield* journal.append({ entityType, entityId, expected: "any", metadata, events: [{ type, version, payload }] })
  }
})

/**
 * Runs a processor in all shards from where it stopped up to what is stored now, and gives the number of events; fails when
 * one of them cannot be handled. It does not care whether the processor runs elsewhere.
 */
export const runToEnd = Effect.fnUntraced(function* <R>(
  processor: Processor<R>
): Effect.fn.Return<number, ReadSideError, Journal | CassandraSession | R> {
  const journal = yield* Journal
  const session = yield* CassandraSession
  const offsets = makeOffsets(session)
  yield* createTables(session, tables, "the read side")
  yield* prepareTables(session, processor)
  const view = yield* Effect.mapError(makeCluster(session).read, storeFailure)
  const control = view.controls.get(processor.id) ?? initial
  let count = 0
  const runShard = Effect.fnUntraced(function* (entityType: string, shard: number) {
    const place = { processor: processor.id, entityType, shard }
    const { generation } = control
    const sink = yield* processor.open({
      place,
      shards: journal.shards,
      session,
      concurrency: 16,
      generation,
      epoch: startOf(control, entityType, shard).epoch
    })
    const start = yield* startAt({ journal, offsets }, place, sink, control)
    const { epoch, logEpoch } = start
    let { offset, stamp } = start
    yield* journal.currentEvents(entityType, shard, offset).pipe(
      Stream.mapError(journalFailure),
      Stream.runForEachArray((events) =>
        Effect.flatMap(sink.handle(events, false), ({ done, failure }) => {
          count += done - offset
          offset = done
          stamp = events.find((one) => one.offset === done)?.stamp ?? stamp
          return failure === undefined ? Effect.void : Effect.fail(failure.error)
        })
      ),
      Effect.ensuring(Effect.suspend(() => Effect.ignore(offsets.save(place, { epoch, logEpoch, offset, stamp }))))
    )
  }, Effect.scoped)
  yield* Effect.forEach(
    processor.entityTypes.flatMap((entityType) =>
      Array.from({ length: journal.shards }, (_, shard) => [entityType, shard] as const)
    ),
    ([entityType, shard]) => runShard(entityType, shard),
    { concurrency: 10, discard: true }
  )
  return count
})

const plain = (row: unknown) => ({ ...(row as object) })

/** A view under test, with the events that led to it. */
export interface Scenario<R> {
  /** These events happen next, and come into the view. */
  readonly when: (...events: ReadonlyArray<Given>) => Scenario<R>
  /** Runs the events, and fails with a defect, which shows the difference, unless the rows of a query are these. */
  readonly shows: <A>(
    query: Statement<A>,
    rows: ReadonlyArray<A>
  ) => Effect.Effect<void, CassandraError | ReadSideError | JournalError, Journal | CassandraSession | R>
}

/**
 * Given some events, when others happen, a view shows certain rows. It needs a journal, which may be the one in memory, and
 * a session.
 *
 * **Example**
 *
 * ```ts
 * ProcessorTest.given(Balances, ProcessorTest.event("ada", Opened.make({})))
 *   .when(ProcessorTest.event("ada", Deposited.make({ cents: 5 })))
 *   .shows(cql`SELECT account, balance FROM balances`, [{ account: "ada", balance: 5n }])
 * ```
 */
export const given = <R>(processor: Processor<R>, ...events: ReadonlyArray<Given>): Scenario<R> => {
  const scenario = (steps: ReadonlyArray<ReadonlyArray<Given>>): Scenario<R> => ({
    when: (...more) => scenario([...steps, more]),
    shows: (query, rows) =>
      Effect.gen(function* () {
        for (const step of steps) {
          yield* store(processor, step)
          yield* runToEnd(processor)
        }
        const session = yield* CassandraSession
        const found = yield* session.execute(query)
        // Rows of the driver are of a class of their own, which would differ from what a test writes down.
        yield* Effect.sync(() => deepStrictEqual(found.map(plain), rows.map(plain)))
      })
  })
  return scenario([events])
}
