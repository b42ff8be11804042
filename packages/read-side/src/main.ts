#!/usr/bin/env node
/**
 * `read-side`: the command line on its own. It is told where Cassandra is by the environment: `CONTACT_POINTS`, `KEYSPACE`,
 * `LOCAL_DATA_CENTER` and the other options of a session, and `SHARDS` where the journal was given a number of them.
 */
import { NodeRuntime, NodeServices } from "@effect/platform-node"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Config, ConfigProvider, Console, Effect, Layer, Logger, Option } from "effect"
import { Command } from "effect/cli"
import { ReadSide } from "./ReadSide.ts"
import { command } from "./ReadSideCli.ts"

const Live = ReadSide.layerRequests.pipe(
  Layer.provide(
    Journal.layerConfig({ shards: Config.Int("shards").pipe(Config.option, Config.map(Option.getOrUndefined)) })
  ),
  Layer.provide(CassandraSession.layerConfig()),
  Layer.provide(ConfigProvider.layer(ConfigProvider.constantCase(ConfigProvider.fromEnv()))),
  Layer.provideMerge(NodeServices.layer)
)

Command.run(command, { version: "0.1.0" }).pipe(
  Effect.provide(Live),
  Effect.provideService(Logger.LogToStderr, true),
  Effect.tapError((error) => Console.error("message" in error ? error.message : String(error))),
  NodeRuntime.runMain({ disableErrorReporting: true })
)
