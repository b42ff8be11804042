/**
 * A non-blocking session with a Cassandra cluster: statements in, rows out, every failure typed.
 */
import type { ConnectionOptions } from "node:tls"
import type driver from "cassandra-driver"
import {
  Config,
  Context,
  type Duration,
  Effect,
  Layer,
  type Option,
  type Redacted,
  type Schedule,
  type Stream
} from "effect"
import { CassandraError, InvalidOptions } from "./CassandraError.ts"
import { connect, DriverRetries, localDataCenterOf } from "./internal/client.ts"
import { config as optionsConfig } from "./internal/config.ts"
import { open as openKeyspace } from "./internal/keyspace.ts"
import { makeOperations } from "./internal/operations.ts"
import { problemOfSession, withDefaults } from "./internal/options.ts"
import { patiently } from "./internal/patience.ts"
import { driverTransport } from "./internal/requests.ts"
import type { Consistency, Row, SerialConsistency, Statement, Options as StatementOptions } from "./Statement.ts"

/** How to reach a cluster and what holds for every statement unless it says otherwise. */
export interface Options {
  /** Addresses of some nodes, `"host"` or `"host:port"`; the others are discovered. Default: `["127.0.0.1:9042"]`. */
  readonly contactPoints?: ReadonlyArray<string> | undefined
  /**
   * Where nodes are reached whose own addresses are not reachable from here, as through tunnels or proxies:
   * `{ "10.0.0.1": "127.0.0.1:9043" }`. Contact points are taken as they are. Default: none.
   */
  readonly addresses?: Readonly<Record<string, string>> | undefined
  /** The data centre whose nodes are used. Default: `"datacenter1"`, the name in an unchanged Cassandra. */
  readonly localDataCenter?: string | undefined
  readonly keyspace: string
  /**
   * Copies of each row by data centre, for example `{ datacenter1: 3 }`. When given, a missing keyspace is created
   * with it; an existing one is left as it is.
   */
  readonly replication?: Readonly<Record<string, number>> | undefined
  /** A missing keyspace is created with one copy, and nobody is warned of that. Default: false. */
  readonly development?: boolean | undefined
  /**
   * The service that owns the keyspace, recorded at first use. Sessions of other services cannot open it for writing
   * from then on. Default: none, which opens only keyspaces without an owner.
   */
  readonly service?: string | undefined
  /** `"read"` opens also the keyspace of another service, and refuses everything but SELECT. Default: `"write"`. */
  readonly access?: "write" | "read" | undefined
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted | undefined
  /** `true`, or settings of Node's TLS; the server's certificate is verified unless they say otherwise. Default: off. */
  readonly tls?: boolean | ConnectionOptions | undefined
  /** Path of the zip file by which a cloud service gives addresses and certificates, instead of those options. */
  readonly secureConnectBundle?: string | undefined
  /** Default: `"LOCAL_QUORUM"`. */
  readonly consistency?: Consistency | undefined
  /** How long to wait for a cluster that is not up yet; `Infinity` for as long as it takes. Default: 30 seconds. */
  readonly connectTimeout?: Duration.Input | undefined
  /** Bound on one request, the wait for its turn and all tries included. Default: 10 seconds. */
  readonly requestTimeout?: Duration.Input | undefined
  /** Rows per page. Default: 1000. */
  readonly pageSize?: number | undefined
  /** Requests under way at once; more wait for their turn. Default: 2048. */
  readonly maxInFlight?: number | undefined
  /** Requests that wait; what comes then fails at once with `Overloaded`. Default: 16384. */
  readonly maxQueued?: number | undefined
  /**
   * When to try idempotent statements again, after failures that may pass. Default: three times, after about 50, 100 and
   * 200 ms.
   */
  readonly retry?: Schedule.Schedule<unknown, CassandraError> | undefined
  /** Sends a SELECT to `max` further nodes, each when `delay` has passed without an answer. Default: none. */
  readonly speculative?: { readonly delay: Duration.Input; readonly max: number } | undefined
  /** Settings by name, for statements to refer to. */
  readonly profiles?: Readonly<Record<string, Omit<StatementOptions, "profile">>> | undefined
  /** Statements that take longer are logged. Default: 1 second. */
  readonly slowStatement?: Duration.Input | undefined
  /** Bytes of values that a batch over several partitions may have, as the server's settings say. Default: 50 KiB. */
  readonly maxBatchSize?: number | undefined
}

/**
 * The options by their names, but for `retry` and `profiles`, which are code. In environment variables, with
 * `ConfigProvider.constantCase`: `CONTACT_POINTS=10.0.0.1,10.0.0.2`, `REPLICATION=datacenter1=3`,
 * `ADDRESSES=10.0.0.1=127.0.0.1:9043`, `REQUEST_TIMEOUT=5 seconds`, `TLS=true` or `TLS_CA`, `TLS_CERT`, `TLS_KEY` in PEM, `SPECULATIVE_DELAY`, `SPECULATIVE_MAX`.
 */
export const config: Config.Config<Options> = optionsConfig

/** What became of a conditional write: it was applied, or `current` holds the columns of its condition as they are. */
export type Applied<A> = { readonly applied: true } | { readonly applied: false; readonly current: Partial<A> }

/** Settings of a batch; what is absent is as its statements have it, which must agree on it. */
export interface BatchOptions {
  /** Default: `"logged"`, all or nothing also over several partitions. */
  readonly type?: "logged" | "unlogged" | "counter"
  readonly consistency?: Consistency
  /** The serial consistency of a conditional batch. */
  readonly serialConsistency?: SerialConsistency
  /** Executing it twice leaves the same rows. Default: false. */
  readonly idempotent?: boolean
  /** Write timestamp in microseconds since the epoch. */
  readonly timestamp?: number
  /** Bound on the whole request. */
  readonly timeout?: Duration.Input
}

/** One page of rows with all that the server said. */
export interface RawResult<A> {
  readonly rows: ReadonlyArray<A>
  /**
   * Where the next page begins, for the `pageState` of the same statement; undefined when there is none. `stream` and
   * `execute` give all pages by themselves.
   */
  readonly pageState: string | undefined
  /** Address of the node that coordinated the request. */
  readonly coordinator: string
  /** In `system_traces.sessions`, for a statement with `trace`. */
  readonly traceId: string | undefined
  /** What the server warns of. */
  readonly warnings: ReadonlyArray<string>
}

/** A node as the session sees it. */
export interface HostState {
  readonly address: string
  readonly dataCenter: string
  readonly version: string
  readonly isUp: boolean
  readonly connections: number
  readonly inFlight: number
}

/** Whether the cluster answers. */
export interface Health {
  readonly healthy: boolean
  /** Why not. */
  readonly error: CassandraError | undefined
  readonly hosts: ReadonlyArray<HostState>
  /** Requests of this session under way, and those that wait for their turn. */
  readonly inFlight: number
  readonly queued: number
}

/**
 * A session with a Cassandra cluster.
 */
export class CassandraSession extends Context.Service<
  CassandraSession,
  {
    readonly keyspace: string
    /** Executes a statement and gives all its rows, page by page into one array. For many rows use `stream`. */
    readonly execute: <A = Row>(statement: Statement<A>) => Effect.Effect<ReadonlyArray<A>, CassandraError>
    /** The first row, if there is one. */
    readonly first: <A = Row>(statement: Statement<A>) => Effect.Effect<Option.Option<A>, CassandraError>
    /** The only row; none or several have the reason `UnexpectedRows`. */
    readonly one: <A = Row>(statement: Statement<A>) => Effect.Effect<A, CassandraError>
    /** Rows as they are asked for: the next page is fetched when the last one is consumed. */
    readonly stream: <A = Row>(statement: Statement<A>) => Stream.Stream<A, CassandraError>
    /** One page with all that the server said beside the rows. */
    readonly raw: <A = Row>(statement: Statement<A>) => Effect.Effect<RawResult<A>, CassandraError>
    /**
     * Executes a statement with an IF. It is sent once and never repeated; a failure that leaves open whether it was
     * applied has the reason `OutcomeUnknown`.
     */
    readonly applied: <A = Row>(statement: Statement<A>) => Effect.Effect<Applied<A>, CassandraError>
    /**
     * Executes several writes as one request. One over several partitions that is too large for the server has the reason
     * `BatchTooLarge` and is not sent.
     */
    readonly batch: (
      statements: ReadonlyArray<Statement<unknown>>,
      options?: BatchOptions
    ) => Effect.Effect<void, CassandraError>
    /** As `batch`, for statements of one partition some of which have an IF: all are applied or none. */
    readonly appliedBatch: <A = Row>(
      statements: ReadonlyArray<Statement<A>>,
      options?: Omit<BatchOptions, "type" | "idempotent" | "timestamp">
    ) => Effect.Effect<Applied<A>, CassandraError>
    /**
     * Lets the server check a statement and gives a function from values to the statement. Without it a statement is
     * prepared when it is first executed.
     */
    readonly prepare: <A = Row>(
      text: string,
      options?: StatementOptions
    ) => Effect.Effect<(...params: ReadonlyArray<unknown>) => Statement<A>, CassandraError>
    /**
     * Creates the tables that are missing, from `CREATE TABLE IF NOT EXISTS name (...)` statements in the keyspace, one
     * process at a time. Tried for as long as `connectTimeout` where too few nodes are there.
     */
    readonly createTables: (statements: ReadonlyArray<string>) => Effect.Effect<void, CassandraError>
    /** Runs an effect while no other process changes the schema by `createTables` or migrations. */
    readonly withSchemaLock: <A, E, R>(effect: Effect.Effect<A, E, R>) => Effect.Effect<A, E | CassandraError, R>
    /** Asks the cluster, and never fails. */
    readonly health: Effect.Effect<Health>
    /** The driver's client, for what the session does not offer. */
    readonly use: <A>(f: (client: driver.Client) => Promise<A>) => Effect.Effect<A, CassandraError>
  }
>()("@effect-cassandra/session/CassandraSession") {
  /** A session that is closed, after the requests under way, with the layer. */
  static readonly layer = (options: Options): Layer.Layer<CassandraSession, CassandraError> =>
    Layer.effect(CassandraSession, make(options))

  /** As `layer`, with options from Effect's Config; without an argument all of them, by their names. */
  static readonly layerConfig = (
    options: Config.Wrap<Options> = config
  ): Layer.Layer<CassandraSession, CassandraError | Config.ConfigError> =>
    Layer.effect(CassandraSession, Effect.flatMap(Config.unwrap(options), make))
}

/**
 * Opens a session; it is closed with the scope.
 */
export const make = Effect.fnUntraced(function* (options: Options) {
  const problem = problemOfSession(options)
  if (problem !== undefined) {
    return yield* new CassandraError({ reason: new InvalidOptions({ message: problem, cause: undefined }) })
  }
  const settings = withDefaults(options)
  const retries = new DriverRetries()
  const client = yield* connect(settings, retries)
  const session = makeOperations(settings, yield* driverTransport(settings, client, retries))
  yield* patiently(settings, openKeyspace(session, { ...settings, localDataCenter: localDataCenterOf(client) }))
  return CassandraSession.of(session)
})
