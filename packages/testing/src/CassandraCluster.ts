/**
 * Three Cassandra nodes as local processes, that can be broken and mended one by one: for tests of what happens then.
 */
import { existsSync, mkdirSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { createServer } from "node:net"
import { dirname, join } from "node:path"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { Context, Effect, Layer, Result, Schedule, type Scope } from "effect"
import { type Connection, versionOf } from "./CassandraServer.ts"
import type { CassandraServerError } from "./CassandraServerError.ts"
import * as FaultProxy from "./FaultProxy.ts"
import { fail, hasMaven, jars, resources, runToEnd, version, withProgress } from "./internal/distribution.ts"
import { findJava, type Java, requireJava } from "./internal/java.ts"
import { temporaryFolder } from "./internal/localProcess.ts"
import { access, classPath, durable, freePort, makeNode } from "./internal/node.ts"

/** Settings of a cluster. */
export interface Options {
  /** Heap of each node, as Java writes it. Default: `"700M"`. */
  readonly heap?: string | undefined
  /**
   * Further arguments of Java of each node. With `-XX:TieredStopAtLevel=1` they start with a third of the work, and
   * serve fewer requests per second.
   */
  readonly jvm?: ReadonlyArray<string> | undefined
  /** Further entries for the cassandra.yaml of each node. */
  readonly settings?: Readonly<Record<string, unknown>> | undefined
  /** Whether the clocks of the nodes can be set off. Needs the compiler of Java (`javac`) beside it. Default: `false`. */
  readonly clocks?: boolean | undefined
}

/** One of the nodes. */
export interface Node {
  /** `"host:port"`, as clients reach it. */
  readonly address: string
  /** Starts it on its data unless it runs, and waits until it answers. */
  readonly start: Effect.Effect<void, CassandraServerError>
  /** SIGTERM: it writes what it has in memory, and ends. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL. */
  readonly kill: Effect.Effect<void>
  /** SIGSTOP: it keeps its connections, and does not answer. */
  readonly pause: Effect.Effect<void>
  /** SIGCONT. */
  readonly resume: Effect.Effect<void>
  /**
   * Stops it and puts a node without data in its place, which copies them from the others; these must run. They are repaired
   * before, so that each of them has everything, and all three afterwards.
   */
  readonly replace: Effect.Effect<void, CassandraServerError>
  /**
   * Sets its clock off from the true time by some milliseconds, before it or behind, within 0.1 s and until it is set again,
   * also when it is started anew. Its measure of elapsed time stays right, as on a machine whose clock is set. Needs the option
   * `clocks`.
   */
  readonly shift: (millis: number) => Effect.Effect<void, CassandraServerError>
  /** The number of its process, while it runs. */
  readonly pid: Effect.Effect<number | undefined>
}

/** A way to the nodes that can be broken and slowed down: one proxy before each. */
export interface Network {
  /** All that a session sends by it passes the proxies. */
  readonly connection: Connection
  /** In the order of the nodes. */
  readonly proxies: readonly [FaultProxy.FaultProxy, FaultProxy.FaultProxy, FaultProxy.FaultProxy]
}

/**
 * Three nodes of one data centre, `datacenter1`, on 127.0.0.1, 127.0.0.2 and 127.0.0.3.
 */
export class CassandraCluster extends Context.Service<
  CassandraCluster,
  {
    readonly connection: Connection
    readonly nodes: readonly [Node, Node, Node]
    /** A network of one's own; two services with one each can be cut off one by one. It ends with the scope. */
    readonly network: Effect.Effect<Network, never, Scope.Scope>
    /** Waits until each node answers and sees the others. */
    readonly whole: Effect.Effect<void, CassandraServerError>
    /** Resumes and starts what does not run, and waits until the cluster is whole. */
    readonly heal: Effect.Effect<void, CassandraServerError>
  }
>()("@effect-cassandra/testing/CassandraCluster") {
  /** Whether there is what it needs, for tests that are skipped elsewhere. */
  static readonly isPossible: Effect.Effect<boolean> = Effect.suspend(() =>
    Effect.map(
      Effect.all([findJava(process.env), hasMaven, hasAddresses]),
      ([{ java }, maven, addresses]) => java !== undefined && maven && addresses
    )
  )

  /** Whether `clocks` is possible, too. */
  static readonly clocksArePossible: Effect.Effect<boolean> = Effect.suspend(() =>
    Effect.flatMap(CassandraCluster.isPossible, (isPossible) =>
      isPossible ? Effect.map(requireJava, (java) => existsSync(javac(java))) : Effect.succeed(false)
    )
  ).pipe(Effect.orElseSucceed(() => false))

  /**
   * Needs Java 17 or 11 with Maven, and Linux, where all of 127.0.0.0/8 is the loopback. It takes about 40 seconds on two
   * cores. The nodes and their data are gone with the layer. What they acknowledge survives `kill`, also of all at once:
   * `commitlog_sync` is batch.
   */
  static readonly layer = (options: Options = {}): Layer.Layer<CassandraCluster, CassandraServerError> =>
    Layer.effect(
      CassandraCluster,
      Effect.suspend(() => make(options))
    )
}

const hosts = ["127.0.0.1", "127.0.0.2", "127.0.0.3"] as const

/** Thirds of the ring. */
const tokens = ["-6148914691236517206", "0", "6148914691236517206"]

const hasAddresses = Effect.callback<boolean>((resume) => {
  const server = createServer()
  server.on("error", () => resume(Effect.succeed(false)))
  server.listen(0, hosts[2], () => server.close(() => resume(Effect.succeed(true))))
})

const javac = (java: Java) => join(dirname(realpathSync(java.path)), "javac")

/** A folder with the class of a clock that can be set off. */
const compileClock = Effect.fnUntraced(function* (java: Java, libraries: string, folder: string) {
  const compiler = javac(java)
  if (!existsSync(compiler))
    return yield* fail(`the clocks of nodes cannot be set off without a Java compiler: ${compiler}`)
  const classes = join(folder, "classes")
  yield* runToEnd(compiler, ["-cp", classPath(libraries), "-d", classes, join(resources, "SkewedClock.java")])
  return classes
})

const make = Effect.fnUntraced(function* (options: Options) {
  const java = yield* requireJava
  const libraries = yield* jars
  if (!(yield* hasAddresses)) {
    return yield* fail(`${hosts[2]} is not an address of this machine: three nodes need a system where it is, as Linux`)
  }
  const folder = yield* temporaryFolder
  const port = yield* freePort(...hosts)
  const storagePort = yield* freePort(...hosts)
  const connection: Connection = { contactPoints: hosts.map((host) => `${host}:${port}`) }
  const classes = options.clocks ? yield* compileClock(java, libraries, folder) : undefined
  let formed = false

  /** Runs Cassandra's own tool on a node. */
  const nodetool = (jmxPort: number, ...args: ReadonlyArray<string>) =>
    runToEnd(java.path, [
      "-Xmx128M",
      ...access,
      `-Duser.home=${folder}`,
      "-cp",
      classPath(libraries),
      "org.apache.cassandra.tools.NodeTool",
      "-h",
      "127.0.0.1",
      "-p",
      String(jmxPort),
      ...args
    ])

  const makeOne = Effect.fnUntraced(function* (host: string, index: number) {
    const home = join(folder, host)
    const address = `${host}:${port}`
    const jmxPort = yield* freePort("127.0.0.1")
    const clock = join(folder, `${host}.clock`)
    mkdirSync(home)
    writeFileSync(clock, "0")
    const { start, ...process } = yield* makeNode(java, {
      folder: home,
      address: host,
      port,
      storagePort,
      heap: options.heap ?? "700M",
      jvm: options.jvm ?? [],
      settings: { ...durable, ...options.settings },
      ...(classes === undefined ? {} : { classes: [classes] }),
      ready: versionOf({ contactPoints: [address] })
    })
    const properties = {
      // How long a replaced node is given to be seen as gone.
      "cassandra.ring_delay_ms": 4000,
      // How often the first user is tried to be made until all nodes are there; at 0 it would keep a core busy.
      "cassandra.superuser_setup_delay_ms": 5000,
      "cassandra.jmx.local.port": jmxPort,
      ...(classes === undefined ? {} : { "cassandra.clock": "SkewedClock", "skewed_clock.file": clock })
    }
    // Any other node may be away when one comes back; at first they are not there to be asked.
    const seeds = () => (formed ? hosts : [hosts[0]])
    return {
      ...process,
      address,
      shift: (millis: number) =>
        classes === undefined
          ? fail("the clocks of this cluster cannot be set off: make it with `clocks: true`")
          : Effect.sync(() => writeFileSync(clock, String(Math.round(millis)))),
      repair: (...args: ReadonlyArray<string>) => nodetool(jmxPort, "repair", "--full", ...args),
      start: Effect.suspend(() =>
        start({
          seeds: seeds(),
          // The nodes of a new cluster have nothing to copy from each other.
          settings: { auto_bootstrap: false, initial_token: tokens[index] },
          properties
        })
      ),
      startAnew: Effect.suspend(() => {
        rmSync(home, { recursive: true })
        mkdirSync(home)
        return start({
          seeds: hosts.filter((other) => other !== host),
          properties: { ...properties, "cassandra.replace_address_first_boot": host }
        })
      })
    }
  })
  const one = yield* makeOne(hosts[0], 0)
  const two = yield* makeOne(hosts[1], 1)
  const three = yield* makeOne(hosts[2], 2)
  const all = [one, two, three] as const

  const expose = (node: typeof one): Node => {
    const { address, kill, pause, pid, repair, resume, shift, start, startAnew, stop } = node
    const survivors = all.filter((other) => other !== node)
    return {
      address,
      kill,
      pause,
      pid,
      resume,
      shift,
      start,
      stop,
      replace: Effect.gen(function* () {
        // Ended rather than killed, it tells the others.
        yield* stop
        // What only the old node and one of the others had is now on one node alone, and need not be the one copied from.
        yield* misses(survivors[0]!)
        yield* survivors[0]!.repair("--force")
        // Seen to end while it starts, where other things break meanwhile: there is nothing yet that could be lost.
        yield* startAnew.pipe(
          Effect.tapError((error) => Effect.logWarning(`${address} could not be replaced: ${error.message}`)),
          Effect.retry({ times: 2 })
        )
        yield* repair()
      })
    }
  }

  /** Reads at a node what has three copies from all of them, which needs them to be up in its eyes. */
  const readAll = (address: string) =>
    Effect.flatMap(CassandraSession.make({ ...connection, keyspace: "system" }), (session) =>
      session.use((client) => {
        const host = client.hosts.get(address)
        if (host === undefined) return Promise.reject(new Error(`${address} is not known yet`))
        const consistency = 5 // ALL
        return client.execute("SELECT * FROM system_distributed.parent_repair_history LIMIT 1", [], {
          consistency,
          host
        })
      })
    ).pipe(Effect.scoped)
  const awaiting = (condition: Effect.Effect<boolean>, what: string) =>
    condition.pipe(
      Effect.repeat({ schedule: Schedule.spaced("300 millis"), until: (fulfilled) => fulfilled }),
      Effect.timeoutOrElse({ duration: "2 minutes", orElse: () => fail(`after two minutes ${what}`) }),
      Effect.asVoid
    )
  const whole = awaiting(
    Effect.isSuccess(Effect.forEach(all, ({ address }) => readAll(address), { discard: true })),
    "the nodes do not see each other"
  )
  /** Waits until a node has noticed that another is gone. */
  const misses = ({ address }: { readonly address: string }) =>
    awaiting(
      Effect.map(
        Effect.result(readAll(address)),
        (read) => Result.isFailure(read) && read.failure.reason._tag === "Unavailable"
      ),
      `${address} has not noticed that another node is gone`
    )

  // Nobody needs their data any more: quicker than each to its end.
  yield* Effect.addFinalizer(() => Effect.forEach(all, ({ kill }) => kill, { discard: true }))
  yield* withProgress(
    `Starting three nodes of Cassandra ${version}, about 40 seconds`,
    Effect.gen(function* () {
      yield* one.start
      yield* Effect.all([two.start, three.start], { concurrency: 2 })
      yield* whole
    })
  )
  formed = true

  return CassandraCluster.of({
    connection,
    nodes: [expose(one), expose(two), expose(three)],
    network: Effect.gen(function* () {
      const proxies = [
        yield* FaultProxy.make(one.address),
        yield* FaultProxy.make(two.address),
        yield* FaultProxy.make(three.address)
      ] as const
      return {
        connection: {
          contactPoints: proxies.map(({ address }) => address),
          addresses: Object.fromEntries(hosts.map((host, i) => [host, proxies[i]!.address]))
        },
        proxies
      }
    }),
    whole,
    heal: Effect.andThen(
      Effect.forEach(all, ({ resume, start }) => Effect.andThen(resume, start), { concurrency: 3, discard: true }),
      whole
    )
  })
})
