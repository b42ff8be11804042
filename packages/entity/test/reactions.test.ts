import { assert, describe, it } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import {
  Cause,
  Context,
  Effect,
  Exit,
  Layer,
  Logger,
  Metric,
  Option,
  References,
  Schedule,
  Schema,
  SchemaGetter,
  Scope,
  Stream
} from "effect"
import { Rpc } from "effect/rpc"
import * as Decision from "../src/Decision.ts"
import * as PersistentEntity from "../src/PersistentEntity.ts"

class Full extends Schema.TaggedError<Full>()("Full", {}) {}

/** Takes so many things and no more. */
const Box = PersistentEntity.make("Box", {
  state: Schema.Array(Schema.String),
  initialState: [],
  events: [Schema.TaggedStruct("Put", { thing: Schema.String })],
  commands: [
    Rpc.make("Put", { payload: { thing: Schema.String }, success: Schema.Int, error: Full }),
    Rpc.make("Things", { success: Schema.Array(Schema.String) })
  ]
})
const box = Box.behavior({
  apply: (things, { thing }) => [...things, thing],
  commands: {
    Put: (things, { thing }) =>
      things.length >= 5
        ? Decision.reject(new Full())
        : Decision.persist({ _tag: "Put", thing }, (after) => after.length),
    Things: (things) => Decision.reply(things)
  }
})

const Ordered = Schema.TaggedStruct("Ordered", { thing: Schema.String })
const Delivered = Schema.TaggedStruct("Delivered", { thing: Schema.String })
const Refused = Schema.TaggedStruct("Refused", { thing: Schema.String })
const Expired = Schema.TaggedStruct("Expired", {})

/** Orders things, which are put into the box of the same name. */
const Order = PersistentEntity.make("Order", {
  state: Schema.Struct({ log: Schema.Array(Schema.String), expired: Schema.Boolean }),
  initialState: { log: [], expired: false },
  events: [Ordered, Delivered, Refused, Expired],
  commands: [
    Rpc.make("Order", { payload: { thing: Schema.String } }),
    Rpc.make("Deliver", { payload: { thing: Schema.String } }),
    Rpc.make("Refuse", { payload: { thing: Schema.String } }),
    Rpc.make("Expire"),
    Rpc.make("Log", { success: Schema.Array(Schema.String) })
  ]
})
const order = Order.behavior({
  apply: ({ expired, log }, event) =>
    event._tag === "Expired"
      ? { log: [...log, "expired"], expired: true }
      : { log: [...log, `${event._tag} ${event.thing}`], expired },
  commands: {
    Order: (_, { thing }) => Decision.persist(Ordered.make({ thing })),
    Deliver: (_, { thing }) => Decision.persist(Delivered.make({ thing })),
    Refuse: (_, { thing }) => Decision.persist(Refused.make({ thing })),
    Expire: ({ expired }) => Decision.persist(expired ? [] : [Expired.make({})]),
    Log: ({ log }) => Decision.reply(log)
  },
  reactions: {
    Ordered: ({ thing }, { entityId, self }) =>
      Effect.gen(function* () {
        const boxes = yield* Box
        yield* boxes(entityId)
          .Put({ thing })
          .pipe(
            Effect.matchEffect({
              onSuccess: () => self.Deliver({ thing }),
              onFailure: (error) => (error._tag === "Full" ? self.Refuse({ thing }) : Effect.fail(error))
            })
          )
      })
  },
  timers: {
    Ordered: { after: "150 millis", run: (_, { self }) => self.Expire() }
  }
})

const live = (behavior: typeof order = order) => Layer.provideMerge(Order.layer(behavior), Box.layer(box))

/** A process with these entities, on a journal that outlives it. */
const process = Effect.fnUntraced(function* <A, E>(
  journal: Journal["Service"],
  use: Effect.Effect<A, E, PersistentEntity.Entities<"Order"> | PersistentEntity.Entities<"Box">>,
  behavior: typeof order = order
) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(
    live(behavior).pipe(Layer.provide(Layer.succeed(Journal, journal))),
    scope
  )
  const result = yield* Effect.provideContext(use, context)
  yield* Scope.close(scope, Exit.void)
  return result
})

const inMemory = <A, E>(effect: Effect.Effect<A, E, Journal>) =>
  effect.pipe(
    Effect.provide(Journal.layerMemory({ shards: 2 }), { local: true }),
    Effect.provideService(References.MinimumLogLevel, "None")
  )

const until = <A, E, R>(effect: Effect.Effect<A, E, R>, so: (value: A) => boolean) =>
  effect.pipe(
    Effect.filterOrFail(so, (value) => ({ notYet: value })),
    Effect.retry({ schedule: Schedule.spaced("5 millis"), times: 1000 })
  )

const logOf = (id: string) => Effect.flatMap(Order, (orders) => orders(id).Log())
const thingsIn = (id: string) => Effect.flatMap(Box, (boxes) => boxes(id).Things())
const orderThing = (id: string, thing: string) => Effect.flatMap(Order, (orders) => orders(id).Order({ thing }))

/** What is logged as an error. */
const errorsOf = (messages: Array<string>) =>
  Logger.layer([
    Logger.make(({ cause, logLevel, message }) => {
      if (logLevel === "Error") messages.push(`${message} ${Cause.pretty(cause)}`)
    })
  ])

describe("reactions", () => {
  it.live("lead to commands of other entities and of the same one, in the order of the events", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      yield* process(
        journal,
        Effect.gen(function* () {
          for (const thing of ["a", "b", "c", "d", "e", "f"]) yield* orderThing("x", thing)
          const log = yield* until(logOf("x"), (log) => log.filter((line) => !line.startsWith("Ordered")).length >= 7)
          assert.deepStrictEqual(yield* thingsIn("x"), ["a", "b", "c", "d", "e"])
          assert.deepStrictEqual(
            log.filter((line) => !line.startsWith("Ordered") && line !== "expired"),
            ["Delivered a", "Delivered b", "Delivered c", "Delivered d", "Delivered e", "Refused f"]
          )
        })
      )
    }).pipe(inMemory)
  )

  it.live("that were not done when the process ended are done by the next one", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const never = { ...order, reactions: { Ordered: () => Effect.never } }
      yield* process(journal, orderThing("x", "a"), never)
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* until(logOf("x"), (log) => log.includes("Delivered a"))
          assert.deepStrictEqual(yield* thingsIn("x"), ["a"])
        })
      )
    }).pipe(inMemory)
  )

  it.live("that were done, but it could not be noted, are done again without any effect", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const forgetful: Journal["Service"] = { ...journal, saveSnapshot: () => Effect.void }
      let runs = 0
      const counted = {
        ...order,
        reactions: {
          Ordered: (...args: Parameters<NonNullable<NonNullable<typeof order.reactions>["Ordered"]>>) =>
            Effect.suspend(() => {
              runs++
              return order.reactions!.Ordered!(...args)
            })
        }
      }
      const done = Effect.gen(function* () {
        yield* until(logOf("x"), (log) => log.filter((line) => line.startsWith("Delivered")).length === 3)
        assert.deepStrictEqual(yield* thingsIn("x"), ["a", "b", "c"])
      })
      yield* process(
        forgetful,
        Effect.gen(function* () {
          for (const thing of ["a", "b", "c"]) yield* orderThing("x", thing)
          yield* done
        }),
        counted
      )
      for (let round = 2; round <= 4; round++) {
        yield* process(
          forgetful,
          Effect.gen(function* () {
            yield* until(
              Effect.sync(() => runs),
              (runs) => runs === 3 * round
            )
            yield* done
          }),
          counted
        )
      }
      const stored = yield* journal.load({ entityType: "Box", entityId: "x" }, { snapshotsUpTo: 0 })
      assert.strictEqual(stored.events.length, 3)
    }).pipe(inMemory)
  )

  it.live("do not do what may have been done, where that is no longer remembered", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const forgetful: Journal["Service"] = { ...journal, saveSnapshot: () => Effect.void }
      yield* process(
        forgetful,
        Effect.gen(function* () {
          yield* orderThing("x", "a")
          yield* until(logOf("x"), (log) => log.includes("Delivered a"))
          const boxes = yield* Box
          for (const thing of ["b", "c", "d"]) yield* boxes("x").Put({ thing })
        })
      )
      yield* process(
        forgetful,
        Effect.gen(function* () {
          yield* until(Metric.snapshot, (all) =>
            all.some(
              ({ attributes, id, state }) =>
                id === "entity.reaction_failures" &&
                attributes?.["entity.type"] === "Order" &&
                "count" in state &&
                state.count > 0
            )
          )
          assert.deepStrictEqual(yield* thingsIn("x"), ["a", "b", "c", "d"])
        })
      )
    }).pipe(
      Effect.provide(Journal.layerMemory({ shards: 1, commandWindow: { events: 3 } }), { local: true }),
      Effect.provideService(References.MinimumLogLevel, "None")
    )
  )

  it.live("that send two commands under one id say so, and none of them is lost without a word", () => {
    const errors: Array<string> = []
    return Effect.gen(function* () {
      const journal = yield* Journal
      const both = (own: (id: string) => <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>) =>
        Order.behavior({
          ...order,
          timers: {},
          reactions: {
            Ordered: ({ thing }, { entityId, self, sequence }) =>
              Effect.gen(function* () {
                const box = (yield* Box)(entityId)
                yield* Effect.orDie(box.Put({ thing }))
                yield* Effect.orDie(box.Put({ thing: `lid of ${thing}` }).pipe(own(`${sequence}`)))
                yield* self.Deliver({ thing })
              })
          }
        })
      yield* process(
        journal,
        Effect.andThen(
          orderThing("x", "a"),
          until(
            Effect.sync(() => errors.length),
            (count) => count > 1
          )
        ),
        both(() => (effect) => effect)
      )
      assert.match(errors.join(), /CommandIdReused: Put for Box "x" with the id "Order\/x\/1\/Put": .* withCommandId/)
      yield* process(
        journal,
        until(logOf("x"), (log) => log.includes("Delivered a")),
        both(PersistentEntity.withCommandId)
      )
      const stored = yield* journal.load({ entityType: "Box", entityId: "x" })
      assert.deepStrictEqual(
        stored.events.map(({ payload }) => payload),
        [{ thing: "a" }, { thing: "lid of a" }]
      )
    }).pipe(Effect.provide(Journal.layerMemory({ shards: 1 }), { local: true }), Effect.provide(errorsOf(errors)))
  })

  it.live("that are done and noted are not begun again", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("x", "a")
          yield* until(logOf("x"), (log) => log.includes("Delivered a") && log.includes("expired"))
        })
      )
      let begun = 0
      const counted = {
        ...order,
        reactions: { Ordered: () => Effect.sync(() => begun++) },
        timers: { Ordered: { after: 0, run: () => Effect.sync(() => begun++) } }
      }
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("y", "b")
          yield* until(
            Effect.sync(() => begun),
            (begun) => begun === 2
          )
        }),
        counted
      )
    }).pipe(inMemory)
  )

  it.live("that fail, or end with a defect, are tried again, and hold up no other entity", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      let tries = 0
      const failing = {
        ...order,
        reactions: {
          Ordered: (...[event, source]: Parameters<NonNullable<NonNullable<typeof order.reactions>["Ordered"]>>) =>
            source.entityId === "bad" && tries++ < 3
              ? Effect.die(new Error("as it should"))
              : order.reactions!.Ordered!(event, source)
        }
      }
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("bad", "a")
          yield* orderThing("good", "b")
          yield* until(logOf("good"), (log) => log.includes("Delivered b"))
          assert.isBelow(tries, 4)
          yield* until(logOf("bad"), (log) => log.includes("Delivered a"))
          assert.strictEqual(tries, 4)
        }),
        failing
      )
    }).pipe(inMemory)
  )

  it.live("carry on what belongs together: correlation and causation", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("x", "a").pipe(PersistentEntity.withCommandId("request-1"))
          yield* until(logOf("x"), (log) => log.includes("Delivered a"))
        })
      )
      const [put] = (yield* journal.load({ entityType: "Box", entityId: "x" })).events
      assert.deepInclude(put!.metadata, {
        commandId: "Order/x/1/Put",
        causationId: "Order/x/1",
        correlationId: "request-1"
      })
    }).pipe(inMemory)
  )
})

const notes = { entityType: "Order.reactions", entityId: "shard-0" }

describe("reactions that are taken up", () => {
  const { Ordered: put } = order.reactions!
  const withoutTimers = { ...order, timers: {} }

  const alone = <A, E>(effect: Effect.Effect<A, E, Journal>) =>
    effect.pipe(Effect.provide(Journal.layerMemory({ shards: 1 }), { local: true }))

  it.live("do not take the log for lost while another process goes on", () => {
    const errors: Array<string> = []
    return Effect.gen(function* () {
      const journal = yield* Journal
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("x", "a")
          yield* until(logOf("x"), (log) => log.includes("Delivered a"))
        }),
        withoutTimers
      )
      /** Once, after the first look at what was noted or at the log: the other process stores an event and notes it. */
      let wentOn = false
      const goOn = Effect.gen(function* () {
        if (wentOn) return
        wentOn = true
        const events = [{ type: "Ordered", payload: { thing: "b" } }]
        const { validThrough } = yield* journal.append({
          entityType: "Order",
          entityId: "x",
          expected: "any",
          events
        })
        const state = { reactions: [validThrough], timers: [] }
        yield* journal.saveSnapshot(notes, { sequence: validThrough, validThrough: 0, state }, 0)
      })
      const shared: Journal["Service"] = {
        ...journal,
        head: (entityType, shard) =>
          Effect.tap(journal.head(entityType, shard), () => (entityType === "Order" ? goOn : Effect.void)),
        load: (entity, options) =>
          Effect.tap(journal.load(entity, options), () =>
            entity.entityType === notes.entityType && entity.entityId === notes.entityId ? goOn : Effect.void
          )
      }
      yield* process(
        shared,
        until(logOf("x"), (log) => log.includes("Delivered b")),
        withoutTimers
      )
      assert.deepStrictEqual(errors, [])
    }).pipe(alone, Effect.provide(errorsOf(errors)))
  })

  it.live("say loudly when the log is shorter than what was done, and after a restore go on with what is left", () => {
    const errors: Array<string> = []
    return Effect.gen(function* () {
      const journal = yield* Journal
      const all = withoutTimers
      /** Of the thing c the reaction is not done. */
      const notC: typeof order = {
        ...all,
        reactions: { Ordered: (event, source) => (event.thing === "c" ? Effect.never : put!(event, source)) }
      }
      const orderedAndDelivered = (id: string, thing: string) =>
        Effect.andThen(
          orderThing(id, thing),
          until(logOf(id), (log) => log.includes(`Delivered ${thing}`))
        )
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderedAndDelivered("x", "a")
          yield* orderedAndDelivered("x", "b")
          yield* orderThing("y", "c")
          for (const thing of ["d", "e"]) yield* orderedAndDelivered("x", thing)
        }),
        notC
      )

      // An older copy: without d and e. Of the boxes nothing is left, which shows whether a reaction is done again.
      const restored = yield* Effect.map(Layer.build(Layer.fresh(Journal.layerMemory({ shards: 1 }))), (context) =>
        Context.get(context, Journal)
      )
      const left = yield* Stream.runCollect(Stream.take(journal.currentEvents("Order", 0, 0), 5))
      for (const { entityId, payload, type } of left) {
        yield* restored.append({ entityType: "Order", entityId, expected: "any", events: [{ type, payload }] })
      }
      const { snapshot } = yield* journal.load(notes)
      yield* restored.saveSnapshot(notes, Option.getOrThrow(snapshot), 0)

      yield* process(
        restored,
        until(
          Effect.sync(() => errors.length),
          (count) => count > 0
        ),
        all
      )
      assert.match(
        errors[0]!,
        /reactions of Order shard 0: .*the log of Order shard 0 ends at 5, .* followed up to \d+/
      )
      assert.isAbove(Option.getOrThrow(snapshot).sequence, 5)

      errors.length = 0
      const accepted: Journal["Service"] = { ...restored, epoch: () => Effect.succeed(2) }
      yield* process(
        accepted,
        Effect.gen(function* () {
          yield* until(logOf("y"), (log) => log.includes("Delivered c"))
          yield* orderedAndDelivered("x", "f")
          assert.deepStrictEqual(yield* thingsIn("x"), ["f"])
          assert.deepStrictEqual(yield* thingsIn("y"), ["c"])
        }),
        all
      )
      let begun: ReadonlyArray<string> = []
      const counted: typeof order = {
        ...all,
        reactions: {
          Ordered: (event, source) => {
            begun = [...begun, event.thing]
            return put!(event, source)
          }
        }
      }
      yield* process(accepted, orderedAndDelivered("x", "g"), counted)
      assert.deepStrictEqual(begun, ["g"])
      assert.deepStrictEqual(errors, [])
    }).pipe(Effect.scoped, alone, Effect.provide(errorsOf(errors)))
  })
})

describe("timers", () => {
  it.live("go off when their time has come, also in another process than the one that stored the event", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const begin = Date.now()
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("x", "a")
          yield* until(logOf("x"), (log) => log.includes("Delivered a"))
          assert.notInclude(yield* logOf("x"), "expired")
        })
      )
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* until(logOf("x"), (log) => log.includes("expired"))
          assert.isAtLeast(Date.now() - begin, 149)
        })
      )
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("y", "b")
          yield* until(logOf("y"), (log) => log.includes("expired"))
          assert.strictEqual((yield* logOf("x")).filter((line) => line === "expired").length, 1)
        })
      )
    }).pipe(inMemory)
  )

  it.live("whose time cannot be told hold up nothing, and go off once it can", () => {
    const errors: Array<string> = []
    return Effect.gen(function* () {
      const journal = yield* Journal
      const confused: typeof order = {
        ...order,
        timers: {
          Ordered: {
            after: () => {
              throw new Error("no idea")
            },
            run: (_, { self }) => self.Expire()
          }
        }
      }
      yield* process(
        journal,
        Effect.gen(function* () {
          yield* orderThing("x", "a")
          yield* orderThing("y", "b")
          for (const [id, thing] of [
            ["x", "a"],
            ["y", "b"]
          ] as const) {
            yield* until(logOf(id), (log) => log.includes(`Delivered ${thing}`))
          }
          yield* until(
            Effect.sync(() => errors.join()),
            (text) => text.includes("no idea")
          )
        }),
        confused
      )
      yield* process(
        journal,
        until(logOf("x"), (log) => log.includes("expired"))
      )
      assert.deepStrictEqual(yield* process(journal, thingsIn("x")), ["a"])
    }).pipe(Effect.provide(Journal.layerMemory({ shards: 1 }), { local: true }), Effect.provide(errorsOf(errors)))
  })

  it.live("of events that could not be read go off once they can", () => {
    const errors: Array<string> = []
    return Effect.gen(function* () {
      const journal = yield* Journal
      let readable = false
      /** Reads and writes things once it is possible. */
      const Thing = Schema.String.pipe(
        Schema.decodeTo(Schema.String, {
          decode: SchemaGetter.checkEffect(() => Effect.sync(() => (readable ? true : "not yet"))),
          encode: SchemaGetter.passthrough()
        })
      )
      const Sent = PersistentEntity.make("Sent", {
        state: Schema.Null,
        initialState: null,
        events: [Schema.TaggedStruct("Sent", { thing: Thing })],
        commands: [Rpc.make("Nothing")]
      })
      const done: Array<string> = []
      const sent = Sent.layer({
        apply: () => null,
        commands: { Nothing: () => Decision.reply(undefined) },
        reactions: { Sent: ({ thing }) => Effect.sync(() => done.push(`reaction to ${thing}`)) },
        timers: { Sent: { after: 0, run: ({ thing }) => Effect.sync(() => done.push(`timer of ${thing}`)) } }
      }).pipe(Layer.provide(Layer.succeed(Journal, journal)))
      const run = (condition: () => boolean) =>
        until(Effect.sync(condition), (so) => so).pipe(Effect.provide(Layer.fresh(sent)))
      const events = [{ type: "Sent", payload: { thing: "a" } }]
      yield* journal.append({ entityType: "Sent", entityId: "x", expected: "none", events })
      yield* run(() => errors.filter((text) => text.includes("the event is a Sent")).length >= 2)
      readable = true
      yield* run(() => done.length === 2)
      assert.deepStrictEqual(done.toSorted(), ["reaction to a", "timer of a"])
    }).pipe(Effect.provide(Journal.layerMemory({ shards: 1 }), { local: true }), Effect.provide(errorsOf(errors)))
  })
})
