// `npm run faults`: three nodes, several services, and everything goes wrong; then it is looked at what is left.
//   --minutes 3       how long things go wrong
//   --seed text       picks the faults and the operations; default: a new one, which is printed
//   --writers 3       service processes that write the same accounts; 1 shows what rivals hide
//   --nemesis a,b     nodes, connections, pauses, services, power, replacement, clocks, or none; default: all
//   --accounts 200    --callers 8 (of each service)    --rate 15 (operations a second of each service, at most)
//   --folder .faults  history, logs, report
import { parseArgs } from "node:util"
import { NodeRuntime } from "@effect/platform-node"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import { Console, Effect } from "effect"
import { kinds } from "./faults/nemesis.ts"
import { run } from "./faults/run.ts"

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "3" },
    seed: { type: "string", default: crypto.randomUUID().slice(0, 8) },
    writers: { type: "string", default: "3" },
    nemesis: { type: "string", default: kinds.join(",") },
    accounts: { type: "string", default: "200" },
    callers: { type: "string", default: "8" },
    rate: { type: "string", default: "15" },
    folder: { type: "string", default: ".faults" }
  }
})

const number = (name: "minutes" | "writers" | "accounts" | "callers" | "rate") => {
  const value = Number(values[name])
  if (value > 0) return value
  console.error(`--${name} ${values[name]} must be a number above 0`)
  return process.exit(2)
}

const nemesis = values.nemesis === "none" ? [] : values.nemesis.split(",")
const unknown = nemesis.find((kind) => !kinds.some((known) => known === kind))
if (unknown !== undefined) {
  console.error(`--nemesis ${unknown} is not known: ${kinds.join(", ")}, or none`)
  process.exit(2)
}

const program = Effect.gen(function* () {
  const report = yield* run({
    seconds: number("minutes") * 60,
    atLeast: 0,
    seed: values.seed,
    writers: number("writers"),
    nemesis: kinds.filter((kind) => nemesis.includes(kind)),
    accounts: number("accounts"),
    callers: number("callers"),
    rate: number("rate"),
    folder: values.folder
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
  for (const { message, rule } of report.problems) yield* Console.error(`BROKEN: ${rule}. ${message}`)
  yield* Console.log(report.problems.length === 0 ? "Nothing is lost." : `${report.problems.length} problems`)
  process.exitCode = report.problems.length === 0 ? 0 : 1
}).pipe(
  Effect.scoped,
  Effect.provide(
    // The quick compiler only: nodes start with a third of the work, beside all that runs meanwhile.
    CassandraCluster.layer({ jvm: ["-XX:TieredStopAtLevel=1"], clocks: nemesis.includes("clocks") })
  )
)

NodeRuntime.runMain(program)
