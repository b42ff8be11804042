import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { NodeServices } from "@effect/platform-node"
import { assert, layer } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make as statement } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Console, Effect, Layer, Result } from "effect"
import { Command, TerminalCapabilities } from "effect/cli"
import { Journal } from "../src/Journal.ts"
import { JournalAdmin } from "../src/JournalAdmin.ts"
import { command } from "../src/JournalCli.ts"

const main = fileURLToPath(new URL("../src/main.ts", import.meta.url))

interface Ended {
  readonly code: number
  readonly stdout: string
  readonly stderr: string
}

/** The command line as a process of its own. */
const spawned = (...args: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const { contactPoints, keyspace, localDataCenter } = yield* TestKeyspace
    return yield* Effect.promise(
      (): Promise<Ended> =>
        promisify(execFile)(process.execPath, ["--conditions=@effect-cassandra/source", main, ...args], {
          env: {
            ...process.env,
            CONTACT_POINTS: contactPoints!.join(","),
            KEYSPACE: keyspace,
            LOCAL_DATA_CENTER: localDataCenter ?? "datacenter1"
          }
        }).then(
          (out) => ({ code: 0, ...out }),
          (error) => error
        )
    )
  })

/** The same in this process, with what it prints. */
const run = (...args: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const lines: Array<string> = []
    const console = { ...(yield* Console.Console), log: (line: string) => lines.push(line) } as Console.Console
    const exit = yield* command.pipe(
      Command.provide(Layer.fresh(JournalAdmin.layer())),
      (provided) => Command.runWith(provided, { version: "1" })(args),
      Effect.provide(NodeServices.layer),
      Effect.provideService(Console.Console, console),
      Effect.provideService(TerminalCapabilities.TerminalCapabilities, {
        canAnimate: false,
        canColor: false,
        canPrompt: false
      }),
      Effect.result
    )
    const stderr = Result.isFailure(exit) ? String(exit.failure.message) : ""
    return { code: Result.isFailure(exit) ? 1 : 0, stdout: `${lines.join("\n")}\n`, stderr } satisfies Ended
  })

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("the command line", (it) => {
  it.effect("lists, shows, verifies, deletes, rebuilds and accepts", () =>
    Effect.gen(function* () {
      const named = yield* spawned("list")
      assert.strictEqual(named.code, 1)
      assert.match(named.stderr, /keyspace "\w+" holds no journal: it lacks the tables entity_types/)

      const ada = { entityType: "Account", entityId: "ada" }
      yield* Effect.gen(function* () {
        const journal = yield* Journal
        for (let cents = 1; cents <= 3; cents++) {
          yield* journal.append({ ...ada, expected: "any", events: [{ type: "Deposited", payload: { cents } }] })
        }
        yield* journal.append({ ...ada, entityId: "bob", expected: "any", events: [{ type: "Opened", payload: null }] })
      }).pipe(Effect.provide(Journal.layer({ shards: 1 })))

      assert.match(
        (yield* run("list")).stdout,
        /type +shards +consistency[\s\S]*Account +1 +SERIAL +10000 +33554432 +1 +1\n\ntype +shard +head +index +behind[\s\S]*Account +0 +4 +4 +0/
      )
      const states = JSON.parse((yield* run("list", "--json")).stdout)
      assert.deepInclude(states[0].shards[0], { shard: 0, head: 4, watermark: 4 })

      const shown = (yield* run("history", "Account", "ada", "--after", "1")).stdout.trimEnd().split("\n")
      assert.strictEqual(shown.length, 2)
      assert.match(shown[0]!, /^ +2 {2}20.*Z {2}0\/2 {2}Deposited v1 {2}\{"cents":2\}$/)

      const clean = yield* run("verify")
      assert.strictEqual(clean.code, 0, clean.stderr)
      assert.match(clean.stdout, /Account +0 +4 +4 +2 +4\n\nEverything is as it must be\./)

      const would = yield* run("delete", "Account", "ada", "--dry-run")
      assert.match(would.stdout, /would go: the payloads of 3 events, stored from 20.*Z to 20.*Z, and 0 snapshots/)
      const unsure = yield* run("delete", "Account", "ada")
      assert.strictEqual(unsure.code, 1)
      assert.match(unsure.stderr, /nothing was changed: give --yes/)
      assert.match((yield* run("delete", "Account", "ada", "--yes")).stdout, /gone: the payloads of 3 events/)
      assert.match((yield* run("history", "Account", "ada")).stdout, /Deposited v1 {2}\(deleted\)[\s\S]*\$deleted/)

      const session = yield* CassandraSession
      yield* session.execute(
        statement(
          "UPDATE index_watermarks SET offset = 77 WHERE entity_type = 'Account' AND shard = 0 AND generation = 1"
        )
      )
      const found = yield* run("verify", "Account")
      assert.strictEqual(found.code, 1)
      assert.match(
        found.stdout,
        /ahead: the index says that it is complete up to offset 77, the log ends at 5\n {2}in index_watermarks, shard 0, offset 77\n {2}if an older backup was restored: journal accept-restore Account/
      )
      const [report] = JSON.parse((yield* run("verify", "--json")).stdout)
      assert.deepInclude(report.findings[0], { kind: "ahead", table: "index_watermarks", offset: 77, shard: 0 })

      const dry = yield* run("accept-restore", "Account", "--dry-run")
      assert.match(dry.stdout, /shard +head +index said +lost at least\n +0 +5 +77 +72\n\nAccount would begin epoch 2/)
      assert.match((yield* run("accept-restore", "Account", "-y")).stdout, /begins epoch 2 with index generation 2/)
      assert.strictEqual((yield* run("verify")).code, 0)
      assert.match(
        (yield* run("rebuild-index", "Account")).stdout,
        /index generation 3 of Account was computed from 5 events/
      )
      assert.match(
        (yield* run("remove-old-indexes", "Account", "--dry-run")).stdout,
        /generation +partitions\n +1 +2\n +2 +2/
      )
      const early = yield* spawned("remove-old-indexes", "Account", "--yes")
      assert.match(early.stderr, /is in use since \d+ s, .*: try again in 10 min/)
      assert.match((yield* run("finish-deletions", "Account")).stdout, /none/)
      assert.match((yield* spawned("list")).stdout, /Account +0 +5 +5 +0/)
      assert.match((yield* run("verify", "Acount")).stderr, /there is no entity type "Acount" .*there is "Account"/)
    })
  )

  it.effect("says how it is used without a database", () =>
    Effect.gen(function* () {
      const { stdout } = yield* spawned("--help").pipe(
        Effect.provideService(TestKeyspace, { ...(yield* TestKeyspace), contactPoints: ["127.0.0.1:1"] })
      )
      for (const name of ["list", "history", "verify", "rebuild-index", "accept-restore", "delete"]) {
        assert.include(stdout, name)
      }
    })
  )
})
