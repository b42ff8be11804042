// `npm run bench:processes`: one, two and five processes that append to the same entities, on one server and in one run.
// `-- --seconds 10 --rounds 5` measures longer, `-- --loops 1000 --entities 100` another load.
import { parseArgs } from "node:util"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect } from "effect"
import { type Appender, startAppender } from "./appenders.ts"
import { median, ServerLive, timing } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    ...timing("20"),
    loops: { type: "string", default: "200" },
    entities: { type: "string", default: "200" },
    shards: { type: "string", default: "4" },
    processes: { type: "string", default: "1,2,5" },
    expected: { type: "string", default: "any,position" }
  }
})
const loops = Number(values.loops)
const entities = Number(values.entities)
const rounds = Number(values.rounds)
const counts = values.processes.split(",").map(Number)

const program = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const { password: _, ...rest } = connection
  const keyspace = `bench_${Date.now()}`
  const appenders: Array<Appender> = []
  for (let i = 0; i < Math.max(...counts); i++) {
    const journal = { shards: Number(values.shards) }
    appenders.push(yield* startAppender({ name: `process-${i}`, connection: rest, keyspace, journal }, () => {}))
  }
  const run = Effect.fnUntraced(function* (count: number, expected: "any" | "position", millis: number) {
    const answers = yield* Effect.forEach(
      appenders.slice(0, count),
      (appender) => appender.work({ loops, entities, millis, expected, tell: false }),
      { concurrency: "unbounded" }
    )
    const sum = (of: (answer: (typeof answers)[number]) => number) => answers.reduce((all, one) => all + of(one), 0)
    for (const { failures } of answers) if (Object.keys(failures).length > 0) console.log("failures", failures)
    return {
      perSecond: sum(({ perSecond }) => perSecond),
      conflicts: sum(({ conflicts }) => conflicts) / (millis / 1000),
      least: Math.min(...answers.map(({ perSecond }) => perSecond)),
      p50: median(answers.map(({ p50 }) => p50)),
      p99: Math.max(...answers.map(({ p99 }) => p99)),
      cpu: sum(({ cpu }) => cpu)
    }
  })
  yield* run(1, "any", Number(values.warm) * 1000)
  yield* run(counts.at(-1)!, "position", Number(values.warm) * 250)
  const table: Array<Record<string, string>> = []
  for (const expected of values.expected.split(",") as Array<"any" | "position">) {
    const results = counts.map(() => [] as Array<Effect.Success<ReturnType<typeof run>>>)
    for (let round = 0; round < rounds; round++) {
      for (const [i, count] of counts.entries()) {
        results[i]!.push(yield* run(count, expected, Number(values.seconds) * 1000))
      }
    }
    const base = median(results[0]!.map(({ perSecond }) => perSecond))
    for (const [i, count] of counts.entries()) {
      const of = (name: keyof (typeof results)[number][number]) => median(results[i]!.map((result) => result[name]))
      table.push({
        expected,
        processes: String(count),
        "appends/s": Math.round(of("perSecond")).toLocaleString("en"),
        ratio: (of("perSecond") / base).toFixed(2),
        "slowest process": Math.round(of("least")).toLocaleString("en"),
        "conflicts/s": Math.round(of("conflicts")).toLocaleString("en"),
        "p50 ms": of("p50").toFixed(1),
        "p99 ms": of("p99").toFixed(1),
        "client cores": of("cpu").toFixed(2)
      })
    }
  }
  console.table(table)
})

await Effect.runPromise(Effect.scoped(program).pipe(Effect.provide(ServerLive)))
