// `npm run bench:journal`: appends beside plain INSERTs by the bare driver, in one run on one server; reading a log and
// loading entities. `-- --seconds 10 --rounds 5` measures longer, `-- --inFlight 1000` one column only.
import { parseArgs } from "node:util"
import { Journal, type Position } from "@effect-cassandra/journal/Journal"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer } from "effect"
import { effectful, median, note, plainInsert, SessionLive } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "3" },
    rounds: { type: "string", default: "3" },
    inFlight: { type: "string", default: "100,1000,10000" },
    warm: { type: "string", default: "25" },
    profile: { type: "boolean", default: false },
    shards: { type: "string", default: "10" }
  }
})
const millis = Number(values.seconds) * 1000
const rounds = Number(values.rounds)
const counts = values.inFlight.split(",").map(Number)

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
            events: [{ type: "Deposited", payload: { cents: 100, balance: expected.sequence, note } }]
          }),
          (position) => {
            positions[loop] = position
          }
        )
      const known = positions[loop]
      return known === undefined ? Effect.flatMap(journal.load(key), append) : append(known)
    })
})

const program = (shards: number) =>
  Effect.gen(function* () {
    const { connection } = yield* CassandraServer
    const insert = yield* plainInsert(connection)
    const append = yield* journalAppend
    const warm = Number(values.warm) * 1000
    yield* append(100, warm)
    yield* insert(1000, warm / 5)
    for (const count of counts) {
      const ratios: Array<number> = []
      const ours: Array<number> = []
      const theirs: Array<number> = []
      for (let round = 0; round < rounds; round++) {
        if (!values.profile) theirs.push((yield* insert(count, millis)).perSecond)
        const cpu = process.cpuUsage()
        ours.push((yield* append(count, millis)).perSecond)
        const used = process.cpuUsage(cpu)
        console.log(`   client ${((used.user + used.system) / 1000 / millis).toFixed(2)} cores`)
        ratios.push(ours[round]! / theirs[round]!)
      }
      console.log(
        shards,
        count,
        Math.round(median(theirs)),
        Math.round(median(ours)),
        "ratio",
        median(ratios).toFixed(2)
      )
    }
  })

const all = Effect.gen(function* () {
  for (const shards of values.shards.split(",").map(Number))
    yield* Effect.scoped(program(shards)).pipe(
      Effect.provide(Journal.layer({ shards }).pipe(Layer.provideMerge(SessionLive)))
    )
})
await Effect.runPromise(Effect.provide(all, CassandraServer.layer()))
