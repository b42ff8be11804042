// `npm run bench:commitlog`: what an append costs when it is on disk before it is acknowledged, and what is lost otherwise: a node
// each with commitlog_sync periodic, group and batch, one after the other, which is then killed some times under load.
// `-- --seconds 10 --rounds 5 --kills 10` measures longer; `--window 10ms` is that of group.
import { parseArgs } from "node:util"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { CassandraProcess } from "@effect-cassandra/testing/CassandraProcess"
import { Effect, Layer, Logger } from "effect"
import { effectful, median, note, percentile } from "./benchmark.ts"

const { values } = parseArgs({
  options: {
    seconds: { type: "string", default: "4" },
    rounds: { type: "string", default: "3" },
    kills: { type: "string", default: "3" },
    window: { type: "string", default: "10ms" }
  }
})
const millis = Number(values.seconds) * 1000

const settings = {
  periodic: { commitlog_sync: "periodic" },
  group: { commitlog_sync: "group", commitlog_sync_group_window: values.window },
  batch: { commitlog_sync: "batch" }
}

const append = (entityId: string) =>
  Effect.flatMap(Journal, (journal) =>
    journal.append({
      entityType: "Noted",
      entityId,
      expected: "any",
      events: [{ type: "Noted", payload: { note: note() } }]
    })
  )

/** Appends until the node is killed, and counts the acknowledged events that are not there when it is back. */
const lost = Effect.fnUntraced(function* (kill: number, live: Layer.Layer<Journal, unknown, CassandraProcess>) {
  const node = yield* CassandraProcess
  const ids = Array.from({ length: 16 }, (_, i) => `killed-${kill}-${i}`)
  const acknowledged = ids.map(() => 0)
  const appends = Effect.forEach(
    ids,
    (id, i) => Effect.forever(Effect.tap(append(id), () => Effect.sync(() => acknowledged[i]!++))),
    { concurrency: "unbounded" }
  )
  yield* Effect.raceFirst(appends, Effect.delay(node.kill, millis / 2)).pipe(Effect.provide(Layer.fresh(live)))
  yield* node.start
  const counts = Effect.flatMap(Journal, (journal) =>
    Effect.forEach(ids, (entityId) => journal.load({ entityType: "Noted", entityId }), { concurrency: 4 })
  )
  const stored = yield* counts.pipe(Effect.provide(Layer.fresh(live)))
  return acknowledged.reduce((sum, events, i) => sum + Math.max(0, events - stored[i]!.events.length), 0)
})

const measure = Effect.fnUntraced(function* (name: keyof typeof settings) {
  let warned = false
  const logger = Logger.make(({ message }) => {
    warned ||= String(message).includes("commitlog_sync is periodic")
  })
  const live = Journal.layer().pipe(
    Layer.provide(
      Layer.unwrap(
        Effect.map(CassandraProcess, ({ connection }) =>
          CassandraSession.layer({ ...connection, keyspace: "bench", development: true })
        )
      )
    )
  )
  const times = Effect.gen(function* () {
    const context = yield* Effect.context<Journal>()
    const one = (loop: number) => Effect.provideContext(append(`entity-${loop}`), context)
    // Warms up.
    yield* effectful(64, millis * 2, one)
    const alone = []
    const together = []
    for (let round = 0; round < Number(values.rounds); round++) {
      alone.push(yield* effectful(1, millis, one))
      together.push(yield* effectful(64, millis, one))
    }
    return { alone, together }
  })
  return yield* Effect.gen(function* () {
    const { alone, together } = yield* Effect.provide(times, live)
    const losses = []
    for (let kill = 0; kill < Number(values.kills); kill++) losses.push(yield* lost(kill, live))
    const single = alone.flatMap((measured) => measured.millis)
    const crowded = together.flatMap((measured) => measured.millis)
    return {
      commitlog_sync: name,
      "the start-up check warns": warned,
      "alone p50 ms": median(single).toFixed(1),
      "alone p99 ms": percentile(single, 0.99).toFixed(1),
      "64 callers p50 ms": median(crowded).toFixed(1),
      "64 callers p99 ms": percentile(crowded, 0.99).toFixed(1),
      "64 callers appends/s": Math.round(median(together.map(({ perSecond }) => perSecond))),
      "acknowledged events lost by kill -9": losses.join(", ")
    }
  }).pipe(Effect.provide(CassandraProcess.layer({ settings: settings[name] })), Effect.provide(Logger.layer([logger])))
})

const table = []
for (const name of Object.keys(settings) as ReadonlyArray<keyof typeof settings>) {
  table.push(await Effect.runPromise(measure(name)))
}
console.table(table)
