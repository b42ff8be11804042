// `npm run bench:commitlog`: what an append costs when it is on disk before it is acknowledged: a node each with commitlog_sync
// periodic, group and batch, one after the other. `-- --seconds 10 --rounds 5` measures longer; `--window 10ms` is that of group.
import { parseArgs } from "node:util"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer, Logger } from "effect"
import { effectful, median, note, percentile } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "4" },
    rounds: { type: "string", default: "3" },
    window: { type: "string", default: "10ms" }
  }
})
const millis = Number(values.seconds) * 1000

const settings = {
  periodic: {},
  group: { commitlog_sync: "group", commitlog_sync_group_window: values.window },
  batch: { commitlog_sync: "batch" }
}

const measure = Effect.fnUntraced(function* (name: keyof typeof settings) {
  let warned = false
  const logger = Logger.make(({ message }) => {
    warned ||= String(message).includes("commitlog_sync is periodic")
  })
  const live = Journal.layer().pipe(
    Layer.provide(
      Layer.unwrap(
        Effect.map(CassandraServer, ({ connection }) =>
          CassandraSession.layer({ ...connection, keyspace: "bench", development: true })
        )
      )
    ),
    Layer.provide(CassandraServer.layerProcess({ settings: settings[name] })),
    Layer.provide(Logger.layer([logger]))
  )
  return yield* Effect.gen(function* () {
    const journal = yield* Journal
    const append = (loop: number) =>
      journal.append({
        entityType: "Noted",
        entityId: `entity-${loop}`,
        expected: "any",
        events: [{ type: "Noted", payload: { note } }]
      })
    // Warms up.
    yield* effectful(64, millis * 2, append)
    const alone = []
    const together = []
    for (let round = 0; round < Number(values.rounds); round++) {
      alone.push(yield* effectful(1, millis, append))
      together.push(yield* effectful(64, millis, append))
    }
    const times = alone.flatMap((measured) => measured.millis)
    const crowded = together.flatMap((measured) => measured.millis)
    return {
      commitlog_sync: name,
      "the start-up check warns": warned,
      "alone p50 ms": median(times).toFixed(1),
      "alone p99 ms": percentile(times, 0.99).toFixed(1),
      "64 callers p50 ms": median(crowded).toFixed(1),
      "64 callers p99 ms": percentile(crowded, 0.99).toFixed(1),
      "64 callers appends/s": Math.round(median(together.map(({ perSecond }) => perSecond)))
    }
  }).pipe(Effect.provide(live))
})

const table = []
for (const name of Object.keys(settings) as ReadonlyArray<keyof typeof settings>) {
  table.push(await Effect.runPromise(measure(name)))
}
console.table(table)
