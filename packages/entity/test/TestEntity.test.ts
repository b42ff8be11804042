import { AssertionError } from "node:assert"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect, Exit, SchemaGetter as Getter, Schema } from "effect"
import { Rpc } from "effect/rpc"
import * as Decision from "../src/Decision.ts"
import * as PersistentEntity from "../src/PersistentEntity.ts"
import * as TestEntity from "../src/TestEntity.ts"
import { Added, behavior, Counter, Limits, Negative } from "./counter.ts"

const counter = TestEntity.make(Counter, behavior)

const limited = Effect.provideService(Limits, { max: 10 })

/** What a scenario that goes wrong says. */
const complaint = <A, E>(scenario: Effect.Effect<A, E, Limits>) =>
  Effect.map(Effect.exit(limited(scenario)), (exit) => {
    assert.isTrue(Exit.isFailure(exit), "it went well")
    const error = Cause.squash((exit as Exit.Failure<A, E>).cause)
    assert.instanceOf(error, AssertionError)
    return error as AssertionError
  })

describe("given, when, then", () => {
  it.effect("events and a reply", () =>
    limited(
      counter
        .given(Added.make({ amount: 3 }))
        .when("Add", { amount: 4 })
        .expect({ events: [{ _tag: "Added", amount: 4 }], reply: 7, state: { total: 7, name: "" } })
    )
  )

  it.effect("a rejection, which leaves the state as it was", () =>
    limited(
      counter
        .given(Added.make({ amount: 3 }))
        .when("Add", { amount: -4 })
        .expect({ rejection: new Negative({ total: 3 }), events: [], state: { total: 3, name: "" } })
    )
  )

  it.effect("the state carries over from step to step, and every run begins anew", () =>
    Effect.gen(function* () {
      const scenario = counter
        .when("AddAll", { amounts: [1, 2, 3] })
        .when("Rename", { name: "ada" })
        .given(Added.make({ amount: 4 }))
        .when("Total")
        .expect({ reply: 10, events: [] })
        .when("Name")
      assert.deepInclude(yield* scenario, { reply: "ada", rejection: undefined, state: { total: 10, name: "ada" } })
      assert.deepInclude(yield* scenario, { reply: "ada", state: { total: 10, name: "ada" } })
    }).pipe(limited)
  )

  it.effect("handlers may be effects, and find their services", () =>
    limited(
      counter
        .when("Limited", { amount: 10 })
        .expect({ reply: 10 })
        .when("Limited", { amount: 1 })
        .expect({ rejection: new Negative({ total: 10 }) })
    )
  )

  it.effect("what differs is shown", () =>
    Effect.gen(function* () {
      const reply = yield* complaint(counter.when("Add", { amount: 1 }).expect({ reply: 2 }))
      assert.match(reply.message, /the reply is not as expected/)
      assert.deepInclude(reply, { actual: 1, expected: 2 })
      const events = yield* complaint(counter.when("Add", { amount: 1 }).expect({ events: [] }))
      assert.deepInclude(events, { actual: [{ _tag: "Added", amount: 1 }], expected: [] })
      const rejection = yield* complaint(
        counter.when("Add", { amount: -1 }).expect({ rejection: new Negative({ total: 1 }) })
      )
      assert.match(rejection.message, /the rejection is not as expected/)
    })
  )

  it.effect("a rejection that nobody expects fails the test", () =>
    Effect.gen(function* () {
      const rejected = counter.when("Add", { amount: -1 })
      assert.match((yield* complaint(rejected.expect({ events: [] }))).message, /rejected, which was not expected/)
      assert.match((yield* complaint(rejected.when("Total"))).message, /rejected, which was not expected/)
    })
  )

  it.effect("unknown commands and payloads that do not fit are reported", () =>
    Effect.gen(function* () {
      const unknown = yield* complaint(counter.when("Subtract" as "Total"))
      assert.match(unknown.message, /Counter has no command Subtract among Add, /)
      assert.match((yield* complaint(counter.when("Add", { amount: 1.5 }))).message, /payload of Add .*\n.*amount/)
    })
  )

  it.effect("a handler that throws fails the test as such", () =>
    Effect.gen(function* () {
      const exit = yield* Effect.exit(limited(counter.when("Boom")))
      assert.match(String(Exit.isFailure(exit) && Cause.squash(exit.cause)), /boom/)
    })
  )

  it.effect("what does not come back from the journal as it was is reported: events, replies, snapshots", () =>
    Effect.gen(function* () {
      /** Forgets what is behind the decimal point. */
      const Lossy = Schema.Finite.pipe(
        Schema.decodeTo(Schema.Finite, { decode: Getter.transform((n) => n), encode: Getter.transform(Math.trunc) })
      )
      const Weighed = Schema.TaggedStruct("Weighed", { kilos: Lossy })
      const Scales = PersistentEntity.make("Scales", {
        state: Schema.Struct({ kilos: Lossy }),
        initialState: { kilos: 0 },
        events: [Weighed, Added],
        commands: [
          Rpc.make("Weigh", { payload: { kilos: Schema.Finite } }),
          Rpc.make("Add", { payload: { kilos: Schema.Finite } }),
          Rpc.make("Kilos", { success: Schema.Int })
        ]
      })
      const scales = TestEntity.make(
        Scales,
        Scales.behavior({
          apply: ({ kilos }, event) => ({ kilos: event._tag === "Weighed" ? event.kilos : kilos + event.amount / 2 }),
          commands: {
            Weigh: (_, { kilos }) => Decision.persist(Weighed.make({ kilos })),
            Add: (_, { kilos }) => Decision.persist(Added.make({ amount: kilos * 2 })),
            Kilos: ({ kilos }) => Decision.reply(kilos + 0.5)
          }
        })
      )
      yield* scales.when("Weigh", { kilos: 2 }).expect({ state: { kilos: 2 } })
      assert.match(
        (yield* complaint(scales.when("Weigh", { kilos: 2.5 }))).message,
        /a Weighed comes out of the journal/
      )
      assert.match((yield* complaint(scales.given(Weighed.make({ kilos: 2.5 })))).message, /a Weighed comes out/)
      assert.match(
        (yield* complaint(scales.when("Add", { kilos: 0.5 }))).message,
        /state after Add comes out of a snapshot/
      )
      assert.match((yield* complaint(scales.when("Kilos"))).message, /the reply of Kilos does not fit its schema/)
    })
  )
})
