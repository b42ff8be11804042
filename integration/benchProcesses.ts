// `npm run bench:processes`: one, two and five processes that append to the same entities, on one server and in one run;
// and as many that append to entities of their own, which shows what the machine allows.
// `-- --seconds 10 --rounds 5` measures longer, `-- --loops 1000 --entities 100` another load.
import { parseArgs } from "node:util"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect } from "effect"
import type { Expected } from "./appender.ts"
import { type Appender, startAppender } from "./appenders.ts"
import { median, ServerLive, timing } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    ...timing("20"),
    loops: { type: "string", default: "200" },
    entities: { type: "string", default: "200" },
    shards: { type: "string", default: "4" },
    processes: { type: "string", default: "1,2,5" },
    expected: { type: "string", default: "any,position,command" }
  }
})
const loops = Number(values.loops)
const entities = Number(values.entities)
const rounds = Number(values.rounds)
const counts = values.processes.split(",").map(Number)
const modes = values.expected.split(",") as Array<"any" | "position" | "command">

interface Case {
  readonly count: number
  readonly entities: "the same" | "own" | "the same, routed"
}

const casesOf = (mode: (typeof modes)[number]) =>
  counts.flatMap((count): Array<Case> => {
    const more = mode === "command" ? "the same, routed" : "own"
    return [{ count, entities: "the same" }, ...(count === 1 ? [] : [{ count, entities: more } as const])]
  })

const program = Effect.gen(function* () {
  const { connection } = yield* CassandraServer
  const { password: _, ...rest } = connection
  const keyspace = `bench_${Date.now()}`
  const appenders: Array<Appender> = []
  for (let i = 0; i < Math.max(...counts); i++) {
    const journal = { shards: Number(values.shards) }
    appenders.push(yield* startAppender({ name: `process-${i}`, connection: rest, keyspace, journal }, () => {}))
  }
  const run = Effect.fnUntraced(function* (
    { count, entities: which }: Case,
    mode: (typeof modes)[number],
    millis: number
  ) {
    const expected: Expected = which === "the same, routed" ? "routed command" : mode
    const answers = yield* Effect.forEach(
      appenders.slice(0, count),
      (appender) => appender.work({ loops, entities, millis, expected, apart: which === "own", tell: false }),
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
  // All of them, for code that is not compiled yet takes several times as long.
  for (const mode of modes) {
    for (const one of casesOf(mode).slice(-2)) yield* run(one, mode, Number(values.warm) * 1000)
  }
  const table: Array<Record<string, string>> = []
  for (const mode of modes) {
    const cases = casesOf(mode)
    const results = cases.map(() => [] as Array<Effect.Success<ReturnType<typeof run>>>)
    for (let round = 0; round < rounds; round++) {
      for (const [i, one] of cases.entries()) {
        results[i]!.push(yield* run(one, mode, Number(values.seconds) * 1000))
      }
    }
    const base = median(results[0]!.map(({ perSecond }) => perSecond))
    for (const [i, { count, entities }] of cases.entries()) {
      const of = (name: keyof (typeof results)[number][number]) => median(results[i]!.map((result) => result[name]))
      table.push({
        expected: mode,
        processes: String(count),
        entities,
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
