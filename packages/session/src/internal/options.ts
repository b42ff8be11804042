/** What the options of a session and of its statements may be, and what they are where they are not given. */
import driver from "cassandra-driver"
import { Duration, Option, Redacted } from "effect"
import type { BatchOptions, Options } from "../CassandraSession.ts"
import type { Consistency, Options as StatementOptions } from "../Statement.ts"

export const defaults = {
  contactPoints: ["127.0.0.1:9042"],
  localDataCenter: "datacenter1",
  development: false,
  access: "write",
  consistency: "LOCAL_QUORUM",
  connectTimeout: "30 seconds",
  requestTimeout: "10 seconds",
  pageSize: 1000,
  maxInFlight: 2048,
  maxQueued: 16384,
  slowStatement: "1 second",
  maxBatchSize: 50 * 1024
} as const satisfies Partial<Options>

/** Options of which those with a default are there. */
export type Settings = Options & {
  readonly [K in keyof typeof defaults]: Exclude<Options[K], undefined>
}

export const withDefaults = (options: Options): Settings => ({
  ...defaults,
  ...(Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as Options & {
    readonly [K in keyof typeof defaults]?: Exclude<Options[K], undefined>
  })
})

/** The codes of the native protocol. */
export const consistencies: Readonly<Record<Consistency, number>> = {
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

/** What Node's timers hold, with room for the second that the driver gets more. */
const maxMillis = 2 ** 31 - 2000

/** Of a duration that was checked. */
export const millisOf = (input: Duration.Input): number => Math.min(Duration.toMillis(input), maxMillis)

const notWhole = (name: string, value: number | undefined, least: number) =>
  value === undefined || (Number.isInteger(value) && value >= least && value < 2 ** 31)
    ? undefined
    : `${name} is ${String(value)}: it must be a whole number of at least ${least}`

const notDuration = (name: string, input: Duration.Input | undefined, least: number) =>
  input === undefined || Option.exists(Duration.fromInput(input), (duration) => Duration.toMillis(duration) >= least)
    ? undefined
    : `${name} is ${String(input)}: it must be a duration of at least ${least} ms, for example "5 seconds"`

const notOneOf = (name: string, value: unknown, known: ReadonlyArray<string>) =>
  value === undefined || known.includes(value as string)
    ? undefined
    : `${name} is ${String(value)}: it must be one of ${known.join(", ")}`

const levels = Object.keys(consistencies)

/** What is wrong with the settings of a statement or batch. */
export const problemOf = (settings: StatementOptions & BatchOptions): string | undefined =>
  notOneOf("consistency", settings.consistency, levels) ??
  notOneOf("serialConsistency", settings.serialConsistency, ["SERIAL", "LOCAL_SERIAL"]) ??
  notOneOf("type", settings.type, ["logged", "unlogged", "counter"]) ??
  notWhole("pageSize", settings.pageSize, 1) ??
  (settings.timestamp === undefined || Number.isSafeInteger(settings.timestamp)
    ? undefined
    : `timestamp is ${String(settings.timestamp)}: it must be a whole number of microseconds`) ??
  notDuration("timeout", settings.timeout, 1)

const isReplication = (replication: Readonly<Record<string, number>>) => {
  const copies = Object.entries(replication)
  return copies.length > 0 && copies.every(([name, n]) => name !== "" && Number.isInteger(n) && n > 0)
}

const isContactPoint = (point: unknown) => {
  if (typeof point !== "string" || !/^\S+$/.test(point)) return false
  const port = /^(?:[^:]+|\[.*\]):(.*)$/.exec(point)?.[1]
  return port === undefined || (/^\d+$/.test(port) && Number(port) < 2 ** 16)
}

/** What is wrong with the options of a session. */
export const problemOfSession = (options: Options): string | undefined => {
  const { contactPoints, keyspace, replication, speculative } = options
  if (contactPoints !== undefined && !(Array.isArray(contactPoints) && contactPoints.length > 0)) {
    return `contactPoints is empty: name at least one node, for example ["127.0.0.1:9042"]`
  }
  for (const point of contactPoints ?? []) {
    if (!isContactPoint(point)) return `contact point "${point}" is neither "host" nor "host:port"`
  }
  if (typeof keyspace !== "string" || !/^\w{1,48}$/.test(keyspace)) {
    return `keyspace "${keyspace}" is not a name of 1 to 48 letters, digits and underscores`
  }
  if (options.localDataCenter === "") return "localDataCenter is empty: `nodetool status` shows the names"
  if (options.service === "") return "service is empty: give the name of the service that owns the keyspace"
  if ((options.username === undefined) !== (options.password === undefined)) {
    return "username and password go together: only one of them is given"
  }
  if (options.password !== undefined && !Redacted.isRedacted(options.password)) {
    return "password is plain text, which could be printed: give Redacted.make(password)"
  }
  if (replication !== undefined && !isReplication(replication)) {
    return `replication ${JSON.stringify(replication)} must give a whole number of copies for each data centre, for example { datacenter1: 3 }`
  }
  if (options.secureConnectBundle !== undefined && (contactPoints !== undefined || options.tls)) {
    return "secureConnectBundle holds addresses and certificates: leave out contactPoints and tls"
  }
  if (/^(ANY|SERIAL|LOCAL_SERIAL)$/.test(options.consistency ?? "")) {
    return `consistency ${options.consistency} does not do for reads and writes: set it for single statements`
  }
  for (const [name, profile] of Object.entries(options.profiles ?? {})) {
    const problem = problemOf(profile)
    if (problem !== undefined) return `profile "${name}": ${problem}`
  }
  return (
    notOneOf("consistency", options.consistency, levels) ??
    notOneOf("access", options.access, ["write", "read"]) ??
    notDuration("connectTimeout", options.connectTimeout, 0) ??
    notDuration("requestTimeout", options.requestTimeout, 1) ??
    notDuration("slowStatement", options.slowStatement, 0) ??
    notDuration("speculative.delay", speculative?.delay, 0) ??
    notWhole("speculative.max", speculative?.max, 1) ??
    notWhole("maxInFlight", options.maxInFlight, 1) ??
    notWhole("maxQueued", options.maxQueued, 0) ??
    notWhole("pageSize", options.pageSize, 1) ??
    notWhole("maxBatchSize", options.maxBatchSize, 1)
  )
}
