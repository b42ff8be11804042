// `npm run bench:entity`: what entities do in a second beside the bare driver, in one run on one server: commands that store an
// event each, with the index and a read side running, beside plain INSERTs; one command alone beside one conditional
// update, and many of one entity at once; reads; the lag of the read side; memory. `-- --seconds 10 --rounds 5` measures longer.
import { parseArgs } from "node:util"
import { Decision, PersistentEntity, ReadOnly } from "@effect-cassandra/entity"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Processor } from "@effect-cassandra/read-side"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"
import {
  collectGarbage,
  conditionalUpdate,
  Deposited,
  effectful,
  type Measured,
  median,
  note,
  percentile,
  plainInsert,
  ServerLive,
  SessionLive,
  timing
} from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    ...timing("100"),
    entities: { type: "string", default: "100,1000,10000" },
    many: { type: "string", default: "100000" }
  }
})
const millis = Number(values.seconds) * 1000
const rounds = Number(values.rounds)

const Account = PersistentEntity.make("Account", {
  state: Schema.Struct({ balance: Schema.Int }),
  initialState: { balance: 0 },
  events: [Deposited],
  commands: [
    Rpc.make("Deposit", { payload: { cents: Schema.Int }, success: Schema.Int }),
    ReadOnly.local(Rpc.make("Peek", { success: Schema.Int })),
    ReadOnly.fresh(Rpc.make("Balance", { success: Schema.Int }))
  ]
})

const AccountLive = Account.layer(
  {
    apply: (_, { balance }) => ({ balance }),
    commands: {
      Deposit: ({ balance }, { cents }) =>
        Decision.persist(
          { _tag: "Deposited", cents, balance: balance + cents, note: note() },
          (after) => after.balance
        ),
      Peek: ({ balance }) => Decision.reply(balance),
      Balance: ({ balance }) => Decision.reply(balance)
    }
  },
  { passivateAfter: "10 minutes" }
)

const Balances = Processor.make("balances", {
  entityType: Account.type,
  events: [Deposited],
  tables: ["CREATE TABLE IF NOT EXISTS balances (account text PRIMARY KEY, balance bigint)"],
  handlers: {
    Deposited: ({ balance }, { entityId }) =>
      cql`INSERT INTO balances (account, balance) VALUES (${entityId}, ${BigInt(balance)})`
  }
})

/** Milliseconds from an acknowledged command to its row in the view, under 500 commands a second. */
const lag = Effect.gen(function* () {
  const accounts = yield* Account
  const session = yield* CassandraSession
  const lags: Array<number> = []
  const begin = performance.now()
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
    (i) => Effect.suspend(() => Effect.delay(one(i), Math.max(0, begin + i * 2 - performance.now()))),
    { concurrency: "unbounded", discard: true }
  )
  return { p50: percentile(lags, 0.5), p99: percentile(lags, 0.99) }
})

const heap = () => {
  collectGarbage()
  return Math.round(process.memoryUsage().heapUsed / 1024 / 1024)
}

const show = (perSecond: number) => Math.round(perSecond).toLocaleString("en")

const program = Effect.gen(function* () {
  const accounts = yield* Account
  const insert = yield* plainInsert((yield* CassandraServer).connection)
  const conditional = yield* conditionalUpdate((yield* CassandraServer).connection)
  const id = (loop: number) => `account-${loop}`
  const deposit = (loop: number) => accounts(id(loop)).Deposit({ cents: 100 })

  const warm = Number(values.warm) * 1000
  console.log(
    `Warming up for ${Math.round((warm * 1.4) / 1000)} s, then ${rounds} rounds of ${millis / 1000} s each ...`
  )
  // The server compiles its code while it runs: the path of conditional updates, seldom taken, comes last.
  yield* effectful(100, warm / 2, deposit)
  yield* effectful(1000, warm / 2, deposit)
  yield* insert(1000, warm / 5)
  yield* conditional(1, warm / 5)

  const writes: Array<Record<string, string>> = []
  for (const count of values.entities.split(",").map(Number)) {
    const theirs: Array<number> = []
    const ours: Array<number> = []
    // Brings them into memory.
    yield* effectful(count, 0, deposit)
    for (let round = 0; round < rounds; round++) {
      theirs.push((yield* insert(count, millis)).perSecond)
      ours.push((yield* effectful(count, millis, deposit)).perSecond)
    }
    writes.push({
      entities: String(count),
      "commands/s": show(median(ours)),
      "plain INSERTs/s": show(median(theirs)),
      ratio: (median(ours) / median(theirs)).toFixed(2)
    })
  }

  const theirs: Array<number> = []
  const ours: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    theirs.push(percentile((yield* conditional(1, millis)).millis, 0.5))
    ours.push(percentile((yield* effectful(1, millis, deposit)).millis, 0.5))
  }

  const hot: Array<number> = []
  for (let round = 0; round < rounds; round++) hot.push((yield* effectful(900, millis, () => deposit(0))).perSecond)

  const reads: Array<Record<string, string>> = []
  const read = (what: string, step: (loop: number) => Effect.Effect<unknown, unknown>) =>
    Effect.gen(function* () {
      const found: Array<Measured> = []
      for (let round = 0; round < rounds; round++) found.push(yield* effectful(1000, millis / 3, step))
      reads.push({ "1,000 in flight": what, "reads/s": show(median(found.map(({ perSecond }) => perSecond))) })
    })
  yield* read("local", (loop) => accounts(id(loop)).Peek())
  yield* read("fresh", (loop) => accounts(id(loop)).Balance())

  // The views catch up first.
  yield* Effect.sleep("2 seconds")
  const { p50, p99 } = yield* lag

  const many = Number(values.many)
  const before = heap()
  yield* Effect.forEach(
    Array.from({ length: many }, (_, i) => `many-${i}`),
    (id) => accounts(id).Deposit({ cents: 100 }),
    { concurrency: 5000, discard: true }
  )
  // What is not in the index yet is not the entities'.
  yield* Effect.sleep("6 seconds")
  const active = heap()
  for (let i = 0; i < many; i++) yield* accounts.passivate(`many-${i}`)
  const passive = heap()

  console.table(writes)
  console.log(
    `one entity alone, p50: ${median(ours).toFixed(2)} ms a command, ${median(theirs).toFixed(2)} ms a bare conditional update, ratio ${(median(ours) / median(theirs)).toFixed(2)}`
  )
  console.log(`one entity, 900 commands at once: ${show(median(hot))} commands/s`)
  console.table(reads)
  console.log(`read-side lag under 500 events/s: p50 ${p50.toFixed(1)} ms, p99 ${p99.toFixed(1)} ms`)
  console.log(
    `heap: ${before} MB before, ${active} MB with ${many.toLocaleString("en")} active entities, ${passive} MB after they are passivated`
  )
})

await Effect.runPromise(
  Effect.scoped(program).pipe(
    Effect.provide(
      Layer.mergeAll(AccountLive, ReadSide.layer([Balances])).pipe(
        Layer.provideMerge(Journal.layer()),
        Layer.provideMerge(SessionLive),
        Layer.provideMerge(ServerLive)
      )
    )
  )
)
