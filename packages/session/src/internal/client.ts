import { createRequire } from "node:module"
import driver from "cassandra-driver"
import { Effect, Redacted } from "effect"
import { CassandraError, InvalidOptions, NoHostAvailable, type Reason } from "../CassandraError.ts"
import type { HostState } from "../CassandraSession.ts"
import { toReason } from "./driverError.ts"
import { strict } from "./encoding.ts"
import { consistencies, millisOf, type Settings } from "./options.ts"
import { pauses, untilOf } from "./patience.ts"
import { textInfo } from "./text.ts"

const isSelect = (query: unknown) => typeof query === "string" && textInfo(query).isSelect

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

/** What the driver keeps its view of the cluster with; missing in its types. */
interface Control {
  _refresh: (plan?: unknown) => Promise<void>
}

/**
 * When the control connection breaks again while it is being renewed, a second renewal begins, and the first one fails where
 * nobody catches it, which would end the process. The second one does the work.
 */
const guardControl = (client: driver.Client) => {
  const { controlConnection: control } = client as unknown as { readonly controlConnection: Control }
  const refresh = control._refresh
  control._refresh = (plan) =>
    refresh
      .call(control, plan)
      .catch((error) => void client.emit("log", "info", "Control connection", "renewed by a later attempt", error))
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

// An interface in the driver's types, a class at run time.
const { AddressTranslator } = driver.policies.addressResolution as unknown as {
  readonly AddressTranslator: new () => driver.policies.addressResolution.AddressTranslator
}

class Addresses extends AddressTranslator {
  readonly #known: Readonly<Record<string, string>>
  constructor(known: Readonly<Record<string, string>>) {
    super()
    this.#known = known
  }
  override translate(address: string, port: number, callback: (endpoint: string) => void) {
    callback(this.#known[address] ?? `${address}:${port}`)
  }
}

/** The nodes tell each other's addresses without ports: theirs is the one of the contact points. */
const portOf = (contactPoints: ReadonlyArray<string>) => {
  const ports = new Set(contactPoints.map((point) => /^(?:[^:]*|\[.*\]):(\d+)$/.exec(point)?.[1] ?? "9042"))
  return ports.size === 1 ? { protocolOptions: { port: Number([...ports][0]) } } : {}
}

const clientOptions = (
  options: Settings,
  timeout: number,
  metrics: DriverRetries,
  balancing: driver.policies.loadBalancing.LoadBalancingPolicy
): driver.DseClientOptions => ({
  ...(options.secureConnectBundle === undefined
    ? {
        contactPoints: [...options.contactPoints],
        ...portOf(options.contactPoints),
        localDataCenter: options.localDataCenter
      }
    : { cloud: { secureConnectBundle: options.secureConnectBundle } }),
  ...(options.username === undefined || options.password === undefined
    ? {}
    : { credentials: { username: options.username, password: Redacted.value(options.password) } }),
  ...(options.tls === undefined || options.tls === false
    ? {}
    : { sslOptions: { rejectUnauthorized: true, ...(options.tls === true ? {} : options.tls) } }),
  encoding: { useBigIntAsLong: true, useBigIntAsVarint: true, map: Map, set: Set, ...strict },
  monitorReporting: { enabled: false },
  metrics,
  policies: {
    loadBalancing: balancing,
    ...(options.addresses === undefined ? {} : { addressResolution: new Addresses(options.addresses) }),
    ...(options.speculative === undefined
      ? {}
      : {
          speculativeExecution: new SpeculativeReads(millisOf(options.speculative.delay), options.speculative.max)
        })
  },
  queryOptions: {
    consistency: consistencies[options.consistency],
    fetchSize: options.pageSize
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

const pointsOf = (options: Settings) => options.secureConnectBundle ?? options.contactPoints.join(", ")

/** Says what to do about the failures that a wrong setting causes. */
const explain = (reason: Reason, options: Settings): Reason => {
  const points = pointsOf(options)
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
        message: `${reason.message} (localDataCenter is "${options.localDataCenter}")`,
        cause: reason.cause
      })
    case "ConnectionLost":
    case "UnknownError":
      // What Node says of a file that is not there, or of TLS.
      return new InvalidOptions({ message: `cannot connect to ${points}: ${reason.message}`, cause: reason.cause })
    default:
      return reason
  }
}

export const connect = (options: Settings, metrics: DriverRetries) => {
  const timeout = millisOf(options.requestTimeout)
  const within = millisOf(options.connectTimeout)
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
    guardControl(client)
    return Effect.tryPromise({
      try: () => client.connect(),
      catch: (cause) => new CassandraError({ reason: explain(toReason(cause), options) })
    }).pipe(
      Effect.as(client),
      // Not awaited: the driver would go on connecting first.
      Effect.onError(() => Effect.sync(() => void client.shutdown().catch(() => {})))
    )
  })
  const isAway = (error: CassandraError) => error.reason._tag === "NoHostAvailable"
  const attempts = Effect.suspend(() => {
    const points = pointsOf(options)
    let message = `no node answers at ${points}: it accepts connections, and nothing more`
    return attempt.pipe(
      Effect.tapError((error) => {
        if (!isAway(error)) return Effect.void
        const isFirst = message !== error.reason.message
        message = error.reason.message
        return isFirst ? Effect.logWarning(`${error.message}. Trying ${untilOf(options)}`) : Effect.void
      }),
      Effect.retry({ schedule: pauses, while: isAway }),
      Effect.timeoutOrElse({
        duration: within,
        orElse: () => Effect.fail(new CassandraError({ reason: new NoHostAvailable({ message, cause: undefined }) }))
      })
    )
  })
  return Effect.acquireRelease(
    within === 0 ? attempt : attempts,
    (client) => Effect.promise(() => client.shutdown().catch(() => {})),
    { interruptible: true }
  )
}

/** The name of the data centre, which a secure connect bundle may have given. */
export const localDataCenterOf = (client: driver.Client): string =>
  (client as unknown as { readonly options: { readonly localDataCenter: string } }).options.localDataCenter

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

// Parts of the driver that it does not export; hence the narrow range of its versions in package.json.
const require = createRequire(import.meta.url)
const { getPrepared } = require("cassandra-driver/lib/prepare-handler.js") as {
  readonly getPrepared: (
    client: driver.Client,
    loadBalancing: unknown,
    text: string,
    keyspace: string
  ) => Promise<{ readonly meta: PreparedMeta }>
}
const { DefaultExecutionOptions } = require("cassandra-driver/lib/execution-options.js") as {
  readonly DefaultExecutionOptions: new (options: driver.QueryOptions, client: Internals) => ExecutionOptions
}
const { ExecuteRequest } = require("cassandra-driver/lib/requests.js") as {
  readonly ExecuteRequest: new (
    text: string,
    id: Buffer,
    params: Array<unknown>,
    options: ExecutionOptions,
    meta: PreparedMeta
  ) => object
}
const { send } = require("cassandra-driver/lib/request-handler.js") as {
  readonly send: (request: object, options: ExecutionOptions, client: Internals) => Promise<driver.types.ResultSet>
}

/** What the server said of a prepared statement. */
interface PreparedMeta {
  readonly keyspace?: string
  readonly table?: string
  /** Places of the values of the partition key. */
  readonly partitionKeys?: ReadonlyArray<number>
}

interface ExecutionOptions {
  setKeyspace(keyspace: string): void
  setRoutingIndexes(indexes: ReadonlyArray<number>): void
}

interface Internals {
  readonly connected: boolean
  readonly keyspace: string
  readonly hosts: { readonly length: number }
  readonly options: { readonly policies: { readonly loadBalancing: unknown } }
  readonly metadata: {
    getPreparedInfo(keyspace: string, text: string): { readonly queryId?: Buffer; readonly meta: PreparedMeta }
  }
  readonly controlConnection: {
    getEncoder(): { setRoutingKeyFromMeta(meta: PreparedMeta, params: Array<unknown>, options: ExecutionOptions): void }
  }
}

const internals = (client: driver.Client) => client as unknown as Internals

/** Lets the driver prepare a text, unless it has. */
export const prepared = (client: driver.Client, text: string) =>
  getPrepared(client, internals(client).options.policies.loadBalancing, text, client.keyspace)

/**
 * As the driver's `execute`, without the chain of promises by which that finds out that a statement is prepared: a seventh
 * of what a request costs it.
 */
export const execute = (
  client: driver.Client,
  text: string,
  params: Array<unknown>,
  options: driver.QueryOptions
): Promise<driver.types.ResultSet> => {
  const self = internals(client)
  if (options.prepare !== true || !self.connected) return client.execute(text, params, options)
  const { meta, queryId } = self.metadata.getPreparedInfo(client.keyspace, text)
  if (queryId === undefined || meta.partitionKeys === undefined) return client.execute(text, params, options)
  const executionOptions = new DefaultExecutionOptions(options, self)
  if (meta.keyspace !== undefined) executionOptions.setKeyspace(meta.keyspace)
  if (self.hosts.length > 1) {
    executionOptions.setRoutingIndexes(meta.partitionKeys)
    self.controlConnection.getEncoder().setRoutingKeyFromMeta(meta, params, executionOptions)
  }
  return send(new ExecuteRequest(text, queryId, params, executionOptions, meta), executionOptions, self)
}
