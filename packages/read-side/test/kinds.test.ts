import { assert, layer } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql, withOptions } from "@effect-cassandra/session/Statement"
import { Context, Effect, Layer, Schema } from "effect"
import * as Processor from "../src/Processor.ts"
import { ReadSide } from "../src/ReadSide.ts"
import { Added, added, append, blind, eventually, Live, oneOfEachShard } from "./fixture.ts"

class Mailer extends Context.Service<Mailer, { readonly send: (text: string) => Effect.Effect<void, string> }>()(
  "test/Mailer"
) {}

const failureOf = (processor: string) =>
  eventually(
    Effect.gen(function* () {
      const status = yield* (yield* ReadSide).status
      return (
        status.find((one) => one.processor === processor && one.failure !== undefined)?.failure ??
        (yield* Effect.fail("none yet"))
      )
    })
  )

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("kinds of processors", (it) => {
  it.effect("an Effect is run for each event in order, and again when it fails", () =>
    Effect.gen(function* () {
      const sent: Array<string> = []
      let refused = 2
      const Mails = Processor.effect("mails", {
        entityType: "Mailed",
        events: [Added],
        handlers: {
          Added: ({ amount }, { entityId }) => Effect.flatMap(Mailer, (mailer) => mailer.send(`${entityId} ${amount}`))
        }
      })
      yield* append("Mailed", "a", added(1), added(2), { type: "Other", payload: {} }, added(3))
      const MailerLive = Layer.succeed(Mailer, {
        send: (text) =>
          Effect.suspend(() => {
            if (text === "a 2" && refused-- > 0) return Effect.fail("no connection")
            sent.push(text)
            return Effect.void
          })
      })
      yield* eventually(Effect.sync(() => assert.deepStrictEqual(sent, ["a 1", "a 2", "a 3"]))).pipe(
        Effect.provide(ReadSide.layer([Mails]).pipe(Layer.provide(MailerLive)))
      )
      // Where it stopped is known.
      yield* append("Mailed", "a", added(4))
      yield* eventually(Effect.sync(() => assert.deepStrictEqual(sent.slice(3), ["a 4"]))).pipe(
        Effect.provide(ReadSide.layer([Mails]).pipe(Layer.provide(MailerLive)))
      )
    })
  )

  it.effect("at most once: neither a failure nor a second owner lets an event be handled again", () =>
    Effect.gen(function* () {
      const handled: Array<number> = []
      const once = Processor.effect("once", {
        entityType: "Once",
        events: [Added],
        delivery: "at-most-once",
        handlers: {
          Added: ({ amount }) =>
            Effect.suspend(() => {
              handled.push(amount)
              return amount === 3 ? Effect.fail("broken") : Effect.void
            })
        }
      })
      const ids = yield* oneOfEachShard
      const both = Layer.merge(blind([once], "one"), blind([once], "two"))
      yield* Effect.gen(function* () {
        for (let i = 1; i <= 30; i++) yield* append("Once", ids[i % 3]!, added(i))
        yield* eventually(Effect.sync(() => assert.strictEqual(handled.length, 30)))
      }).pipe(Effect.provide(both))
      assert.deepStrictEqual(
        [...handled].sort((a, b) => a - b),
        Array.from({ length: 30 }, (_, i) => i + 1)
      )
    })
  )

  it.effect("groups are as large as asked, in order, and do not wait longer than asked", () =>
    Effect.gen(function* () {
      const groups: Array<Array<number>> = []
      const grouped = Processor.grouped("grouped", {
        entityType: "Grouped",
        events: [Added],
        size: 4,
        within: "50 millis",
        handle: (events) =>
          Effect.sync(() => {
            groups.push(events.map(({ event }) => event.amount))
          })
      })
      yield* append("Grouped", "a", ...Array.from({ length: 10 }, (_, i) => added(i)))
      yield* eventually(
        Effect.sync(() =>
          assert.deepStrictEqual(groups, [
            [0, 1, 2, 3],
            [4, 5, 6, 7],
            [8, 9]
          ])
        )
      ).pipe(Effect.provide(ReadSide.layer([grouped])))
    })
  )

  it.effect("a state per key counts exactly over shards, with two owners and a rewind", () =>
    Effect.gen(function* () {
      const Totals = Processor.fold("totals", {
        entityType: "Totalled",
        events: [Added],
        table: "totals_by_parity",
        state: Schema.Struct({ events: Schema.Int, sum: Schema.Int }),
        initial: { events: 0, sum: 0 },
        key: ({ amount }) => (amount < 0 ? undefined : amount % 2 === 0 ? "even" : "odd"),
        fold: ({ events, sum }, { amount }) => ({ events: events + 1, sum: sum + amount }),
        merge: (a, b) => ({ events: a.events + b.events, sum: a.sum + b.sum })
      })
      const ids = yield* oneOfEachShard
      const even = { events: 0, sum: 0 }
      const odd = { events: 0, sum: 0 }
      const add = (amount: number) =>
        Effect.suspend(() => {
          const total = amount % 2 === 0 ? even : odd
          if (amount >= 0) {
            total.events++
            total.sum += amount
          }
          return append("Totalled", ids[Math.abs(amount) % 3]!, added(amount))
        })
      const agree = eventually(
        Effect.gen(function* () {
          assert.deepStrictEqual(yield* Totals.stateOf("even"), even)
          assert.deepStrictEqual(yield* Totals.stateOf("odd"), odd)
        })
      )
      yield* Effect.gen(function* () {
        for (let i = -3; i < 40; i++) yield* add(i)
        yield* agree
        yield* (yield* ReadSide).rewind("totals", "beginning")
        for (let i = 40; i < 60; i++) yield* add(i)
        yield* agree
        yield* (yield* ReadSide).rewind("totals", "beginning", { truncate: true })
        yield* add(60)
        yield* agree
      }).pipe(
        Effect.provide(
          Layer.merge(
            ReadSide.layer([Totals], { lease: "2 seconds" }),
            Layer.fresh(ReadSide.layer([Totals], { lease: "2 seconds" }))
          )
        )
      )
      yield* Effect.gen(function* () {
        for (let i = 61; i < 100; i++) yield* add(i)
        yield* agree
      }).pipe(Effect.provide(Layer.merge(blind([Totals], "read side"), blind([Totals], "another"))))
      assert.deepStrictEqual(yield* Totals.stateOf("none"), { events: 0, sum: 0 })
    })
  )

  it.effect("one processor follows several entity types, and is told where an event comes from", () =>
    Effect.gen(function* () {
      const Renamed = Schema.TaggedStruct("Renamed", { name: Schema.String })
      const both = Processor.make("both", {
        entityType: ["Left", "Right"],
        events: [Added, Renamed],
        tables: ["CREATE TABLE IF NOT EXISTS sides (type text, id text, value text, PRIMARY KEY (type, id))"],
        handlers: {
          Added: ({ amount }, { entityId, entityType }) =>
            cql`INSERT INTO sides (type, id, value) VALUES (${entityType}, ${entityId}, ${String(amount)})`,
          Renamed: ({ name }, { entityId, entityType }) =>
            cql`INSERT INTO sides (type, id, value) VALUES (${entityType}, ${entityId}, ${name})`
        }
      })
      yield* append("Left", "x", added(1))
      yield* append("Right", "x", added(2), { type: "Renamed", payload: { name: "new" } })
      yield* eventually(
        Effect.gen(function* () {
          const session = yield* CassandraSession
          const rows = yield* session.execute(cql`SELECT type, id, value FROM sides`)
          assert.sameDeepMembers(
            rows.map((row) => ({ ...row })),
            [
              { type: "Right", id: "x", value: "new" },
              { type: "Left", id: "x", value: "1" }
            ]
          )
        })
      ).pipe(Effect.provide(ReadSide.layer([both])))
    })
  )

  it.effect("what cannot be executed twice with the same result is refused, and says what to do", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      for (const id of ids) yield* append("Refused", id, added(ids.indexOf(id) + 1))
      const refusing = (name: string, statement: (amount: number, id: string) => Processor.Statements, keys?: "own") =>
        Processor.make(name, {
          keys,
          entityType: "Refused",
          events: [Added],
          tables: [
            "CREATE TABLE IF NOT EXISTS refused (k text, c int, v int, w int, PRIMARY KEY (k, c))",
            "CREATE TABLE IF NOT EXISTS refused_names (k text PRIMARY KEY)"
          ],
          handlers: { Added: ({ amount }, { entityId }) => statement(amount, entityId) }
        })
      const insert = (k: string, c: number, v: number) => cql`INSERT INTO refused (k, c, v) VALUES (${k}, ${c}, ${v})`
      const cases: ReadonlyArray<
        readonly [string, (amount: number, id: string) => Processor.Statements, RegExp, "own"?]
      > = [
        ["own-timestamp", (v, id) => withOptions(insert(id, 1, v), { timestamp: 5 }), /a timestamp of its own/],
        ["own-ttl", (v, id) => withOptions(insert(id, 1, v), { ttl: "1 day" }), /a time to live/],
        ["literal-key", (v) => cql`UPDATE refused SET v = ${v} WHERE k = k AND c = 1`, /no column of its key/],
        ["many", (v, id) => Array.from({ length: 11 }, (_, i) => insert(id, i, v)), /11 statements for one event/],
        [
          "one-row",
          (v) => insert("total", 1, v),
          /no column of its key \(k, c\) holds the entity's id, "id\d+", .* keys: "own"/
        ],
        ["one-deleted", () => cql`DELETE FROM refused WHERE k = ${"total"}`, /no column of its key/],
        [
          "own-row",
          (v) => insert("total", 1, v),
          /writes the same row of refused as .* between shards there is no order/,
          "own"
        ],
        ["foreign", (v, id) => cql`INSERT INTO other.refused (k, c, v) VALUES (${id}, ${1}, ${v})`, /names a keyspace/]
      ]
      for (const [name, statement, expected, keys] of cases) {
        const { message, reason } = yield* failureOf(name).pipe(
          Effect.provide(ReadSide.layer([refusing(name, statement, keys)]))
        )
        assert.strictEqual(reason, "StatementRefused")
        assert.match(message, expected)
      }
      // Rows that are the same whoever writes them, and columns of different writers, depend on no order.
      const allowed = refusing(
        "allowed",
        (v, id) => [
          cql`INSERT INTO refused_names (k) VALUES (${"all"})`,
          id === ids[0]
            ? cql`UPDATE refused SET v = ${v} WHERE k = ${"shared"} AND c = ${1}`
            : cql`UPDATE refused SET w = ${7} WHERE k = ${"shared"} AND c = ${1}`
        ],
        "own"
      )
      yield* eventually(
        Effect.gen(function* () {
          const session = yield* CassandraSession
          const [row] = yield* session.execute(cql`SELECT v, w FROM refused WHERE k = 'shared'`)
          assert.deepStrictEqual({ ...row }, { v: 1, w: 7 })
          assert.isTrue(
            (yield* (yield* ReadSide).status)
              .filter(({ processor }) => processor === "allowed")
              .every(({ state }) => state === "running")
          )
        })
      ).pipe(Effect.provide(ReadSide.layer([allowed])))
    })
  )

  it.effect("settings that cannot be are refused before anything runs", () =>
    Effect.gen(function* () {
      const processor = Processor.make("set", { entityType: "Set", events: [Added], handlers: {} })
      for (const [options, expected] of [
        [{ lease: "500 millis" }, /lease in ms is 500: give 1000 or more/],
        [{ offsetInterval: 0 }, /offsetInterval in ms is 0/],
        [{ concurrency: 0 }, /concurrency is 0/],
        [{ maxBatches: Number.NaN }, /maxBatches is NaN/]
      ] as const) {
        const error = yield* Effect.flip(Effect.provide(ReadSide, Layer.fresh(ReadSide.layer([processor], options))))
        assert.match(error.message, expected)
      }
      const twice = yield* Effect.flip(Effect.provide(ReadSide, ReadSide.layer([processor, processor])))
      assert.match(twice.message, /two processors have the name "set"/)
    })
  )

  it.effect("mistakes of a definition are told at once", () =>
    Effect.sync(() => {
      const base = { entityType: "A", events: [Added], handlers: {} }
      assert.throws(() => Processor.make("a b", base), /cannot be called "a b"/)
      assert.throws(() => Processor.make("a", { ...base, entityType: [] }), /follows no entity type/)
      assert.throws(() => Processor.make("a", { ...base, entityType: ["A", "A"] }), /each once/)
      assert.throws(() => Processor.make("a", { ...base, version: 0 }), /versions are 1, 2, 3/)
      assert.throws(() => Processor.make("a", { ...base, tables: ["CREATE TABLE t (k int)"] }), /not of the form/)
      assert.throws(() => Processor.make("a", { ...base, onFailure: { park: { attempts: 0 } } }), /give 1 or more/)
      assert.throws(
        () => Processor.make("a", { ...base, tables: ["CREATE TABLE IF NOT EXISTS event_log (k int PRIMARY KEY)"] }),
        /event_log is a table of the journal/
      )
      assert.throws(
        () => Processor.make("a", { ...base, handlers: { Gone: () => [] } as object }),
        /a handler for Gone, which is not among/
      )
    })
  )
})
