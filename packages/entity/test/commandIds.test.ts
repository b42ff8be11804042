import { assert, layer } from "@effect/vitest"
import { CurrentMetadata, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Exit, Layer, Tracer } from "effect"
import * as Decision from "../src/Decision.ts"
import { EntityError } from "../src/EntityError.ts"
import { withCommandId, withPosition } from "../src/PersistentEntity.ts"
import { behavior, Counter, Limits } from "./counter.ts"

const live = Counter.layer(behavior, { snapshotEvery: 5 }).pipe(Layer.provide(Layer.succeed(Limits, { max: 10 })))

const suite = (name: string, journal: Layer.Layer<Journal, JournalError>) =>
  layer(live.pipe(Layer.provideMerge(journal)), { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    /** As another process has it: nothing is in memory. */
    const elsewhere = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.provide(effect, Layer.fresh(live))

    const eventsOf = (entityId: string) =>
      Effect.flatMap(Journal, (journal) =>
        Effect.map(journal.load({ entityType: "Counter", entityId }, { snapshotsUpTo: 0 }), ({ events }) => events)
      )

    it.effect("a command that comes again stores nothing and gets the first reply, here and elsewhere", () =>
      Effect.gen(function* () {
        const add = (amount: number) => Effect.flatMap(Counter, (counters) => counters("again").Add({ amount }))
        assert.strictEqual(yield* add(1).pipe(withCommandId("one")), 1)
        assert.strictEqual(yield* add(1), 2)
        assert.strictEqual(yield* add(1).pipe(withCommandId("one")), 1)
        assert.strictEqual(yield* elsewhere(add(1).pipe(withCommandId("one"))), 1)
        // Behind a snapshot too.
        for (let i = 0; i < 10; i++) yield* add(1)
        assert.strictEqual(yield* elsewhere(add(1).pipe(withCommandId("one"))), 1)
        assert.strictEqual((yield* eventsOf("again")).length, 12)
      })
    )

    it.effect("a rejection is remembered, and a reply that stores no events", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("rejection")
        const refused = Effect.flip(counter.Add({ amount: -1 }).pipe(withCommandId("less")))
        assert.deepInclude(yield* refused, { _tag: "Negative", total: 0 })
        assert.strictEqual(yield* counter.Total().pipe(withCommandId("total")), 0)
        yield* counter.Add({ amount: 5 })
        assert.deepInclude(yield* refused, { _tag: "Negative", total: 0 })
        assert.strictEqual(yield* counter.Total().pipe(withCommandId("total")), 0)
        assert.strictEqual(yield* counter.Total(), 5)
        const limited = counter.Limited({ amount: 6 }).pipe(withCommandId("limited"))
        assert.deepInclude(yield* Effect.flip(limited), { _tag: "Negative", total: 5 })
        yield* counter.Add({ amount: -5 })
        assert.deepInclude(
          yield* Effect.flip(
            elsewhere(
              Effect.flatMap(Counter, (counters) =>
                counters("rejection").Limited({ amount: 6 }).pipe(withCommandId("limited"))
              )
            )
          ),
          { total: 5 }
        )
        assert.deepStrictEqual(
          (yield* eventsOf("rejection")).map(({ type }) => type),
          ["$command", "$command", "Added", "$command", "Added"]
        )
      })
    )

    it.effect("two processes that get the same command at once carry it out once", () =>
      Effect.gen(function* () {
        const add = (id: string) =>
          Effect.flatMap(Counter, (counters) => counters("race").Add({ amount: 1 }).pipe(withCommandId(id)))
        for (let i = 0; i < 10; i++) {
          const [one, two] = yield* Effect.all([add(`race-${i}`), elsewhere(add(`race-${i}`))], { concurrency: 2 })
          assert.strictEqual(one, two)
        }
        assert.strictEqual(yield* Effect.flatMap(Counter, (counters) => counters("race").Total()), 10)
      })
    )

    it.effect("an id for two different commands is refused", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("reused")
        yield* counter.Add({ amount: 1 }).pipe(withCommandId("x"))
        for (const other of [counter.Add({ amount: 2 }), counter.Rename({ name: "ada" })]) {
          const error = yield* Effect.flip(other.pipe(withCommandId("x")))
          assert.instanceOf(error, EntityError)
          assert.match(
            error.message,
            /CommandIdReused: (Add|Rename) for Counter "reused" with the id "x": the id was given/
          )
        }
        assert.strictEqual(yield* counter.Total(), 1)
      })
    )

    it.effect("an answer that fits the command's schemas no more is named, and the command not done again", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const command = { id: "old", answer: { command: "Add", success: "three" } }
        yield* journal.append({ entityType: "Counter", entityId: "old", expected: "none", events: [], command })
        const counter = (yield* Counter)("old")
        const error = yield* Effect.flip(counter.Add({ amount: 1 }).pipe(withCommandId("old")))
        assert.match(error.message, /UndecodableAnswer: Add for Counter "old" with the id "old" was carried out before/)
        assert.strictEqual(yield* counter.Total(), 0)
      })
    )

    it.effect("an answer that does not fit the command's schemas is named, and nothing is stored", () =>
      Effect.gen(function* () {
        const wrong = Counter.layer({
          ...behavior,
          commands: { ...behavior.commands, Total: () => Decision.reply(0.5) }
        }).pipe(Layer.provide(Layer.succeed(Limits, { max: 10 })))
        const exit = yield* Effect.gen(function* () {
          return yield* Effect.exit((yield* Counter)("wrong").Total().pipe(withCommandId("w")))
        }).pipe(Effect.provide(Layer.fresh(wrong)))
        assert.include(
          String(Exit.isFailure(exit) && exit.cause),
          "the reply of Total does not fit its schema: Expected an integer"
        )
        assert.deepStrictEqual(yield* eventsOf("wrong"), [])
      })
    )

    it.effect("commands in a handler's effects do not inherit the id of its command", () =>
      Effect.gen(function* () {
        const counters = yield* Counter
        const nested = Counter.layer({
          ...behavior,
          commands: {
            ...behavior.commands,
            Rename: (_, { name }) =>
              Effect.as(
                Effect.orDie(counters("inner").Add({ amount: 1 })),
                Decision.persist({ _tag: "Renamed", name, at: new Date(0) })
              )
          }
        }).pipe(Layer.provide(Layer.succeed(Limits, { max: 10 })))
        yield* Effect.gen(function* () {
          const outer = yield* Counter
          yield* outer("outer").Rename({ name: "a" }).pipe(withCommandId("same"))
        }).pipe(Effect.provide(Layer.fresh(nested)))
        assert.strictEqual(yield* counters("inner").Add({ amount: 1 }).pipe(withCommandId("same")), 2)
      })
    )

    it.effect("events carry the metadata of their scope, the command's id and the trace", () =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("metadata")
        yield* counter
          .Add({ amount: 1 })
          .pipe(
            withCommandId("m"),
            Effect.provideService(CurrentMetadata, { correlationId: "c", user: "ada" }),
            Effect.withTracer(Tracer.make({ span: (options) => new Tracer.NativeSpan(options) }))
          )
        const [event] = yield* eventsOf("metadata")
        assert.deepInclude(event!.metadata, { commandId: "m", correlationId: "c", user: "ada" })
        assert.match(event!.metadata.traceparent ?? "", /^00-[\da-f]{32}-[\da-f]{16}-01$/)
      })
    )

    it.effect("the place of a command's events in the log can be had, to wait for views", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const counter = (yield* Counter)("place")
        const [total, place] = yield* withPosition(counter.AddAll({ amounts: [1, 2] }).pipe(withCommandId("p")))
        const events = yield* eventsOf("place")
        assert.strictEqual(total, 3)
        assert.deepStrictEqual(place, {
          entityType: "Counter",
          shard: journal.shardOf("place"),
          offset: events[1]!.offset
        })
        for (const read of [
          counter.Peek(),
          counter.Look(),
          counter.Total(),
          counter.AddAll({ amounts: [1, 2] }).pipe(withCommandId("p"))
        ]) {
          const [again, at] = yield* withPosition(read)
          assert.strictEqual(again, 3)
          assert.isAtLeast(at.offset, place.offset)
        }
        assert.isTrue(Exit.hasDies(yield* Effect.exit(withPosition(Effect.void))))
      })
    )
  })

suite("Command ids on a journal in memory", Journal.layerMemory({ shards: 2 }))
suite(
  "Command ids on Cassandra",
  Journal.layer({ shards: 2 }).pipe(Layer.provide(TestKeyspace.layer)) as Layer.Layer<Journal, JournalError>
)
