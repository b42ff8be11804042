import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Schedule, Schema } from "effect"
import * as Processor from "../src/Processor.ts"
import { ReadSide } from "../src/ReadSide.ts"

const Added = Schema.TaggedStruct("Added", { total: Schema.Int })
const Removed = Schema.TaggedStruct("Removed", {})

const processor = (name: string, entityType: string, handled: Array<string> = []) =>
  Processor.make(name, {
    entityType,
    events: [Added, Removed],
    tables: [
      "CREATE TABLE IF NOT EXISTS totals (name text, id text, total int, PRIMARY KEY (name, id))",
      "CREATE TABLE IF NOT EXISTS lines (name text, id text, sequence bigint, total int, PRIMARY KEY ((name, id), sequence))"
    ],
    handlers: {
      Added: ({ total }, { entityId, sequence }) => {
        handled.push(`${entityId} ${sequence}`)
        return [
          cql`INSERT INTO totals (name, id, total) VALUES (${name}, ${entityId}, ${total})`,
          cql`INSERT INTO lines (name, id, sequence, total) VALUES (${name}, ${entityId}, ${BigInt(sequence)}, ${total})`
        ]
      },
      Removed: (_, { entityId }) => cql`DELETE FROM totals WHERE name = ${name} AND id = ${entityId}`
    }
  })

const append = (entityType: string, entityId: string, events: ReadonlyArray<{ type: string; payload: unknown }>) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    yield* journal.append({ entityType, entityId, expected: "any", events })
  })

const added = (total: number) => ({ type: "Added", payload: { total } })

/** Waits until the view is as expected. */
const shows = (view: string, expected: Readonly<Record<string, number>>) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    const rows = yield* session.execute<{ id: string; total: number }>(
      cql`SELECT id, total FROM totals WHERE name = ${view}`
    )
    assert.deepStrictEqual(Object.fromEntries(rows.map(({ id, total }) => [id, total])), expected)
  }).pipe(Effect.sandbox, Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 }))

const lines = (view: string, id: string) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    const rows = yield* session.execute<{ sequence: bigint }>(
      cql`SELECT sequence FROM lines WHERE name = ${view} AND id = ${id}`
    )
    return rows.map(({ sequence }) => Number(sequence))
  })

/** Waits until some shard of a processor stands still, and says why. */
const failureOf = (name: string) =>
  Effect.gen(function* () {
    const found = (yield* (yield* ReadSide).status).find((one) => one.processor === name && one.failure !== undefined)
    return found?.failure ?? (yield* Effect.fail("none yet"))
  }).pipe(Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 }))

const Live = Journal.layer({ shards: 3, indexInterval: "50 millis" }).pipe(Layer.provideMerge(TestKeyspace.layer))

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("ReadSide", (it) => {
  it.effect("keeps a view of past events and of those to come, with several events on one row", () =>
    Effect.gen(function* () {
      yield* append("Order", "a", [added(1), added(2)])
      yield* append("Order", "b", [added(5)])
      yield* Effect.gen(function* () {
        yield* shows("orders", { a: 2, b: 5 })
        yield* append("Order", "a", [added(3), { type: "Removed", payload: {} }])
        yield* append("Order", "b", [{ type: "Removed", payload: {} }, added(7)])
        yield* shows("orders", { b: 7 })
        assert.deepStrictEqual(yield* lines("orders", "a"), [1, 2, 3])
      }).pipe(Effect.provide(ReadSide.layer([processor("orders", "Order")])))
    })
  )

  it.effect("goes on where it stopped", () =>
    Effect.gen(function* () {
      const first: Array<string> = []
      const second: Array<string> = []
      yield* append("Stop", "a", [added(1), added(2)])
      yield* shows("stop", { a: 2 }).pipe(Effect.provide(ReadSide.layer([processor("stop", "Stop", first)])))
      yield* append("Stop", "a", [added(3)])
      yield* shows("stop", { a: 3 }).pipe(Effect.provide(ReadSide.layer([processor("stop", "Stop", second)])))
      assert.deepStrictEqual(first, ["a 1", "a 2"])
      assert.deepStrictEqual(second, ["a 3"])
    })
  )

  it.effect("two runners of one processor, and a runner without its offsets, leave the same rows", () =>
    Effect.gen(function* () {
      const run = ReadSide.layer([processor("twice", "Twice")])
      const expected: Record<string, number> = {}
      for (let i = 0; i < 20; i++) {
        expected[`e${i}`] = 3
        yield* append("Twice", `e${i}`, [added(1), added(2), added(3)])
      }
      yield* shows("twice", expected).pipe(Effect.provide(Layer.fresh(run)), Effect.provide(Layer.fresh(run)))
      yield* append("Twice", "e0", [{ type: "Removed", payload: {} }])
      const { e0: _, ...rest } = expected
      yield* shows("twice", rest).pipe(Effect.provide(Layer.fresh(run)))
      yield* Effect.flatMap(ReadSide, (readSide) => readSide.clearOffsets("twice")).pipe(
        Effect.provide(ReadSide.layerRequests)
      )
      const again: Array<string> = []
      yield* Effect.gen(function* () {
        yield* append("Twice", "e1", [added(9)])
        yield* shows("twice", { ...rest, e1: 9 })
        assert.deepStrictEqual(yield* lines("twice", "e0"), [1, 2, 3])
      }).pipe(Effect.provide(ReadSide.layer([processor("twice", "Twice", again)])))
      assert.isAbove(again.length, 40)
    })
  )

  it.effect("passes over events without a handler", () =>
    Effect.gen(function* () {
      yield* append("Other", "a", [{ type: "Unheard", payload: { of: 1 } }, added(4)])
      yield* shows("other", { a: 4 }).pipe(Effect.provide(ReadSide.layer([processor("other", "Other")])))
    })
  )

  it.effect("stands still at an event that it cannot handle, says why, and does not hold up other shards", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const other = ["x", "y", "z", "u", "v", "w"].find((id) => journal.shardOf(id) !== journal.shardOf("bad"))!
      yield* append("Bad", "bad", [added(1), { type: "Added", payload: { total: "no number" } }, added(3)])
      yield* append("Bad", other, [added(8)])
      yield* Effect.gen(function* () {
        yield* shows("bad", { bad: 1, [other]: 8 })
        const failure = (yield* (yield* ReadSide).status).find(
          ({ processor, shard }) => processor === "bad" && shard === journal.shardOf("bad")
        )?.failure
        assert.strictEqual(failure?.reason, "UndecodableEvent")
        assert.match(
          failure?.message ?? "",
          /event 2 of Bad "bad" is a Added, for processor "bad": it does not fit its schema/
        )
      }).pipe(Effect.provide(ReadSide.layer([processor("bad", "Bad")])))
      const tolerant = Processor.make("bad", {
        entityType: "Bad",
        events: [Schema.TaggedStruct("Added", { total: Schema.Unknown })],
        handlers: {
          Added: ({ total }, { entityId }) =>
            cql`INSERT INTO totals (name, id, total) VALUES (${"bad"}, ${entityId}, ${Number(total) || 0})`
        }
      })
      yield* shows("bad", { bad: 3, [other]: 8 }).pipe(Effect.provide(ReadSide.layer([tolerant])))
    })
  )

  it.effect("refuses a statement that may not be executed twice", () =>
    Effect.gen(function* () {
      yield* append("Count", "a", [added(1)])
      const counting = Processor.make("counting", {
        entityType: "Count",
        events: [Added],
        tables: ["CREATE TABLE IF NOT EXISTS counts (id text PRIMARY KEY, n counter)"],
        handlers: { Added: (_, { entityId }) => cql`UPDATE counts SET n = n + ${1n} WHERE id = ${entityId}` }
      })
      const failure = yield* failureOf("counting").pipe(Effect.provide(ReadSide.layer([counting])))
      assert.strictEqual(failure.reason, "StatementRefused")
      assert.match(failure.message, /counts twice when repeated.*UPDATE counts/)
    })
  )

  it.effect("stands still when its offset is past the end of the log", () =>
    Effect.gen(function* () {
      // As long as nobody knows the processor, its logs are not known.
      yield* Effect.flatMap(ReadSide, (readSide) =>
        readSide.setOffset("past", { entityType: "Past", shard: 0 }, 99)
      ).pipe(Effect.provide(ReadSide.layerRequests))
      const failure = yield* failureOf("past").pipe(Effect.provide(ReadSide.layer([processor("past", "Past")])))
      assert.strictEqual(failure.reason, "DataLost")
      assert.match(failure.message, /was to begin after offset 99 of Past shard 0, whose log ends at 0/)
    })
  )
})
