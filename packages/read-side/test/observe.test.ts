import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { DataCorrupt, JournalError } from "@effect-cassandra/journal/JournalError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql, make as statement } from "@effect-cassandra/session/Statement"
import { Effect, Layer, Metric, Stream, Tracer } from "effect"
import * as Processor from "../src/Processor.ts"
import { ReadSide } from "../src/ReadSide.ts"
import { Added, added, append, eventually, Live, oneOfEachShard } from "./fixture.ts"

/** Keeps, for each entity, its last amount. */
const lastAmounts = (name: string, entityType: string) =>
  Processor.make(name, {
    entityType,
    events: [Added],
    tables: [`CREATE TABLE IF NOT EXISTS ${name} (id text PRIMARY KEY, amount int)`],
    handlers: {
      Added: ({ amount }, { entityId }) =>
        statement(`INSERT INTO ${name} (id, amount) VALUES (?, ?)`, [entityId, amount])
    }
  })

/** Stores events with the amounts from the one to before the other, a thousand at once. */
const appendAmounts = (entityType: string, id: string, from: number, to: number) =>
  Effect.gen(function* () {
    for (let i = from; i < to; i += 1000) {
      yield* append(entityType, id, ...Array.from({ length: 1000 }, (_, j) => added(i + j)))
    }
  })

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("observability", (it) => {
  it.effect(
    "a batch is a span, linked to the trace of the command that stored the event, with what handlers do inside",
    () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const spans: Array<Tracer.Span> = []
        const native = yield* Tracer.Tracer
        const Recording = Layer.succeed(
          Tracer.Tracer,
          Tracer.make({
            span: (options) => {
              const span = native.span(options)
              spans.push(span)
              return span
            }
          })
        )
        const traced = Processor.effect("traced", {
          entityType: "Traced",
          events: [Added],
          handlers: { Added: () => Effect.withSpan(Effect.void, "inside") }
        })
        const traceId = "0af7651916cd43dd8448eb211c80319c"
        yield* journal.append({
          entityType: "Traced",
          entityId: "a",
          expected: "any",
          metadata: { traceparent: `00-${traceId}-b7ad6b7169203331-01` },
          events: [added(1)]
        })
        yield* eventually(
          Effect.sync(() => {
            const batch = spans.find(({ name }) => name === "read-side.batch")
            assert.strictEqual(batch?.attributes.get("read_side.processor"), "traced")
            assert.strictEqual(batch?.attributes.get("read_side.events"), 1)
            assert.deepStrictEqual(
              batch?.links.map(({ span }) => span.traceId),
              [traceId]
            )
            assert.strictEqual(batch?.status._tag, "Ended")
            const inside = spans.find(({ name }) => name === "inside")
            assert.strictEqual(inside?.traceId, batch?.traceId)
          })
        ).pipe(Effect.provide(ReadSide.layer([traced]).pipe(Layer.provide(Recording))))
        const batch = spans.find(({ name }) => name === "read-side.batch")
        const ofTrace = spans.filter((span) => span.traceId === batch?.traceId)
        assert.deepStrictEqual(
          ofTrace.map(({ name }) => name),
          ["read-side.batch", "inside"]
        )
      })
  )

  it.effect("metrics tell, by processor and shard, how far it is and what went wrong", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const metered = Processor.effect("metered", {
        entityType: "Metered",
        events: [Added],
        onFailure: { park: { attempts: 2 } },
        handlers: { Added: ({ amount }) => (amount < 0 ? Effect.fail("negative") : Effect.void) }
      })
      yield* append("Metered", ids[1]!, added(1), added(2), added(-1), added(3))
      const metrics = Effect.map(Metric.snapshot, (all) =>
        Object.fromEntries(
          all.flatMap(({ attributes, id, state }) =>
            attributes?.processor === "metered" && attributes.shard === "1"
              ? [[id, "count" in state ? state.count : "value" in state ? state.value : undefined]]
              : []
          )
        )
      )
      yield* eventually(
        Effect.map(metrics, (found) =>
          assert.deepInclude(found, {
            "read_side.events": 3,
            "read_side.retries": 1,
            "read_side.parked": 2,
            "read_side.failing": 0,
            "read_side.offset": 4,
            "read_side.lag.events": 0,
            "read_side.lag.seconds": 0
          })
        )
      ).pipe(Effect.provide(ReadSide.layer([metered], { maxBackOff: "20 millis" })))
      assert.deepStrictEqual(yield* metrics, {})
    })
  )

  it.effect("who is behind takes more at once than a page of the log has, and writes each row once", () =>
    Effect.gen(function* () {
      const [id] = yield* oneOfEachShard
      const session = yield* CassandraSession
      const behind = lastAmounts("behind", "Behind")
      yield* appendAmounts("Behind", id!, 0, 12_000)
      yield* Effect.gen(function* () {
        const rows = session.execute<{ amount: number }>(cql`SELECT amount FROM behind WHERE id = ${id!}`)
        yield* eventually(Effect.map(rows, ([row]) => assert.strictEqual(row?.amount, 11_999)))
        const metrics = (yield* Metric.snapshot).filter(({ attributes }) => attributes?.processor === "behind")
        const largest = metrics.flatMap(({ id, state }) =>
          id === "read_side.batch_size.max" && "value" in state ? [Number(state.value)] : []
        )
        assert.isAbove(Math.max(...largest), 6000)
      }).pipe(Effect.provide(ReadSide.layer([behind])))
    })
  )

  it.effect("of many events that are written together, the one whose statement Cassandra refuses is found", () =>
    Effect.gen(function* () {
      const session = yield* CassandraSession
      const sorted = Processor.make("sorted", {
        entityType: "Sorted",
        keys: "own",
        events: [Added],
        tables: ["CREATE TABLE IF NOT EXISTS sorted (id text PRIMARY KEY, amount int)"],
        onFailure: { park: { attempts: 1 } },
        handlers: {
          Added: ({ amount }, { entityId }) =>
            cql`INSERT INTO sorted (id, amount) VALUES (${amount < 0 ? "" : entityId}, ${amount})`
        }
      })
      yield* appendAmounts("Sorted", "good", 0, 6000)
      yield* append("Sorted", "bad", added(1), added(-1), added(2))
      yield* appendAmounts("Sorted", "good", 6000, 8000)
      const rows = session.execute<{ id: string; amount: number }>(cql`SELECT id, amount FROM sorted`)
      yield* Effect.gen(function* () {
        yield* eventually(
          Effect.map(rows, (all) =>
            assert.sameMembers(
              all.map(({ amount, id }) => `${id} ${amount}`),
              ["good 7999", "bad 1"]
            )
          )
        )
        const parked = yield* (yield* ReadSide).parked("sorted")
        assert.deepStrictEqual(
          parked.map(({ entityId, sequence }) => [entityId, sequence]),
          [
            ["bad", 2],
            ["bad", 3]
          ]
        )
      }).pipe(Effect.provide(ReadSide.layer([sorted], { maxBackOff: "50 millis" })))
    })
  )

  it.effect("what cannot be read holds up nothing that was read before it", () =>
    Effect.gen(function* () {
      const [id] = yield* oneOfEachShard
      const session = yield* CassandraSession
      const journal = yield* Journal
      const readable = 5000
      const Damaged = Layer.succeed(
        Journal,
        Journal.of({
          ...journal,
          events: (entityType, shard, after) =>
            Stream.concat(
              Stream.take(journal.events(entityType, shard, after), Math.max(0, readable - after)),
              Stream.fail(
                new JournalError({
                  reason: new DataCorrupt({ entityType, shard, message: `the block after ${readable} is not readable` })
                })
              )
            )
        })
      )
      const before = lastAmounts("before", "Before")
      yield* appendAmounts("Before", id!, 0, 6000)
      const rows = session.execute<{ amount: number }>(cql`SELECT amount FROM before WHERE id = ${id!}`)
      yield* eventually(Effect.map(rows, ([row]) => assert.strictEqual(row?.amount, readable - 1))).pipe(
        Effect.provide(ReadSide.layer([before], { maxBackOff: "50 millis" }).pipe(Layer.provide(Damaged)))
      )
    })
  )
})
