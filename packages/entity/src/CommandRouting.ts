/**
 * Sends each command to the process that has its entity, where several processes run a service. Then the commands of an
 * entity are decided in one place, from a state in memory, and the events of all of them are stored together: no conflicts,
 * and no turns. It is for speed only: what cannot be sent is carried out by the process that was asked, and two that carry out
 * commands of one entity at the same time store nothing wrong.
 */
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Config, Context, Effect, Layer, Schema } from "effect"
import { table } from "./internal/members.ts"
import { Routing } from "./internal/routing.ts"

/** Where other processes of the service reach this one. */
export interface Options {
  /** The name or address of this machine, as the others know it. Default: "127.0.0.1", for processes on one machine. */
  readonly host?: string | undefined
  /** Default: one that is free. */
  readonly port?: number | undefined
  /** The address to listen at, where it is not `host`: "0.0.0.0" in a container, say. */
  readonly listen?: string | undefined
}

/** The process could not take its place among the others. */
export class RoutingError extends Schema.TaggedError<RoutingError>()("RoutingError", { message: Schema.String }) {}

/**
 * What processes of a service know of each other. Entity types whose layer is provided with it use it.
 *
 * They find each other by a table in the service's keyspace. Connections are encrypted, and open to whoever can read that
 * keyspace: a process writes the key to its own door there.
 *
 * **Example**
 *
 * ```ts
 * const AccountLive = Account.layer(behavior).pipe(
 *   Layer.provide(CommandRouting.layer({ host: process.env.POD_IP, listen: "0.0.0.0", port: 7400 })),
 *   Layer.provide(Journal.layer())
 * )
 * ```
 */
export class CommandRouting extends Context.Service<CommandRouting, Routing>()(
  "@effect-cassandra/entity/CommandRouting"
) {
  static readonly layer = (options: Options = {}): Layer.Layer<CommandRouting, RoutingError, CassandraSession> =>
    Layer.effect(CommandRouting, make(options))

  /** As `layer`, with options from Effect's Config. */
  static readonly layerConfig = (
    options: Config.Wrap<Options>
  ): Layer.Layer<CommandRouting, RoutingError | Config.ConfigError, CassandraSession> =>
    Layer.effect(CommandRouting, Effect.flatMap(Config.unwrap(options), make))
}

const make = Effect.fnUntraced(function* ({ host = "127.0.0.1", listen = host, port = 0 }: Options) {
  const session = yield* CassandraSession
  const failed = (message: string) => new RoutingError({ message })
  if (!Number.isInteger(port) || port < 0 || port > 65_535) {
    return yield* failed(`port is ${port}, it must be a whole number from 0 to 65535`)
  }
  yield* Effect.mapError(session.createTables([table]), (error) =>
    failed(`the table of processes could not be created: ${error.message}`)
  )
  const routing = yield* Effect.acquireRelease(
    Effect.tryPromise({
      try: () => Routing.start(session, { host, listen, port }),
      catch: (cause) => failed(`cannot listen at ${listen}:${port}, choose another port or address: ${cause}`)
    }),
    (routing) => routing.close
  )
  yield* Effect.forkScoped(routing.beat)
  yield* Effect.forkScoped(routing.watch)
  return routing
})
