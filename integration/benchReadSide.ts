// `npm run bench:read-side`: how far views are behind, in one process and between two; how fast a processor catches up,
// beside INSERTs by the bare driver; what an idle process asks of Cassandra; how often ten processors read the log.
// `-- --events 1000000 --idle 60` measures as long as the promises say.
import { type ChildProcess, spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { parseArgs } from "node:util"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Processor } from "@effect-cassandra/read-side"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { CassandraServer, type Connection } from "@effect-cassandra/testing/CassandraServer"
import driver from "cassandra-driver"
import { Effect, Fiber, Layer, Schema } from "effect"
import { note, ServerLive } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    events: { type: "string", default: "200000" },
    seconds: { type: "string", default: "6" },
    idle: { type: "string", default: "15" },
    /** Set for the second process, which stores events: contact point and keyspace. */
    writer: { type: "string" }
  }
})

const Deposited = Schema.TaggedStruct("Deposited", { cents: Schema.Int, at: Schema.Finite, note: Schema.String })

const view = (name: string, entityType: string) =>
  Processor.make(name, {
    entityType,
    events: [Deposited],
    tables: [
      "CREATE TABLE IF NOT EXISTS deposits (name text, account text, sequence bigint, at double, note text, PRIMARY KEY ((name, account), sequence))"
    ],
    handlers: {
      Deposited: ({ at, note }, { entityId, sequence }) =>
        cql`INSERT INTO deposits (name, account, sequence, at, note) VALUES (${name}, ${entityId}, ${BigInt(sequence)}, ${at}, ${note})`
    }
  })

const nothing = (name: string, entityType: string) =>
  Processor.make(name, { entityType, events: [Deposited], handlers: { Deposited: () => [] } })

/** Milliseconds, the same in all processes of the machine. */
const now = () => performance.timeOrigin + performance.now()

const percentile = (sorted: ReadonlyArray<number>, p: number) =>
  sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * p))] ?? Number.NaN

const positions = new Map<string, { sequence: number; validThrough: number }>()

const deposit = (entityType: string, entityId: string, count = 1) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    const key = `${entityType} ${entityId}`
    const expected = positions.get(key) ?? (yield* journal.load({ entityType, entityId }))
    const at = now()
    const position = yield* journal.append({
      entityType,
      entityId,
      expected,
      events: Array.from({ length: count }, () => ({ type: "Deposited", payload: { cents: 1, at, note: note() } }))
    })
    positions.set(key, position)
    return position.sequence
  })

/** Stores 500 events a second for a while, and calls `stored` when one is acknowledged. */
const traffic = (
  entityType: string,
  seconds: number,
  stored: (account: string, sequence: number, at: number) => void
) =>
  Effect.gen(function* () {
    const begin = now()
    for (let i = 0; now() - begin < seconds * 1000; i++) {
      const wait = begin + i * 2 - now()
      if (wait > 1) yield* Effect.sleep(wait)
      const account = `account-${i % 200}`
      yield* deposit(entityType, account).pipe(
        Effect.map((sequence) => stored(account, sequence, now())),
        Effect.forkChild
      )
    }
  })

/** Waits until a row is visible, and gives how long that took since it was acknowledged. */
const visible = (name: string, account: string, sequence: number, acknowledged: number) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    for (;;) {
      const rows = yield* session.execute(
        cql`SELECT sequence FROM deposits WHERE name = ${name} AND account = ${account} AND sequence = ${BigInt(sequence)}`
      )
      if (rows.length > 0) return now() - acknowledged
      yield* Effect.sleep(1)
    }
  })

/** Seconds, in which the server and this process compile their code. */
const warmUp = 12

const describe = (lags: ReadonlyArray<number>) => {
  const sorted = [...lags].sort((a, b) => a - b)
  return `p50 ${percentile(sorted, 0.5).toFixed(1)} ms, p99 ${percentile(sorted, 0.99).toFixed(1)} ms, ${sorted.length} events looked at`
}

// ------------------------------------------------------------------------------------------------ the second process

const sessionOf = (connection: Connection, keyspace: string) =>
  CassandraSession.layer({ ...connection, keyspace, development: true, slowStatement: "10 seconds" })

if (values.writer !== undefined) {
  const [contactPoint, keyspace] = values.writer.split(" ") as [string, string]
  const seconds = Number(values.seconds)
  const print = (account: string, sequence: number, at: number) => console.log(`stored ${account} ${sequence} ${at}`)
  await Effect.runPromise(
    Effect.gen(function* () {
      yield* Effect.forEach(
        Array.from({ length: 200 }, (_, i) => `account-${i}`),
        (account) => deposit("Far", account),
        {
          concurrency: 20,
          discard: true
        }
      )
      yield* traffic("Far", warmUp + seconds, print)
      console.log("idle")
      yield* Effect.sleep(Number(values.idle) * 1000)
      yield* Effect.map(deposit("Far", "account-0"), (sequence) => print("account-0", sequence, now()))
      console.log("end")
      yield* Effect.sleep(5000)
    }).pipe(
      Effect.provide(Journal.layer({ shards: 10 })),
      Effect.provide(sessionOf({ contactPoints: [contactPoint] }, keyspace))
    )
  )
  process.exit(0)
}

// ------------------------------------------------------------------------------------------------ what is measured

/** Looks at one event after another, so that looking is not what takes the time; gives the lags of those after a warm-up. */
const watch = (name: string) => {
  const stored: Array<{ readonly account: string; readonly sequence: number; readonly at: number }> = []
  const lags: Array<number> = []
  const begin = now()
  return {
    lags,
    stored: (account: string, sequence: number, at: number) => void stored.push({ account, sequence, at }),
    look: Effect.gen(function* () {
      for (;;) {
        const look = stored.pop()
        stored.length = 0
        if (look === undefined) {
          yield* Effect.sleep(1)
          continue
        }
        const lag = yield* visible(name, look.account, look.sequence, look.at)
        if (now() - begin > warmUp * 1000) lags.push(lag)
      }
    })
  }
}

const lagInOneProcess = Effect.gen(function* () {
  const { lags, look, stored } = watch("near")
  yield* Effect.raceFirst(traffic("Near", warmUp + Number(values.seconds), stored), look)
  console.log(`lag in one process, 500 events/s:        ${describe(lags)}`)
}).pipe(Effect.provide(ReadSide.layer([view("near", "Near")])))

const lagBetweenTwo = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const { keyspace } = yield* CassandraSession
  const context = yield* Effect.context<CassandraSession>()
  const { lags, look, stored } = watch("far")
  const afterIdle: Array<number> = []
  const looking = yield* Effect.forkChild(look)
  yield* Effect.callback<void>((resume) => {
    const child: ChildProcess = spawn(
      process.execPath,
      [
        "--conditions=@effect-cassandra/source",
        fileURLToPath(import.meta.url),
        "--writer",
        `${connection.contactPoints![0]} ${keyspace}`,
        "--seconds",
        values.seconds,
        "--idle",
        values.idle
      ],
      { stdio: ["ignore", "pipe", "inherit"] }
    )
    let idle = false
    createInterface(child.stdout!).on("line", (line) => {
      const [word, account, sequence, at] = line.split(" ")
      if (word === "idle") idle = true
      else if (word === "end") setTimeout(() => resume(Effect.void), 2000)
      else if (word === "stored" && !idle) stored(account!, Number(sequence), Number(at))
      else if (word === "stored") {
        Effect.runForkWith(context)(
          Effect.map(visible("far", account!, Number(sequence), Number(at)), (lag) => afterIdle.push(lag))
        )
      }
    })
    return Effect.sync(() => child.kill())
  })
  yield* Fiber.interrupt(looking)
  console.log(`lag between two processes, 500 events/s: ${describe(lags)}`)
  console.log(`the first event after ${values.idle} idle seconds:   ${afterIdle[0]?.toFixed(0)} ms`)
}).pipe(
  Effect.provide(ReadSide.layer([view("far", "Far")])),
  Effect.provide(Layer.fresh(Journal.layer({ shards: 10 })))
)

/** Fills the logs of an entity type. */
const fill = (entityType: string, count: number) =>
  Effect.forEach(
    Array.from({ length: 100 }, (_, i) => `account-${i}`),
    (account) =>
      Effect.forEach(Array.from({ length: Math.ceil(count / 100 / 50) }), () => deposit(entityType, account, 50), {
        discard: true
      }),
    { concurrency: "unbounded", discard: true }
  )

/** Events per second until a processor has all that is stored. */
const catchUp = (name: string, processor: Processor.Processor, count: number) =>
  Effect.gen(function* () {
    const begin = now()
    yield* Effect.gen(function* () {
      const readSide = yield* ReadSide
      const journal = yield* Journal
      for (let shard = 0; shard < journal.shards; shard++) {
        const entityType = processor.entityTypes[0]!
        const offset = yield* journal.head(entityType, shard)
        yield* readSide.awaitProjected(processor.id, { entityType, shard, offset }, "10 minutes")
      }
    }).pipe(Effect.provide(ReadSide.layer([processor])))
    const rate = count / ((now() - begin) / 1000)
    console.log(`catch-up, ${name}: ${Math.round(rate).toLocaleString("en")} events/s`)
    return rate
  })

/** INSERTs per second by the bare driver, as many at once as a processor with ten shards has. */
const bareDriver = (count: number) =>
  Effect.gen(function* () {
    const { connection } = yield* CassandraServer
    const { keyspace } = yield* CassandraSession
    const { contactPoints, localDataCenter = "datacenter1" } = connection
    const rate = yield* Effect.promise(async () => {
      const client = new driver.Client({
        contactPoints: [...contactPoints!],
        localDataCenter,
        keyspace,
        queryOptions: { consistency: driver.types.consistencies.localQuorum, prepare: true }
      })
      await client.connect()
      const insert = "INSERT INTO deposits (name, account, sequence, at, note) VALUES (?, ?, ?, ?, ?)"
      let next = 0
      const begin = now()
      await Promise.all(
        Array.from({ length: 160 }, async () => {
          while (next < count) {
            const i = next++
            await client.execute(insert, ["bare", `account-${i % 100}`, driver.types.Long.fromNumber(i), 1, note()], {
              prepare: true
            })
          }
        })
      )
      const rate = count / ((now() - begin) / 1000)
      await client.shutdown()
      return rate
    })
    console.log(`INSERTs by the bare driver, 160 at once: ${Math.round(rate).toLocaleString("en")} rows/s`)
    return rate
  })

/** A session that counts requests. */
const counting = (counts: Map<string, number>) =>
  Layer.effect(
    CassandraSession,
    Effect.map(CassandraSession, (session): CassandraSession["Service"] => {
      const count = (text: string) => {
        const kind = /^\s*SELECT/i.test(text)
          ? /FROM event_log/.test(text) && /offset >/.test(text)
            ? "blocks"
            : "reads"
          : "writes"
        counts.set(kind, (counts.get(kind) ?? 0) + 1)
      }
      return {
        ...session,
        execute: (statement) =>
          Effect.andThen(
            Effect.sync(() => count(statement.text)),
            session.execute(statement)
          ),
        applied: (statement) =>
          Effect.andThen(
            Effect.sync(() => count(statement.text)),
            session.applied(statement)
          )
      }
    })
  )

const idleCost = Effect.gen(function* () {
  const counts = new Map<string, number>()
  const seconds = Number(values.idle)
  yield* Effect.gen(function* () {
    // Until all is quiet.
    yield* Effect.sleep("8 seconds")
    counts.clear()
    yield* Effect.sleep(seconds * 1000)
  }).pipe(
    Effect.provide(ReadSide.layer([view("idle-1", "Near"), view("idle-2", "Near")])),
    Effect.provide(Layer.fresh(Journal.layer({ shards: 10 }))),
    Effect.provide(Layer.fresh(counting(counts)))
  )
  const a = (kind: string) => ((counts.get(kind) ?? 0) / seconds).toFixed(1)
  console.log(
    `idle, two processors, 10 shards:        ${a("reads")} reads/s, ${a("blocks")} reads of blocks/s, ${a("writes")} writes/s`
  )
})

const tenProcessors = Effect.gen(function* () {
  const read = (count: number) =>
    Effect.gen(function* () {
      const counts = new Map<string, number>()
      const names = Array.from({ length: count }, (_, i) => `reads-${count}-${i}`)
      yield* Effect.gen(function* () {
        const readSide = yield* ReadSide
        const journal = yield* Journal
        for (let shard = 0; shard < journal.shards; shard++) {
          const offset = yield* journal.head("Filled", shard)
          for (const name of names)
            yield* readSide.awaitProjected(name, { entityType: "Filled", shard, offset }, "10 minutes")
        }
      }).pipe(
        Effect.provide(ReadSide.layer(names.map((name) => nothing(name, "Filled")))),
        Effect.provide(Layer.fresh(Journal.layer({ shards: 10 }))),
        Effect.provide(Layer.fresh(counting(counts)))
      )
      return counts.get("blocks") ?? 0
    })
  const one = yield* read(1)
  const ten = yield* read(10)
  console.log(
    `reads of the log's blocks:              ${one} by one processor, ${ten} by ten (${(ten / one).toFixed(2)} times as many)`
  )
})

const program = Effect.gen(function* () {
  const count = Number(values.events)
  yield* lagInOneProcess
  yield* lagBetweenTwo
  yield* idleCost
  yield* fill("Filled", count)
  const empty = yield* catchUp("a processor that writes nothing  ", nothing("nothing", "Filled"), count)
  const bare = yield* bareDriver(Math.min(count, 200_000))
  const rows = yield* catchUp("a processor with a row per event ", view("rows", "Filled"), count)
  console.log(
    `ratio to the bare driver:               ${(rows / bare).toFixed(2)} (${(empty / bare).toFixed(1)} without rows)`
  )
  yield* tenProcessors
})

const Session = Layer.unwrap(
  Effect.map(CassandraServer, ({ connection }) => sessionOf(connection, `bench_${Date.now()}`))
)

await Effect.runPromise(
  program.pipe(
    Effect.provide(Journal.layer({ shards: 10 }).pipe(Layer.provideMerge(Session), Layer.provideMerge(ServerLive)))
  )
)
process.exit(0)
