/**
 * Vitest's `globalSetup`: one Cassandra for the whole run, which the test files reach by `TestKeyspace.layer`.
 */
import { Effect, Exit, Layer, Redacted, Scope } from "effect"
import type { TestProject } from "vitest/node"
import { CassandraServer, type Connection } from "./CassandraServer.ts"

/** A connection as it can be sent to Vitest's workers. */
export type Provided = Omit<Connection, "password"> & { readonly password?: string | undefined }

declare module "vitest" {
  export interface ProvidedContext {
    readonly cassandra: Provided
  }
}

/** Finds or starts a Cassandra, and ends what was started after the run. */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const scope = Scope.makeUnsafe()
  const context = await Effect.runPromise(Layer.buildWithScope(CassandraServer.layer(), scope))
  const { password, ...connection } = (await Effect.runPromise(Effect.provide(CassandraServer, context))).connection
  project.provide("cassandra", {
    ...connection,
    ...(password === undefined ? {} : { password: Redacted.value(password) })
  })
  return () => Effect.runPromise(Scope.close(scope, Exit.void))
}
