import { spawn } from "node:child_process"
import {
  createWriteStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync
} from "node:fs"
import { createServer } from "node:net"
import { homedir, tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Console, Deferred, Effect, Schedule } from "effect"
import { CassandraServerError } from "../CassandraServerError.ts"
import type { Java } from "./java.ts"

export const version = "5.0.9"

const resources = fileURLToPath(new URL("../../cassandra", import.meta.url))

const fail = (message: string) => Effect.fail(new CassandraServerError({ message }))

/** Runs something slow, and says so. */
export const withProgress = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const begin = Date.now()
  return Effect.andThen(
    Console.log(`${what} ...`),
    Effect.raceFirst(
      effect,
      Effect.suspend(() => Console.log(`  still at it, ${Math.round((Date.now() - begin) / 1000)} s`)).pipe(
        Effect.delay("10 seconds"),
        Effect.repeat(Schedule.forever),
        Effect.andThen(Effect.never)
      )
    )
  )
}

/** Runs a command to its end; its output, or the end of it when it failed. */
const runToEnd = (command: string, args: ReadonlyArray<string>) =>
  Effect.callback<string, CassandraServerError>((resume) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] })
    let output = ""
    child.stdout.on("data", (data) => (output += data))
    child.stderr.on("data", (data) => (output += data))
    child.on("error", (error) => resume(fail(`${command} could not be run: ${error.message}`)))
    child.on("exit", (code) =>
      resume(code === 0 ? Effect.succeed(output) : fail(`${command} failed: ${output.trim().slice(-1500)}`))
    )
    return Effect.sync(() => child.kill())
  })

/** Whether Maven can be run. */
export const hasMaven = runToEnd("mvn", ["--version"]).pipe(
  Effect.as(true),
  Effect.catch(() => Effect.succeed(false))
)

/** The folder of Cassandra's jars, fetched once per user. */
const jars = Effect.gen(function* () {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "effect-cassandra")
  const folder = join(cache, `cassandra-${version}`)
  if (existsSync(folder)) return folder
  mkdirSync(cache, { recursive: true })
  // Under another name until it is whole, so that an interrupted download is never taken for one.
  const part = mkdtempSync(join(cache, "part-"))
  yield* withProgress(
    `Fetching Cassandra ${version} with Maven, 66 MB, once`,
    runToEnd("mvn", [
      "-q",
      "-B",
      "-f",
      join(resources, "pom.xml"),
      "dependency:copy-dependencies",
      "-DincludeScope=runtime",
      `-DoutputDirectory=${part}`
    ])
  )
  try {
    renameSync(part, folder)
  } catch {
    // Another process was first.
    rmSync(part, { recursive: true })
  }
  return folder
})

const freePort = Effect.callback<number>((resume) => {
  const server = createServer()
  server.listen(0, "127.0.0.1", () => {
    const { port } = server.address() as { port: number }
    server.close(() => resume(Effect.succeed(port)))
  })
})

const yaml = (
  folder: string,
  port: number,
  storagePort: number,
  sync: string,
  extra: Readonly<Record<string, unknown>>
) =>
  Object.entries({
    cluster_name: "effect-cassandra",
    num_tokens: 1,
    partitioner: "org.apache.cassandra.dht.Murmur3Partitioner",
    data_file_directories: [join(folder, "data")],
    commitlog_directory: join(folder, "commitlog"),
    hints_directory: join(folder, "hints"),
    saved_caches_directory: join(folder, "saved_caches"),
    cdc_raw_directory: join(folder, "cdc_raw"),
    commitlog_sync: sync,
    ...(sync === "periodic" ? { commitlog_sync_period: "10000ms" } : {}),
    seed_provider: [
      {
        class_name: "org.apache.cassandra.locator.SimpleSeedProvider",
        parameters: [{ seeds: `127.0.0.1:${storagePort}` }]
      }
    ],
    listen_address: "127.0.0.1",
    storage_port: storagePort,
    rpc_address: "127.0.0.1",
    native_transport_port: port,
    start_native_transport: true,
    endpoint_snitch: "SimpleSnitch",
    paxos_variant: "v2",
    memtable_allocation_type: "heap_buffers",
    auto_snapshot: false,
    ...extra
  })
    .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
    .join("")

// From Cassandra's own jvm17-server.options.
const exported = [
  "java.base/jdk.internal.misc",
  "java.base/jdk.internal.ref",
  "java.base/sun.nio.ch",
  "java.management.rmi/com.sun.jmx.remote.internal.rmi",
  "java.rmi/sun.rmi.registry",
  "java.rmi/sun.rmi.server",
  "java.rmi/sun.rmi.transport.tcp",
  "java.sql/java.sql"
]
const opened = [
  "java.base/java.lang.module",
  "java.base/jdk.internal.loader",
  "java.base/jdk.internal.ref",
  "java.base/jdk.internal.reflect",
  "java.base/jdk.internal.math",
  "java.base/jdk.internal.module",
  "java.base/jdk.internal.util.jar",
  "jdk.management/com.sun.management.internal",
  "java.base/sun.nio.ch",
  "java.base/java.io",
  "java.base/java.util.concurrent",
  "java.base/java.util",
  "java.base/java.util.concurrent.atomic",
  "java.base/java.nio",
  "java.base/java.lang",
  "java.base/java.math",
  "java.base/java.lang.reflect",
  "java.base/java.net"
]

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
  readonly settings?: Readonly<Record<string, unknown>> | undefined
}

/** A server that can be broken and mended. */
interface RunningProcess {
  readonly contactPoint: string
  /** Starts it again on its data and its port, and waits until it answers. */
  readonly start: Effect.Effect<void, CassandraServerError>
  /** SIGTERM: it writes what it has in memory, and ends. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL. */
  readonly kill: Effect.Effect<void>
  /** SIGSTOP: it keeps its connections, and does not answer. */
  readonly pause: Effect.Effect<void>
  /** SIGCONT. */
  readonly resume: Effect.Effect<void>
}

/** Starts a server that ends with the scope, or with this process. */
export const startProcess = Effect.fnUntraced(function* (
  java: Java,
  options: ProcessOptions,
  ready: (contactPoint: string) => Effect.Effect<void, unknown>
) {
  const libraries = yield* jars
  const kept = options.dataDirectory
  const folder = kept ?? mkdtempSync(join(tmpdir(), "cassandra-"))
  mkdirSync(folder, { recursive: true })
  if (kept === undefined) {
    yield* Effect.addFinalizer(() => Effect.sync(() => rmSync(folder, { recursive: true, force: true, maxRetries: 5 })))
  }
  const hold = yield* lock(folder)
  const port = yield* freePort
  const storagePort = yield* freePort
  // Kept data must survive a power failure with every write that was acknowledged.
  const sync = kept === undefined ? "periodic" : "batch"
  writeFileSync(join(folder, "cassandra.yaml"), yaml(folder, port, storagePort, sync, options.settings ?? {}))
  const heap = options.heap ?? "1G"
  const log = join(folder, "server.log")
  const args = [
    java.path,
    `-Xms${heap}`,
    `-Xmx${heap}`,
    "-XX:+UseG1GC",
    "-Xss256k",
    "-Djdk.attach.allowAttachSelf=true",
    ...exported.flatMap((name) => ["--add-exports", `${name}=ALL-UNNAMED`]),
    ...opened.flatMap((name) => ["--add-opens", `${name}=ALL-UNNAMED`]),
    `-Dcassandra.config=file://${join(folder, "cassandra.yaml")}`,
    `-Dcassandra.storagedir=${folder}`,
    `-Dcassandra.logdir=${folder}`,
    "-Dcassandra-foreground=yes",
    "-Djava.net.preferIPv4Stack=true",
    "-Dcassandra.skip_wait_for_gossip_to_settle=0",
    "-Dcassandra.ring_delay_ms=0",
    "-Dcassandra.superuser_setup_delay_ms=0",
    "-Dcassandra.initial_token=0",
    "-cp",
    `${resources}:${libraries}/*`,
    "org.apache.cassandra.service.CassandraDaemon"
  ]
  const pidFile = join(folder, "java.pid")
  const contactPoint = `127.0.0.1:${port}`
  let running: { readonly child: ReturnType<typeof spawn>; readonly ended: Promise<void> } | undefined

  const spawnServer = (onGone: (error: CassandraServerError) => void) => {
    rmSync(pidFile, { force: true })
    // Detached: Ctrl-C in a terminal must not end the server before the program has closed its session.
    const child = spawn("sh", [join(resources, "run.sh"), ...args], {
      detached: true,
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, CASSANDRA_PID_FILE: pidFile }
    })
    const output = createWriteStream(log)
    child.stdout.pipe(output)
    child.stderr.pipe(output)
    child.stdin.on("error", () => {})
    const ended = new Promise<void>((resolve) => {
      child.on("exit", (code) => {
        running = undefined
        resolve()
        const message = `Cassandra ended with code ${code} while it was needed: ${existsSync(log) ? readFileSync(log, "utf8").slice(-1500) : ""}`
        onGone(new CassandraServerError({ message }))
      })
      child.on("error", () => resolve())
    })
    running = { child, ended }
    return child
  }

  const signal = (name: NodeJS.Signals) =>
    Effect.sync(() => {
      if (running !== undefined && existsSync(pidFile)) process.kill(Number(readFileSync(pidFile, "utf8")), name)
    })
  const stop = Effect.promise(async () => {
    running?.child.stdin?.end()
    await running?.ended
  })

  const start = Effect.gen(function* () {
    if (running !== undefined) return
    const gone = yield* Deferred.make<never, CassandraServerError>()
    const child = spawnServer((error) => Deferred.doneUnsafe(gone, Effect.fail(error)))
    if (child.pid !== undefined) yield* hold(child.pid)
    yield* Effect.raceFirst(
      ready(contactPoint).pipe(
        Effect.retry(Schedule.spaced("300 millis")),
        Effect.mapError((cause) => new CassandraServerError({ message: String(cause) })),
        Effect.timeoutOrElse({
          duration: "2 minutes",
          orElse: () => fail(`Cassandra did not answer within two minutes: its log is ${log}`)
        })
      ),
      Deferred.await(gone)
    )
  })

  // A paused server cannot end.
  yield* Effect.addFinalizer(() => Effect.andThen(signal("SIGCONT"), stop))
  yield* withProgress(`Starting Cassandra ${version}, about 15 seconds`, start)
  const server: RunningProcess = {
    contactPoint,
    start,
    stop,
    kill: Effect.andThen(
      signal("SIGKILL"),
      Effect.promise(async () => running?.ended)
    ),
    pause: signal("SIGSTOP"),
    resume: signal("SIGCONT")
  }
  return server
})
