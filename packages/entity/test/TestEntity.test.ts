import { AssertionError } from "node:assert"
import { assert, describe, it } from "@effect/vitest"
import { Cause, Context, Effect, Exit, SchemaGetter as Getter, Schema } from "effect"
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

class Full extends Schema.TaggedError<Full>()("Full", {}) {}
class Weather extends Context.Service<Weather, { readonly fine: boolean }>()("test/Weather") {}

const Flight = PersistentEntity.make("Flight", {
  state: Schema.Int,
  initialState: 0,
  events: [Added],
  commands: [
    Rpc.make("TakeSeat", { payload: { row: Schema.Int }, success: Schema.Int, error: Full }),
    Rpc.make("Board")
  ]
})

const Booked = Schema.TaggedStruct("Booked", { flight: Schema.String, rows: Schema.Array(Schema.Int) })
const Paid = Schema.TaggedStruct("Paid", { after: Schema.String })
const Booking = PersistentEntity.make("Booking", {
  state: Schema.Null,
  initialState: null,
  events: [Booked, Paid],
  commands: [Rpc.make("Confirm", { payload: { seat: Schema.Int } }), Rpc.make("Cancel")]
})
const booking = TestEntity.reactions(
  Booking,
  Booking.behavior({
    apply: () => null,
    commands: { Confirm: () => Decision.persist([]), Cancel: () => Decision.persist([]) },
    reactions: {
      Booked: ({ flight, rows }, { self }) =>
        Effect.gen(function* () {
          const flights = yield* Flight
          for (const row of rows) {
            yield* flights(flight)
              .TakeSeat({ row })
              .pipe(
                Effect.matchEffect({
                  onSuccess: (seat) => self.Confirm({ seat }),
                  onFailure: (error) => (error._tag === "Full" ? self.Cancel() : Effect.fail(error))
                })
              )
          }
        }),
      Paid: (_, { entityId }) =>
        Effect.gen(function* () {
          if ((yield* Weather).fine) yield* (yield* Flight)(entityId).Board()
        })
    },
    timers: {
      Booked: { after: "1 hour", run: (_, { self }) => self.Cancel() },
      Paid: { after: ({ after }) => after as "1 day", run: () => Effect.void }
    }
  })
)
const booked = Booked.make({ flight: "EF-1", rows: [7] })

describe("given the answers of others, when an event was stored, then these commands are sent", () => {
  const flying = <A>(scenario: Effect.Effect<A, never, Weather>) =>
    Effect.provideService(scenario, Weather, { fine: true })

  it.effect("by its reaction and, later, by its timer", () =>
    flying(
      booking
        .given(Flight, { TakeSeat: Decision.reply(70) })
        .when(booked, { entityId: "b" })
        .expect([
          { to: "Flight", id: "EF-1", command: "TakeSeat", payload: { row: 7 } },
          { to: "Booking", id: "b", command: "Confirm", payload: { seat: 70 } },
          { to: "Booking", id: "b", command: "Cancel", after: "60 minutes" }
        ])
        .given(Flight, { TakeSeat: Decision.reject(new Full()) })
        .when(booked)
        .expect([
          { to: "Flight", id: "EF-1", command: "TakeSeat", payload: { row: 7 } },
          { to: "Booking", id: "test", command: "Cancel" },
          { to: "Booking", id: "test", command: "Cancel", after: "1 hour" }
        ])
    )
  )

  it.effect("with the services of the reaction; those who reply with nothing need not be told", () =>
    flying(
      booking
        .given(Flight, {})
        .when(Paid.make({ after: "1 day" }))
        .expect([{ to: "Flight", id: "test", command: "Board" }])
    )
  )

  it.effect("what differs is shown, and what cannot be", () =>
    Effect.gen(function* () {
      const flight = booking.given(Flight, { TakeSeat: Decision.reply(70) })
      const says = (scenario: Effect.Effect<unknown, never, Weather>) =>
        Effect.map(Effect.exit(flying(scenario)), (exit) => {
          assert.isTrue(Exit.isFailure(exit), "it went well")
          return Cause.squash((exit as Exit.Failure<unknown, never>).cause) as Error
        })
      const different = yield* says(flight.when(booked).expect([]))
      assert.match(different.message, /the commands sent are not as expected/)
      assert.deepInclude((different as AssertionError).actual, {
        to: "Booking",
        id: "test",
        command: "Cancel",
        after: 3_600_000
      })
      assert.match(
        (yield* says(booking.given(Flight, {}).when(booked))).message,
        /what Flight answers to TakeSeat is not said: given\(Flight, \{ TakeSeat: Decision.reply\(...\) \}\)/
      )
      assert.match(
        (yield* says(flight.given(Flight, { TakeSeat: Decision.reply(1.5) }).when(booked))).message,
        /the answer of Flight to TakeSeat does not fit its schema/
      )
      assert.match(
        (yield* says(flight.when(Booked.make({ flight: "EF-1", rows: [1, 2] })))).message,
        /TakeSeat is sent to Flight "EF-1" again with the same id, .* withCommandId/
      )
      assert.match((yield* says(flight.when({ ...booked, rows: [1.5] }))).message, /rows/)
      assert.match((yield* says(flight.when(Paid.make({ after: "soon" })))).message, /soon/)
    })
  )
})
