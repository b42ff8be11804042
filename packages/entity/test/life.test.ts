import { setFlagsFromString } from "node:v8"
import { runInNewContext } from "node:vm"
import { assert, describe, it } from "@effect/vitest"
import { type Appender, Journal } from "@effect-cassandra/journal/Journal"
import { JournalError, OutcomeUnknown } from "@effect-cassandra/journal/JournalError"
import {
  ConfigProvider,
  Context,
  Deferred,
  Effect,
  Exit,
  Fiber,
  Latch,
  Layer,
  Logger,
  Metric,
  Option,
  References,
  Schedule,
  Schema,
  Scope,
  Tracer
} from "effect"
import { Rpc } from "effect/rpc"
import * as Decision from "../src/Decision.ts"
import { EntityError } from "../src/EntityError.ts"
import * as PersistentEntity from "../src/PersistentEntity.ts"
import * as TestEntity from "../src/TestEntity.ts"
import { behavior, Counter, Limits } from "./counter.ts"

/** A journal in memory that a test can hold up and watch. */
class Watched extends Context.Service<Watched>()("test/Watched", {
  make: Effect.gen(function* () {
    const journal = yield* Journal
    const watched = {
      journal,
      appends: 0,
      loads: 0,
      loading: 0,
      mostLoading: 0,
      confirms: 0,
      beforeAppend: Effect.void as Effect.Effect<void, JournalError>,
      afterAppend: Effect.void as Effect.Effect<void, JournalError>,
      beforeLoad: Effect.void as Effect.Effect<void>,
      afterLoad: Effect.void as Effect.Effect<void>
    }
    return watched
  })
}) {
  static readonly layer = Layer.effect(Watched, Watched.make).pipe(Layer.provide(Journal.layerMemory({ shards: 3 })))
}

const watchedJournal = Layer.effect(
  Journal,
  Effect.map(Watched, (watched): Journal["Service"] => ({
    ...watched.journal,
    append: (append) =>
      Effect.suspend(() => {
        watched.appends++
        return watched.beforeAppend
      }).pipe(
        Effect.andThen(watched.journal.append(append)),
        Effect.tap(() => watched.afterAppend)
      ),
    confirm: (...args) =>
      Effect.suspend(() => {
        watched.confirms++
        return watched.journal.confirm(...args)
      }),
    load: (...args) =>
      Effect.suspend(() => {
        watched.loads++
        watched.loading++
        watched.mostLoading = Math.max(watched.mostLoading, watched.loading)
        return watched.beforeLoad
      }).pipe(Effect.andThen(watched.journal.load(...args)), Effect.ensuring(Effect.sync(() => watched.loading--)))
  }))
)

const limits = Layer.succeed(Limits, { max: 10 })

const live = (options: PersistentEntity.Options = {}) =>
  Counter.layer(behavior, options).pipe(
    Layer.provide(watchedJournal),
    Layer.provide(limits),
    Layer.provideMerge(Watched.layer)
  )

/** A test with entities of its own. */
const withEntities =
  (options: PersistentEntity.Options = {}) =>
  <A, E>(effect: Effect.Effect<A, E, PersistentEntity.Entities<"Counter"> | Watched | Scope.Scope>) =>
    Effect.scoped(effect).pipe(Effect.provide(live(options), { local: true }))

const start = <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.forkChild(effect, { startImmediately: true })

/** Asks again and again until it is so. */
const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  condition.pipe(
    Effect.filterOrFail(
      (so) => so,
      () => "not yet" as const
    ),
    Effect.retry({ schedule: Schedule.spaced("2 millis"), times: 2000, while: (error) => error === "not yet" })
  )

const reasonOf = <A, E>(effect: Effect.Effect<A, E, never>) =>
  Effect.map(Effect.flip(effect), (error) => {
    assert.instanceOf(error, EntityError)
    return (error as EntityError).reason
  })

/** The values of the metrics of an entity type. */
const metricsOf = (type: string) =>
  Effect.map(Metric.snapshot, (snapshot) => {
    const found: Record<string, number> = {}
    for (const { attributes = {}, id, state } of snapshot) {
      if (attributes["entity.type"] !== type) continue
      const name = attributes["error.type"] === undefined ? id : `${id} ${attributes["error.type"]}`
      found[name] = Number("count" in state ? state.count : "value" in state ? state.value : 0)
    }
    return found
  })

describe("read-only commands", () => {
  it.live("do not wait behind a write that is under way, and see the state before it", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const write = yield* start(counter.Add({ amount: 1 }))
      assert.strictEqual(yield* counter.Peek(), 1)
      assert.strictEqual(yield* counter.Look(), 1)
      yield* gate.open
      assert.strictEqual(yield* Fiber.join(write), 2)
      assert.strictEqual(yield* counter.Peek(), 2)
      assert.strictEqual(yield* counter.Look(), 2)
    }).pipe(withEntities())
  )

  it.live("local ones ask nobody; fresh ones ask the log", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      for (let i = 0; i < 10; i++) yield* counter.Peek()
      assert.deepInclude(watched, { confirms: 0, loads: 1 })
      yield* counter.Look()
      assert.deepInclude(watched, { confirms: 1, loads: 1 })
    }).pipe(withEntities())
  )

  it.live("fresh ones see what another process has stored; local ones too, as soon as this process has seen it", () =>
    Effect.gen(function* () {
      const { journal } = yield* Watched
      const counters = yield* Counter
      for (const [id, read] of [
        ["fresh", counters("fresh").Look()],
        ["local", counters("local").Peek()]
      ] as const) {
        yield* counters(id).Add({ amount: 1 })
        const at = yield* journal.load({ entityType: "Counter", entityId: id })
        const events = [{ type: "Added", payload: { amount: 5 } }]
        yield* journal.append({ entityType: "Counter", entityId: id, expected: at, events })
        assert.strictEqual(yield* read, 6)
      }
      assert.strictEqual((yield* Effect.flip(counters("negative").Add({ amount: -1 })))._tag, "Negative")
    }).pipe(withEntities())
  )

  it.live("do not take a state whose loading began before they came, if more has been stored since", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      const gate = Latch.makeUnsafe(false)
      watched.afterLoad = gate.await
      const early = yield* start(counter.Total())
      yield* until(Effect.sync(() => watched.loads === 1))
      const events = [{ type: "Added", payload: { amount: 5 } }]
      yield* watched.journal.append({ entityType: "Counter", entityId: "a", expected: "none", events })
      const late = yield* Effect.forEach([counter.Look(), counter.Peek()], start)
      yield* gate.open
      assert.deepStrictEqual(yield* Effect.forEach([early, ...late], Fiber.join), [5, 5, 5])
    }).pipe(withEntities())
  )

  it.live("may reject, and bring the entity into memory", () =>
    Effect.gen(function* () {
      const { journal } = yield* Watched
      const events = [{ type: "Added", payload: { amount: -5 } }]
      yield* journal.append({ entityType: "Counter", entityId: "a", expected: "none", events })
      const counter = (yield* Counter)("a")
      assert.deepInclude(yield* Effect.flip(counter.LookPositive()), { _tag: "Negative", total: -5 })
      assert.strictEqual(yield* counter.Peek(), -5)
    }).pipe(withEntities())
  )
})

describe("the mailbox", () => {
  it.live("takes so many commands and refuses the next one, by name; those accepted are done in their order", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const accepted = yield* Effect.forEach([1, 2, 3, 4], () => start(counter.Add({ amount: 1 })))
      const reason = yield* reasonOf(counter.Add({ amount: 1 }))
      assert.deepInclude(reason, { _tag: "MailboxFull", entityType: "Counter", entityId: "a", command: "Add", size: 3 })
      const other = yield* reasonOf(counter.AddAll({ amounts: [1] }))
      assert.deepInclude(other, { _tag: "MailboxFull", entityId: "a", command: "AddAll", size: 3 })
      assert.strictEqual(yield* counter.Peek(), 1)
      yield* gate.open
      assert.deepStrictEqual(yield* Effect.forEach(accepted, Fiber.join), [2, 3, 4, 5])
    }).pipe(withEntities({ mailboxSize: 3 }))
  )

  it.live("a caller who is interrupted leaves it, and nothing of his is stored", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const first = yield* start(counter.Add({ amount: 1 }))
      const second = yield* start(counter.Add({ amount: 10 }))
      yield* Fiber.interrupt(second)
      assert.strictEqual((yield* metricsOf("Counter"))["entity.mailbox"], 0)
      yield* gate.open
      assert.strictEqual(yield* Fiber.join(first), 2)
      assert.strictEqual(yield* counter.Total(), 2)
    }).pipe(withEntities())
  )

  it.live(
    "a caller who is interrupted while his events are being stored does not stop them, and the entity goes on",
    () =>
      Effect.gen(function* () {
        const watched = yield* Watched
        const counter = (yield* Counter)("a")
        yield* counter.Add({ amount: 1 })
        const gate = Latch.makeUnsafe(false)
        watched.beforeAppend = gate.await
        const write = yield* start(counter.Add({ amount: 1 }))
        yield* Fiber.interrupt(write)
        const next = yield* start(counter.Add({ amount: 1 }))
        yield* gate.open
        assert.strictEqual(yield* Fiber.join(next), 3)
        assert.strictEqual(watched.loads, 1)
      }).pipe(withEntities())
  )
})

describe("a command that waits with the journal, which has no room for its events yet", () => {
  /** A test with entities whose events wait until they are let go on. */
  const withWaiting =
    (options: PersistentEntity.Options = {}) =>
    <A, E>(
      test: (
        waiting: Array<Appender>,
        goOn: Effect.Effect<void>,
        journal: Journal["Service"]
      ) => Effect.Effect<A, E, PersistentEntity.Entities<"Counter"> | Scope.Scope>
    ) =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const waiting: Array<Appender> = []
        const append = Object.assign(((events) => journal.append(events)) as Journal["Service"]["append"], {
          unsafe: (appender: Appender) => waiting.push(appender)
        })
        const goOn = Effect.sync(() => {
          for (const appender of waiting.splice(0)) journal.append.unsafe!(appender)
        })
        const entities = Counter.layer(behavior, options).pipe(
          Layer.provide(Layer.succeed(Journal, { ...journal, append })),
          Layer.provide(limits)
        )
        return yield* Effect.scoped(test(waiting, goOn, journal)).pipe(Effect.provide(entities, { local: true }))
      }).pipe(Effect.provide(Journal.layerMemory({ shards: 1 })))

  it.live("stores nothing when its caller is interrupted, and the next one goes on", () =>
    withWaiting()((waiting, goOn) =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("a")
        yield* counter.Add({ amount: 1 })
        const first = yield* start(counter.Add({ amount: 10 }))
        const second = yield* start(counter.Add({ amount: 100 }))
        assert.strictEqual(waiting.length, 2)
        yield* Fiber.interrupt(first)
        yield* goOn
        assert.strictEqual(yield* Fiber.join(second), 101)
        const total = yield* start(counter.Total())
        yield* goOn
        assert.strictEqual(yield* Fiber.join(total), 101)
      })
    )
  )

  it.live("stores nothing after its time is over, and says so", () =>
    withWaiting({ askTimeout: "60 millis" })((waiting, goOn, journal) =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("a")
        yield* counter.Add({ amount: 1 })
        const error = yield* Effect.flip(counter.Add({ amount: 10 }))
        assert.isFalse(error instanceof EntityError && error.maybeStored)
        assert.match(error.message, /CommandTimeout: Add for Counter "a" .* its turn did not come, nothing was stored/)
        yield* goOn
        const next = yield* start(counter.Add({ amount: 100 }))
        yield* until(Effect.sync(() => waiting.length === 1))
        yield* goOn
        assert.strictEqual(yield* Fiber.join(next), 101)
        assert.strictEqual((yield* journal.load({ entityType: "Counter", entityId: "a" })).sequence, 2)
      })
    )
  )

  it.live("stores nothing after the entities have closed without it", () =>
    Effect.gen(function* () {
      let after: Effect.Effect<number, unknown> = Effect.die("not set")
      yield* withWaiting({ shutdownTimeout: "20 millis" })((_, goOn, journal) =>
        Effect.gen(function* () {
          const counter = (yield* Counter)("a")
          yield* counter.Add({ amount: 1 })
          const left = yield* Effect.forkDetach(Effect.flip(counter.Add({ amount: 10 })), { startImmediately: true })
          after = Effect.gen(function* () {
            const error = yield* Fiber.join(left)
            assert.match(error.message, /EntitiesClosed: Add for Counter "a": the entities closed before it was done/)
            yield* goOn
            return (yield* journal.load({ entityType: "Counter", entityId: "a" })).sequence
          })
        })
      ).pipe(
        Effect.andThen(Effect.suspend(() => after)),
        Effect.map((sequence) => assert.strictEqual(sequence, 1))
      )
    })
  )

  it.live("hears why there will be none, and the entity goes on", () =>
    withWaiting()((waiting, goOn) =>
      Effect.gen(function* () {
        const counter = (yield* Counter)("a")
        yield* counter.Add({ amount: 1 })
        const refused = yield* start(Effect.flip(counter.Add({ amount: 10 })))
        const reason = new OutcomeUnknown({ entityType: "Counter", entityId: "a", message: "no" })
        waiting.shift()!.onExit(Exit.fail(new JournalError({ reason })))
        assert.match((yield* Fiber.join(refused)).message, /JournalFailure: OutcomeUnknown: no/)
        const next = yield* start(counter.Add({ amount: 100 }))
        yield* goOn
        assert.strictEqual(yield* Fiber.join(next), 101)
      })
    )
  )
})

describe("time-outs name entity, command and time", () => {
  const timeout = { askTimeout: "60 millis" } as const

  it.live("of a command that waits, and one that is being stored", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const storing = yield* start(Effect.flip(counter.Add({ amount: 1 })))
      const waiting = yield* start(Effect.flip(counter.Rename({ name: "x" })))
      const first = yield* Fiber.join(storing)
      const second = yield* Fiber.join(waiting)
      assert.isTrue(first instanceof EntityError && first.maybeStored)
      assert.match(
        first.message,
        /CommandTimeout: Add for Counter "a" was not answered within \d+ ms \(askTimeout\): its events are with the journal/
      )
      assert.isFalse(second instanceof EntityError && second.maybeStored)
      assert.match(second.message, /Rename for Counter "a" .* its turn did not come, nothing was stored/)
      yield* gate.open
      assert.strictEqual(yield* counter.Total(), 2)
      assert.strictEqual(yield* counter.Name(), "")
    }).pipe(withEntities(timeout))
  )

  it.live("of a handler that takes too long: it is interrupted, nothing is stored, the entity goes on", () => {
    const Slow = PersistentEntity.make("Slow", {
      state: Schema.Int,
      initialState: 0,
      events: [Schema.TaggedStruct("Happened", {})],
      commands: [Rpc.make("Wait"), Rpc.make("Count", { success: Schema.Int })]
    })
    const layer = Slow.layer(
      {
        apply: (count) => count + 1,
        commands: {
          Wait: () => Effect.as(Effect.never, Decision.persist({ _tag: "Happened" })),
          Count: (count) => Decision.reply(count)
        }
      },
      timeout
    )
    return Effect.gen(function* () {
      const slow = (yield* Slow)("a")
      const error = yield* Effect.flip(slow.Wait())
      assert.match(error.message, /CommandTimeout: Wait for Slow "a" .* it was not decided, nothing was stored/)
      assert.isFalse(error.maybeStored)
      assert.strictEqual(yield* slow.Count(), 0)
    }).pipe(Effect.provide(layer.pipe(Layer.provide(Journal.layerMemory()))))
  })

  it.live("of a recovery, after which the next command tries again", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      watched.beforeLoad = Effect.never
      const counter = (yield* Counter)("a")
      const reason = yield* reasonOf(counter.Add({ amount: 1 }))
      assert.deepInclude(reason, { _tag: "RecoveryTimeout", entityType: "Counter", entityId: "a", millis: 30 })
      watched.beforeLoad = Effect.void
      assert.strictEqual(yield* counter.Add({ amount: 1 }), 1)
    }).pipe(withEntities({ recoveryTimeout: "30 millis" }))
  )
})

describe("recovery", () => {
  it.live("five hundred entities started at once come into memory, so many at a time", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      watched.beforeLoad = Effect.sleep("1 millis")
      const counters = yield* Counter
      const ids = Array.from({ length: 500 }, (_, i) => `many-${i}`)
      const totals = yield* Effect.forEach(ids, (id) => counters(id).Add({ amount: 1 }), { concurrency: "unbounded" })
      assert.strictEqual(totals.length, 500)
      assert.deepInclude(watched, { loads: 500, mostLoading: 20 })
    }).pipe(withEntities({ maxRecoveries: 20 }))
  )

  it.live("many commands that come meanwhile share one, and a hook runs before the first of them", () =>
    Effect.gen(function* () {
      const seen: Array<string> = []
      const layer = Counter.layer({
        ...behavior,
        recovered: ({ total }, id) => Effect.map(Limits, ({ max }) => void seen.push(`${id} ${total} ${max}`))
      })
      yield* Effect.gen(function* () {
        const watched = yield* Watched
        const counter = (yield* Counter)("a")
        yield* Effect.all([counter.Add({ amount: 1 }), counter.Look(), counter.Peek(), counter.Total()], {
          concurrency: "unbounded"
        })
        assert.strictEqual(watched.loads, 1)
        assert.deepStrictEqual(seen, ["a 0 10"])
        yield* (yield* Counter).passivate("a")
        yield* counter.Total()
        assert.deepStrictEqual(seen, ["a 0 10", "a 1 10"])
      }).pipe(
        Effect.provide(
          layer.pipe(Layer.provide(watchedJournal), Layer.provide(limits), Layer.provideMerge(Watched.layer)),
          { local: true }
        )
      )
    })
  )
})

describe("passivation", () => {
  it.live("after some time without commands, an entity leaves nothing in memory", () => {
    setFlagsFromString("--expose-gc")
    const collect = runInNewContext("gc") as () => void
    const states: Array<WeakRef<object>> = []
    const layer = Counter.layer(
      {
        ...behavior,
        apply: (state, event) => {
          const next = behavior.apply(state, event)
          states.push(new WeakRef(next))
          return next
        }
      },
      { passivateAfter: "20 millis" }
    )
    return Effect.gen(function* () {
      const counters = yield* Counter
      const ids = Array.from({ length: 100 }, (_, i) => `gone-${i}`)
      yield* Effect.forEach(ids, (id) => counters(id).Add({ amount: 1 }), { concurrency: "unbounded", discard: true })
      yield* until(Effect.map(metricsOf("Counter"), (metrics) => metrics["entity.active"] === 0))
      assert.strictEqual((yield* metricsOf("Counter"))["entity.passivations"], 100)
      yield* until(
        Effect.sync(() => {
          collect()
          return states.every((state) => state.deref() === undefined)
        })
      )
      assert.strictEqual(yield* counters("gone-1").Total(), 1)
    }).pipe(Effect.provide(layer.pipe(Layer.provide(Journal.layerMemory()), Layer.provide(limits)), { local: true }))
  })

  it.live("when there are more than the limit, those leave first that were not used for longest; busy ones never", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counters = yield* Counter
      const active = Effect.map(metricsOf("Counter"), (metrics) => metrics["entity.active"])
      const add = (id: string) => counters(id).Add({ amount: 1 })
      /** How many of these are not in memory; then the clock goes on. */
      const loadsFor = Effect.fnUntraced(function* (...ids: ReadonlyArray<string>) {
        const [before, now] = [watched.loads, Date.now()]
        yield* Effect.forEach(ids, add)
        yield* until(Effect.sync(() => Date.now() > now + 1))
        return watched.loads - before
      })
      assert.strictEqual(yield* loadsFor("a", "b", "c"), 3)
      assert.strictEqual(yield* loadsFor("a"), 0)
      assert.strictEqual(yield* loadsFor("d"), 1)
      assert.strictEqual(yield* active, 3)
      assert.strictEqual(yield* loadsFor("a", "c", "d"), 0)
      assert.strictEqual(yield* loadsFor("b"), 1)

      // All are busy: they stay, and the limit holds again when they are done.
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const before = watched.appends
      const ids = Array.from({ length: 10 }, (_, i) => `busy-${i}`)
      const busy = yield* Effect.forEach(ids, (id) => start(add(id)))
      yield* until(Effect.sync(() => watched.appends === before + ids.length))
      assert.strictEqual(yield* active, 10)
      yield* gate.open
      assert.deepStrictEqual(
        yield* Effect.forEach(busy, Fiber.join),
        ids.map(() => 1)
      )
      assert.strictEqual(yield* active, 3)
    }).pipe(withEntities({ maxEntities: 3 }))
  )

  it.live("on demand, also of one that is being loaded for nobody any more", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counters = yield* Counter
      const gate = Latch.makeUnsafe(false)
      watched.beforeLoad = gate.await
      const given = yield* start(counters("a").Add({ amount: 1 }))
      yield* until(Effect.sync(() => watched.loads === 1))
      yield* Fiber.interrupt(given)
      const stop = yield* start(counters.passivate("a"))
      yield* gate.open
      yield* Fiber.join(stop)
      assert.strictEqual((yield* metricsOf("Counter"))["entity.active"], 0)
    }).pipe(withEntities())
  )

  it.live("on demand, after what was accepted is done", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counters = yield* Counter
      const counter = counters("a")
      yield* counters.passivate("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const writes = yield* Effect.forEach([1, 2], () => start(counter.Add({ amount: 1 })))
      const stop = yield* start(counters.passivate("a"))
      assert.isUndefined(stop.pollUnsafe())
      yield* gate.open
      yield* Fiber.join(stop)
      assert.deepStrictEqual(yield* Effect.forEach(writes, Fiber.join), [2, 3])
      assert.strictEqual((yield* metricsOf("Counter"))["entity.active"], 0)
      assert.strictEqual(yield* counter.Total(), 3)
      assert.strictEqual(watched.loads, 2)
    }).pipe(withEntities())
  )
})

describe("closing", () => {
  it.live("finishes what was accepted and refuses what comes after", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(live(), scope)
      const watched = Context.get(context, Watched)
      const counter = Context.get(context, Counter)("a")
      yield* counter.Add({ amount: 1 })
      const gate = Latch.makeUnsafe(false)
      watched.beforeAppend = gate.await
      const accepted = yield* Effect.forEach([1, 2, 3], () => start(counter.Add({ amount: 1 })))
      const closing = yield* start(Scope.close(scope, Exit.void))
      const reason = yield* reasonOf(counter.Add({ amount: 1 }))
      assert.deepInclude(reason, { _tag: "EntitiesClosed", command: "Add", entityId: "a" })
      yield* gate.open
      yield* Fiber.join(closing)
      assert.deepStrictEqual(yield* Effect.forEach(accepted, Fiber.join), [2, 3, 4])
      assert.strictEqual((yield* reasonOf(counter.Peek()))._tag, "EntitiesClosed")
    })
  )

  it.live("does not wait for ever: who is left hears whether anything was stored", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const context = yield* Layer.buildWithScope(live({ shutdownTimeout: "30 millis" }), scope)
      const watched = Context.get(context, Watched)
      const counter = Context.get(context, Counter)("a")
      yield* counter.Add({ amount: 1 })
      watched.beforeAppend = Effect.never
      const [first, second] = yield* Effect.forEach([1, 2], () => start(Effect.flip(counter.Add({ amount: 1 }))))
      yield* Scope.close(scope, Exit.void)
      assert.match((yield* Fiber.join(first!)).message, /EntitiesClosed: Add for Counter "a": .* not known/)
      assert.match((yield* Fiber.join(second!)).message, /EntitiesClosed: .*nothing was stored/)
    })
  )

  it.live("started and stopped a hundred times in the middle of commands, nothing acknowledged is lost", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      let acknowledged = 0
      for (let round = 0; round < 100; round++) {
        const scope = yield* Scope.make()
        const context = yield* Layer.buildWithScope(
          Counter.layer(behavior).pipe(Layer.provide(Layer.mergeAll(Layer.succeed(Journal, journal), limits))),
          scope
        )
        const counters = Context.get(context, Counter)
        const writes = yield* start(
          Effect.forEach(
            Array.from({ length: 20 }, (_, i) => `e${i % 4}`),
            (id) => Effect.tap(counters(id).Add({ amount: 1 }), () => Effect.sync(() => acknowledged++)),
            { concurrency: 20, discard: true }
          )
        )
        yield* Scope.close(scope, Exit.void)
        yield* Fiber.await(writes)
      }
      const stored = yield* Effect.forEach(["e0", "e1", "e2", "e3"], (entityId) =>
        Effect.map(journal.load({ entityType: "Counter", entityId }, { snapshotsUpTo: 0 }), (it) => it.events.length)
      )
      assert.strictEqual(acknowledged, 2000)
      assert.strictEqual(
        stored.reduce((sum, n) => sum + n, 0),
        2000
      )
    }).pipe(Effect.provide(Journal.layerMemory()))
  )
})

describe("faults", () => {
  it.live("a defect restarts that entity only, and it rests longer from defect to defect", () =>
    Effect.gen(function* () {
      const counters = yield* Counter
      yield* counters("a").Add({ amount: 1 })
      const before = performance.now()
      yield* Effect.exit(counters("a").Boom())
      const answered: Array<string> = []
      const note = <A, E>(entityId: string, command: Effect.Effect<A, E>) =>
        Effect.tap(command, () => Effect.sync(() => answered.push(entityId)))
      const answers = yield* Effect.all(
        [note("a", counters("a").Total()), note("b", counters("b").Add({ amount: 2 }))],
        { concurrency: 2 }
      )
      assert.deepStrictEqual(answers, [1, 2])
      assert.deepStrictEqual(answered, ["b", "a"])
      assert.isAtLeast(performance.now() - before, 39)
      const again = performance.now()
      const exits = yield* Effect.all([Effect.exit(counters("a").Boom()), Effect.exit(counters("a").Boom())], {
        concurrency: 2
      })
      assert.isTrue(exits.every(Exit.hasDies))
      assert.strictEqual(yield* counters("a").Total(), 1)
      assert.isAtLeast(performance.now() - again, 40 + 80 - 1)
      assert.strictEqual((yield* metricsOf("Counter"))["entity.restarts"], 3)
    }).pipe(withEntities({ restartBackOff: "40 millis" }), Effect.provideService(References.MinimumLogLevel, "None"))
  )

  it.live("an apply that throws stores nothing, of several events either", () => {
    const Fragile = PersistentEntity.make("Fragile", {
      state: Schema.Int,
      initialState: 0,
      events: [Schema.TaggedStruct("Added", { amount: Schema.Int })],
      commands: [
        Rpc.make("Add", { payload: { amounts: Schema.Array(Schema.Int) } }),
        Rpc.make("Total", { success: Schema.Int })
      ]
    })
    const layer = Fragile.layer(
      {
        apply: (total, { amount }) => {
          if (amount === 13) throw new Error("unlucky")
          return total + amount
        },
        commands: {
          Add: (_, { amounts }) => Decision.persist(amounts.map((amount) => ({ _tag: "Added" as const, amount }))),
          Total: (total) => Decision.reply(total)
        }
      },
      { restartBackOff: 1 }
    )
    return Effect.gen(function* () {
      const journal = yield* Journal
      const fragile = (yield* Fragile)("a")
      yield* fragile.Add({ amounts: [1] })
      assert.isTrue(Exit.hasDies(yield* Effect.exit(fragile.Add({ amounts: [1, 13] }))))
      assert.strictEqual(yield* fragile.Total(), 1)
      assert.strictEqual((yield* journal.load({ entityType: "Fragile", entityId: "a" })).sequence, 1)
    }).pipe(
      Effect.provide(layer.pipe(Layer.provideMerge(Journal.layerMemory()))),
      Effect.provideService(References.MinimumLogLevel, "None")
    )
  })

  it.live("an append of unknown outcome is settled before the next command, stored or not", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const reason = new OutcomeUnknown({ entityType: "Counter", entityId: "a", message: "no answer" })
      const unknown = Effect.fail(new JournalError({ reason }))
      watched.afterAppend = unknown
      const stored = yield* Effect.flip(counter.Add({ amount: 10 }))
      assert.isTrue(stored instanceof EntityError && stored.maybeStored)
      watched.afterAppend = Effect.void
      assert.strictEqual(yield* counter.Add({ amount: 1 }), 12)
      watched.beforeAppend = unknown
      yield* Effect.flip(counter.Add({ amount: 10 }))
      watched.beforeAppend = Effect.void
      assert.strictEqual(yield* counter.Peek(), 12)
      assert.strictEqual(yield* counter.Add({ amount: 1 }), 13)
    }).pipe(withEntities())
  )

  it.live(
    "a rejection that rests on what another process has outdated is not given, by an effect that fails either",
    () =>
      Effect.gen(function* () {
        const watched = yield* Watched
        const counter = (yield* Counter)("a")
        yield* counter.Add({ amount: 10 })
        const at = yield* watched.journal.load({ entityType: "Counter", entityId: "a" })
        const events = [{ type: "Added", payload: { amount: -5 } }]
        yield* watched.journal.append({ entityType: "Counter", entityId: "a", expected: at, events })
        assert.strictEqual(yield* counter.Limited({ amount: 3 }), 8)
        assert.deepInclude(yield* Effect.flip(counter.Limited({ amount: 3 })), { _tag: "Negative", total: 8 })
      }).pipe(withEntities())
  )

  it.live("conflicts with another writer are not noticed by the caller, and bounded", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      const rival = Effect.gen(function* () {
        const at = yield* watched.journal.load({ entityType: "Counter", entityId: "a" })
        const events = [{ type: "Added", payload: { amount: 100 } }]
        yield* watched.journal.append({ entityType: "Counter", entityId: "a", expected: at, events })
      })
      let times = 2
      watched.beforeAppend = Effect.suspend(() => (times-- > 0 ? rival : Effect.void))
      assert.strictEqual(yield* counter.Add({ amount: 1 }), 202)
      assert.strictEqual((yield* metricsOf("Counter"))["entity.conflicts"], 2)
      times = 100
      const reason = yield* reasonOf(counter.Add({ amount: 1 }))
      assert.strictEqual(reason._tag, "TooManyConflicts")
      assert.strictEqual(times, 96)
    }).pipe(withEntities({ maxConflicts: 3 }))
  )
})

describe("options", () => {
  it.live("come by their names from Config", () =>
    Effect.gen(function* () {
      const watched = yield* Watched
      yield* (yield* Counter)("b").Add({ amount: 1 })
      const counter = (yield* Counter)("a")
      yield* counter.Add({ amount: 1 })
      assert.deepInclude(yield* metricsOf("Counter"), { "entity.active": 1, "entity.passivations": 1 })
      watched.beforeAppend = Effect.never
      yield* start(counter.Add({ amount: 1 }))
      yield* start(counter.Add({ amount: 1 }))
      assert.deepInclude(yield* reasonOf(counter.Add({ amount: 1 })), { _tag: "MailboxFull", size: 1 })
    }).pipe(
      Effect.provide(
        Counter.layerConfig(behavior).pipe(
          Layer.provide(watchedJournal),
          Layer.provide(limits),
          Layer.provideMerge(Watched.layer),
          Layer.provide(
            ConfigProvider.layer(
              ConfigProvider.constantCase(
                ConfigProvider.fromEnv({ env: { MAILBOX_SIZE: "1", MAX_ENTITIES: "1", SHUTDOWN_TIMEOUT: "10 millis" } })
              )
            )
          )
        ),
        { local: true }
      )
    )
  )

  it.live("that make no sense are refused by name", () =>
    Effect.gen(function* () {
      for (const [options, says] of [
        [{ snapshotEvery: 0 }, "Counter: snapshotEvery is 0, it must be a whole number from 1 on"],
        [{ askTimeout: -1 }, 'Counter: askTimeout is -1, it must be a duration, as "5 seconds"'],
        [{ passivateAfter: "a while" as "1 hour" }, 'Counter: passivateAfter is "a while", it must be a duration']
      ] as const) {
        const exit = yield* Effect.exit(Layer.build(live(options)).pipe(Effect.scoped))
        assert.include(String(Exit.isFailure(exit) && exit.cause), says)
      }
    })
  )
})

describe("a definition that cannot work is refused", () => {
  const make = (...commands: ReadonlyArray<Rpc.AnyWithProps>) =>
    PersistentEntity.make("Wrong", { state: Schema.Int, initialState: 0, events: [], commands })

  it("two commands of one name, an answer by a stream, a name that JavaScript takes for something else", () => {
    assert.throws(() => make(Rpc.make("A"), Rpc.make("A")), "Wrong has two commands A")
    assert.throws(
      () => make(Rpc.make("A", { success: Schema.Int, stream: true })),
      "the command A answers with a stream"
    )
    assert.throws(() => make(Rpc.make("then")), "a command cannot be named then")
  })

  it.live("a behavior that does not fit the definition, where there are no types", () =>
    Effect.gen(function* () {
      const right = { apply: () => 0, commands: { A: () => Decision.reply(undefined) } }
      for (const [wrong, says] of [
        [{ commands: {} }, "Wrong has no handler for its command A"],
        [{ commands: { ...right.commands, B: () => 1 } }, "Wrong has a handler for B, which is not among its commands"],
        [{ apply: undefined }, "Wrong has no function apply"],
        [
          { reactions: { Happened: () => Effect.void } },
          "Wrong has a reaction or timer for Happened, which is not among its events"
        ]
      ] as const) {
        const layer = make(Rpc.make("A"))
          .layer({ ...right, ...wrong } as never)
          .pipe(Layer.provide(Journal.layerMemory()))
        const exit = yield* Effect.exit(Effect.scoped(Layer.build(layer)))
        assert.include(String(Exit.isFailure(exit) && exit.cause), says)
      }
    })
  )

  it("an initial state that does not fit its schema", () => {
    const Wrong = PersistentEntity.make("Wrong", {
      state: Schema.Int,
      initialState: 0.5,
      events: [],
      commands: []
    })
    assert.throws(
      () => TestEntity.make(Wrong, Wrong.behavior({ apply: () => 0, commands: {} })),
      "Wrong: the initial state does not fit its schema: Expected an integer"
    )
  })

  it.live("ids and decisions that are none, where there are no types", () =>
    Effect.gen(function* () {
      const wrong = make(Rpc.make("A"))
      const layer = wrong.layer({ apply: () => 0, commands: { A: () => Promise.resolve() } } as never)
      yield* Effect.gen(function* () {
        const entities = (yield* wrong) as unknown as (id: unknown) => { readonly A: () => Effect.Effect<void> }
        assert.throws(() => entities(7), "the id of a Wrong must be text, not 7")
        const exit = yield* Effect.exit(entities("a").A())
        assert.include(
          String(Exit.isFailure(exit) && exit.cause),
          "the handler of A of Wrong gave [object Promise], which is no decision: Decision.persist, reply or reject"
        )
      }).pipe(Effect.provide(layer.pipe(Layer.provide(Journal.layerMemory()))))
    }).pipe(Effect.provideService(References.MinimumLogLevel, "None"))
  )
})

describe("observability", () => {
  it.live("a span per command, with entity type, events stored, decisions anew, and the id if wanted", () =>
    Effect.gen(function* () {
      const spans: Array<Tracer.NativeSpan> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      const counter = (yield* Counter)("a")
      yield* counter.AddAll({ amounts: [1, 2] }).pipe(Effect.withSpan("outer"), Effect.withTracer(tracer))
      yield* Effect.flip(counter.Add({ amount: -9 })).pipe(Effect.withTracer(tracer))
      const [, addAll, add] = spans
      assert.strictEqual(addAll!.name, "Counter.AddAll")
      assert.strictEqual(addAll!.parent._tag, "Some")
      assert.deepStrictEqual(Object.fromEntries(addAll!.attributes), {
        "entity.type": "Counter",
        "entity.command": "AddAll",
        "entity.id": "a",
        "entity.events": 2,
        "entity.conflicts": 0
      })
      assert.deepInclude(Object.fromEntries(add!.attributes), { "entity.events": 0, "error.type": "Negative" })
    }).pipe(withEntities({ spanEntityId: true }))
  )

  it.live("snapshots are saved by number, by what an event says, or not at all, and the newest are kept", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const saved = Effect.fnUntraced(function* (entityId: string) {
        const sequences: Array<number> = []
        for (let upTo = 1000; ; upTo = sequences.at(-1)! - 1) {
          const { snapshot } = yield* journal.load({ entityType: "Counter", entityId }, { snapshotsUpTo: upTo })
          if (Option.isNone(snapshot)) return sequences
          sequences.push(snapshot.value.sequence)
        }
      })
      const run = (
        entityId: string,
        options: PersistentEntity.Options,
        when?: (state: { readonly total: number }) => boolean
      ) =>
        Effect.gen(function* () {
          const counter = (yield* Counter)(entityId)
          for (let n = 0; n < 9; n++) yield* counter.Add({ amount: 1 })
        }).pipe(Effect.provide(Counter.layer({ ...behavior, snapshotWhen: when }, options)))
      yield* run("number", { snapshotEvery: 2, snapshotsKept: 3 })
      yield* run("event", { snapshotEvery: "never", snapshotsKept: 2 }, ({ total }) => total === 5)
      yield* run("never", { snapshotEvery: "never" })
      yield* until(Effect.map(saved("number"), (found) => found.join() === "8,6,4"))
      yield* until(Effect.map(saved("event"), (found) => found.join() === "5"))
      assert.deepStrictEqual(yield* saved("never"), [])
    }).pipe(Effect.provide(Layer.mergeAll(Journal.layerMemory(), Layer.succeed(Limits, { max: 100 }))))
  )

  it.live("metrics by type: commands, errors, recoveries, snapshots", () =>
    Effect.gen(function* () {
      const counters = yield* Counter
      yield* counters("a").AddAll({ amounts: [1, 2, 3] })
      yield* counters("b").Add({ amount: 1 })
      yield* counters("b").Peek()
      yield* Effect.flip(counters("b").Add({ amount: 1.5 }))
      yield* until(Effect.map(metricsOf("Counter"), (metrics) => metrics["entity.snapshots"] === 1))
      assert.deepInclude(yield* metricsOf("Counter"), {
        "entity.active": 2,
        "entity.recoveries": 2,
        "entity.command.duration": 2,
        "entity.local_reads": 1,
        "entity.errors MalformedCommand": 1
      })
    }).pipe(withEntities({ snapshotEvery: 3 }))
  )

  it.live("what a handler logs carries the entity's name", () => {
    const Chatty = PersistentEntity.make("Chatty", {
      state: Schema.Void,
      initialState: undefined,
      events: [],
      commands: [Rpc.make("Talk")]
    })
    const layer = Chatty.layer({
      apply: () => undefined,
      commands: { Talk: () => Effect.as(Effect.logInfo("hello"), Decision.reply(undefined)) }
    })
    return Effect.gen(function* () {
      const logged = yield* Deferred.make<unknown>()
      const logger = Logger.make((entry) =>
        Deferred.doneUnsafe(logged, Effect.succeed(entry.fiber.getRef(References.CurrentLogAnnotations)))
      )
      yield* Effect.flatMap(Chatty, (chatty) => chatty("a").Talk()).pipe(Effect.provide(Logger.layer([logger])))
      assert.deepInclude(yield* Deferred.await(logged), { "entity.type": "Chatty", "entity.id": "a" })
    }).pipe(Effect.provide(layer.pipe(Layer.provide(Journal.layerMemory()))))
  })
})
