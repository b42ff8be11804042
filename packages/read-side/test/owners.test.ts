import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Clock, Effect, Fiber, Layer, Schema } from "effect"
import * as Processor from "../src/Processor.ts"
import { ReadSide } from "../src/ReadSide.ts"
import { Added, added, append, blind, eventually, Live, lines, linesOf } from "./fixture.ts"

/** `OWNERS_SECONDS=60 npm test -- packages/read-side/test/owners` lasts as long. */
const seconds = Number(process.env.OWNERS_SECONDS ?? 4)

const Sum = Processor.fold("owned-sum", {
  entityType: "Owned",
  events: [Added],
  table: "owned_sums",
  state: Schema.Struct({ events: Schema.Int, sum: Schema.Int }),
  initial: { events: 0, sum: 0 },
  key: ({ amount }) => String(amount % 3),
  fold: ({ events, sum }, { amount }) => ({ events: events + 1, sum: sum + amount }),
  merge: (a, b) => ({ events: a.events + b.events, sum: a.sum + b.sum })
})

/** A clock that is five seconds late. */
const Late = Layer.effect(
  Clock.Clock,
  Effect.map(Clock.Clock, (clock) => {
    const millis = () => clock.currentTimeMillisUnsafe() - 5000
    return Object.assign(Object.create(clock) as Clock.Clock, {
      currentTimeMillisUnsafe: millis,
      currentTimeMillis: Effect.sync(millis)
    })
  })
)

const ids = Array.from({ length: 9 }, (_, i) => `entity-${i}`)

layer(Live, { excludeTestServices: true, timeout: "5 minutes" })("owners", (it) => {
  it.effect(
    "two of the same shards, and two who append to them, with clocks 5 s apart: the views are equal to a fold",
    () =>
      Effect.gen(function* () {
        const processors = [lines("owned", "Owned"), Sum]
        const one = yield* Layer.build(blind(processors, "one", { offsetInterval: "50 millis" }))
        yield* Layer.build(blind(processors, "two", { offsetInterval: "50 millis" }).pipe(Layer.provide(Late)))
        const other = yield* Layer.build(Layer.fresh(Journal.layer({ shards: 3 })).pipe(Layer.provide(Late)))
        let next = 0
        // An append that is interrupted may still be stored, after the view was compared.
        let stopped = false
        const traffic = Effect.forEach(
          ids,
          (id) =>
            Effect.suspend(() => append("Owned", id, added(next++), added(next++))).pipe(
              Effect.repeat({ while: () => !stopped })
            ),
          {
            concurrency: "unbounded"
          }
        )
        const busy = yield* Effect.forkChild(traffic)
        const alsoBusy = yield* Effect.forkChild(Effect.provide(traffic, other))
        yield* Effect.sleep(seconds * 1000)
        stopped = true
        yield* Fiber.joinAll([busy, alsoBusy])

        const journal = yield* Journal
        const { awaitProjected } = yield* Effect.provide(ReadSide, one)
        for (let shard = 0; shard < journal.shards; shard++) {
          const position = { entityType: "Owned", shard, offset: yield* journal.head("Owned", shard) }
          for (const { id } of processors) yield* awaitProjected(id, position, "60 seconds")
        }
        const sums = [0, 1, 2].map(() => ({ events: 0, sum: 0 }))
        for (const id of ids) {
          const { events } = yield* journal.load({ entityType: "Owned", entityId: id })
          const amounts = events.map(({ payload }) => (payload as { amount: number }).amount)
          for (const amount of amounts) {
            sums[amount % 3]!.events++
            sums[amount % 3]!.sum += amount
          }
          assert.deepStrictEqual(
            yield* linesOf("owned", id),
            amounts.map((amount, i) => [i + 1, amount])
          )
        }
        assert.isAbove(sums[0]!.events, 10)
        // The other owner may be a little behind, and leaves the same.
        for (const [key, sum] of sums.entries()) {
          yield* eventually(Effect.map(Sum.stateOf(String(key)), (state) => assert.deepStrictEqual(state, sum)))
        }
      }).pipe(Effect.scoped),
    { timeout: 300_000 }
  )
})
