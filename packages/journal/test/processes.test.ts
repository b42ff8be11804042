import { assert, describe, layer } from "@effect/vitest"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Option, Scope } from "effect"
import { Journal, type Options } from "../src/Journal.ts"

const event = (n: number) => ({ type: "Counted", payload: n })
const entityType = "Counter"
const settings: Options = { shards: 1, bucketSize: 50 }

/** A journal as another process has it. */
const other = (options: Options) =>
  Effect.gen(function* () {
    const scope = yield* Scope.Scope
    const context = yield* Layer.buildWithScope(Layer.fresh(Journal.layer(options)), scope)
    return yield* Effect.provide(Journal, context)
  })

const both = (
  options: Options
): Effect.Effect<ReadonlyArray<Journal["Service"]>, unknown, CassandraSession | Scope.Scope> =>
  Effect.all([other(options), other(options)])

describe("two journals that append to the same entities", () => {
  layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })((it) => {
    for (const indexInterval of ["1 hour", "10 millis"] as const) {
      it.effect(`give what came after a position, with the index written every ${indexInterval}`, () =>
        Effect.gen(function* () {
          const [mine, its] = yield* both({ ...settings, indexInterval })
          const entity = { entityType, entityId: `after ${indexInterval}` }
          let known = yield* mine!.append({ ...entity, expected: "none", events: [event(1)] })
          for (let n = 2; n < 200; n += 3) {
            yield* its!.append({ ...entity, expected: "any", events: [event(n), event(n + 1)] })
            const conflict = yield* Effect.flip(mine!.append({ ...entity, expected: known, events: [event(0)] }))
            assert.strictEqual(conflict.reason._tag, "SequenceConflict")
            const { events, sequence, snapshot, validThrough } = yield* mine!.load(entity, { after: known })
            assert.deepStrictEqual(
              events.map(({ payload }) => payload),
              [n, n + 1]
            )
            assert.isTrue(Option.isNone(snapshot))
            known = yield* mine!.append({ ...entity, expected: { sequence, validThrough }, events: [event(n + 2)] })
          }
          const none = yield* mine!.load(entity, { after: known })
          assert.deepInclude(none, { events: [], sequence: known.sequence, deletedThrough: 0 })
          yield* its!.head(entityType, 0)
          const all = yield* its!.load(entity)
          assert.strictEqual(all.sequence, known.sequence)
          assert.deepStrictEqual(
            all.events.map(({ payload }) => payload),
            Array.from({ length: all.sequence }, (_, i) => i + 1)
          )
        }).pipe(Effect.scoped)
      )
    }

    it.effect("say of a state that it was deleted", () =>
      Effect.gen(function* () {
        const [mine, its] = yield* both(settings)
        const entity = { entityType, entityId: "deleted" }
        const known = yield* mine!.append({ ...entity, expected: "none", events: [event(1), event(2)] })
        yield* its!.delete(entity)
        yield* Effect.flip(mine!.append({ ...entity, expected: known, events: [event(3)] }))
        assert.strictEqual((yield* mine!.load(entity, { after: known })).deletedThrough, 2)
      }).pipe(Effect.scoped)
    )

    it.effect("store each append of both once, at once or in turn", () =>
      Effect.gen(function* () {
        const journals = yield* both(settings)
        const entityIds = Array.from({ length: 20 }, (_, i) => `busy ${i}`)
        const append = (journal: Journal["Service"], entityId: string) =>
          journal.append({ entityType, entityId, expected: "any", events: [event(1)] })
        yield* Effect.forEach(
          journals.flatMap((journal) =>
            entityIds.map((entityId) => append(journal, entityId).pipe(Effect.repeat({ times: 99 })))
          ),
          (loop) => loop,
          { concurrency: "unbounded", discard: true }
        )
        for (const journal of journals) {
          for (const entityId of entityIds) {
            // A look at the log first, for the other one may have been last.
            yield* journal.head(entityType, 0)
            assert.strictEqual((yield* journal.load({ entityType, entityId })).sequence, 200)
          }
        }
      }).pipe(Effect.scoped)
    )
  })
})
