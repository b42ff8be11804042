import { Config, Redacted, Schema } from "effect"
import type { Options } from "../CassandraSession.ts"
import type { Consistency } from "../Statement.ts"
import { consistencies } from "./options.ts"

const optional = <A>(config: Config.Config<A>) => Config.withDefault(config, undefined)

// Of a struct, as a group of configs of which one is missing would be taken for absent.
const speculative = Config.schema(
  Schema.Struct({ delay: Schema.DurationFromString, max: Schema.FiniteFromString }),
  "speculative"
)

const certificates = Config.schema(
  Schema.Struct({
    ca: Schema.optionalKey(Schema.String),
    cert: Schema.optionalKey(Schema.String),
    key: Schema.optionalKey(Schema.Redacted(Schema.String))
  }),
  "tls"
).pipe(Config.map(({ key, ...rest }) => (key === undefined ? rest : { ...rest, key: Redacted.value(key) })))

/** All options but those that are code. */
export const fields = {
  keyspace: Config.String("keyspace"),
  contactPoints: optional(Config.Array(Schema.Trim, "contactPoints")),
  addresses: optional(Config.Record(Schema.String, Schema.String, "addresses", { trim: true })),
  localDataCenter: optional(Config.String("localDataCenter")),
  replication: optional(Config.Record(Schema.String, Schema.FiniteFromString, "replication", { trim: true })),
  development: optional(Config.Boolean("development")),
  service: optional(Config.String("service")),
  access: optional(Config.Literals(["write", "read"], "access")),
  username: optional(Config.String("username")),
  password: optional(Config.Redacted("password")),
  tls: Config.flatMap(
    optional(certificates),
    (found): Config.Config<Options["tls"]> =>
      found === undefined ? optional(Config.Boolean("tls")) : Config.succeed(found)
  ),
  secureConnectBundle: optional(Config.String("secureConnectBundle")),
  consistency: optional(Config.Literals(Object.keys(consistencies) as Array<Consistency>, "consistency")),
  connectTimeout: optional(Config.Duration("connectTimeout")),
  requestTimeout: optional(Config.Duration("requestTimeout")),
  pageSize: optional(Config.Int("pageSize")),
  maxInFlight: optional(Config.Int("maxInFlight")),
  maxQueued: optional(Config.Int("maxQueued")),
  speculative: optional(speculative),
  slowStatement: optional(Config.Duration("slowStatement")),
  maxBatchSize: optional(Config.Int("maxBatchSize"))
} satisfies { readonly [K in Exclude<keyof Options, "retry" | "profiles">]-?: Config.Config<Options[K]> }

export const config: Config.Config<Options> = Config.all(fields)
