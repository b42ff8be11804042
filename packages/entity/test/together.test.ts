import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Cause, Context, Effect, Exit, Layer, References, Schema, Stream } from "effect"
import type { EntityError } from "../src/EntityError.ts"
import { withCommandId } from "../src/PersistentEntity.ts"
import { behavior, Counter, Limits, Negative } from "./counter.ts"

/** The journals of two processes that share what they store. */
class Two extends Context.Service<Two, readonly [Journal["Service"], Journal["Service"]]>()("test/Two") {}

const settings = { shards: 1 }

const inMemory = Layer.effect(
  Two,
  Effect.map(Journal, (journal) => Two.of([journal, journal]))
).pipe(Layer.provide(Journal.layerMemory(settings)))

const onCassandra = Layer.effect(
  Two,
  Effect.gen(function* () {
    const one = Effect.map(Layer.build(Layer.fresh(Journal.layer(settings))), Context.get(Journal))
    return Two.of([yield* one, yield* one])
  })
).pipe(Layer.provide(TestKeyspace.layer))

const counters = (journal: Journal["Service"]) =>
  Layer.build(
    Layer.fresh(
      Counter.layer(behavior, { maxConflicts: 1000, restartBackOff: "1 millis", maxRestartBackOff: "1 millis" }).pipe(
        Layer.provide(Layer.succeed(Journal, journal)),
        Layer.provide(Layer.succeed(Limits, { max: 20 }))
      )
    )
  ).pipe(Effect.map(Context.get(Counter)))

/** What is asked of a counter, by which of two processes. */
const Step = Schema.Struct({
  other: Schema.Boolean,
  what: Schema.Literals(["Add", "Add", "Add", "Limited", "Total", "Look", "Peek", "Boom", "once"]),
  amount: Schema.Int.check(Schema.isBetween({ minimum: -9, maximum: 9 }))
})

/** An answer, and what it says the total was, after its own event where there is one. */
interface Answered {
  readonly step: typeof Step.Type
  readonly exit: Exit.Exit<unknown, Negative | EntityError>
}

const suite = (name: string, two: Layer.Layer<Two, unknown>, runs: number) =>
  layer(two, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    let histories = 0

    it.effect.prop(
      "commands given at once are answered as if they had come one after the other, and so are stored",
      [Schema.Array(Step).check(Schema.isMaxLength(30))],
      ([steps]) =>
        Effect.gen(function* () {
          const [mine, its] = yield* Two
          const here = yield* counters(mine)
          const there = yield* counters(its)
          const id = `history-${histories++}`
          const answers: ReadonlyArray<Answered> = yield* Effect.forEach(
            steps,
            (step, i) => {
              const counter = (step.other ? there : here)(id)
              const { amount, what } = step
              const asked = {
                Add: counter.Add({ amount }),
                Limited: counter.Limited({ amount }),
                Total: counter.Total(),
                Look: counter.Look(),
                Peek: counter.Peek(),
                Boom: counter.Boom(),
                once: counter.Add({ amount }).pipe(withCommandId(`${i}`))
              }[what]
              return Effect.map(Effect.exit(asked), (exit) => ({ step, exit }))
            },
            { concurrency: "unbounded" }
          )
          const stored = yield* Stream.runCollect(mine.currentEvents("Counter", 0, 0))
          const totals = [0]
          const events: Array<string> = []
          for (const { entityId, payload, type } of stored) {
            if (entityId !== id || type !== "Added") continue
            const { amount } = payload as { readonly amount: number }
            totals.push(totals.at(-1)! + amount)
            events.push(`${amount} to ${totals.at(-1)}`)
          }
          const acknowledged: Array<string> = []
          for (const { exit, step } of answers) {
            if (Exit.isSuccess(exit)) {
              if (["Add", "Limited", "once"].includes(step.what)) acknowledged.push(`${step.amount} to ${exit.value}`)
              else assert.include(totals, exit.value as number)
            } else {
              const error = Cause.squash(exit.cause)
              if (step.what === "Boom") assert.strictEqual((error as Error).message, "boom")
              else {
                assert.instanceOf(error, Negative, String(error))
                assert.include(totals, error.total)
                const after = error.total + step.amount
                assert.isTrue(step.what === "Limited" ? after > 20 : after < 0, `${step.what}: ${after}`)
              }
            }
          }
          // Each of them once, and nothing else.
          assert.deepStrictEqual(acknowledged.sort(), events.sort())
          assert.strictEqual(yield* there(id).Look(), totals.at(-1))
          // Of the defects, which are meant.
        }).pipe(Effect.provideService(References.MinimumLogLevel, "None"), Effect.timeout("10 seconds")),
      { arbitrary: { runs }, timeout: 120_000 }
    )

    it.effect("many commands of one entity need few blocks", () =>
      Effect.gen(function* () {
        const [mine] = yield* Two
        let blocks = 0
        let last = 0
        const journal = { ...mine }
        const counter = (yield* counters(journal))("hot")
        yield* counter.Add({ amount: 1 })
        const follow = mine.events("Counter", 0, yield* mine.head("Counter", 0)).pipe(
          Stream.runForEachArray((events) =>
            Effect.sync(() => {
              blocks++
              last = events.at(-1)!.sequence
            })
          )
        )
        yield* Effect.forkScoped(follow)
        const totals = yield* Effect.forEach(Array.from({ length: 900 }), () => counter.Add({ amount: 1 }), {
          concurrency: "unbounded"
        })
        assert.deepStrictEqual(
          totals,
          totals.map((_, i) => i + 2)
        )
        yield* Effect.eventually(Effect.suspend(() => (last === 901 ? Effect.void : Effect.fail("not yet"))))
        assert.isAtMost(blocks, 20)
      })
    )
  })

suite("Commands of one entity at once, in memory", inMemory, 2000)
suite("Commands of one entity at once, on Cassandra", onCassandra, 50)
