// A process of the test of migrations: opens the keyspace, migrates, uses what was migrated, and says what it executed.
import { CassandraMigrator, CassandraSession } from "@effect-cassandra/session"
import { cql } from "@effect-cassandra/session/Statement"
import { Effect, Logger, Redacted } from "effect"

const { migrations, options, password } = JSON.parse(process.argv[2]!)

const program = Effect.gen(function* () {
  const executed = yield* CassandraMigrator.run(migrations)
  yield* cql`INSERT INTO users (name, age) VALUES (${String(process.pid)}, 1)`
  return { executed }
}).pipe(
  Effect.provide(
    CassandraSession.CassandraSession.layer({
      ...options,
      password: password === undefined ? undefined : Redacted.make(password)
    })
  ),
  Effect.catch((error) => Effect.succeed({ error: error.message })),
  Effect.provide(Logger.layer([]))
)

console.log(JSON.stringify(await Effect.runPromise(program)))
