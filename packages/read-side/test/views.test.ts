import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, layer, it as plain } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql, identifier } from "@effect-cassandra/session/Statement"
import { Effect, Layer, Stream } from "effect"
import { SqlClient } from "effect/sql"
import * as MemoryView from "../src/MemoryView.ts"
import * as Processor from "../src/Processor.ts"
import * as ProcessorTest from "../src/ProcessorTest.ts"
import { ReadSide } from "../src/ReadSide.ts"
import * as SqlProcessor from "../src/SqlProcessor.ts"
import { Added, added, append, blind, eventually, Live, lines, oneOfEachShard } from "./fixture.ts"
import { sqlite } from "./sqlite.ts"

const given = (id: string, amount: number) => ProcessorTest.event(id, Added.make({ amount }))

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("views", (it) => {
  it.effect(
    "in a SQL database have every event exactly once, also with two owners, failures and counting statements",
    () =>
      Effect.gen(function* () {
        const folder = mkdtempSync(join(tmpdir(), "effect-cassandra-sql-"))
        yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(folder, { recursive: true })))
        let failures = 3
        const Sums = SqlProcessor.make("sums", {
          entityType: "Summed",
          events: [Added],
          prepare: Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`CREATE TABLE IF NOT EXISTS sums (id text PRIMARY KEY, n int, total int)`
          ),
          handlers: {
            Added: ({ amount }, { entityId }) =>
              Effect.gen(function* () {
                const sql = yield* SqlClient.SqlClient
                yield* sql`INSERT INTO sums (id, n, total) VALUES (${entityId}, 1, ${amount})
                         ON CONFLICT (id) DO UPDATE SET n = n + 1, total = total + excluded.total`
                if (amount === 7 && failures-- > 0) yield* Effect.fail("broken after the write")
              })
          }
        })
        const ids = yield* oneOfEachShard
        // Each process has a connection of its own.
        const owner = (part: string) =>
          blind([Sums], part, { maxBackOff: "20 millis" }).pipe(
            Layer.provide(Layer.fresh(sqlite(join(folder, "views"))))
          )
        const check = (count: number) =>
          Effect.gen(function* () {
            const sql = yield* SqlClient.SqlClient
            const rows = yield* sql<{ n: number; total: number }>`SELECT SUM(n) AS n, SUM(total) AS total FROM sums`
            assert.deepStrictEqual({ ...rows[0] }, { n: count, total: (count * (count - 1)) / 2 })
          }).pipe(eventually, Effect.provide(sqlite(join(folder, "views"))))
        yield* Effect.gen(function* () {
          for (let i = 0; i < 60; i++) yield* append("Summed", ids[i % 3]!, added(i))
          yield* check(60)
        }).pipe(Effect.provide(Layer.merge(owner("one"), owner("two"))))
        assert.isBelow(failures, 0)
        yield* Effect.gen(function* () {
          for (let i = 60; i < 80; i++) yield* append("Summed", ids[i % 3]!, added(i))
          yield* check(80)
        }).pipe(Effect.provide(owner("one")))
      }).pipe(Effect.scoped)
  )

  it.effect("in a SQL database are emptied with their offsets, and take an event that was put aside once", () =>
    Effect.gen(function* () {
      const folder = mkdtempSync(join(tmpdir(), "effect-cassandra-sql-"))
      yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(folder, { recursive: true })))
      const database = sqlite(join(folder, "views"))
      let broken = true
      const sums = (factor: number) =>
        SqlProcessor.make("emptied", {
          entityType: "Emptied",
          events: [Added],
          tables: ["emptied"],
          onFailure: { park: { attempts: 1 } },
          prepare: Effect.flatMap(
            SqlClient.SqlClient,
            (sql) => sql`CREATE TABLE IF NOT EXISTS emptied (id text PRIMARY KEY, total int)`
          ),
          handlers: {
            Added: ({ amount }, { entityId }) =>
              Effect.gen(function* () {
                if (broken && amount === 5) return yield* Effect.fail("no 5")
                const sql = yield* SqlClient.SqlClient
                yield* sql`INSERT INTO emptied (id, total) VALUES (${entityId}, ${amount * factor})
                           ON CONFLICT (id) DO UPDATE SET total = total + excluded.total`
              })
          }
        })
      const ids = yield* oneOfEachShard
      const total = (expected: number) =>
        Effect.gen(function* () {
          const sql = yield* SqlClient.SqlClient
          const [row] = yield* sql<{ total: number }>`SELECT SUM(total) AS total FROM emptied`
          assert.strictEqual(row!.total, expected)
        }).pipe(eventually, Effect.provide(database))
      const process = (factor: number) =>
        Layer.build(
          Layer.fresh(ReadSide.layer([sums(factor)], { lease: "2 seconds", maxBackOff: "20 millis" })).pipe(
            Layer.provide(Layer.fresh(database))
          )
        )
      for (let i = 0; i < 30; i++) yield* append("Emptied", ids[i % 3]!, added(i))
      yield* Effect.gen(function* () {
        const { parked, retryParked } = yield* Effect.provide(ReadSide, yield* process(1))
        // 5 and what its entity has behind it: 8, 11 and so on.
        yield* total(435 - [5, 8, 11, 14, 17, 20, 23, 26, 29].reduce((a, b) => a + b))
        yield* eventually(Effect.map(parked("emptied"), (found) => assert.strictEqual(found.length, 9)))
        broken = false
        yield* retryParked("emptied", { entityType: "Emptied", entityId: ids[2]! })
        yield* total(435)
      }).pipe(Effect.scoped)
      yield* Effect.gen(function* () {
        const { rewind } = yield* Effect.provide(ReadSide, yield* process(10))
        yield* process(10)
        yield* append("Emptied", ids[0]!, added(100))
        yield* total(1435)
        yield* rewind("emptied", "beginning", { truncate: true })
        yield* total(5350)
        yield* rewind("emptied", "beginning", { truncate: true })
        yield* append("Emptied", ids[1]!, added(1))
        yield* total(5360)
      }).pipe(Effect.scoped)
    }).pipe(Effect.scoped)
  )

  it.effect("in memory are whole when they are there, followed live, and can be waited for and subscribed to", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const Totals = MemoryView.make("totals", {
        entityType: "Remembered",
        events: [Added],
        initial: () => new Map<string, number>(),
        apply: (totals, { amount }, { entityId }) => totals.set(entityId, (totals.get(entityId) ?? 0) + amount)
      })
      for (const id of ids) yield* append("Remembered", id, added(1), { type: "Other", payload: {} }, added(2))
      yield* Effect.gen(function* () {
        const view = yield* Totals
        assert.deepStrictEqual(Object.fromEntries(yield* view.get), Object.fromEntries(ids.map((id) => [id, 3])))
        const position = yield* append("Remembered", ids[0]!, added(4))
        yield* view.awaitProjected(position)
        assert.strictEqual((yield* view.get).get(ids[0]!), 7)
        const seen = yield* view.changes.pipe(
          Stream.map((totals) => totals.get(ids[0]!)),
          Stream.runHead
        )
        assert.deepStrictEqual(seen, yield* Effect.succeedSome(7))
        const late = yield* Effect.flip(view.awaitProjected({ ...position, offset: 99 }, "20 millis"))
        assert.strictEqual(late.reason._tag, "NotProjected")
      }).pipe(Effect.provide(Totals.layer))
      const Broken = MemoryView.make("broken", {
        entityType: "Remembered",
        events: [Added],
        initial: () => 0,
        apply: (): number => {
          throw new Error("no")
        }
      })
      const error = yield* Effect.flip(Effect.provide(Broken, Broken.layer))
      assert.match(error.message, /HandlerFailure.*"broken".*: no/)
    })
  )

  it.effect("are tested by given, when and then", () =>
    ProcessorTest.given(lines("tested", "Tested"), given("a", 1), given("b", 2))
      .when(given("a", 3))
      .shows(cql`SELECT id, sequence, amount FROM lines WHERE name = 'tested' AND id = 'a'`, [
        { id: "a", sequence: 1n, amount: 1 },
        { id: "a", sequence: 2n, amount: 3 }
      ])
  )

  it.effect("are brought to the current end, from where they stopped, and the run ends", () =>
    Effect.gen(function* () {
      const processor = lines("ended", "Ended")
      yield* ProcessorTest.store(processor, [given("a", 1), given("b", 2)])
      assert.strictEqual(yield* ProcessorTest.runToEnd(processor), 2)
      yield* ProcessorTest.store(processor, [given("a", 3)])
      assert.strictEqual(yield* ProcessorTest.runToEnd(processor), 1)
      assert.strictEqual(yield* ProcessorTest.runToEnd(processor), 0)
      yield* append("Ended", "a", { type: "Added", payload: { amount: "none" } })
      const error = yield* Effect.flip(ProcessorTest.runToEnd(processor))
      assert.strictEqual(error.reason._tag, "UndecodableEvent")
      const wrong = yield* Effect.exit(
        ProcessorTest.given(lines("wrong", "Wrong"), given("a", 1)).shows(
          cql`SELECT amount FROM lines WHERE name = 'wrong' AND id = 'a'`,
          [{ amount: 2 }]
        )
      )
      assert.match(String(wrong), /amount: 1/)
    })
  )

  it.effect("whose tables cannot be made are told of at once", () =>
    Effect.gen(function* () {
      const missing = Processor.make("missing", {
        entityType: "Missing",
        events: [Added],
        tables: ["CREATE TABLE IF NOT EXISTS missing (id text PRIMARY KEY, n nonsense)"],
        handlers: { Added: (_, { entityId }) => cql`INSERT INTO missing (id) VALUES (${entityId})` }
      })
      const error = yield* Effect.flip(Effect.provide(ReadSide, ReadSide.layer([missing])))
      assert.match(error.message, /the tables of processor "missing" cannot be made/)
    })
  )

  it.effect("have tables that are changed over time, once in the cluster, before anything runs", () =>
    Effect.gen(function* () {
      const movies = (name: string, migrations?: Record<string, string>) =>
        Processor.make(name, {
          entityType: "Migrated",
          events: [Added],
          tables: [`CREATE TABLE IF NOT EXISTS ${name} (id text PRIMARY KEY, amount int)`],
          migrations,
          handlers: {
            Added: ({ amount }, { entityId }) => cql`
              UPDATE ${identifier(name)} SET amount = ${amount}, doubled = ${2 * amount} WHERE id = ${entityId}`
          }
        })
      const doubled = (table: string) => ({ "1_doubled": `ALTER TABLE ${table} ADD doubled int` })
      yield* append("Migrated", "a", added(1))
      const session = yield* CassandraSession
      const processors = ["first", "second"].map((name) => movies(name, doubled(name)))
      // Two processes at once, and the numbers of one processor have nothing to do with those of another.
      const start = Layer.build(Layer.fresh(ReadSide.layer(processors)))
      yield* Effect.all([start, start], { concurrency: 2 })
      for (const name of ["first", "second"]) {
        yield* eventually(
          Effect.gen(function* () {
            const [row] = yield* session.execute<object>(cql`SELECT * FROM ${identifier(name)}`)
            assert.deepStrictEqual({ ...row }, { id: "a", amount: 1, doubled: 2 })
          })
        )
      }
      const edited = movies("first", { "1_doubled": "ALTER TABLE first ADD halved int" })
      const error = yield* Effect.flip(Effect.provide(ReadSide, ReadSide.layer([edited])))
      assert.match(
        error.message,
        /the tables of processor "first" cannot be made: migration 1_doubled is not as it was/
      )
    }).pipe(Effect.scoped)
  )
})

plain("the statements for some events are seen without a database, and refused as they would be", () => {
  const processor = lines("seen", "Seen")
  assert.deepStrictEqual(ProcessorTest.statements(processor, [given("a", 1), given("a", 2)]), [
    { text: "INSERT INTO lines (name, id, sequence, amount) VALUES (?, ?, ?, ?)", params: ["seen", "a", 1n, 1] },
    { text: "INSERT INTO lines (name, id, sequence, amount) VALUES (?, ?, ?, ?)", params: ["seen", "a", 2n, 2] }
  ])
  const counter = Processor.make("counter", {
    entityType: "Seen",
    events: [Added],
    handlers: { Added: (_, { entityId }) => cql`UPDATE counters SET n = n + ${1n} WHERE id = ${entityId}` }
  })
  assert.throws(() => ProcessorTest.statements(counter, [given("a", 1)]), /counts twice when repeated/)
})
