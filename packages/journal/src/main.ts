#!/usr/bin/env node
/**
 * `journal`: the command line on its own. It is told where Cassandra is by the environment: `CONTACT_POINTS`, `KEYSPACE`,
 * `LOCAL_DATA_CENTER`, `SERVICE` and the other options of a session.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { ConfigProvider, Console, Effect, Layer, Logger } from "effect"
import { Command } from "effect/cli"
import { JournalAdmin } from "./JournalAdmin.ts"
import { command } from "./JournalCli.ts"

const Live = JournalAdmin.layer().pipe(
  Layer.provide(CassandraSession.layerConfig()),
  Layer.provide(ConfigProvider.layer(ConfigProvider.constantCase(ConfigProvider.fromEnv())))
)

command.pipe(
  Command.provide(Live),
  Command.run({ version: "0.1.0" }),
  Effect.provide(NodeServices.layer),
  Effect.provideService(Logger.LogToStderr, true),
  Effect.tapError((error) => Console.error("message" in error ? error.message : String(error))),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
