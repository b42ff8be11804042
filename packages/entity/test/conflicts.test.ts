import { assert, layer } from "@effect/vitest"
import { Journal, type LoadOptions } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Cause, Context, Effect, Layer } from "effect"
import { CurrentCommandIds } from "../src/internal/command.ts"
import { withCommandId } from "../src/PersistentEntity.ts"
import { behavior, Counter, Limits } from "./counter.ts"

const settings = { shards: 1, commandWindow: { events: 3 } }

/** The journals of two processes, the first of which tells how entities were loaded. */
class Two extends Context.Service<
  Two,
  {
    readonly mine: Journal["Service"]
    readonly its: Journal["Service"]
    readonly loads: Array<LoadOptions | undefined>
  }
>()("test/Two") {
  static readonly make = (mine: Journal["Service"], its: Journal["Service"]) => {
    const loads: Array<LoadOptions | undefined> = []
    const load: Journal["Service"]["load"] = (entity, options) =>
      Effect.suspend(() => {
        loads.push(options)
        return mine.load(entity, options)
      })
    return Two.of({ mine: { ...mine, load }, its, loads })
  }
}

const inMemory = Layer.effect(
  Two,
  Effect.map(Journal, (journal) => Two.make(journal, journal))
).pipe(Layer.provide(Journal.layerMemory(settings)))

const onCassandra = Layer.effect(
  Two,
  Effect.gen(function* () {
    const one = Effect.map(Layer.build(Layer.fresh(Journal.layer(settings))), Context.get(Journal))
    return Two.make(yield* one, yield* one)
  })
).pipe(Layer.provide(TestKeyspace.layer))

/** The entities of a process with a journal. */
const entities = (journal: Journal["Service"]) =>
  Layer.build(
    Layer.fresh(
      Counter.layer(behavior, { maxConflicts: 1000 }).pipe(
        Layer.provide(Layer.succeed(Journal, journal)),
        Layer.provide(Layer.succeed(Limits, { max: 10 }))
      )
    )
  ).pipe(Effect.map(Context.get(Counter)))

const suite = (name: string, two: Layer.Layer<Two, JournalError>) =>
  layer(two, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    /** A counter in one process, and the same one in another. */
    const counters = Effect.fnUntraced(function* (entityId: string) {
      const { its, loads, mine } = yield* Two
      const [here, there] = [(yield* entities(mine))(entityId), (yield* entities(its))(entityId)]
      loads.length = 0
      return { here, there, its, loads, entity: { entityType: "Counter", entityId } }
    })

    it.effect("only what came after the state is loaded, by commands and by reads", () =>
      Effect.gen(function* () {
        const { here, loads, there } = yield* counters("after")
        assert.strictEqual(yield* here.Add({ amount: 1 }), 1)
        yield* there.AddAll({ amounts: [2, 3] })
        assert.strictEqual(yield* here.Add({ amount: 4 }), 10)
        yield* there.AddAll({ amounts: [-20] })
        assert.deepInclude(yield* Effect.flip(here.LookPositive()), { total: -10 })
        assert.strictEqual(yield* here.Peek(), -10)
        assert.deepStrictEqual(
          loads.map((options) => options?.after?.sequence),
          [undefined, 1, 4]
        )
      })
    )

    it.effect("what throws on a state that another process has outdated is decided anew", () =>
      Effect.gen(function* () {
        const { here, there } = yield* counters("thrown")
        assert.strictEqual(yield* here.Total(), 0)
        yield* there.Add({ amount: 1 })
        yield* here.Expect({ total: 1 })
        assert.strictEqual(yield* here.Peek(), 1)
        const cause = yield* Effect.flip(Effect.sandbox(there.Expect({ total: 2 })))
        assert.strictEqual((Cause.squash(cause) as Error).message, "1 is not 2")
      })
    )

    it.effect("what was deleted meanwhile is in the state no more", () =>
      Effect.gen(function* () {
        const { entity, here, its, there } = yield* counters("deleted")
        yield* here.AddAll({ amounts: [1, 2, 3] })
        yield* there.Add({ amount: 4 })
        yield* its.delete(entity)
        assert.strictEqual(yield* here.Add({ amount: 5 }), 5)
        assert.strictEqual(yield* there.Add({ amount: 6 }), 11)
      })
    )

    it.effect("commands that the other carried out are known, and those that may have been are not done again", () =>
      Effect.gen(function* () {
        const { here, loads, there } = yield* counters("commands")
        // As a reaction to an event sends it, which was stored before everything here.
        const sent = (id: string) => Effect.provideService(CurrentCommandIds, { of: () => id, strict: false, since: 1 })
        assert.strictEqual(yield* here.Add({ amount: 1 }).pipe(withCommandId("first")), 1)
        assert.strictEqual(yield* there.Add({ amount: 1 }).pipe(sent("near")), 2)
        assert.strictEqual(yield* here.Add({ amount: 1 }).pipe(withCommandId("second")), 3)
        assert.strictEqual(yield* here.Add({ amount: 1 }).pipe(sent("near")), 2)
        assert.strictEqual(yield* here.Add({ amount: 1 }).pipe(withCommandId("first")), 1)
        assert.deepStrictEqual(
          loads.map((options) => options?.after?.sequence),
          [undefined, 1]
        )

        assert.strictEqual(yield* there.Add({ amount: 1 }).pipe(sent("far")), 4)
        for (let i = 0; i < 3; i++) yield* there.Add({ amount: 1 })
        assert.strictEqual(yield* here.Add({ amount: 1 }), 8)
        assert.match(
          (yield* Effect.flip(here.Add({ amount: 1 }).pipe(sent("far")))).message,
          /CommandTooOld: Add for Counter "commands" with the id "far"/
        )
        assert.strictEqual(yield* here.Total(), 8)
      })
    )

    it.effect("two processes at the same entity lose nothing", () =>
      Effect.gen(function* () {
        const { entity, here, its, loads, there } = yield* counters("fight")
        const many = (counter: typeof here) =>
          Effect.forEach(Array.from({ length: 100 }), () => counter.Add({ amount: 1 }), { discard: true })
        yield* Effect.all([many(here), many(there)], { concurrency: 2 })
        assert.strictEqual(yield* here.Total(), 200)
        assert.strictEqual((yield* its.load(entity)).sequence, 200)
        assert.strictEqual(loads.filter((options) => options?.after === undefined).length, 1)
      })
    )
  })

suite("After a conflict, on a journal in memory:", inMemory)
suite("After a conflict, on Cassandra:", onCassandra as Layer.Layer<Two, JournalError>)
