import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { Effect, Schedule } from "effect"
import { CassandraServerError } from "../CassandraServerError.ts"
import { fail, version, withProgress } from "./distribution.ts"
import type { Java } from "./java.ts"
import { durable, freePort, type Launch, makeNode } from "./node.ts"

const alive = (pid: number) => {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** Keeps two servers from one data folder; a lock whose server is gone counts for nothing. */
const lock = Effect.fnUntraced(function* (folder: string) {
  const file = join(folder, "server.pid")
  const claim = Effect.try({
    try: () => writeFileSync(file, String(process.pid), { flag: "wx" }),
    catch: () => new CassandraServerError({ message: `the data folder ${folder} is in use` })
  })
  const holder = Effect.sync(() => {
    try {
      return Number(readFileSync(file, "utf8"))
    } catch {
      return 0
    }
  })
  yield* claim.pipe(
    Effect.catch(() =>
      Effect.flatMap(holder, (pid) =>
        pid > 0 && alive(pid)
          ? fail(`the data folder ${folder} is in use by process ${pid}: stop it, or choose another folder`)
          : Effect.andThen(
              Effect.sync(() => rmSync(file, { force: true })),
              claim
            )
      )
    ),
    // The server of a parent that was just killed needs a moment to end.
    Effect.retry({ schedule: Schedule.spaced("500 millis"), times: 20 })
  )
  yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(file, { force: true })))
  return (pid: number) => Effect.sync(() => writeFileSync(file, String(pid)))
})

export interface ProcessOptions {
  readonly dataDirectory?: string | undefined
  readonly heap?: string | undefined
  readonly jvm?: ReadonlyArray<string> | undefined
  readonly settings?: Readonly<Record<string, unknown>> | undefined
}

/** A folder that is gone with the scope. */
export const temporaryFolder = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "cassandra-"))),
  (folder) => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 }))
)

/** Starts a server that ends with the scope, or with this process. */
export const startProcess = Effect.fnUntraced(function* (
  java: Java,
  options: ProcessOptions,
  ready: (contactPoint: string) => Effect.Effect<void, unknown>
) {
  const kept = options.dataDirectory
  const folder = kept ?? (yield* temporaryFolder)
  mkdirSync(folder, { recursive: true })
  const hold = yield* lock(folder)
  const port = yield* freePort("127.0.0.1")
  const contactPoint = `127.0.0.1:${port}`
  const node = yield* makeNode(
    java,
    {
      folder,
      address: "127.0.0.1",
      port,
      storagePort: yield* freePort("127.0.0.1"),
      heap: options.heap ?? "1G",
      jvm: options.jvm ?? [],
      // Kept data must survive a power failure with every write that was acknowledged.
      settings: { ...(kept === undefined ? {} : durable), ...options.settings },
      ready: ready(contactPoint)
    },
    hold
  )
  const launch: Launch = {
    seeds: ["127.0.0.1"],
    properties: { "cassandra.ring_delay_ms": 0, "cassandra.initial_token": 0 }
  }
  const start = node.start(launch)
  yield* withProgress(`Starting Cassandra ${version}, about 15 seconds`, start)
  return { ...node, contactPoint, start }
})
