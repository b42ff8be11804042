// `npm run bench`: events per second of the journal and of entities beside plain INSERTs by the bare driver, in one run on
// one server, and the lag of the read side. `npm run bench -- --seconds 10` measures longer.
import { parseArgs } from "node:util"
import { Decision, PersistentEntity } from "@effect-cassandra/entity"
import { Journal, type Position } from "@effect-cassandra/journal/Journal"
import { Processor } from "@effect-cassandra/read-side"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import driver from "cassandra-driver"
import { Effect, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"

const { values } = parseArgs({
  options: { seconds: { type: "string", default: "3" }, rounds: { type: "string", default: "3" } }
})
const millis = Number(values.seconds) * 1000
const rounds = Number(values.rounds)

/** About 200 bytes of JSON, as in the figures of other toolkits. */
const note = "x".repeat(150)

const Deposited = Schema.TaggedStruct("Deposited", { cents: Schema.Int, balance: Schema.Int, note: Schema.String })

const Account = PersistentEntity.make("Account", {
  state: Schema.Struct({ balance: Schema.Int }),
  initialState: { balance: 0 },
  events: [Deposited],
  commands: [Rpc.make("Deposit", { payload: { cents: Schema.Int }, success: Schema.Int })]
})

const AccountLive = Account.layer({
  apply: (_, { balance }) => ({ balance }),
  commands: {
    Deposit: ({ balance }, { cents }) =>
      Decision.persist(Deposited.make({ cents, balance: balance + cents, note }), (after) => after.balance)
  }
})

const Balances = Processor.make("balances", {
  entityType: Account.type,
  events: [Deposited],
  tables: ["CREATE TABLE IF NOT EXISTS balances (account text PRIMARY KEY, balance bigint)"],
  handlers: {
    Deposited: ({ balance }, { entityId }) =>
      cql`INSERT INTO balances (account, balance) VALUES (${entityId}, ${BigInt(balance)})`
  }
})

/** Repeats `step` for each of `count` ids, each id one step at a time, and gives the steps per second. */
const measure = <E, R>(count: number, step: (id: string) => Effect.Effect<unknown, E, R>) =>
  Effect.gen(function* () {
    let done = 0
    let running = true
    const begin = performance.now()
    setTimeout(() => (running = false), millis)
    yield* Effect.forEach(
      Array.from({ length: count }, (_, i) => `account-${i}`),
      (id) =>
        Effect.gen(function* () {
          while (running) {
            yield* step(id)
            done++
          }
        }),
      { concurrency: "unbounded", discard: true }
    )
    return done / ((performance.now() - begin) / 1000)
  })

const plainInsert = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const session = yield* CassandraSession
  yield* session.createTables([
    "CREATE TABLE IF NOT EXISTS plain_events (entity_id text, sequence bigint, event text, PRIMARY KEY (entity_id, sequence))"
  ])
  const client = yield* Effect.acquireRelease(
    Effect.promise(async () => {
      const { contactPoints, localDataCenter = "datacenter1" } = connection
      const client = new driver.Client({
        contactPoints: [...contactPoints!],
        localDataCenter,
        keyspace: session.keyspace,
        queryOptions: { consistency: driver.types.consistencies.localQuorum, prepare: true }
      })
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.shutdown())
  )
  let sequence = 0
  const insert = "INSERT INTO plain_events (entity_id, sequence, event) VALUES (?, ?, ?)"
  // Promises only: nothing of Effect stands between the driver and its figure.
  return (count: number) =>
    Effect.promise(async () => {
      let done = 0
      const begin = performance.now()
      const end = begin + millis
      await Promise.all(
        Array.from({ length: count }, async (_, i) => {
          while (performance.now() < end) {
            const event = JSON.stringify({ _tag: "Deposited", cents: 100, balance: sequence, note })
            await client.execute(insert, [`account-${i}`, driver.types.Long.fromNumber(sequence++), event], {
              prepare: true
            })
            done++
          }
        })
      )
      return done / ((performance.now() - begin) / 1000)
    })
})

const journalAppend = Effect.gen(function* () {
  const journal = yield* Journal
  const positions = new Map<string, Position>()
  return (count: number) =>
    measure(count, (entityId) =>
      Effect.gen(function* () {
        const key = { entityType: "Appended", entityId }
        const { sequence, validThrough } = positions.get(entityId) ?? (yield* journal.load(key))
        const events = [{ type: "Deposited", payload: { cents: 100, balance: sequence, note } }]
        positions.set(entityId, yield* journal.append({ ...key, expected: { sequence, validThrough }, events }))
      })
    )
})

const entityCommand = Effect.gen(function* () {
  const accounts = yield* Account
  return (count: number) => measure(count, (id) => accounts(id).Deposit({ cents: 100 }))
})

/** Milliseconds from an acknowledged command to its row in the view, under 500 commands a second. */
const lag = Effect.gen(function* () {
  const accounts = yield* Account
  const session = yield* CassandraSession
  const lags: Array<number> = []
  const end = performance.now() + millis
  const one = (i: number) =>
    Effect.gen(function* () {
      const id = `account-${i % 100}`
      const balance = yield* accounts(id).Deposit({ cents: 1 })
      const acknowledged = performance.now()
      if (i % 10 !== 0) return
      for (;;) {
        const [row] = yield* session.execute<{ balance: bigint }>(
          cql`SELECT balance FROM balances WHERE account = ${id}`
        )
        if (row !== undefined && Number(row.balance) >= balance) break
      }
      lags.push(performance.now() - acknowledged)
    })
  yield* Effect.forEach(
    Array.from({ length: millis / 2 }, (_, i) => i),
    (i) => Effect.delay(one(i), Math.max(0, end - millis + i * 2 - performance.now())),
    { concurrency: "unbounded", discard: true }
  )
  lags.sort((a, b) => a - b)
  return { p50: lags[Math.floor(lags.length / 2)]!, p99: lags[Math.floor(lags.length * 0.99)]! }
})

const median = (numbers: ReadonlyArray<number>) => [...numbers].sort((a, b) => a - b)[Math.floor(numbers.length / 2)]!

const program = Effect.gen(function* () {
  const sides = {
    "plain INSERT per event, bare driver": yield* plainInsert,
    "journal append": yield* journalAppend,
    "entity commands, read side running": yield* entityCommand
  }
  console.log(`Warming up for half a minute, then ${rounds} rounds of ${millis / 1000} s each ...`)
  // The server compiles its code while it runs: the path of conditional updates, seldom taken, comes last.
  const warm = performance.now()
  while (performance.now() - warm < 25_000) yield* sides["entity commands, read side running"](1000)
  yield* sides["plain INSERT per event, bare driver"](1000)
  const table: Array<Record<string, string>> = []
  for (const count of [100, 1000]) {
    const figures = Object.keys(sides).map((): Array<number> => [])
    for (let round = 0; round < rounds; round++) {
      for (const [i, side] of Object.values(sides).entries()) figures[i]!.push(yield* side(count))
    }
    const base = median(figures[0]!)
    for (const [i, name] of Object.keys(sides).entries()) {
      const rate = median(figures[i]!)
      table.push({
        entities: String(count),
        what: name,
        "events/s": Math.round(rate).toLocaleString("en"),
        ratio: (rate / base).toFixed(2)
      })
    }
  }
  // The views catch up first.
  yield* Effect.sleep("2 seconds")
  const { p50, p99 } = yield* lag
  console.table(table)
  console.log(`read-side lag under 500 events/s: p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`)
})

const Session = Layer.unwrap(
  Effect.map(CassandraServer, ({ connection }) =>
    CassandraSession.layer({
      ...connection,
      keyspace: `bench_${Date.now()}`,
      development: true
    })
  )
)

await Effect.runPromise(
  Effect.scoped(program).pipe(
    Effect.provide(
      Layer.mergeAll(AccountLive, ReadSide.layer([Balances])).pipe(
        Layer.provideMerge(Journal.layer()),
        Layer.provideMerge(Session),
        Layer.provideMerge(CassandraServer.layer())
      )
    )
  )
)
