import { spawn } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { ConfigProvider, Effect, Layer, Schedule } from "effect"
import { CassandraProcess } from "../src/CassandraProcess.ts"
import { CassandraServer } from "../src/CassandraServer.ts"
import { findJava, parseVersion } from "../src/internal/java.ts"

const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "cassandra-test-"))),
  (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
)

describe("finding Java", () => {
  it.each([
    ['openjdk version "17.0.15" 2025-04-15', 17],
    ['openjdk version "11.0.2" 2019-01-15', 11],
    ['java version "1.8.0_202"', 8],
    ['openjdk version "25" 2025-09-16', 25],
    ["command not found", undefined]
  ])("reads %s", (output, version) => assert.strictEqual(parseVersion(output), version))

  it.live("prefers 17, and asks each Java for its version", () =>
    Effect.gen(function* () {
      const folder = yield* temporary
      const fake = (name: string, version: string) => {
        const path = join(folder, name)
        writeFileSync(path, `#!/bin/sh\necho 'openjdk version "${version}"' >&2\n`, { mode: 0o755 })
      }
      fake("java", "25.0.1")
      const { found } = yield* findJava({ PATH: folder })
      assert.deepInclude(found[0], { path: join(folder, "java"), version: 25 })
      fake("java", "17.0.1")
      assert.deepStrictEqual((yield* findJava({ PATH: folder })).java, { path: join(folder, "java"), version: 17 })
    })
  )
})

const withEnvironment = (values: Record<string, string>) =>
  Layer.provide(CassandraServer.layer(), ConfigProvider.layer(ConfigProvider.fromUnknown(values)))

describe("a Cassandra that the environment names", () => {
  it.live("is refused, saying what is wrong, when it does not answer", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        Effect.provide(CassandraServer, withEnvironment({ CASSANDRA_CONTACT_POINTS: "127.0.0.1:1" }))
      )
      assert.match(error.message, /CASSANDRA_CONTACT_POINTS names cannot be used.*127\.0\.0\.1:1/)
    })
  )

  it.live("needs a certificate file that can be read", () =>
    Effect.gen(function* () {
      const error = yield* Effect.flip(
        Effect.provide(
          CassandraServer,
          withEnvironment({ CASSANDRA_CONTACT_POINTS: "127.0.0.1:1", CASSANDRA_TLS_CA: "no-such-file.pem" })
        )
      )
      assert.match(error.message, /CASSANDRA_TLS_CA, the file no-such-file\.pem, cannot be read/)
    })
  )
})

const alive = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Where there is only Docker, or a Cassandra of one's own, a local process cannot be tried. */
const hasJava = await Effect.runPromise(CassandraProcess.isPossible)

describe("a local process", () => {
  const session = Layer.unwrap(
    Effect.map(CassandraServer, ({ connection }) =>
      CassandraSession.layer({ ...connection, keyspace: "kept", replication: { datacenter1: 1 } })
    )
  )

  it.live.skipIf(!hasJava)(
    "keeps its data in a chosen folder, lets nobody else open it, and is gone with the layer",
    () =>
      Effect.gen(function* () {
        const dataDirectory = yield* temporary
        const server = () => Layer.fresh(CassandraServer.layerProcess({ dataDirectory, heap: "512M" }))
        const lock = join(dataDirectory, "process", "server.pid")
        const pid = yield* Effect.gen(function* () {
          const cassandra = yield* CassandraSession
          yield* cassandra.createTables(["CREATE TABLE IF NOT EXISTS t (k int PRIMARY KEY)"])
          yield* cassandra.execute(cql`INSERT INTO t (k) VALUES (${42})`)
          const error = yield* Effect.flip(Effect.provide(CassandraServer, server()))
          assert.match(error.message, /data folder .* is in use by process \d+/)
          return Number(readFileSync(lock, "utf8"))
        }).pipe(Effect.provide(session.pipe(Layer.provideMerge(server()))))
        assert.isFalse(alive(pid))
        const rows = yield* Effect.flatMap(CassandraSession, (cassandra) =>
          cassandra.execute(cql`SELECT k FROM t`)
        ).pipe(Effect.provide(session.pipe(Layer.provideMerge(server()))))
        assert.strictEqual(rows[0]?.k, 42)
      }),
    120_000
  )

  it.live.skipIf(!hasJava)(
    "is gone soon after its parent was killed",
    () =>
      Effect.gen(function* () {
        const dataDirectory = yield* temporary
        const program = `
          import { Effect, Layer } from "effect"
          import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
          await Effect.runPromise(Layer.launch(CassandraServer.layerProcess(${JSON.stringify({ dataDirectory, heap: "512M" })})))`
        const parent = spawn(
          process.execPath,
          ["--conditions=@effect-cassandra/source", "--input-type=module", "--eval", program],
          { cwd: fileURLToPath(new URL("..", import.meta.url)), stdio: "ignore" }
        )
        const pid = yield* Effect.try(() =>
          Number(readFileSync(join(dataDirectory, "process", "server.pid"), "utf8"))
        ).pipe(
          // The parent's own number stands there until it has started the server.
          Effect.filterOrFail((found) => found > 0 && found !== parent.pid),
          Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 600 })
        )
        assert.isTrue(alive(pid))
        parent.kill("SIGKILL")
        yield* Effect.suspend(() => (alive(pid) ? Effect.fail("still there") : Effect.void)).pipe(
          Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 300 })
        )
      }),
    120_000
  )
})
