import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { NodeServices } from "@effect/platform-node"
import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Console, Effect } from "effect"
import { Command } from "effect/cli"
import * as Processor from "../src/Processor.ts"
import { ReadSide } from "../src/ReadSide.ts"
import { command } from "../src/ReadSideCli.ts"
import { Added, added, append, eventually, Live, lines } from "./fixture.ts"

const main = fileURLToPath(new URL("../src/main.ts", import.meta.url))

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("the command line", (it) => {
  it.effect("shows and controls processors that run in another process", () =>
    Effect.gen(function* () {
      const { contactPoints, keyspace, localDataCenter } = yield* TestKeyspace
      /** What a command prints. */
      const run = (...args: ReadonlyArray<string>) =>
        Effect.gen(function* () {
          const lines: Array<unknown> = []
          const log = (...all: ReadonlyArray<unknown>) => lines.push(...all)
          yield* Command.runWith(command, { version: "test" })(args).pipe(
            Effect.provideService(Console.Console, { ...console, log }),
            Effect.provide(ReadSide.layerRequests),
            Effect.provide(NodeServices.layer)
          )
          return lines.join("\n")
        })
      /** The same as a program of its own. */
      const program = (...args: ReadonlyArray<string>) =>
        Effect.promise(() =>
          promisify(execFile)(process.execPath, ["--conditions=@effect-cassandra/source", main, ...args], {
            env: {
              ...process.env,
              CONTACT_POINTS: contactPoints!.join(","),
              KEYSPACE: keyspace,
              LOCAL_DATA_CENTER: localDataCenter ?? "datacenter1",
              SHARDS: "3"
            }
          })
        )
      const stubborn = Processor.effect("stubborn", {
        entityType: "Told",
        events: [Added],
        onFailure: { park: { attempts: 1 } },
        handlers: { Added: ({ amount }) => (amount < 0 ? Effect.fail("negative") : Effect.void) }
      })
      const position = yield* append("Told", "a", added(1), added(-2), added(3))
      yield* Effect.gen(function* () {
        const readSide = yield* ReadSide
        yield* readSide.awaitProjected("told", position)
        yield* readSide.awaitProjected("stubborn", position)

        const { stdout } = yield* program("status", "told", "--json")
        const rows = JSON.parse(stdout) as ReadonlyArray<Record<string, unknown>>
        assert.strictEqual(rows.length, 3)
        assert.deepInclude(rows[position.shard], {
          processor: "told",
          state: "running",
          offset: 3,
          head: 3,
          lag: 0,
          parked: 0
        })

        assert.match(yield* run("parked", "stubborn"), /Told +a +2 +Added .* 1 .*: negative\n.*behind the one before/)
        yield* run("skip", "stubborn", "Told", "a")
        yield* eventually(Effect.map(readSide.parked("stubborn"), (parked) => assert.deepStrictEqual(parked, [])))

        yield* run("stop", "told", "--shard", "1")
        const states = Effect.map(readSide.status, (all) =>
          all.flatMap(({ processor, state }) => (processor === "told" ? [state] : []))
        )
        yield* eventually(
          Effect.map(states, (found) => assert.deepStrictEqual(found, ["running", "stopped", "running"]))
        )
        assert.match(yield* run("status"), /processor +entities +shard +state[\s\S]*told +Told +1 +stopped/)

        const refused = yield* Effect.flip(run("stop", "told", "--shard", "7"))
        assert.match(refused.message, /there is no shard 7: there are 0 to 2/)
        yield* run("rewind", "told", "--offset", "1", "--shard", String(position.shard))
        assert.match(yield* run("pause", "tolt"), /followed when there is such a processor; now there are .*told/)
        const unknown = yield* Effect.flip(run("status", "tolt"))
        assert.match(unknown.message, /there is no processor "tolt": known are .*told/)
        assert.match(yield* run("active", "told"), /^1$/m)
      }).pipe(Effect.provide(ReadSide.layer([lines("told", "Told"), stubborn], { lease: "2 seconds" })))
      assert.match(yield* run("offsets", "told"), /entities +shard +offset\nTold/)
    })
  )
})
