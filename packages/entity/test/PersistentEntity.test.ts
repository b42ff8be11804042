import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Exit, Fiber, Layer } from "effect"
import type * as PersistentEntity from "../src/PersistentEntity.ts"
import { behavior, Counter, Limits } from "./counter.ts"

const limits = Layer.succeed(Limits, { max: 10 })
const live = (options: PersistentEntity.Options = {}) => Counter.layer(behavior, options).pipe(Layer.provide(limits))

const suite = <E>(name: string, journal: Layer.Layer<Journal | CassandraSession, E> | Layer.Layer<Journal, E>) =>
  layer(live({ snapshotEvery: 10 }).pipe(Layer.provideMerge(journal as Layer.Layer<Journal, E>)), {
    excludeTestServices: true,
    timeout: "2 minutes"
  })(name, (it) => {
    /** The entities of another process that shares the journal: nothing is in memory. */
    const fresh = <A, E2, R>(use: Effect.Effect<A, E2, R>, options: PersistentEntity.Options = {}) =>
      Effect.provide(use, Layer.fresh(live(options)))

    it.effect("replies from the state after the events", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("reply")
        assert.strictEqual(yield* counter.Add({ amount: 3 }), 3)
        assert.strictEqual(yield* counter.AddAll({ amounts: [1, 2, 3] }), 9)
        assert.strictEqual(yield* counter.AddAll({ amounts: [] }), 9)
        assert.strictEqual(yield* counter.Total(), 9)
      })
    )

    it.effect("rejects with the command's error, and stores nothing", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const counter = (yield* Counter)("reject")
        yield* counter.Add({ amount: 1 })
        const error = yield* Effect.flip(counter.Add({ amount: -5 }))
        assert.deepInclude(error, { _tag: "Negative", total: 1 })
        assert.strictEqual((yield* journal.load({ entityType: "Counter", entityId: "reject" })).sequence, 1)
      })
    )

    it.effect("handles the commands of one entity one after the other", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("turns")
        const replies = yield* Effect.forEach(Array.from({ length: 50 }), () => counter.Add({ amount: 1 }), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(
          [...replies].sort((a, b) => a - b),
          Array.from({ length: 50 }, (_, i) => i + 1)
        )
      })
    )

    it.effect("comes back with its state, from events and from snapshots", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("back")
        for (let i = 1; i <= 25; i++) yield* counter.Add({ amount: i })
        yield* counter.Rename({ name: "ada" })
        const again = yield* fresh(
          Effect.gen(function* () {
            const same = (yield* Counter)("back")
            return [yield* same.Total(), yield* same.Name()]
          })
        )
        assert.deepStrictEqual(again, [325, "ada"])
      })
    )

    it.effect("handlers may run effects and use services", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("effects")
        assert.strictEqual(yield* counter.Limited({ amount: 8 }), 8)
        assert.strictEqual((yield* Effect.flip(counter.Limited({ amount: 8 })))._tag, "Negative")
      })
    )

    it.effect("a malformed command is refused, saying what is wrong", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("malformed")
        const error = yield* Effect.flip(counter.Add({ amount: 1.5 }))
        assert.strictEqual(error._tag, "EntityError")
        assert.match(error.message, /MalformedCommand: Add for Counter "malformed": .*\n.*amount/)
      })
    )

    it.effect("a handler that throws hurts nobody else, and the entity goes on", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("boom")
        yield* counter.Add({ amount: 2 })
        assert.isTrue(Exit.hasDies(yield* Effect.exit(counter.Boom())))
        assert.strictEqual(yield* counter.Add({ amount: 2 }), 4)
      })
    )

    it.effect("an interrupted caller leaves the entity right", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("interrupt")
        yield* counter.Add({ amount: 1 })
        for (let i = 0; i < 20; i++) {
          const fiber = yield* Effect.forkChild(counter.Add({ amount: 1 }), { startImmediately: true })
          yield* Fiber.interrupt(fiber)
        }
        const total = yield* counter.Total()
        assert.strictEqual(yield* fresh(Effect.flatMap(Counter, (counters) => counters("interrupt").Total())), total)
      })
    )

    it.effect("an event that no longer decodes is named, with the way out", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const start = { entityType: "Counter", expected: "none" } as const
        yield* journal.append({ ...start, entityId: "shape", events: [{ type: "Added", payload: { amount: "x" } }] })
        yield* journal.append({ ...start, entityId: "type", events: [{ type: "Multiplied", payload: {} }] })
        const counters = yield* Counter
        const shape = yield* Effect.flip(counters("shape").Total())
        assert.match(shape.message, /UndecodableEvent: event 1 of Counter "shape" is a Added: .*schema/)
        const type = yield* Effect.flip(counters("type").Total())
        assert.match(
          type.message,
          /event 1 of Counter "type" is a Multiplied: there is no schema for it among Added, Renamed/
        )
      })
    )

    it.effect("passes over a snapshot that does not fit the state's schema", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const counter = (yield* Counter)("snapshot")
        for (let i = 0; i < 3; i++) yield* counter.Add({ amount: 1 })
        const at = yield* journal.load({ entityType: "Counter", entityId: "snapshot" })
        yield* journal.saveSnapshot({ entityType: "Counter", entityId: "snapshot" }, { ...at, state: { old: true } }, 0)
        assert.strictEqual(yield* fresh(Effect.flatMap(Counter, (counters) => counters("snapshot").Total())), 3)
      })
    )

    it.effect("leaves memory when idle, and comes back", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        let loads = 0
        const counted: Journal["Service"] = {
          ...journal,
          load: (...args) => {
            loads++
            return journal.load(...args)
          }
        }
        const counting = Layer.fresh(live({ passivateAfter: "50 millis" })).pipe(
          Layer.provide(Layer.succeed(Journal, counted))
        )
        yield* Effect.gen(function* () {
          const counter = (yield* Counter)("idle")
          yield* counter.Add({ amount: 7 })
          yield* counter.Add({ amount: 1 })
          assert.strictEqual(loads, 1)
          yield* Effect.sleep("60 millis").pipe(
            Effect.andThen(counter.Total()),
            Effect.tap((total) => Effect.sync(() => assert.strictEqual(total, 8))),
            Effect.repeat({ until: () => loads === 2, times: 50 })
          )
          assert.strictEqual(loads, 2)
        }).pipe(Effect.provide(counting))
      })
    )

    it.effect("decides again when another process was first: nothing is lost, no reply and no rejection is stale", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const one = (yield* Counter)("shared")
        yield* fresh(
          Effect.gen(function* () {
            const two = (yield* Counter)("shared")
            yield* Effect.forEach(
              Array.from({ length: 20 }),
              () => Effect.all([one.Add({ amount: 1 }), two.Add({ amount: 1 })], { concurrency: 2 }),
              { discard: true }
            )
            assert.strictEqual(yield* one.Total(), 40)
            yield* two.Add({ amount: -40 })
            assert.strictEqual((yield* Effect.flip(one.Add({ amount: -1 })))._tag, "Negative")
            assert.strictEqual(yield* two.Add({ amount: 5 }), 5)
            assert.strictEqual(yield* one.Total(), 5)
          })
        )
        assert.strictEqual((yield* journal.load({ entityType: "Counter", entityId: "shared" })).sequence, 42)
      })
    )
  })

suite("Entities on a journal in memory", Journal.layerMemory({ shards: 3 }))
suite("Entities on Cassandra", Journal.layer({ shards: 3 }).pipe(Layer.provide(TestKeyspace.layer)))
