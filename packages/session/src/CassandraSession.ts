/**
 * A non-blocking session with a Cassandra cluster: statements in, rows out, every failure typed.
 */
import type { ConnectionOptions } from "node:tls"
import driver from "cassandra-driver"
import { Config, Context, Duration, Effect, Latch, Layer, Option, Redacted, Stream } from "effect"
import {
  CassandraError,
  InvalidOptions,
  InvalidStatement,
  KeyspaceMissing,
  NoHostAvailable,
  type Reason
} from "./CassandraError.ts"
import { toConditionalReason, toReason } from "./internal/driverError.ts"
import { type Consistency, identifier, type Row, type Statement, make as statement } from "./Statement.ts"

/** How to reach a cluster and what holds for every statement unless it says otherwise. */
export interface Options {
  /** Addresses of some nodes, `"host"` or `"host:port"`; the others are discovered. Default: `["127.0.0.1:9042"]`. */
  readonly contactPoints?: ReadonlyArray<string> | undefined
  /** The data centre whose nodes are used. Default: `"datacenter1"`, the name in an unchanged Cassandra. */
  readonly localDataCenter?: string | undefined
  readonly keyspace: string
  /**
   * Copies of each row by data centre, for example `{ datacenter1: 3 }`. When given, a missing keyspace is created
   * with it; an existing one is left as it is.
   */
  readonly replication?: Readonly<Record<string, number>> | undefined
  readonly username?: string | undefined
  readonly password?: Redacted.Redacted | undefined
  /** `true`, or settings of Node's TLS; the server's certificate is verified unless they say otherwise. Default: off. */
  readonly tls?: boolean | ConnectionOptions | undefined
  /** Default: `"LOCAL_QUORUM"`. */
  readonly consistency?: Consistency | undefined
  /** Bound on one request, all nodes tried included. Default: 10 seconds. */
  readonly requestTimeout?: Duration.Input | undefined
  /** Rows per page. Default: 1000. */
  readonly pageSize?: number | undefined
}

/** What became of a conditional write: it was applied, or `current` holds the columns of its condition as they are. */
export type Applied<A> = { readonly applied: true } | { readonly applied: false; readonly current: Partial<A> }

/** Settings of a batch. */
export interface BatchOptions {
  /** Default: `"logged"`, all or nothing also over several partitions. */
  readonly type?: "logged" | "unlogged" | "counter"
  readonly consistency?: Consistency
  /** Executing it twice leaves the same rows. Default: false. */
  readonly idempotent?: boolean
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
    /** Rows as they are asked for: the next page is fetched when the last one is consumed. */
    readonly stream: <A = Row>(statement: Statement<A>) => Stream.Stream<A, CassandraError>
    /**
     * Executes a statement with an IF. It is sent once and never repeated by the driver; a failure that leaves open
     * whether it was applied has the reason `OutcomeUnknown`.
     */
    readonly applied: <A = Row>(statement: Statement<A>) => Effect.Effect<Applied<A>, CassandraError>
    /** Executes several writes as one request. */
    readonly batch: (
      statements: ReadonlyArray<Statement<unknown>>,
      options?: BatchOptions
    ) => Effect.Effect<void, CassandraError>
    /** Creates the tables that are missing, from `CREATE TABLE IF NOT EXISTS name (...)` statements in the keyspace. */
    readonly createTables: (statements: ReadonlyArray<string>) => Effect.Effect<void, CassandraError>
    /** The driver's client, for what the session does not offer. */
    readonly use: <A>(f: (client: driver.Client) => Promise<A>) => Effect.Effect<A, CassandraError>
  }
>()("@effect-cassandra/session/CassandraSession") {
  /** A session that is closed, after the requests under way, with the layer. */
  static readonly layer = (options: Options): Layer.Layer<CassandraSession, CassandraError> =>
    Layer.effect(CassandraSession, make(options))

  /** As `layer`, with options from Effect's Config. */
  static readonly layerConfig = (
    options: Config.Wrap<Options>
  ): Layer.Layer<CassandraSession, CassandraError | Config.ConfigError> =>
    Layer.effect(CassandraSession, Effect.flatMap(Config.unwrap(options), make))
}

const consistencies: Readonly<Record<Consistency, number>> = {
  ANY: driver.types.consistencies.any,
  ONE: driver.types.consistencies.one,
  TWO: driver.types.consistencies.two,
  THREE: driver.types.consistencies.three,
  QUORUM: driver.types.consistencies.quorum,
  ALL: driver.types.consistencies.all,
  LOCAL_QUORUM: driver.types.consistencies.localQuorum,
  EACH_QUORUM: driver.types.consistencies.eachQuorum,
  LOCAL_ONE: driver.types.consistencies.localOne,
  SERIAL: driver.types.consistencies.serial,
  LOCAL_SERIAL: driver.types.consistencies.localSerial
}

/** Statements of the data language are prepared once and cached by the driver; schema changes cannot be. */
const isPreparable = (text: string) => /^\s*(select|insert|update|delete|begin)\b/i.test(text)
const isSelect = (text: string) => /^\s*select\b/i.test(text)

const never = new driver.policies.retry.FallthroughRetryPolicy()

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const validate = (options: Options): Effect.Effect<void, CassandraError> => {
  const problem =
    options.contactPoints?.length === 0
      ? `contactPoints is empty: name at least one node, for example "127.0.0.1:9042"`
      : !/^\w{1,48}$/.test(options.keyspace)
        ? `keyspace "${options.keyspace}" is not a name of 1 to 48 letters, digits and underscores`
        : (options.username === undefined) !== (options.password === undefined)
          ? "username and password go together: only one of them is given"
          : Object.values(options.replication ?? {}).some((copies) => !Number.isInteger(copies) || copies < 1)
            ? `replication ${JSON.stringify(options.replication)} must give a whole number of copies for each data centre`
            : undefined
  return problem === undefined ? Effect.void : fail(new InvalidOptions({ message: problem, cause: undefined }))
}

const clientOptions = (options: Options, timeout: number): driver.DseClientOptions => ({
  contactPoints: [...(options.contactPoints ?? ["127.0.0.1:9042"])],
  localDataCenter: options.localDataCenter ?? "datacenter1",
  ...(options.username === undefined || options.password === undefined
    ? {}
    : { credentials: { username: options.username, password: Redacted.value(options.password) } }),
  ...(options.tls === undefined || options.tls === false
    ? {}
    : { sslOptions: { rejectUnauthorized: true, ...(options.tls === true ? {} : options.tls) } }),
  encoding: { useBigIntAsLong: true, useBigIntAsVarint: true },
  monitorReporting: { enabled: false },
  queryOptions: {
    consistency: consistencies[options.consistency ?? "LOCAL_QUORUM"],
    fetchSize: options.pageSize ?? 1000
  },
  socketOptions: { connectTimeout: Math.min(5000, timeout), readTimeout: timeout }
})

/** Says what to do about the failures that a wrong setting causes. */
const explain = (reason: Reason, options: Options): Reason => {
  const points = (options.contactPoints ?? ["127.0.0.1:9042"]).join(", ")
  switch (reason._tag) {
    case "NoHostAvailable":
      return new NoHostAvailable({
        message: `no node answers at ${points}: check contactPoints, and that Cassandra runs there. ${reason.message}`,
        cause: reason.cause
      })
    case "InvalidOptions":
      return new InvalidOptions({
        message: `${reason.message} (localDataCenter is "${options.localDataCenter ?? "datacenter1"}")`,
        cause: reason.cause
      })
    case "KeyspaceMissing":
      return new KeyspaceMissing({
        message: `keyspace "${options.keyspace}" does not exist: create it, or give \`replication\` and it is created`,
        keyspace: options.keyspace,
        cause: reason.cause
      })
    default:
      return reason
  }
}

const connect = (options: Options, timeout: number, keyspace: string | undefined) =>
  Effect.acquireRelease(
    Effect.suspend(() => {
      const client = new driver.Client({ ...clientOptions(options, timeout), ...(keyspace ? { keyspace } : {}) })
      return Effect.tryPromise({
        try: () => client.connect(),
        catch: (cause) => new CassandraError({ reason: explain(toReason(cause), options) })
      }).pipe(
        Effect.as(client),
        Effect.tapError(() => Effect.promise(() => client.shutdown().catch(() => {})))
      )
    }),
    (client) => Effect.promise(() => client.shutdown().catch(() => {}))
  )

const createKeyspace = Effect.fnUntraced(function* (options: Options, timeout: number) {
  const copies = Object.entries(options.replication!)
  const client = yield* connect(options, timeout, undefined)
  const text =
    `CREATE KEYSPACE IF NOT EXISTS ${identifier(options.keyspace).quoted} WITH replication = ` +
    `{'class': 'NetworkTopologyStrategy', ${copies.map(([dc, n]) => `'${dc.replaceAll("'", "''")}': ${n}`).join(", ")}}`
  yield* Effect.tryPromise({
    try: () => client.execute(text),
    catch: (cause) => new CassandraError({ reason: toReason(cause) })
  })
}, Effect.scoped)

/**
 * Opens a session; it is closed with the scope.
 */
export const make = Effect.fnUntraced(function* (options: Options) {
  yield* validate(options)
  const timeout = Duration.toMillis(options.requestTimeout ?? "10 seconds")
  if (options.replication !== undefined) yield* createKeyspace(options, timeout)

  const client = yield* connect(options, timeout, options.keyspace)

  let inFlight = 0
  const idle = Latch.makeUnsafe(true)
  yield* Effect.addFinalizer(() => idle.await.pipe(Effect.timeoutOption(timeout)))

  /** Runs one request of the driver under the time-out of the request; without an answer by then it goes on unheard. */
  const request = <A>(
    run: (client: driver.Client) => Promise<A>,
    toError: (cause: unknown) => Reason,
    millis: number
  ): Effect.Effect<A, CassandraError> =>
    Effect.callback<A, CassandraError>((resume) => {
      if (inFlight++ === 0) idle.closeUnsafe()
      const timer = setTimeout(
        () =>
          resume(
            Effect.suspend(() => {
              const cause = new driver.errors.OperationTimedOutError(`no answer within ${millis} ms`)
              return fail(toError(cause))
            })
          ),
        millis
      )
      const done = (effect: Effect.Effect<A, CassandraError>) => {
        clearTimeout(timer)
        if (--inFlight === 0) idle.openUnsafe()
        resume(effect)
      }
      let promise: Promise<A>
      try {
        promise = run(client)
      } catch (cause) {
        promise = Promise.reject(cause)
      }
      promise.then(
        (value) => done(Effect.succeed(value)),
        (cause) => done(fail(toError(cause)))
      )
    })

  const queryOptions = (self: Statement<unknown>, pageState?: string): driver.QueryOptions => {
    const { consistency, idempotent, pageSize, serialConsistency, timestamp } = self.options
    const query: driver.QueryOptions = {
      prepare: isPreparable(self.text),
      isIdempotent: idempotent ?? isSelect(self.text)
    }
    if (consistency !== undefined) query.consistency = consistencies[consistency]
    if (serialConsistency !== undefined) query.serialConsistency = consistencies[serialConsistency]
    if (pageSize !== undefined) query.fetchSize = pageSize
    if (timestamp !== undefined) query.timestamp = timestamp
    if (pageState !== undefined) query.pageState = pageState
    return query
  }

  const millisOf = (self: Statement<unknown>) =>
    self.options.timeout === undefined ? timeout : Duration.toMillis(self.options.timeout)

  const page = (self: Statement<unknown>, pageState?: string) =>
    request(
      (client) => client.execute(self.text, self.params as Array<unknown>, queryOptions(self, pageState)),
      toReason,
      millisOf(self)
    )

  const rowsOf = <A>(result: driver.types.ResultSet) => (result.rows ?? []) as unknown as Array<A>

  const execute = <A = Row>(self: Statement<A>): Effect.Effect<ReadonlyArray<A>, CassandraError> =>
    Effect.flatMap(page(self), (first) => {
      if (!first.pageState) return Effect.succeed(rowsOf<A>(first))
      return Effect.gen(function* () {
        const rows = rowsOf<A>(first)
        for (let state: string | undefined = first.pageState; state; ) {
          const next: driver.types.ResultSet = yield* page(self, state)
          for (const row of rowsOf<A>(next)) rows.push(row)
          state = next.pageState
        }
        return rows
      })
    })

  const createTables = Effect.fnUntraced(function* (statements: ReadonlyArray<string>) {
    const wanted: Array<readonly [string, string]> = []
    for (const text of statements) {
      const name = /^\s*create\s+table\s+if\s+not\s+exists\s+("?)(\w+)\1[\s(]/i.exec(text)?.[2]
      if (name === undefined) {
        const message = `not of the form CREATE TABLE IF NOT EXISTS name (...): ${text}`
        return yield* fail(new InvalidStatement({ message, cause: undefined }))
      }
      wanted.push([name, text])
    }
    // A look first, for a needless CREATE makes every node agree on the schema once more.
    const present = new Set(
      (yield* execute<{ table_name: string }>(
        statement("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?", [options.keyspace])
      )).map((row) => row.table_name)
    )
    for (const [name, text] of wanted) if (!present.has(name)) yield* execute(statement(text))
  })

  return CassandraSession.of({
    keyspace: options.keyspace,
    execute,
    createTables,
    stream: <A>(self: Statement<A>) =>
      Stream.paginate(undefined as string | undefined, (state) =>
        Effect.map(
          page(self, state),
          (result) => [rowsOf<A>(result), result.pageState ? Option.some(result.pageState) : Option.none()] as const
        )
      ),
    applied: <A>(self: Statement<A>) =>
      Effect.flatMap(
        request(
          (client) =>
            client.execute(self.text, self.params as Array<unknown>, {
              ...queryOptions(self),
              isIdempotent: false,
              retry: never
            }),
          toConditionalReason,
          millisOf(self)
        ),
        (result): Effect.Effect<Applied<A>, CassandraError> => {
          const row = rowsOf<Record<string, unknown>>(result)[0]
          if (row === undefined || typeof row["[applied]"] !== "boolean") {
            return fail(
              new InvalidOptions({ message: `not a conditional write, it has no IF: ${self.text}`, cause: undefined })
            )
          }
          return Effect.succeed(row["[applied]"] ? { applied: true } : { applied: false, current: row as Partial<A> })
        }
      ),
    batch: (statements, batchOptions = {}) =>
      statements.length === 0
        ? Effect.void
        : Effect.asVoid(
            request(
              (client) =>
                client.batch(
                  statements.map((self) => ({ query: self.text, params: self.params as Array<unknown> })),
                  {
                    prepare: true,
                    logged: (batchOptions.type ?? "logged") === "logged",
                    counter: batchOptions.type === "counter",
                    isIdempotent: batchOptions.idempotent ?? false,
                    ...(batchOptions.consistency === undefined
                      ? {}
                      : { consistency: consistencies[batchOptions.consistency] })
                  }
                ),
              toReason,
              timeout
            )
          ),
    use: (f) => request(f, toReason, timeout)
  })
})
