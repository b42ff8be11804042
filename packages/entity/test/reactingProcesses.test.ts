import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Context, Effect, Exit, Latch, Layer, References, Schedule, Schema, Scope } from "effect"
import { Rpc } from "effect/rpc"
import * as Decision from "../src/Decision.ts"
import * as PersistentEntity from "../src/PersistentEntity.ts"

const Wished = Schema.TaggedStruct("Wished", { toy: Schema.String })
const Made = Schema.TaggedStruct("Made", { toy: Schema.String })

/** Makes what is wished for. */
const Workshop = PersistentEntity.make("Workshop", {
  state: Schema.Array(Schema.String),
  initialState: [],
  events: [Wished, Made],
  commands: [
    Rpc.make("Wish", { payload: { toy: Schema.String } }),
    Rpc.make("Make", { payload: { toy: Schema.String } })
  ]
})

class Journals extends Context.Service<Journals, Effect.Effect<Journal["Service"], unknown, Scope.Scope>>()(
  "test/Journals"
) {}

const settings = { shards: 2 }

const inMemory = Layer.effect(Journals, Effect.map(Journal, Effect.succeed)).pipe(
  Layer.provide(Journal.layerMemory(settings))
)

const onCassandra = Layer.effect(
  Journals,
  Effect.map(Effect.context<Layer.Services<ReturnType<typeof Journal.layer>>>(), (context) =>
    Effect.map(Effect.provideContext(Layer.build(Layer.fresh(Journal.layer(settings))), context), Context.get(Journal))
  )
).pipe(Layer.provide(TestKeyspace.layer))

/** A process, and how many reactions it began. */
const process = Effect.fnUntraced(function* (change: (journal: Journal["Service"]) => Journal["Service"] = (it) => it) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const journal = change(yield* Effect.provideService(yield* Journals, Scope.Scope, scope))
  const counted = { reactions: 0 }
  const live = Workshop.layer({
    apply: (toys, event) => (event._tag === "Made" ? [...toys, event.toy] : toys),
    commands: {
      Wish: (_, { toy }) => Decision.persist(Wished.make({ toy })),
      Make: (_, { toy }) => Decision.persist(Made.make({ toy }))
    },
    reactions: {
      Wished: ({ toy }, { self }) => {
        counted.reactions++
        return self.Make({ toy })
      }
    }
  })
  const context = yield* Layer.buildWithScope(
    Layer.fresh(live).pipe(Layer.provide(Layer.succeed(Journal, journal))),
    scope
  )
  return {
    journal,
    workshops: Context.get(context, Workshop),
    counted,
    close: Scope.close(scope, Exit.void)
  }
})

type Process = Effect.Success<ReturnType<typeof process>>

/** Five workshops, over the shards. */
const ids = (name: string) => [1, 2, 3, 4, 5].map((i) => `${name}-${i}`)

/** The n-th wish in each of the workshops. */
const wish = ({ workshops }: Process, name: string, n: number) =>
  Effect.forEach(ids(name), (id) => workshops(id).Wish({ toy: `toy ${n}` }), { concurrency: 5, discard: true })

/** Waits until the workshops have made so many toys each, and sees that they have made each once. */
const made = ({ journal }: Process, name: string, count: number) =>
  Effect.forEach(ids(name), (entityId) =>
    journal.head("Workshop", journal.shardOf(entityId)).pipe(
      Effect.andThen(journal.load({ entityType: "Workshop", entityId }, { snapshotsUpTo: 0 })),
      Effect.map(({ events }) => events.filter(({ type }) => type === "Made").map(({ payload }) => payload)),
      Effect.filterOrFail((toys) => toys.length >= count),
      Effect.retry({ schedule: Schedule.spaced("10 millis"), times: 3000 }),
      Effect.tap((toys) =>
        Effect.sync(() =>
          assert.deepStrictEqual(
            toys,
            Array.from({ length: count }, (_, i) => ({ toy: `toy ${i + 1}` }))
          )
        )
      )
    )
  )

const suite = (name: string, journals: Layer.Layer<Journals, unknown>) =>
  layer(journals as Layer.Layer<Journals>, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    const test = (what: string, effect: Effect.Effect<unknown, unknown, Journals | Scope.Scope>) =>
      it.effect(
        what,
        () => effect.pipe(Effect.scoped, Effect.provideService(References.MinimumLogLevel, "None")),
        60_000
      )

    test(
      "one of two does them; the other one when it closes, and takes up what was under way",
      Effect.gen(function* () {
        const first = yield* process()
        yield* wish(first, "a", 1)
        yield* made(first, "a", 1)
        const second = yield* process()
        for (let i = 2; i <= 8; i++) yield* wish(i % 2 === 0 ? first : second, "a", i)
        yield* made(second, "a", 8)
        const done = () => first.counted.reactions + second.counted.reactions
        assert.isAtLeast(done(), 40)
        assert.isAtMost(done(), 50)
        yield* first.close
        yield* wish(second, "a", 9)
        yield* made(second, "a", 9)
        assert.isAtMost(done(), 60)
      })
    )

    test(
      "when one is stopped, the other one goes on; when it wakes up, nothing is done twice",
      Effect.gen(function* () {
        const running = Latch.makeUnsafe(true)
        const stoppable = yield* process((journal) => ({
          ...journal,
          append: (append) => Effect.andThen(running.await, journal.append(append)),
          load: (...args) => Effect.andThen(running.await, journal.load(...args)),
          saveSnapshot: (...args) => Effect.andThen(running.await, journal.saveSnapshot(...args))
        }))
        yield* wish(stoppable, "b", 1)
        yield* made(stoppable, "b", 1)
        const other = yield* process()
        yield* running.close
        for (let i = 2; i <= 5; i++) yield* wish(other, "b", i)
        yield* made(other, "b", 5)
        assert.isAtLeast(other.counted.reactions, 20)
        yield* running.open
        for (let i = 6; i <= 10; i++) yield* wish(i % 2 === 0 ? stoppable : other, "b", i)
        yield* made(other, "b", 10)
      })
    )

    test(
      "when both believe that it is theirs, each is still done once",
      Effect.gen(function* () {
        const alone = (name: string) => (journal: Journal["Service"]) => {
          const own = (entity: { readonly entityType: string; readonly entityId: string }) =>
            entity.entityId.endsWith("-process") ? { ...entity, entityId: `${entity.entityId}-${name}` } : entity
          return {
            ...journal,
            load: (entity, options) => journal.load(own(entity), options),
            saveSnapshot: (entity, ...args) => journal.saveSnapshot(own(entity), ...args)
          } satisfies Journal["Service"]
        }
        const first = yield* process(alone("one"))
        const second = yield* process(alone("two"))
        for (let i = 1; i <= 20; i++) yield* wish(i % 2 === 0 ? first : second, "c", i)
        yield* made(first, "c", 20)
        yield* Effect.sync(() => Math.min(first.counted.reactions, second.counted.reactions)).pipe(
          Effect.filterOrFail((least) => least >= 100),
          Effect.retry({ schedule: Schedule.spaced("10 millis"), times: 3000 })
        )
        yield* made(first, "c", 20)
      })
    )
  })

suite("Reactions in two processes, on a journal in memory:", inMemory)
suite("Reactions in two processes, on Cassandra:", onCassandra)
