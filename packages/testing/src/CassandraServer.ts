/**
 * A Cassandra for tests and development: one that is named by the environment, a container, or a local process.
 */
import { readFileSync } from "node:fs"
import { join, resolve } from "node:path"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { Config, Console, Context, Effect, Layer, Option, Redacted, Schema } from "effect"
import { CassandraServerError } from "./CassandraServerError.ts"
import { findDocker, startContainer } from "./internal/container.ts"
import { requireJava } from "./internal/java.ts"
import { type ProcessOptions, startProcess } from "./internal/localProcess.ts"

/** What a session needs to connect. */
export type Connection = Omit<CassandraSession.Options, "keyspace">

/** Settings of a server that is started here. */
export interface Options {
  /** Where the data are kept; without it they are gone with the server. */
  readonly dataDirectory?: string | undefined
  /** Heap of a local process, as Java writes it. Default: `"1G"`. */
  readonly heap?: string | undefined
  /**
   * Further arguments of Java for a local process. With `-XX:TieredStopAtLevel=1` it starts with a third of the work, and
   * serves fewer requests per second.
   */
  readonly jvm?: ReadonlyArray<string> | undefined
  /** Further entries for the cassandra.yaml of a local process. */
  readonly settings?: Readonly<Record<string, unknown>> | undefined
  /** How long to wait for a cluster that the environment names. Default: 0. */
  readonly connectTimeout?: CassandraSession.Options["connectTimeout"]
}

/**
 * A Cassandra that answers.
 */
export class CassandraServer extends Context.Service<
  CassandraServer,
  {
    readonly connection: Connection
    /** One line that says what was found. */
    readonly description: string
  }
>()("@effect-cassandra/testing/CassandraServer") {
  /**
   * The first that is there: the cluster at `CASSANDRA_CONTACT_POINTS`, a container in a Docker engine that answers, a
   * local process by Java 17 or 11 with Maven. What is started is gone with the layer.
   */
  static readonly layer = (
    options: Options = {}
  ): Layer.Layer<CassandraServer, CassandraServerError | Config.ConfigError> =>
    Layer.effect(
      CassandraServer,
      Effect.suspend(() => find(options))
    )

  /** A container. */
  static readonly layerContainer = (options: Options = {}): Layer.Layer<CassandraServer, CassandraServerError> =>
    Layer.effect(
      CassandraServer,
      Effect.suspend(() => container(options))
    )

  /** A local process. */
  static readonly layerProcess = (options: Options = {}): Layer.Layer<CassandraServer, CassandraServerError> =>
    Layer.effect(
      CassandraServer,
      Effect.suspend(() => localProcess(options))
    )
}

/** The server's version; fails while it does not answer. */
export const versionOf = (connection: Connection, connectTimeout: CassandraSession.Options["connectTimeout"] = 0) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession.make({ ...connection, keyspace: "system", connectTimeout })
    const rows = yield* session.execute<{ release_version: string }>(cql`SELECT release_version FROM local`)
    return rows[0]!.release_version
  }).pipe(Effect.scoped)

const environment = Config.all({
  contactPoints: Config.String("CASSANDRA_CONTACT_POINTS").pipe(Config.option),
  addresses: Config.Record(Schema.String, Schema.String, "CASSANDRA_ADDRESSES").pipe(Config.option),
  localDataCenter: Config.String("CASSANDRA_LOCAL_DC").pipe(Config.withDefault("datacenter1")),
  username: Config.String("CASSANDRA_USERNAME").pipe(Config.option),
  password: Config.Redacted("CASSANDRA_PASSWORD").pipe(Config.option),
  tls: Config.Boolean("CASSANDRA_TLS").pipe(Config.withDefault(false)),
  ca: Config.String("CASSANDRA_TLS_CA").pipe(Config.option)
})

const error = (message: string) => new CassandraServerError({ message })

const configured = Effect.fnUntraced(function* ({ connectTimeout }: Options) {
  const { addresses, ca, contactPoints, localDataCenter, password, tls, username } = yield* environment
  if (Option.isNone(contactPoints)) return undefined
  const connection: Connection = {
    contactPoints: contactPoints.value
      .split(",")
      .map((point) => point.trim())
      .filter((point) => point !== ""),
    addresses: Option.getOrUndefined(addresses),
    localDataCenter,
    username: Option.getOrUndefined(username),
    password: Option.getOrUndefined(password),
    tls: Option.isSome(ca)
      ? {
          ca: yield* Effect.try({
            try: () => readFileSync(ca.value),
            catch: (cause) => error(`CASSANDRA_TLS_CA, the file ${ca.value}, cannot be read: ${cause}`)
          })
        }
      : tls
  }
  const version = yield* versionOf(connection, connectTimeout).pipe(
    Effect.mapError((cause) =>
      error(`the Cassandra that CASSANDRA_CONTACT_POINTS names cannot be used. ${cause.message}`)
    )
  )
  return { connection, description: `Cassandra ${version} at ${contactPoints.value}` }
})

const container = Effect.fnUntraced(function* ({ dataDirectory }: Options) {
  yield* findDocker
  const { contactPoint, localDataCenter } = yield* startContainer(
    dataDirectory === undefined ? undefined : resolve(join(dataDirectory, "container"))
  )
  const connection = { contactPoints: [contactPoint], localDataCenter }
  const version = yield* versionOf(connection).pipe(Effect.mapError((cause) => error(cause.message)))
  return { connection, description: `Cassandra ${version} started in a container, at ${contactPoint}` }
})

/** Starts a local process. */
export const startLocal = Effect.fnUntraced(function* (options: Options) {
  const java = yield* requireJava
  const settings: ProcessOptions = {
    ...options,
    dataDirectory: options.dataDirectory === undefined ? undefined : resolve(join(options.dataDirectory, "process"))
  }
  const connectionTo = (contactPoint: string): Connection => ({
    contactPoints: [contactPoint],
    // The user that Cassandra makes for itself.
    ...(options.settings?.authenticator === undefined
      ? {}
      : { username: "cassandra", password: Redacted.make("cassandra") })
  })
  const server = yield* startProcess(java, settings, (point) => Effect.asVoid(versionOf(connectionTo(point))))
  return { ...server, java, connection: connectionTo(server.contactPoint) }
})

const localProcess = Effect.fnUntraced(function* (options: Options) {
  const { connection, contactPoint, java } = yield* startLocal(options)
  const version = yield* versionOf(connection).pipe(Effect.mapError((cause) => error(cause.message)))
  return {
    connection,
    description: `Cassandra ${version} started as a local process at ${contactPoint}, Java ${java.version} at ${java.path}`
  }
})

const find = Effect.fnUntraced(function* (options: Options) {
  const named = yield* configured(options)
  const found =
    named ??
    (yield* container(options).pipe(
      Effect.catch((noContainer) =>
        localProcess(options).pipe(
          Effect.mapError((noProcess) =>
            error(
              [
                "No Cassandra could be found or started. Looked for, in this order:",
                "  1. CASSANDRA_CONTACT_POINTS: it is not set",
                `  2. a Docker engine: ${noContainer.message}`,
                `  3. a local process: ${noProcess.message}`,
                "Install Java 17 with Maven (on Debian and Ubuntu: apt install openjdk-17-jre-headless maven), or start Docker,",
                "or set CASSANDRA_CONTACT_POINTS=host:9042 (and CASSANDRA_LOCAL_DC, CASSANDRA_USERNAME, CASSANDRA_PASSWORD,",
                "CASSANDRA_TLS=true, CASSANDRA_TLS_CA=file where they are needed)."
              ].join("\n")
            )
          )
        )
      )
    ))
  yield* Console.log(found.description)
  return found
})
