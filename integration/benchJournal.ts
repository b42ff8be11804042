// `npm run bench:journal`: appends beside plain INSERTs by the bare driver, in one run; then reading a log and loading
// entities. Options: --seconds and --rounds of each figure, --warm seconds before the first; --inFlight 1,100,1000,10000;
// --shards 1,2,4,10,100 compares; --nodes 3 takes a cluster of three nodes with three copies, and slows the network down, too;
// --growth 10 appends ten million events, and says how fast each million was.
import { parseArgs } from "node:util"
import * as EventCodec from "@effect-cassandra/journal/EventCodec"
import { Journal, type Position } from "@effect-cassandra/journal/Journal"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import { CassandraServer, type Connection } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer, Result, Stream } from "effect"
import {
  conditionalUpdate,
  Deposited,
  effectful,
  type Measured,
  median,
  note,
  percentile,
  plainInsert,
  ServerLive,
  sessionLayer,
  timing
} from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    ...timing("150"),
    inFlight: { type: "string", default: "1,100,1000,10000" },
    shards: { type: "string", default: "3" },
    nodes: { type: "string", default: "1" },
    growth: { type: "string", default: "0" }
  }
})
const millis = Number(values.seconds) * 1000
const rounds = Number(values.rounds)
const numbers = (text: string) => text.split(",").map(Number)

const codec = EventCodec.make([Deposited])

const show = (rate: number) => Math.round(rate).toLocaleString("en").padStart(9)

const journalAppend = Effect.gen(function* () {
  const journal = yield* Journal
  const positions: Array<Position | undefined> = []
  return (count: number, millis: number) =>
    effectful(count, millis, (loop) => {
      const key = { entityType: "Appended", entityId: `account-${loop}` }
      const append = (expected: Position) =>
        Effect.map(
          journal.append({
            ...key,
            expected,
            events: [
              {
                type: "Deposited",
                payload: { _tag: "Deposited", cents: 100, balance: expected.sequence, note: note() }
              }
            ]
          }),
          (position) => {
            positions[loop] = position
          }
        )
      const known = positions[loop]
      return known === undefined ? Effect.flatMap(journal.load(key), append) : append(known)
    })
})

/** Both sides in turn, round by round; with one in flight the time of each, else how many in a second. */
const compare = Effect.fnUntraced(function* (
  what: string,
  count: number,
  side: (count: number, millis: number) => Effect.Effect<Measured, unknown>,
  base: (count: number, millis: number) => Effect.Effect<Measured, unknown>
) {
  const ours: Array<number> = []
  const theirs: Array<number> = []
  const figure = ({ millis, perSecond }: Measured) => (count === 1 ? percentile(millis, 0.5) : perSecond)
  // Loads the entities.
  yield* side(count, 0)
  for (let round = 0; round < rounds; round++) {
    theirs.push(figure(yield* base(count, millis)))
    ours.push(figure(yield* side(count, millis)))
  }
  const ratio = median(ours.map((one, i) => one / theirs[i]!)).toFixed(2)
  const [a, b] = [median(ours), median(theirs)]
  console.log(
    count === 1
      ? `${what}     1 in flight: journal p50 ${a.toFixed(2)} ms   conditional update p50 ${b.toFixed(2)} ms   ratio ${ratio}`
      : `${what} ${String(count).padStart(5)} in flight: journal ${show(a)}/s   plain INSERT ${show(b)}/s   ratio ${ratio}`
  )
})

const appends = (connection: Connection, shards: number, what: string, counts: ReadonlyArray<number>, warm: number) =>
  Effect.gen(function* () {
    const insert = yield* plainInsert(connection)
    const update = yield* conditionalUpdate(connection)
    const append = yield* journalAppend
    // The server compiles its code for more than two minutes of work: until then this takes up to nine tenths of its time.
    yield* append(100, warm * 600)
    yield* append(1000, warm * 200)
    yield* insert(1000, warm * 200)
    if (counts.includes(1)) yield* update(10, warm * 200)
    for (const count of counts) yield* compare(what, count, append, count === 1 ? update : insert)
  }).pipe(Effect.scoped, Effect.provide(Journal.layer({ shards })))

/** Fills one shard, then reads it as another process would: nothing of it is in memory. */
const reading = Effect.gen(function* () {
  const events = 200_000
  const entities = 200
  const key = (i: number) => ({ entityType: "Read", entityId: `account-${i}` })
  const long = { entityType: "Read", entityId: "long" }
  const event = (balance: number) => codec.encode(Deposited.make({ cents: 100, balance, note: note() }))
  const journalOf = Journal.layer({ shards: 1 })
  yield* Effect.gen(function* () {
    const journal = yield* Journal
    const each = events / entities
    yield* Effect.forEach(
      Array.from({ length: entities }, (_, i) => i),
      (i) =>
        Effect.forEach(
          Array.from({ length: each }, (_, n) => n),
          (n) => journal.append({ ...key(i), expected: "any", events: [event(n)] }),
          { discard: true }
        ),
      { concurrency: "unbounded", discard: true }
    )
    for (let n = 0; n < 10_000; n += 100) {
      yield* journal.append({ ...long, expected: "any", events: Array.from({ length: 100 }, (_, i) => event(n + i)) })
    }
  }).pipe(Effect.provide(journalOf))
  const decoded = (envelope: { readonly type: string; readonly payload: unknown; readonly version: number }) =>
    Result.getOrThrow(codec.decode(envelope.type, envelope.payload, envelope.version))
  const figures: Array<readonly [string, Array<number>]> = [
    ["a log from the start, decoded", []],
    ["an entity of 10,000 events, decoded", []],
    ["an entity with a snapshot", []]
  ]
  yield* Effect.gen(function* () {
    const journal = yield* Journal
    const { sequence, validThrough } = yield* journal.load(key(0))
    yield* journal.saveSnapshot(key(0), { sequence: sequence - 10, validThrough, state: { balance: 1 } }, 0)
    for (let round = 0; round < rounds + 2; round++) {
      const begin = performance.now()
      let count = 0
      yield* Stream.runForEachArray(journal.currentEvents("Read", 0, 0), (page) =>
        Effect.sync(() => {
          for (const envelope of page) count += decoded(envelope).length
        })
      )
      const middle = performance.now()
      const loaded = yield* journal.load(long)
      for (const envelope of loaded.events) decoded(envelope)
      const end = performance.now()
      const times: Array<number> = []
      for (let i = 0; i < 200; i++) {
        const before = performance.now()
        yield* journal.load(key(0))
        times.push(performance.now() - before)
      }
      // The first two warm up.
      if (round < 2) continue
      figures[0]![1].push(count / ((middle - begin) / 1000))
      figures[1]![1].push(loaded.events.length / ((end - middle) / 1000))
      figures[2]![1].push(percentile(times, 0.5))
    }
  }).pipe(Effect.provide(Layer.fresh(journalOf)))
  const [log, entity, snapshot] = figures.map(([, rates]) => median(rates))
  console.log(`reading a log from the start, decoded by Schema: ${show(log!)} events/s`)
  console.log(`loading an entity of 10,000 events, decoded:     ${show(entity!)} events/s`)
  console.log(`loading an entity with a snapshot: p50 ${snapshot!.toFixed(2)} ms`)
})

/** Millions of events, and how fast each was. */
const growth = (millions: number) =>
  Effect.gen(function* () {
    const append = yield* journalAppend
    yield* append(1000, 30_000)
    for (let million = 1; million <= millions; million++) {
      let done = 0
      const begin = performance.now()
      while (done < 1_000_000) done += Math.round((yield* append(1000, 5000)).perSecond * 5)
      console.log(
        `million ${String(million).padStart(3)}: ${show(done / ((performance.now() - begin) / 1000))} events/s`
      )
    }
  }).pipe(Effect.provide(Journal.layer()))

const counts = numbers(values.inFlight)

const one = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const shards = numbers(values.shards)
  yield* Effect.gen(function* () {
    if (values.growth !== "0") return yield* growth(Number(values.growth))
    for (const [i, number] of shards.entries()) {
      const what = `${String(number).padStart(3)} shards, `
      yield* appends(connection, number, what, counts, Number(values.warm) / (i === 0 ? 1 : 8)).pipe(
        Effect.provide(sessionLayer(connection))
      )
    }
    if (shards.length === 1) yield* reading
  }).pipe(Effect.provide(sessionLayer(connection)))
}).pipe(Effect.provide(ServerLive))

const three = Effect.gen(function* () {
  const cluster = yield* CassandraCluster
  const shards = numbers(values.shards)[0]!
  const run = (connection: Connection, what: string, warm: number) =>
    appends(connection, shards, what, counts, warm).pipe(Effect.provide(sessionLayer(connection, 3)))
  yield* run(cluster.connection, "three nodes,       ", Number(values.warm))
  for (const delay of [1, 40]) {
    const { connection, proxies } = yield* cluster.network
    for (const proxy of proxies) yield* proxy.delay(delay / 2)
    yield* run(connection, `three nodes, ${String(delay).padStart(2)} ms,`, Number(values.warm) / 8)
  }
}).pipe(Effect.scoped, Effect.provide(CassandraCluster.layer({ settings: { commitlog_sync: "periodic" } })))

await Effect.runPromise(values.nodes === "3" ? three : one)
