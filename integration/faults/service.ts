/**
 * A bank in a process of its own, which is started again whenever it ends, as an operator's supervisor would.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { createWriteStream, readdirSync, readFileSync } from "node:fs"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import type { Network } from "@effect-cassandra/testing/CassandraCluster"
import type { Connection } from "@effect-cassandra/testing/CassandraServer"
import type { SkewedClock } from "@effect-cassandra/testing/SkewedClock"
import { Effect, Redacted } from "effect"
import { type Complaint, isInside, type Resources } from "./checker.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const probe = fileURLToPath(new URL("./probe.ts", import.meta.url))

interface Bank {
  /** Where it answers; `undefined` while it does not run. */
  readonly url: () => string | undefined
  /** How often it was started before. */
  readonly life: () => number
  readonly kill: Effect.Effect<void>
  readonly pause: Effect.Effect<void>
  readonly resume: Effect.Effect<void>
  /** Sets its clock off by milliseconds, if it has one of its own. */
  readonly shift: (millis: number) => Effect.Effect<void>
  readonly resources: Effect.Effect<(Resources & { readonly megabytes: number }) | undefined>
  /** What it has said of errors. */
  readonly complaints: ReadonlyArray<Omit<Complaint, "service">>
  /** How often it ended by itself before it had opened, as it does when Cassandra is away for long, and after. */
  readonly ends: { beforeOpening: number; afterOpening: number }
}

/** A bank with a network of its own. */
export interface Service extends Bank {
  readonly index: number
  readonly network: Network
}

/** A keyspace with three copies of everything, and a session in it. */
export const makeKeyspace = Effect.fnUntraced(function* (connection: Connection) {
  const keyspace = `faults_${crypto.randomUUID().replaceAll("-", "")}`
  const session = CassandraSession.layer({
    ...connection,
    keyspace,
    replication: { datacenter1: 3 },
    service: "bank"
  })
  yield* Effect.provide(cql`SELECT release_version FROM system.local`.one, session)
  return { keyspace, session }
})

/** Runs a bank until the scope is closed; its output goes to a file. */
export const runBank = Effect.fnUntraced(function* (
  connection: Connection,
  keyspace: string,
  log: string,
  { clock, routing = false }: { readonly clock?: SkewedClock | undefined; readonly routing?: boolean } = {}
) {
  const output = createWriteStream(log)
  const ends = { beforeOpening: 0, afterOpening: 0 }
  const complaints: Array<Omit<Complaint, "service">> = []
  let starts = 0
  let onResources = (_: Resources | undefined) => {}
  let child: ChildProcess | undefined
  let url: string | undefined
  let closing = false
  let killed = false
  const { addresses = {}, contactPoints, localDataCenter = "datacenter1", password, username } = connection
  const translated = Object.entries(addresses)
    .map(([node, proxy]) => `${node}=${proxy}`)
    .join(",")

  const start = () => {
    killed = false
    starts++
    const args = [
      "--conditions=@effect-cassandra/source",
      "--expose-gc",
      `--import=${probe}`,
      "examples/bank/src/main.ts"
    ]
    const started = spawn(process.execPath, args, {
      cwd: root,
      env: {
        ...process.env,
        ...clock?.environment,
        CASSANDRA_CONTACT_POINTS: contactPoints!.join(","),
        CASSANDRA_LOCAL_DC: localDataCenter,
        ...(translated === "" ? {} : { CASSANDRA_ADDRESSES: translated }),
        ...(username === undefined ? {} : { CASSANDRA_USERNAME: username }),
        ...(password === undefined ? {} : { CASSANDRA_PASSWORD: Redacted.value(password) }),
        BANK_KEYSPACE: keyspace,
        BANK_ROUTING: String(routing),
        PORT: "0"
      },
      stdio: ["ignore", "pipe", "pipe"]
    })
    child = started
    const write = (line: string) => {
      output.write(`${line}\n`)
      if (/\bERROR\b/.test(line) || isInside(line)) complaints.push({ at: performance.now(), line })
    }
    createInterface(started.stderr).on("line", write)
    createInterface(started.stdout).on("line", (line) => {
      const held = /^resources (.*)/.exec(line)?.[1]
      if (held !== undefined) return onResources(JSON.parse(held))
      write(line)
      url ??= /The bank is open at (http:\S+)\. /.exec(line)?.[1]
    })
    started.on("exit", (code, signal) => {
      output.write(`--- ended with ${signal ?? code}\n`)
      if (!killed && !closing) {
        if (url === undefined) ends.beforeOpening++
        else ends.afterOpening++
      }
      url = undefined
      child = undefined
      clock?.forget(started.pid!)
      onResources(undefined)
      if (!closing) setTimeout(() => closing || start(), 300)
    })
  }
  const signal = (name: NodeJS.Signals) => Effect.sync(() => void child?.kill(name))

  yield* Effect.acquireRelease(Effect.sync(start), () =>
    Effect.promise(async () => {
      closing = true
      const last = child
      if (last !== undefined) {
        const gone = new Promise((resolve) => last.on("exit", resolve))
        last.kill("SIGCONT")
        last.kill("SIGTERM")
        const late = setTimeout(() => last.kill("SIGKILL"), 15_000)
        await gone
        clearTimeout(late)
      }
      output.end()
    })
  )
  const bank: Bank = {
    url: () => url,
    life: () => starts - 1,
    ends,
    complaints,
    shift: (millis) => clock?.shift(millis) ?? Effect.void,
    kill: Effect.sync(() => {
      killed = true
      child?.kill("SIGKILL")
    }),
    pause: signal("SIGSTOP"),
    resume: signal("SIGCONT"),
    resources: Effect.promise(async () => {
      const pid = child?.pid
      if (pid === undefined) return undefined
      const asked = new Promise<Resources | undefined>((resolve) => {
        onResources = resolve
      })
      child?.kill("SIGUSR2")
      const held = await asked
      if (held === undefined) return undefined
      const kilobytes = /^VmRSS:\s+(\d+)/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1]
      return {
        ...held,
        megabytes: Math.round(Number(kilobytes) / 1024),
        handles: readdirSync(`/proc/${pid}/fd`).length
      }
    })
  }
  return bank
})

/** What became of a request: an answer, the certainty that it was not sent, or neither. */
export type Answer =
  | { readonly status: number; readonly body: any }
  | { readonly status: "not sent" | "unknown"; readonly body: undefined }

/** Asks a bank. */
export const ask = (url: string, method: string, path: string, body?: unknown): Effect.Effect<Answer> =>
  Effect.promise(async () => {
    try {
      const response = await fetch(url + path, {
        method,
        signal: AbortSignal.timeout(20_000),
        ...(body === undefined ? {} : { headers: { "content-type": "application/json" }, body: JSON.stringify(body) })
      })
      const text = await response.text()
      return { status: response.status, body: text === "" ? undefined : JSON.parse(text) }
    } catch (error) {
      const code = (error as { readonly cause?: { readonly code?: string } }).cause?.code
      return { status: code === "ECONNREFUSED" ? "not sent" : "unknown", body: undefined }
    }
  })

/** Waits for a condition for as long as people wait before they call somebody. */
export const within = <A, E, R>(minutes: number, what: string, condition: Effect.Effect<A | undefined, E, R>) =>
  Effect.gen(function* () {
    const end = performance.now() + minutes * 60_000
    for (;;) {
      const found = yield* condition
      if (found !== undefined) return found
      if (performance.now() > end) return yield* Effect.die(new Error(`after ${minutes} minutes ${what}`))
      yield* Effect.sleep("50 millis")
    }
  })
