/**
 * A keyspace of its own for each test file, on the Cassandra of the test run.
 */

import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { Context, Effect, Layer, Redacted } from "effect"
import { inject } from "vitest"
import type {} from "./globalSetup.ts"

/**
 * The options of the test file's session, for tests that open another one in the same keyspace.
 */
export class TestKeyspace extends Context.Service<TestKeyspace, CassandraSession.Options>()(
  "@effect-cassandra/testing/TestKeyspace"
) {
  /** A session in a new keyspace, which is dropped with the layer. Needs `globalSetup`. */
  static readonly layer: Layer.Layer<TestKeyspace | CassandraSession.CassandraSession, CassandraError> = Layer.unwrap(
    Effect.sync(() => {
      const { password, ...connection } = inject("cassandra")
      const options: CassandraSession.Options = {
        ...connection,
        password: password === undefined ? undefined : Redacted.make(password),
        keyspace: `test_${crypto.randomUUID().replaceAll("-", "")}`,
        development: true
      }
      const drop = Layer.effectDiscard(
        Effect.acquireRelease(CassandraSession.CassandraSession, (session) =>
          session.use((client) => client.execute(`DROP KEYSPACE ${options.keyspace}`)).pipe(Effect.ignore)
        )
      )
      return Layer.mergeAll(Layer.succeed(TestKeyspace, options), drop).pipe(
        Layer.provideMerge(CassandraSession.CassandraSession.layer(options))
      )
    })
  )
}
