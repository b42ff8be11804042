import { spawn } from "node:child_process"
import { createWriteStream, existsSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { join } from "node:path"
import { Deferred, Effect, Schedule } from "effect"
import { CassandraServerError } from "../CassandraServerError.ts"
import { fail, jars, resources } from "./distribution.ts"
import type { Java } from "./java.ts"

/**
 * A port that is free on addresses of the loopback. Not one of those that the system gives to outgoing connections, which
 * could take it while the server is away.
 */
export const freePort = (...addresses: ReadonlyArray<string>): Effect.Effect<number> => {
  const tryPort = (port: number, address: string) =>
    Effect.callback<void, Error>((resume) => {
      const server = createServer()
      server.on("error", (error) => resume(Effect.fail(error)))
      server.listen(port, address, () => server.close(() => resume(Effect.void)))
    })
  return Effect.suspend(() => {
    const port = 12_000 + Math.floor(Math.random() * 20_000)
    return Effect.as(
      Effect.forEach(addresses, (address) => tryPort(port, address), { discard: true }),
      port
    )
  }).pipe(Effect.retry({ times: 100 }), Effect.orDie)
}

/** What a node is. */
export interface NodeOptions {
  readonly folder: string
  /** Of the loopback. */
  readonly address: string
  readonly port: number
  readonly storagePort: number
  readonly heap: string
  /** Further arguments of Java. */
  readonly jvm: ReadonlyArray<string>
  /** Folders of further classes. */
  readonly classes?: ReadonlyArray<string>
  /** Entries of the cassandra.yaml beside those that a node needs. */
  readonly settings: Readonly<Record<string, unknown>>
  /** Asks the node whether it answers. */
  readonly ready: Effect.Effect<void, unknown>
}

/** Settings by which what a node acknowledges survives its end and that of the machine. */
export const durable = { commitlog_sync: "batch" }

/** What may differ from start to start. */
export interface Launch {
  /** Addresses of the nodes that it asks for the others. */
  readonly seeds: ReadonlyArray<string>
  readonly settings?: Readonly<Record<string, unknown>>
  /** System properties of Java. */
  readonly properties?: Readonly<Record<string, string | number>>
}

const yaml = (node: NodeOptions, launch: Launch) => {
  const settings: Readonly<Record<string, unknown>> = {
    cluster_name: "effect-cassandra",
    num_tokens: 1,
    partitioner: "org.apache.cassandra.dht.Murmur3Partitioner",
    data_file_directories: [join(node.folder, "data")],
    commitlog_directory: join(node.folder, "commitlog"),
    hints_directory: join(node.folder, "hints"),
    saved_caches_directory: join(node.folder, "saved_caches"),
    cdc_raw_directory: join(node.folder, "cdc_raw"),
    commitlog_sync: "periodic",
    seed_provider: [
      {
        class_name: "org.apache.cassandra.locator.SimpleSeedProvider",
        parameters: [{ seeds: launch.seeds.map((seed) => `${seed}:${node.storagePort}`).join(",") }]
      }
    ],
    listen_address: node.address,
    storage_port: node.storagePort,
    rpc_address: node.address,
    native_transport_port: node.port,
    start_native_transport: true,
    endpoint_snitch: "SimpleSnitch",
    paxos_variant: "v2",
    memtable_allocation_type: "heap_buffers",
    auto_snapshot: false,
    ...node.settings,
    ...launch.settings
  }
  return Object.entries({
    ...(settings.commitlog_sync === "periodic" ? { commitlog_sync_period: "10000ms" } : {}),
    ...settings
  })
    .map(([key, value]) => `${key}: ${JSON.stringify(value)}\n`)
    .join("")
}

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

export const classPath = (libraries: string, ...classes: ReadonlyArray<string>) =>
  [resources, `${libraries}/*`, ...classes].join(":")

/** The arguments that give a program of Cassandra's what it needs of Java's own packages. */
export const access = [
  ...exported.flatMap((name) => ["--add-exports", `${name}=ALL-UNNAMED`]),
  ...opened.flatMap((name) => ["--add-opens", `${name}=ALL-UNNAMED`])
]

/** What a log says of the end of its process: the last error, for what follows it may only be the tidying up. */
const reasonIn = (log: string): string => {
  const error = log.lastIndexOf("\nERROR")
  return error < 0 ? log.slice(-1500) : log.slice(error + 1, error + 1501)
}

/** A server process that can be broken and mended. */
interface Node {
  /** Starts it on its data and its port unless it runs, and waits until it answers. */
  readonly start: (launch: Launch) => Effect.Effect<void, CassandraServerError>
  /** SIGTERM: it writes what it has in memory, and ends. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL. */
  readonly kill: Effect.Effect<void>
  /** SIGSTOP: it keeps its connections, and does not answer. */
  readonly pause: Effect.Effect<void>
  /** SIGCONT. */
  readonly resume: Effect.Effect<void>
  /** The number of the process that was started last. */
  readonly pid: Effect.Effect<number | undefined>
}

/** A node that is started on demand, and ends with the scope, or with this process. */
export const makeNode = Effect.fnUntraced(function* (
  java: Java,
  options: NodeOptions,
  onStart: (pid: number) => Effect.Effect<void> = () => Effect.void
) {
  const libraries = yield* jars
  const { folder, heap } = options
  const log = join(folder, "server.log")
  const pidFile = join(folder, "java.pid")
  let running: { readonly child: ReturnType<typeof spawn>; readonly ended: Promise<void> } | undefined

  const spawnServer = (launch: Launch, onGone: (error: CassandraServerError) => void) => {
    writeFileSync(join(folder, "cassandra.yaml"), yaml(options, launch))
    rmSync(pidFile, { force: true })
    const properties = Object.entries({
      "cassandra.config": `file://${join(folder, "cassandra.yaml")}`,
      "cassandra.storagedir": folder,
      "cassandra.logdir": folder,
      "cassandra-foreground": "yes",
      "java.net.preferIPv4Stack": "true",
      "jdk.attach.allowAttachSelf": "true",
      "cassandra.skip_wait_for_gossip_to_settle": 0,
      "cassandra.superuser_setup_delay_ms": 0,
      // Measured anew at each start otherwise, for a second.
      "cassandra.memtable.row_overhead_size": 180,
      ...launch.properties
    }).map(([name, value]) => `-D${name}=${value}`)
    const args = [
      java.path,
      `-Xms${heap}`,
      `-Xmx${heap}`,
      "-XX:+UseG1GC",
      "-Xss256k",
      ...options.jvm,
      ...access,
      ...properties,
      "-cp",
      classPath(libraries, ...(options.classes ?? [])),
      "org.apache.cassandra.service.CassandraDaemon"
    ]
    // Detached: Ctrl-C in a terminal must not end the server before the program has closed its session.
    const child = spawn("sh", [join(resources, "run.sh"), ...args], {
      detached: true,
      stdio: ["pipe", "pipe", "pipe"],
      env: { ...process.env, CASSANDRA_PID_FILE: pidFile }
    })
    const output = createWriteStream(log, { flags: "a" })
    child.stdout.pipe(output)
    child.stderr.pipe(output)
    child.stdin.on("error", () => {})
    const ended = new Promise<void>((resolve) => {
      child.on("exit", (code) => {
        running = undefined
        resolve()
        const message = `Cassandra ended with code ${code} while it was needed: ${existsSync(log) ? reasonIn(readFileSync(log, "utf8")) : ""}`
        onGone(new CassandraServerError({ message }))
      })
      child.on("error", () => resolve())
    })
    running = { child, ended }
    return child
  }

  const pid = Effect.sync(() => {
    if (running === undefined || !existsSync(pidFile)) return undefined
    const written = Number(readFileSync(pidFile, "utf8"))
    return written > 0 ? written : undefined
  })
  const signal = (name: NodeJS.Signals) =>
    Effect.map(pid, (found) => {
      if (found !== undefined) process.kill(found, name)
      return found
    })
  const stop = Effect.andThen(
    // A paused server cannot end.
    signal("SIGCONT"),
    Effect.promise(async () => {
      running?.child.stdin?.end()
      await running?.ended
    })
  )
  yield* Effect.addFinalizer(() => stop)

  const start = Effect.fnUntraced(function* (launch: Launch) {
    if (running !== undefined) return
    const gone = yield* Deferred.make<never, CassandraServerError>()
    const child = spawnServer(launch, (error) => Deferred.doneUnsafe(gone, Effect.fail(error)))
    if (child.pid !== undefined) yield* onStart(child.pid)
    yield* Effect.raceFirst(
      options.ready.pipe(
        Effect.retry(Schedule.spaced("300 millis")),
        Effect.mapError((cause) => new CassandraServerError({ message: String(cause) })),
        Effect.timeoutOrElse({
          duration: "5 minutes",
          orElse: () => fail(`Cassandra did not answer within five minutes: ${readFileSync(log, "utf8").slice(-1500)}`)
        })
      ),
      Deferred.await(gone)
    )
  })

  const node: Node = {
    start,
    stop,
    kill: Effect.andThen(
      signal("SIGKILL"),
      Effect.promise(async () => running?.ended)
    ),
    pause: Effect.flatMap(signal("SIGSTOP"), (found) => (found === undefined ? Effect.void : stopped(found))),
    resume: Effect.asVoid(signal("SIGCONT")),
    pid
  }
  return node
})

/** Waits until no thread of a process runs any more, where the system tells. */
const stopped = (pid: number) =>
  Effect.sync(() => {
    try {
      return /^State:\s+[Tt]/m.test(readFileSync(`/proc/${pid}/status`, "utf8"))
    } catch {
      return true
    }
  }).pipe(Effect.repeat({ schedule: Schedule.spaced("5 millis"), until: (done) => done }), Effect.asVoid)
