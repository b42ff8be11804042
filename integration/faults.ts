// `npm run faults`: three nodes, several services, and everything goes wrong; then it is looked at what is left.
//   --minutes 3       how long things go wrong
//   --seed text       picks the faults and the operations; default: a new one, which is printed
//   --writers 3       service processes that write the same accounts; 1 shows what rivals hide
//   --nemesis a,b     nodes, connections, pauses, services, power, replacement, clocks, or none; default: all
//   --accounts 200    --callers 8 (of each service)    --rate 15 (operations a second of each service, at most)
//   --folder .faults  history, logs, report
// `npm run faults -- --soak --minutes 30`: nothing is broken; whether memory, handles or the lag of views grow.
// `npm run faults -- --overload [--seconds 20]`: twice the load that a node can bear; what is refused how quickly.
// `npm run faults -- --outages [--seconds 120]`: outages one by one, each that long, and what callers hear meanwhile.
import { mkdirSync } from "node:fs"
import { parseArgs } from "node:util"
import { NodeRuntime } from "@effect/platform-node"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import * as SkewedClock from "@effect-cassandra/testing/SkewedClock"
import { Console, Effect } from "effect"
import { kinds } from "./faults/nemesis.ts"
import { outages } from "./faults/outages.ts"
import { overload } from "./faults/overload.ts"
import { run } from "./faults/run.ts"

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "3" },
    seed: { type: "string", default: crypto.randomUUID().slice(0, 8) },
    writers: { type: "string", default: "3" },
    nemesis: { type: "string" },
    accounts: { type: "string", default: "200" },
    callers: { type: "string", default: "8" },
    rate: { type: "string", default: "15" },
    folder: { type: "string", default: ".faults" },
    soak: { type: "boolean", default: false },
    overload: { type: "boolean", default: false },
    outages: { type: "boolean", default: false },
    seconds: { type: "string", default: "120" }
  }
})

const number = (name: "minutes" | "writers" | "accounts" | "callers" | "rate" | "seconds") => {
  const value = Number(values[name])
  if (value > 0) return value
  console.error(`--${name} ${values[name]} must be a number above 0`)
  return process.exit(2)
}

/** All kinds; without clocks where they cannot be set off. */
const possible = async () => {
  const needs = Effect.all([CassandraCluster.clocksArePossible, SkewedClock.isPossible])
  if ((await Effect.runPromise(needs)).every((is) => is)) return kinds
  console.log("No clock is set off: that needs javac beside Java, and libfaketime")
  return kinds.filter((kind) => kind !== "clocks")
}

const isQuiet = values.nemesis === "none" || values.soak || values.outages || values.overload
const nemesis = isQuiet ? [] : (values.nemesis?.split(",") ?? (await possible()))
const unknown = nemesis.find((kind) => !kinds.some((known) => known === kind))
if (unknown !== undefined) {
  console.error(`--nemesis ${unknown} is not known: ${kinds.join(", ")}, or none`)
  process.exit(2)
}

const runOutages = Effect.gen(function* () {
  mkdirSync(values.folder, { recursive: true })
  yield* outages({ seconds: number("seconds"), folder: values.folder })
  yield* Console.log("All went on by itself.")
})

const runFaults = Effect.gen(function* () {
  const report = yield* run({
    seconds: number("minutes") * 60,
    atLeast: 0,
    seed: values.seed,
    writers: number("writers"),
    nemesis: kinds.filter((kind) => nemesis.includes(kind)),
    accounts: number("accounts"),
    callers: number("callers"),
    rate: number("rate"),
    folder: values.folder,
    // Enough for a line through the second half, and not so many that the collection of garbage is a load of its own.
    sampleSeconds: values.soak ? Math.max(2, number("minutes") * 0.75) : undefined
  })
  for (const { from, name, to } of report.faults) {
    yield* Console.log(`  ${(from / 1000).toFixed(1)} s to ${(to / 1000).toFixed(1)} s: ${name}`)
  }
  yield* Console.log(`looked at ${JSON.stringify(report.looked)}`)
  yield* Console.log(
    `all services answered ${report.answered} ms after the last fault, no transfer was on its way after ${report.settled} ms, views were equal after ${report.caughtUp} ms`
  )
  yield* Console.log(
    `services ended by themselves: ${JSON.stringify(report.ends)}; ${JSON.stringify(report.resources)}`
  )
  for (let i = 0; i < number("writers"); i++) {
    const own = report.samples.filter(({ service }) => service === i)
    const half = own.slice(own.length / 2)
    const range = (of: (sample: (typeof own)[number]) => number) =>
      `${Math.min(...half.map(of))} to ${Math.max(...half.map(of))}`
    if (half.length > 0) {
      yield* Console.log(
        `service ${i}, second half: heap ${range((s) => s.heapMegabytes)} MB, handles ${range((s) => s.handles)}, lag ${range((s) => s.lag)} ms`
      )
    }
  }
  for (const { message, rule } of report.problems) yield* Console.error(`BROKEN: ${rule}. ${message}`)
  yield* Console.log(report.problems.length === 0 ? "Nothing is lost." : `${report.problems.length} problems`)
  process.exitCode = report.problems.length === 0 ? 0 : 1
})

const runOverload = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  for (const found of yield* overload({ ...connection, keyspace: "overload", development: true }, number("seconds"))) {
    yield* Console.log(JSON.stringify(found))
    const isWell =
      found.done >= 0.8 * found.sustained && found.refused > 0 && found.failed === 0 && found.refusalP99 < 50
    yield* Console.log(isWell ? "As it must be." : "BROKEN: too little was done, or it was not refused at once")
    if (!isWell) process.exitCode = 1
  }
}).pipe(Effect.provide(CassandraServer.layer()))

const onCluster = (values.outages ? runOutages : runFaults).pipe(
  Effect.scoped,
  Effect.provide(
    // The quick compiler only: nodes start with a third of the work, beside all that runs meanwhile.
    CassandraCluster.layer({ jvm: ["-XX:TieredStopAtLevel=1"], clocks: nemesis.includes("clocks") })
  )
)

NodeRuntime.runMain<unknown, void>(values.overload ? runOverload : onCluster)
