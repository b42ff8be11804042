/**
 * A Cassandra of one's own, as a local process, that can be broken and mended: for tests of what happens then.
 */
import { Context, Effect, Layer } from "effect"
import { type Connection, type Options, startLocal } from "./CassandraServer.ts"
import type { CassandraServerError } from "./CassandraServerError.ts"
import { hasMaven } from "./internal/distribution.ts"
import { findJava } from "./internal/java.ts"
import { durable } from "./internal/node.ts"

/**
 * The process, and what can be done to it.
 */
export class CassandraProcess extends Context.Service<
  CassandraProcess,
  {
    readonly connection: Connection
    /** Starts it again on its data and its port, and waits until it answers. */
    readonly start: Effect.Effect<void, CassandraServerError>
    /** SIGTERM: it writes what it has in memory, and ends. */
    readonly stop: Effect.Effect<void>
    /** SIGKILL. */
    readonly kill: Effect.Effect<void>
    /** SIGSTOP: it keeps its connections, and does not answer. */
    readonly pause: Effect.Effect<void>
    /** SIGCONT. */
    readonly resume: Effect.Effect<void>
  }
>()("@effect-cassandra/testing/CassandraProcess") {
  /** Whether there is what it needs, for tests that are skipped elsewhere. */
  static readonly isPossible: Effect.Effect<boolean> = Effect.suspend(() =>
    Effect.map(Effect.all([findJava(process.env), hasMaven]), ([{ java }, maven]) => java !== undefined && maven)
  )

  /** Needs Java 17 or 11 with Maven. It ends with the layer. What it acknowledges survives `kill`: `commitlog_sync` is batch. */
  static readonly layer = (options: Options = {}): Layer.Layer<CassandraProcess, CassandraServerError> =>
    Layer.effect(
      CassandraProcess,
      Effect.map(
        startLocal({ ...options, settings: { ...durable, ...options.settings } }),
        ({ connection, kill, pause, resume, start, stop }) =>
          CassandraProcess.of({ connection, kill, pause, resume, start, stop })
      )
    )
}
