import { spawn } from "node:child_process"
import { mkdtempSync, readdirSync, readFileSync, readlinkSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it, layer } from "@effect/vitest"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { cql, withOptions } from "@effect-cassandra/session/Statement"
import { Duration, Effect, Layer, Metric, Schedule, type Scope } from "effect"
import { CassandraCluster } from "../src/CassandraCluster.ts"

const until = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, { schedule: Schedule.spaced("100 millis"), times: 600 })

const open = (options?: Partial<CassandraSession.Options>) =>
  Effect.gen(function* () {
    const { connection } = yield* CassandraCluster
    const keyspace = { keyspace: "cluster", replication: { datacenter1: 3 } }
    const session = yield* CassandraSession.make({ ...connection, ...keyspace, ...options })
    yield* session.createTables(["CREATE TABLE IF NOT EXISTS items (k int PRIMARY KEY, v text)"])
    return session
  })

const coordinator = (session: CassandraSession.CassandraSession["Service"]) =>
  Effect.map(session.raw(cql`SELECT v FROM items WHERE k = 1`), (page) => page.coordinator)

/** Addresses on which a process listens, as in /proc: the bytes of an IPv4 address come last first. */
const listening = (pid: number) => {
  const own = new Set(
    readdirSync(`/proc/${pid}/fd`).map((fd) => {
      try {
        return /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/${pid}/fd/${fd}`))?.[1]
      } catch {
        return undefined
      }
    })
  )
  return ["tcp", "tcp6"].flatMap((kind) =>
    readFileSync(`/proc/${pid}/net/${kind}`, "utf8")
      .split("\n")
      .map((line) => line.trim().split(/\s+/))
      .filter((fields) => fields[3] === "0A" && own.has(fields[9]))
      .map((fields) => fields[1]!.split(":")[0]!)
  )
}

/** Processes whose command line has a text. */
const processesOf = (text: string) =>
  readdirSync("/proc").filter((name) => {
    try {
      return /^\d+$/.test(name) && readFileSync(`/proc/${name}/cmdline`, "utf8").includes(text)
    } catch {
      return false
    }
  })

const isPossible = await Effect.runPromise(CassandraCluster.isPossible)
const clocks = await Effect.runPromise(CassandraCluster.clocksArePossible)
const cluster = CassandraCluster.layer({ jvm: ["-XX:TieredStopAtLevel=1"], clocks })

layer(isPossible ? cluster : (Layer.empty as Layer.Layer<any> as typeof cluster), {
  excludeTestServices: true,
  timeout: "3 minutes"
})("three nodes", (it) => {
  const test = <E>(name: string, effect: Effect.Effect<void, E, CassandraCluster | Scope.Scope>) =>
    it.effect.skipIf(!isPossible)(name, () => effect, 180_000)

  test(
    "are found by a session that knows one of them, and all of them have every row",
    Effect.gen(function* () {
      const { connection, nodes } = yield* CassandraCluster
      const session = yield* open({ contactPoints: [connection.contactPoints![1]!] })
      const known = (yield* session.health).hosts.map(({ address }) => address)
      assert.deepStrictEqual(
        known.sort(),
        nodes.map(({ address }) => address)
      )
      yield* session.execute(withOptions(cql`INSERT INTO items (k, v) VALUES (1, 'one')`, { consistency: "ALL" }))
      const coordinators = new Set<string>()
      while (coordinators.size < 3) coordinators.add(yield* coordinator(session))
    })
  )

  test(
    "listen on the loopback only",
    Effect.gen(function* () {
      for (const { pid } of (yield* CassandraCluster).nodes) {
        const addresses = listening((yield* pid)!)
        assert.isAtLeast(addresses.length, 3)
        for (const address of addresses) assert.match(address, /7F$/)
      }
    })
  )

  test(
    "by a network of its own a session reaches all of them through the proxies only, delayed and cut off one by one",
    Effect.gen(function* () {
      const { network } = yield* CassandraCluster
      const { connection, proxies } = yield* network
      const session = yield* open(connection)
      const addresses = proxies.map(({ address }) => address)
      assert.sameMembers(
        (yield* session.health).hosts.map(({ address }) => address),
        addresses
      )
      for (const { delay } of proxies) yield* delay(40)
      const seen = new Set<string>()
      while (seen.size < 3) {
        const begin = performance.now()
        seen.add(yield* coordinator(session))
        assert.isAtLeast(performance.now() - begin, 79)
      }
      assert.sameMembers([...seen], addresses)
      for (const { delay } of proxies) yield* delay(0)
      yield* proxies[0].refuse
      yield* proxies[1].refuse
      for (let i = 0; i < 10; i++) assert.strictEqual(yield* coordinator(session), addresses[2])
      yield* proxies[0].accept
      yield* proxies[2].refuse
      assert.strictEqual(yield* until(coordinator(session)), addresses[0])
    })
  )

  test(
    "one that is slow holds up no read of a session that is speculative, and still its writes",
    Effect.gen(function* () {
      const { network } = yield* CassandraCluster
      const { connection, proxies } = yield* network
      const session = yield* open({
        ...connection,
        consistency: "LOCAL_ONE",
        speculative: { delay: "100 millis", max: 2 }
      })
      const write = session.execute(cql`INSERT INTO items (k, v) VALUES (1, 'x')`)
      const slowest = (effect: Effect.Effect<unknown, unknown>) =>
        Effect.map(
          Effect.forEach(Array.from({ length: 20 }), () => Effect.map(Effect.timed(effect), ([time]) => time)),
          (times) => Math.max(...times.map(Duration.toMillis))
        )
      // Prepared on each node.
      yield* slowest(Effect.andThen(write, coordinator(session)))
      yield* proxies[0].delay(5000)
      assert.isBelow(yield* slowest(coordinator(session)), 5000)
      const counted = (yield* Metric.snapshot).filter(({ id }) => id === "cassandra.speculative_executions")
      assert.isAbove(Math.max(...counted.map(({ state }) => Number("count" in state ? state.count : 0))), 0)
      // A write may not be sent twice by itself.
      const [time] = yield* Effect.timed(
        Effect.forEach(Array.from({ length: 20 }), () => Effect.ignore(write), { concurrency: 20 })
      )
      assert.isAtLeast(Duration.toMillis(time), 5000)
    })
  )

  test(
    "one that is killed is not needed, and comes back with its data; one that is paused holds up nobody else",
    Effect.gen(function* () {
      const { heal, nodes, whole } = yield* CassandraCluster
      const session = yield* open({ requestTimeout: "2 seconds" })
      const write = (k: number) => withOptions(cql`INSERT INTO items (k, v) VALUES (${k}, 'x')`, { idempotent: true })
      const everywhere = (k: number) => withOptions(cql`SELECT v FROM items WHERE k = ${k}`, { consistency: "ALL" })
      yield* session.execute(write(10))
      yield* nodes[1].kill
      assert.isUndefined(yield* nodes[1].pid)
      yield* session.execute(write(11))
      assert.isTrue((yield* Effect.result(session.execute(everywhere(11))))._tag === "Failure")
      yield* nodes[1].start
      yield* whole
      for (const k of [10, 11]) assert.strictEqual((yield* until(session.execute(everywhere(k)))).length, 1)

      yield* nodes[2].pause
      assert.match(readFileSync(`/proc/${yield* nodes[2].pid}/status`, "utf8"), /State:\s+T/)
      yield* until(session.execute(write(12)))
      yield* nodes[2].resume
      yield* nodes[2].stop
      yield* heal
      assert.strictEqual((yield* until(session.execute(everywhere(12)))).length, 1)
    })
  )

  it.effect.skipIf(!clocks)(
    "have clocks that are set off one by one, while they run and for their next start",
    () =>
      Effect.gen(function* () {
        const { nodes } = yield* CassandraCluster
        const skews = Effect.forEach(nodes, ({ address }) =>
          CassandraSession.make({ contactPoints: [address], keyspace: "system" }).pipe(
            Effect.flatMap((session) => {
              const before = Date.now()
              return session.execute<{ readonly now: Date }>(cql`SELECT toTimestamp(now()) AS now FROM local`).pipe(
                // As if it had been answered half-way.
                Effect.map((rows) => rows[0]!.now.getTime() - (before + Date.now()) / 2)
              )
            }),
            Effect.scoped
          )
        )
        const are = (...expected: ReadonlyArray<number>) =>
          until(Effect.filterOrFail(skews, (found) => found.every((skew, i) => Math.abs(skew - expected[i]!) < 1000)))
        yield* are(0, 0, 0)
        yield* nodes[0].shift(5000)
        yield* nodes[2].shift(-5000)
        yield* are(5000, 0, -5000)
        yield* nodes[2].kill
        yield* nodes[2].start
        yield* are(5000, 0, -5000)
        for (const { shift } of nodes) yield* shift(0)
        yield* are(0, 0, 0)
      }),
    180_000
  )

  test(
    "one that is replaced begins without data, and has all of them afterwards",
    Effect.gen(function* () {
      const { nodes, whole } = yield* CassandraCluster
      const session = yield* open()
      // Again where the server was too slow, as three nodes on a busy machine may be.
      for (let k = 100; k < 200; k++) yield* until(session.execute(cql`INSERT INTO items (k, v) VALUES (${k}, 'kept')`))
      yield* nodes[0].replace
      yield* whole
      // The others cannot help.
      yield* nodes[1].kill
      yield* nodes[2].kill
      const alone = yield* CassandraSession.make({ contactPoints: [nodes[0].address], keyspace: "system" })
      const rows = yield* until(
        alone.execute<{ readonly v: string }>(withOptions(cql`SELECT v FROM cluster.items`, { consistency: "ONE" }))
      )
      assert.strictEqual(rows.filter(({ v }) => v === "kept").length, 100)
    })
  )
})

describe("the nodes of a program that is killed", () => {
  it.live.skipIf(!isPossible)(
    "are gone soon after, those that are paused too",
    () =>
      Effect.gen(function* () {
        const folder = yield* Effect.acquireRelease(
          Effect.sync(() => mkdtempSync(join(tmpdir(), "cluster-test-"))),
          (path) => Effect.sync(() => rmSync(path, { recursive: true, force: true, maxRetries: 5 }))
        )
        const program = `
          import { Effect, Layer } from "effect"
          import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
          await Effect.runPromise(Layer.launch(CassandraCluster.layer({ heap: "400M", jvm: ["-XX:TieredStopAtLevel=1"] })))`
        const parent = yield* Effect.acquireRelease(
          Effect.sync(() =>
            spawn(
              process.execPath,
              ["--conditions=@effect-cassandra/source", "--input-type=module", "--eval", program],
              {
                cwd: fileURLToPath(new URL("..", import.meta.url)),
                stdio: "ignore",
                env: { ...process.env, TMPDIR: folder }
              }
            )
          ),
          (child) => Effect.sync(() => child.kill("SIGKILL"))
        )
        const mine = Effect.sync(() => processesOf(`-Dcassandra.storagedir=${folder}`))
        const javaOf = (pids: ReadonlyArray<string>) =>
          pids.filter((pid) => readFileSync(`/proc/${pid}/comm`, "utf8").trim() === "java")
        // Each is a shell and a Java, which is a shell at first, and one more shell that watches.
        const found = yield* mine.pipe(
          Effect.repeat({
            schedule: Schedule.spaced("50 millis"),
            until: (pids) => pids.length >= 9 && javaOf(pids).length >= 3
          }),
          Effect.timeout("90 seconds")
        )
        const java = javaOf(found)
        assert.strictEqual(java.length, 3)
        process.kill(Number(java[1]), "SIGSTOP")
        parent.kill("SIGKILL")
        yield* mine.pipe(
          Effect.repeat({ schedule: Schedule.spaced("50 millis"), until: (pids) => pids.length === 0 }),
          Effect.timeout("30 seconds")
        )
      }),
    150_000
  )
})
