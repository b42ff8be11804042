import { assert, describe, it } from "@effect/vitest"
import { Effect, Option, Schema, Stream } from "effect"
import { CassandraError, Unavailable } from "../src/CassandraError.ts"
import { CassandraSession } from "../src/CassandraSession.ts"
import * as Lagom from "../src/Lagom.ts"
import { cql, make, withOptions, withSchema } from "../src/Statement.ts"
import { TestSession } from "../src/TestSession.ts"

/** What a user would test: a payment that goes through only when the balance suffices. */
const pay = Effect.fn("pay")(function* (account: string, amount: number) {
  const { balance } = yield* cql<{ balance: number }>`SELECT balance FROM accounts WHERE id = ${account}`.one
  if (balance < amount) return "too little"
  const outcome =
    yield* cql`UPDATE accounts SET balance = ${balance - amount} WHERE id = ${account} IF balance = ${balance}`.applied
  return outcome.applied ? "paid" : "try again"
})

describe("TestSession", () => {
  it.effect("answers, and records what was sent", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* pay("a", 30), "paid")
      const { clear, statements } = yield* TestSession
      assert.deepStrictEqual(yield* statements, [
        { text: "SELECT balance FROM accounts WHERE id = ?", params: ["a"], conditional: false, batch: undefined },
        {
          text: "UPDATE accounts SET balance = ? WHERE id = ? IF balance = ?",
          params: [70, "a", 100],
          conditional: true,
          batch: undefined
        }
      ])
      yield* clear
      assert.strictEqual(yield* pay("a", 300), "too little")
      assert.strictEqual((yield* statements).length, 1)
    }).pipe(Effect.provide(TestSession.layer(({ conditional }) => (conditional ? [] : [{ balance: 100 }]))))
  )

  it.effect("lets a condition fail, a statement fail, and rows be decoded", () =>
    Effect.gen(function* () {
      assert.strictEqual(yield* pay("a", 30), "try again")
      const error = yield* Effect.flip(cql`INSERT INTO down (id) VALUES (1)`)
      assert.strictEqual(error.reason._tag, "Unavailable")
      const wrong = cql`SELECT balance FROM accounts`.pipe(withSchema(Schema.Struct({ balance: Schema.String })))
      assert.strictEqual((yield* Effect.flip(wrong.first)).reason._tag, "RowMismatch")
    }).pipe(
      Effect.provide(
        TestSession.layer(({ conditional, text }) =>
          text.includes("down")
            ? new CassandraError({ reason: new Unavailable({ message: "one node", cause: undefined }) })
            : conditional
              ? { applied: false, current: { balance: 5 } }
              : [{ balance: 100 }]
        )
      )
    )
  )

  it.effect("has the verbs of Lagom", () =>
    Effect.gen(function* () {
      assert.deepStrictEqual(yield* Lagom.selectAll("SELECT n FROM t WHERE k = ?", 1), [{ n: 1 }, { n: 2 }])
      assert.deepStrictEqual(yield* Lagom.selectOne(cql`SELECT n FROM t`), Option.some({ n: 1 }))
      assert.strictEqual((yield* Stream.runCollect(Lagom.select("SELECT n FROM t"))).length, 2)
      const insert = yield* Lagom.prepare("INSERT INTO t (k, n) VALUES (?, ?)")
      yield* Lagom.executeWrite(insert(1, 2))
      yield* Lagom.executeWriteBatch([insert(1, 3), insert(1, 4)])
      yield* Lagom.executeCreateTable("CREATE TABLE IF NOT EXISTS t (k int PRIMARY KEY)")
      const { statements } = yield* TestSession
      assert.deepStrictEqual(
        (yield* statements).slice(-3).map(({ batch, params }) => ({ batch, params })),
        [
          { batch: undefined, params: [1, 2] },
          { batch: 1, params: [1, 3] },
          { batch: 1, params: [1, 4] }
        ]
      )
    }).pipe(Effect.provide(TestSession.layer(({ text }) => (text.startsWith("SELECT") ? [{ n: 1 }, { n: 2 }] : []))))
  )

  it.effect("a ttl becomes a bound value of the text", () =>
    Effect.gen(function* () {
      const ttl = { ttl: "1 hour" } as const
      yield* withOptions(cql`INSERT INTO t (k) VALUES (${1})`, ttl)
      yield* withOptions(cql`INSERT INTO t (k) VALUES (${1}) USING TIMESTAMP ${9n};`, ttl)
      yield* withOptions(cql`UPDATE t SET n = ${1} WHERE k = ${2}`, ttl)
      yield* withOptions(cql`UPDATE t USING TIMESTAMP ${9n} SET n = ${1} WHERE k = ${2}`, ttl)
      const { statements } = yield* TestSession
      assert.deepStrictEqual(
        (yield* statements).map(({ params, text }) => [text, params]),
        [
          ["INSERT INTO t (k) VALUES (?) USING TTL ?", [1, 3600]],
          ["INSERT INTO t (k) VALUES (?) USING TIMESTAMP ? AND TTL ?", [1, 9n, 3600]],
          ["UPDATE t USING TTL ? SET n = ? WHERE k = ?", [3600, 1, 2]],
          ["UPDATE t USING TTL ? AND TIMESTAMP ? SET n = ? WHERE k = ?", [3600, 9n, 1, 2]]
        ]
      )
      for (const [text, ttl, message] of [
        ["DELETE FROM t WHERE k = 1", "1 hour", /only an INSERT or UPDATE/],
        ["INSERT INTO t (k) VALUES (1) USING TTL 5", "1 hour", /has a USING TTL already/],
        ["INSERT INTO t (k) VALUES (1)", "500 millis", /500 millis is not a whole number/]
      ] as const) {
        assert.match((yield* Effect.flip(withOptions(make(text), { ttl }))).message, message)
      }
      const session = yield* CassandraSession
      const error = yield* Effect.flip(session.execute(make("SELECT 1", [], { profile: "slow" })))
      assert.match(error.message, /no profile "slow" among none/)
    }).pipe(Effect.provide(TestSession.layer()))
  )
})
