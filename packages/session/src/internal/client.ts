import { createRequire } from "node:module"
import driver from "cassandra-driver"
import { Duration, Effect, Redacted, Schedule } from "effect"
import { CassandraError, InvalidOptions, NoHostAvailable, type Reason } from "../CassandraError.ts"
import type { HostState, Options } from "../CassandraSession.ts"
import { consistencies } from "./consistency.ts"
import { toReason } from "./driverError.ts"
import { textInfo } from "./text.ts"

const isSelect = (query: unknown) => typeof query === "string" && textInfo(query).isSelect

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const isReplication = (replication: Readonly<Record<string, number>>) => {
  const copies = Object.values(replication)
  return copies.length > 0 && copies.every((n) => Number.isInteger(n) && n > 0)
}

export const validate = (options: Options): Effect.Effect<void, CassandraError> => {
  const whole = (name: "maxInFlight" | "maxQueued" | "pageSize" | "maxBatchSize", least: number) => {
    const value = options[name]
    return value === undefined || (Number.isInteger(value) && value >= least)
      ? undefined
      : `${name} is ${value}: it must be a whole number of at least ${least}`
  }
  const problem =
    options.contactPoints?.length === 0
      ? `contactPoints is empty: name at least one node, for example "127.0.0.1:9042"`
      : !/^\w{1,48}$/.test(options.keyspace)
        ? `keyspace "${options.keyspace}" is not a name of 1 to 48 letters, digits and underscores`
        : (options.username === undefined) !== (options.password === undefined)
          ? "username and password go together: only one of them is given"
          : /ANY|SERIAL/.test(options.consistency ?? "")
            ? `consistency ${options.consistency} does not do for reads and writes: set it for single statements`
            : options.replication !== undefined && !isReplication(options.replication)
              ? `replication ${JSON.stringify(options.replication)} must give a whole number of copies for each data centre, for example { datacenter1: 3 }`
              : options.secureConnectBundle !== undefined && (options.contactPoints !== undefined || options.tls)
                ? "secureConnectBundle holds addresses and certificates: leave out contactPoints and tls"
                : (whole("maxInFlight", 1) ?? whole("maxQueued", 0) ?? whole("pageSize", 1) ?? whole("maxBatchSize", 1))
  return problem === undefined ? Effect.void : fail(new InvalidOptions({ message: problem, cause: undefined }))
}

/** Sends reads only, as `isIdempotent` alone would let the driver send writes too. */
export class SpeculativeReads extends driver.policies.speculativeExecution.ConstantSpeculativeExecutionPolicy {
  readonly #none = { nextExecution: () => -1 }
  override newPlan(keyspace: string, query: string | Array<object>) {
    return isSelect(query) ? super.newPlan(keyspace, query) : this.#none
  }
}

/** What the driver has of a keyspace at run time; missing in its types. */
interface KeyspaceMetadata {
  readonly strategy: string | undefined
  readonly strategyOptions: Readonly<Record<string, string>>
}

type GetReplicas = (keyspace: string, key: unknown) => ReadonlyArray<driver.Host> | null

/**
 * Finds the nodes that have a row. Where every local node has every row, as with three nodes and three copies, the key is
 * not hashed: that is a tenth of what a request costs the driver.
 */
export const replicasOf = (client: () => driver.Client, localDataCenter: () => string | undefined): GetReplicas => {
  const known = new WeakMap<object, { readonly nodes: number; readonly all: ReadonlyArray<driver.Host> | undefined }>()
  return (name, key) => {
    const { hosts, metadata } = client()
    const keyspace = (metadata as unknown as { readonly keyspaces: Record<string, KeyspaceMetadata> }).keyspaces[name]
    if (keyspace === undefined) return metadata.getReplicas(name, key as Buffer)
    let found = known.get(keyspace)
    if (found?.nodes !== hosts.length) {
      const dataCenter = localDataCenter()
      const local = hosts.values().filter(({ datacenter }) => datacenter === dataCenter)
      const copies = keyspace.strategy?.endsWith("NetworkTopologyStrategy")
        ? Number.parseInt(keyspace.strategyOptions[dataCenter ?? ""] ?? "0", 10)
        : 0
      found = { nodes: hosts.length, all: copies >= local.length ? local : undefined }
      known.set(keyspace, found)
    }
    return found.all ?? metadata.getReplicas(name, key as Buffer)
  }
}

// Its constructor takes more at run time than the driver's types say.
const LoadBalancing = driver.policies.loadBalancing.DefaultLoadBalancingPolicy as unknown as new (options: {
  readonly getReplicas: GetReplicas
}) => driver.policies.loadBalancing.LoadBalancingPolicy & { readonly localDc?: string }

interface Metadata {
  readonly setCassandraVersion: (version: ReadonlyArray<number>) => void
  readonly _schemaParser: {
    _parseKeyspace: (row: { readonly replication: unknown }, virtual: boolean) => unknown
  }
}

/**
 * With maps as Map the driver does not find the strategy of a keyspace in its own metadata, and takes each row to have one
 * copy.
 */
const repairMetadata = (client: driver.Client) => {
  const metadata = client.metadata as unknown as { -readonly [K in keyof Metadata]: Metadata[K] }
  const setCassandraVersion = metadata.setCassandraVersion
  metadata.setCassandraVersion = (version) => {
    setCassandraVersion.call(metadata, version)
    const parser = metadata._schemaParser
    const parse = parser._parseKeyspace
    parser._parseKeyspace = (row, virtual) => {
      const { replication } = row
      const plain = replication instanceof Map ? Object.fromEntries(replication) : replication
      return parse.call(parser, { ...row, replication: plain }, virtual)
    }
  }
}

// An interface in the driver's types, a class at run time.
const { ClientMetrics } = driver.metrics as unknown as {
  readonly ClientMetrics: new () => driver.metrics.ClientMetrics
}

/** The driver's own metrics emit several events for each response, which nobody hears. */
export class DriverRetries extends ClientMetrics {
  count = 0
  override onClientTimeoutRetry = () => this.count++
  override onOtherErrorRetry = () => this.count++
  override onReadTimeoutRetry = () => this.count++
  override onUnavailableRetry = () => this.count++
  override onWriteTimeoutRetry = () => this.count++
}

const clientOptions = (
  options: Options,
  timeout: number,
  metrics: DriverRetries,
  balancing: driver.policies.loadBalancing.LoadBalancingPolicy
): driver.DseClientOptions => ({
  ...(options.secureConnectBundle === undefined
    ? {
        contactPoints: [...(options.contactPoints ?? ["127.0.0.1:9042"])],
        localDataCenter: options.localDataCenter ?? "datacenter1"
      }
    : {
        cloud: { secureConnectBundle: options.secureConnectBundle },
        ...(options.localDataCenter === undefined ? {} : { localDataCenter: options.localDataCenter })
      }),
  ...(options.username === undefined || options.password === undefined
    ? {}
    : { credentials: { username: options.username, password: Redacted.value(options.password) } }),
  ...(options.tls === undefined || options.tls === false
    ? {}
    : { sslOptions: { rejectUnauthorized: true, ...(options.tls === true ? {} : options.tls) } }),
  encoding: { useBigIntAsLong: true, useBigIntAsVarint: true, map: Map, set: Set },
  monitorReporting: { enabled: false },
  metrics,
  policies: {
    loadBalancing: balancing,
    ...(options.speculative === undefined
      ? {}
      : {
          speculativeExecution: new SpeculativeReads(
            Duration.toMillis(options.speculative.delay),
            options.speculative.max
          )
        })
  },
  queryOptions: {
    consistency: consistencies[options.consistency ?? "LOCAL_QUORUM"],
    fetchSize: options.pageSize ?? 1000
  },
  // The session's own time-out comes first, and holds for all nodes tried together.
  socketOptions: { connectTimeout: Math.min(5000, timeout), readTimeout: timeout + 1000 }
})

const tlsFailure = /^(ERR_SSL|ERR_TLS|ERR_OSSL|CERT|UNABLE_TO|SELF_SIGNED|DEPTH_ZERO|HOSTNAME_MISMATCH|INVALID_|EPROTO)/

/** A handshake that failed on every node: waiting does not help. */
const isTlsFailure = (cause: unknown) => {
  if (!(cause instanceof driver.errors.NoHostAvailableError)) return false
  const tried = Object.values(cause.innerErrors as Record<string, { readonly code?: unknown } | undefined>)
  return tried.length > 0 && tried.every((error) => tlsFailure.test(String(error?.code)))
}

/** Says what to do about the failures that a wrong setting causes. */
const explain = (reason: Reason, options: Options): Reason => {
  const points = options.secureConnectBundle ?? (options.contactPoints ?? ["127.0.0.1:9042"]).join(", ")
  switch (reason._tag) {
    case "NoHostAvailable":
      if (isTlsFailure(reason.cause)) {
        const message = `no TLS with ${points}: check tls (ca, cert, key, servername) and the certificate of the server. ${reason.message.trim()}`
        return new InvalidOptions({ message, cause: reason.cause })
      }
      return new NoHostAvailable({
        message: `no node answers at ${points}: check contactPoints, and that Cassandra runs there. ${reason.message}`,
        cause: reason.cause
      })
    case "InvalidOptions":
      return new InvalidOptions({
        message: `${reason.message} (localDataCenter is "${options.localDataCenter ?? "datacenter1"}")`,
        cause: reason.cause
      })
    case "ConnectionLost":
      // What Node says of a file that is not there, or of TLS.
      return new InvalidOptions({ message: `cannot connect to ${points}: ${reason.message}`, cause: reason.cause })
    default:
      return reason
  }
}

export const connect = (options: Options, metrics: DriverRetries) => {
  const timeout = Duration.toMillis(options.requestTimeout ?? "10 seconds")
  const within = Duration.toMillis(options.connectTimeout ?? "30 seconds")
  const attempt = Effect.suspend(() => {
    const balancing: InstanceType<typeof LoadBalancing> = new LoadBalancing({
      getReplicas: replicasOf(
        () => client,
        () => balancing.localDc
      )
    })
    const client: driver.Client = new driver.Client({
      ...clientOptions(options, timeout, metrics, balancing),
      // The driver tells of each frame that it sends and receives, which costs as much as a fiftieth of a request.
      logEmitter: (event: string, level: string, ...args: ReadonlyArray<unknown>) =>
        level !== "verbose" && client.emit(event, level, ...args)
    } as driver.DseClientOptions)
    repairMetadata(client)
    return Effect.tryPromise({
      try: () => client.connect(),
      catch: (cause) => new CassandraError({ reason: explain(toReason(cause), options) })
    }).pipe(
      Effect.as(client),
      Effect.onError(() => Effect.promise(() => client.shutdown().catch(() => {})))
    )
  })
  const isAway = (error: CassandraError) => error.reason._tag === "NoHostAvailable" && within > 0
  const retry = Effect.retry(attempt, {
    schedule: Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("2 seconds")]).pipe(
      Schedule.upTo({ duration: within })
    ),
    while: isAway
  })
  return Effect.acquireRelease(
    attempt.pipe(
      Effect.catchIf(isAway, (error) =>
        Effect.andThen(Effect.logWarning(`${error.message}. Trying for ${within / 1000} s`), retry)
      )
    ),
    (client) => Effect.promise(() => client.shutdown().catch(() => {})),
    { interruptible: true }
  )
}

/** What a node says of its connections; missing in the driver's types. */
export const hostStates = (client: driver.Client): ReadonlyArray<HostState> => {
  const state = client.getState()
  return client.hosts.values().map((host) => ({
    address: host.address,
    dataCenter: host.datacenter,
    version: host.cassandraVersion,
    isUp: host.isUp(),
    connections: state.getOpenConnections(host),
    inFlight: state.getInFlightQueries(host)
  }))
}

/** The driver's cache of prepared statements, which it does not export. */
const { getPrepared } = createRequire(import.meta.url)("cassandra-driver/lib/prepare-handler.js") as {
  readonly getPrepared: (
    client: driver.Client,
    loadBalancing: unknown,
    text: string,
    keyspace: string
  ) => Promise<{ readonly meta: { readonly partitionKeys?: ReadonlyArray<number>; readonly table?: string } }>
}

export const prepared = (client: driver.Client, text: string) =>
  getPrepared(client, (client as any).options.policies.loadBalancing, text, client.keyspace)
