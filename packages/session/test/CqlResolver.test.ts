import { assert, it } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Option } from "effect"
import { CassandraError, Unavailable } from "../src/CassandraError.ts"
import { CassandraSession } from "../src/CassandraSession.ts"
import * as CqlResolver from "../src/CqlResolver.ts"
import { cql } from "../src/Statement.ts"
import { TestSession } from "../src/TestSession.ts"

interface User {
  readonly id: number
  readonly name: string
}

const find = (id: number) => cql<User>`SELECT id, name FROM users WHERE id = ${id}`

it.effect("keys that many fibers ask for at once are each read once", () =>
  Effect.gen(function* () {
    const user = CqlResolver.byKey(find)
    const ids = Array.from({ length: 300 }, (_, i) => i % 100)
    const found = yield* Effect.forEach(ids, user, { concurrency: "unbounded" })
    assert.deepStrictEqual(
      found.map(Option.map(({ id }) => id)),
      ids.map((id) => (id < 90 ? Option.some(id) : Option.none()))
    )
    const { statements } = yield* TestSession
    assert.strictEqual((yield* statements).length, 100)
  }).pipe(
    Effect.provide(
      TestSession.layer(({ params }) => ((params[0] as number) < 90 ? [{ id: params[0], name: "x" }] : []))
    )
  )
)

it.effect("a read that fails fails for those who asked for its key, and for no one else", () =>
  Effect.gen(function* () {
    const user = CqlResolver.byKey(find)
    const found = yield* Effect.forEach([1, 2, 1, 3], (id) => Effect.result(user(id)), { concurrency: "unbounded" })
    assert.deepStrictEqual(
      found.map((result) => result._tag),
      ["Failure", "Success", "Failure", "Success"]
    )
  }).pipe(
    Effect.provide(
      TestSession.layer(({ params }) =>
        params[0] === 1
          ? new CassandraError({ reason: new Unavailable({ message: "one node", cause: undefined }) })
          : [{ id: params[0], name: "x" }]
      )
    )
  )
)

it.effect("no more reads are under way than `concurrency`", () =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    let underWay = 0
    let most = 0
    const watched = CassandraSession.of({
      ...session,
      first: (statement) =>
        Effect.acquireUseRelease(
          Effect.sync(() => {
            most = Math.max(most, ++underWay)
          }),
          () => Effect.andThen(Effect.yieldNow, session.first(statement)),
          () => Effect.sync(() => void underWay--)
        )
    })
    const user = CqlResolver.byKey(find, { concurrency: 5 })
    yield* Effect.forEach(
      Array.from({ length: 50 }, (_, i) => i),
      user,
      { concurrency: "unbounded" }
    ).pipe(Effect.provideService(CassandraSession, watched))
    assert.strictEqual(most, 5)
  }).pipe(Effect.provide(TestSession.layer()))
)

const table = Layer.effectDiscard(
  Effect.flatMap(CassandraSession, (session) =>
    session.createTables(["CREATE TABLE IF NOT EXISTS users (id int PRIMARY KEY, name text)"])
  )
)

it.layer(table.pipe(Layer.provideMerge(TestKeyspace.layer)), { excludeTestServices: true, timeout: "2 minutes" })(
  "with Cassandra",
  (it) => {
    it.effect("gives the row of each key, and none where there is none", () =>
      Effect.gen(function* () {
        const ids = Array.from({ length: 200 }, (_, i) => i)
        yield* Effect.forEach(
          ids.filter((id) => id % 2 === 0),
          (id) => cql`INSERT INTO users (id, name) VALUES (${id}, ${`user ${id}`})`,
          { concurrency: 50 }
        )
        const user = CqlResolver.byKey(find)
        const found = yield* Effect.forEach(ids, user, { concurrency: "unbounded" })
        assert.deepStrictEqual(
          found.map(Option.map(({ name }) => name)),
          ids.map((id) => (id % 2 === 0 ? Option.some(`user ${id}`) : Option.none()))
        )
      })
    )
  }
)
