// `npm run bench:session`: reads, writes and a long stream by the session beside the bare driver, in one run on one server.
// `npm run bench:session -- --seconds 10 --rows 100000` measures longer, or streams fewer rows.
import { parseArgs } from "node:util"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql, make, withOptions } from "@effect-cassandra/session/Statement"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import driver from "cassandra-driver"
import { Effect, Layer, Stream } from "effect"
import { ServerLive } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "3" },
    rounds: { type: "string", default: "5" },
    rows: { type: "string", default: "1000000" }
  }
})
const millis = Number(values.seconds) * 1000
const rounds = Number(values.rounds)
const total = Number(values.rows)
const concurrencies = [1, 100, 1000]
const keys = 10_000
const pageSize = 5000

const insertText = "INSERT INTO items (k, n, v) VALUES (?, ?, ?)"
const selectText = "SELECT n, v FROM items WHERE k = ?"
const streamText = "SELECT n, v FROM items"
const value = "x".repeat(200)
const key = (i: number) => `key-${i % keys}`

/** Steps per second of `count` loops. */
const bare = async (count: number, step: (i: number) => Promise<unknown>) => {
  let done = 0
  const begin = performance.now()
  const end = begin + millis
  await Promise.all(
    Array.from({ length: count }, async (_, i) => {
      for (let n = i; performance.now() < end; n += count) {
        await step(n)
        done++
      }
    })
  )
  return done / ((performance.now() - begin) / 1000)
}

/** As `bare`, by Effect. */
const effectful = <E, R>(count: number, step: (i: number) => Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    let done = 0
    const begin = performance.now()
    const end = begin + millis
    yield* Effect.forEach(
      Array.from({ length: count }, (_, i) => i),
      (i) =>
        Effect.gen(function* () {
          for (let n = i; performance.now() < end; n += count) {
            yield* step(n)
            done++
          }
        }),
      { concurrency: "unbounded", discard: true }
    )
    return done / ((performance.now() - begin) / 1000)
  })

const median = (numbers: ReadonlyArray<number>) => numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!

const collect = () => (globalThis as { gc?: () => void }).gc?.()

/** Runs an effect and gives its result with the largest heap seen, in MB over the one before. */
const withHeap = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    collect()
    const before = process.memoryUsage().heapUsed
    let peak = before
    const timer = setInterval(() => {
      peak = Math.max(peak, process.memoryUsage().heapUsed)
    }, 5)
    const result = yield* effect
    clearInterval(timer)
    return { result, megabytes: (peak - before) / 1e6 }
  })

const program = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const session = yield* CassandraSession
  yield* session.createTables(["CREATE TABLE IF NOT EXISTS items (k text, n int, v text, PRIMARY KEY (k, n))"])
  const { contactPoints, localDataCenter = "datacenter1" } = connection
  const client = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new driver.Client({
        contactPoints: [...contactPoints!],
        localDataCenter,
        keyspace: session.keyspace,
        encoding: { useBigIntAsLong: true, useBigIntAsVarint: true, map: Map, set: Set },
        queryOptions: { consistency: driver.types.consistencies.localQuorum, prepare: true, fetchSize: 1000 }
      })
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.shutdown())
  )
  console.log(`\nfilling ${total.toLocaleString("en")} rows`)
  yield* Effect.forEach(
    Array.from({ length: Math.ceil(total / 100) }, (_, i) => i),
    (i) =>
      session.batch(
        Array.from({ length: 100 }, (_, n) => make(insertText, [key(i), Math.floor(i / keys) * 100 + n, value])),
        { type: "unlogged" }
      ),
    { concurrency: 64, discard: true }
  )

  const report = (what: string, ours: ReadonlyArray<number>, theirs: ReadonlyArray<number>, unit: string) => {
    const ratio = median(ours.map((rate, i) => rate / theirs[i]!))
    const [a, b] = [ours, theirs].map((rates) => Math.round(median(rates)).toLocaleString("en").padStart(10))
    console.log(`${what.padEnd(28)} session ${a}${unit}   driver ${b}${unit}   ratio ${ratio.toFixed(2)}`)
  }

  for (const [name, ours, theirs] of [
    [
      "writes",
      (i: number) => session.execute(cql`INSERT INTO items (k, n, v) VALUES (${key(i)}, ${0}, ${value})`),
      (i: number) => client.execute(insertText, [key(i), 0, value], { prepare: true })
    ],
    [
      "reads of a row",
      (i: number) => session.execute(cql`SELECT n, v FROM items WHERE k = ${key(i)} AND n = ${0}`),
      (i: number) => client.execute(`${selectText} AND n = ?`, [key(i), 0], { prepare: true, isIdempotent: true })
    ]
  ] as const) {
    for (const count of concurrencies) {
      const rates: [Array<number>, Array<number>] = [[], []]
      // The first round warms both up; sides alternate, so that neither has the better half of the time.
      for (let round = 0; round <= rounds; round++) {
        const sides = [effectful(count, ours), Effect.promise(() => bare(count, theirs))] as const
        const order = round % 2 === 0 ? [0, 1] : [1, 0]
        for (const side of order) {
          const rate = yield* sides[side]!
          if (round > 0) rates[side]!.push(rate)
        }
      }
      report(`${name}, ${count} at once`, rates[0], rates[1], "/s")
    }
  }

  const byStream = session.stream(withOptions(make(streamText), { pageSize })).pipe(
    Stream.runFold(
      () => 0,
      (count) => count + 1
    )
  )
  const byDriver = Effect.promise(async () => {
    let rows = 0
    let pageState: string | undefined
    do {
      const page = await client.execute(streamText, [], {
        prepare: true,
        fetchSize: pageSize,
        ...(pageState === undefined ? {} : { pageState })
      })
      for (const _ of page.rows) rows++
      pageState = page.pageState
    } while (pageState)
    return rows
  })
  const rates: [Array<number>, Array<number>] = [[], []]
  const heaps: [Array<number>, Array<number>] = [[], []]
  for (let round = 0; round <= 3; round++) {
    for (const side of round % 2 === 0 ? [0, 1] : [1, 0]) {
      const begin = performance.now()
      const { megabytes, result } = yield* withHeap([byStream, byDriver][side]!)
      if (round === 0) continue
      rates[side]!.push(result / ((performance.now() - begin) / 1000))
      heaps[side]!.push(megabytes)
    }
  }
  report(`stream of ${total.toLocaleString("en")} rows`, rates[0], rates[1], "/s")
  report("  its heap at most", heaps[0], heaps[1], " MB")
})

const Live = Layer.unwrap(
  Effect.map(CassandraServer, ({ connection }) =>
    CassandraSession.layer({ ...connection, keyspace: `bench_${Date.now()}`, development: true })
  )
).pipe(Layer.provideMerge(ServerLive))

await Effect.runPromise(program.pipe(Effect.scoped, Effect.provide(Live)))
