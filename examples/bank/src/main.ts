import { fileURLToPath } from "node:url"
import { NodeRuntime } from "@effect/platform-node"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Config, Console, Effect, Layer, Schema } from "effect"
import { HttpServer } from "effect/http"
import { BankServer } from "./Bank.ts"

/** 0 takes a free one. */
const Port = Schema.NumberFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 0, maximum: 65535 }))

const settings = Config.all({
  port: Config.schema(Port, "PORT").pipe(Config.withDefault(3000)),
  routing: Config.Boolean("BANK_ROUTING").pipe(Config.withDefault(false)),
  keyspace: Config.String("BANK_KEYSPACE").pipe(Config.withDefault("bank")),
  dataDirectory: Config.String("BANK_DATA").pipe(
    Config.withDefault(fileURLToPath(new URL("../../../.data", import.meta.url)))
  )
})

const welcome = Effect.flatMap(HttpServer.HttpServer, (server) => {
  const url = HttpServer.formatAddress(server.address)
  return Console.log(`
The bank is open at ${url}. Its API is described at ${url}/docs. In another terminal, try:

  curl -X PUT  ${url}/accounts/ada-1 -H 'content-type: application/json' -d '{"owner":"ada"}'
  curl -X POST ${url}/accounts/ada-1/deposits -H 'content-type: application/json' -d '{"cents":25000}'
  curl -X POST ${url}/accounts/ada-1/withdrawals -H 'content-type: application/json' -d '{"cents":10000}'
  curl ${url}/accounts/ada-1
  curl ${url}/accounts/ada-1/statement
  curl ${url}/owners/ada/accounts
  curl -X PUT  ${url}/accounts/bob-1 -H 'content-type: application/json' -d '{"owner":"bob"}'
  curl -X PUT  ${url}/transfers/t-1 -H 'content-type: application/json' -d '{"from":"ada-1","to":"bob-1","cents":5000}'
  curl ${url}/transfers/t-1
  curl -N ${url}/events

Ctrl-C closes it; the accounts are kept.`)
})

const Session = (keyspace: string) =>
  Layer.unwrap(
    Effect.map(CassandraServer, ({ connection }) =>
      CassandraSession.layer({
        ...connection,
        keyspace,
        service: "bank",
        development: true,
        connectTimeout: Infinity
      })
    )
  )

const Main = Layer.unwrap(
  Effect.map(settings, ({ dataDirectory, keyspace, port, routing }) =>
    Layer.effectDiscard(welcome).pipe(
      Layer.provide(BankServer({ port, routing })),
      Layer.provide(Session(keyspace)),
      Layer.provide(CassandraServer.layer({ dataDirectory, connectTimeout: Infinity }))
    )
  )
)

NodeRuntime.runMain(Layer.launch(Main).pipe(Effect.tapError((error) => Console.error(error.message))), {
  disableErrorReporting: true
})
