import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Fiber, Layer, Schedule } from "effect"
import { Lines, Sums } from "./readSideRunner.ts"

/** `KILLS=200 npm test -- integration/readSide` kills as often as that. */
const kills = Number(process.env.KILLS ?? 5)

/** A process that runs the processors; it is killed with the scope. */
const runner = Effect.gen(function* () {
  const { contactPoints, keyspace } = yield* TestKeyspace
  return yield* Effect.acquireRelease(
    Effect.callback<{ readonly send: (signal: NodeJS.Signals) => void; readonly gone: Promise<unknown> }>((resume) => {
      const child = spawn(
        process.execPath,
        ["--conditions=@effect-cassandra/source", fileURLToPath(new URL("readSideRunner.ts", import.meta.url))],
        {
          env: { ...process.env, RUNNER_CONTACT_POINT: contactPoints![0], RUNNER_KEYSPACE: keyspace },
          stdio: ["ignore", "pipe", "ignore"]
        }
      )
      const gone = new Promise((resolve) => child.on("exit", resolve))
      child.stdout.on("data", (text) => {
        if (/running/.test(String(text))) resume(Effect.succeed({ send: (signal) => child.kill(signal), gone }))
      })
      child.on("exit", (code) => resume(Effect.die(`the runner ended with ${code} before it ran`)))
    }),
    ({ gone, send }) =>
      Effect.promise(() => {
        send("SIGKILL")
        return gone
      })
  )
})

const ids = Array.from({ length: 12 }, (_, i) => `entity-${i}`)
let next = 0

/**
 * Stores events of all entities, three at a time so that batches have something to be cut in, until the Effect that it
 * gives is run. An append that is interrupted could still be stored, after the views were compared.
 */
const traffic = Effect.gen(function* () {
  const journal = yield* Journal
  let stopped = false
  const fiber = yield* Effect.forEach(
    ids,
    (entityId) =>
      Effect.suspend(() =>
        journal.append({
          entityType: "Killed",
          entityId,
          expected: "any",
          events: Array.from({ length: 3 }, () => ({ type: "Added", payload: { amount: next++ } }))
        })
      ).pipe(Effect.repeat({ while: () => !stopped })),
    { concurrency: "unbounded" }
  ).pipe(Effect.forkChild)
  return Effect.suspend(() => {
    stopped = true
    return Fiber.join(fiber)
  })
})

/** The views are equal to a fold of what is stored. */
const equal = Effect.gen(function* () {
  const journal = yield* Journal
  const session = yield* CassandraSession
  const sums: Record<string, { events: number; sum: number }> = {}
  for (const id of ids) {
    const { events } = yield* journal.load({ entityType: "Killed", entityId: id })
    const amounts = events.map(({ payload }) => (payload as { amount: number }).amount)
    for (const amount of amounts) {
      const { events, sum } = sums[amount % 3] ?? { events: 0, sum: 0 }
      sums[amount % 3] = { events: events + 1, sum: sum + amount }
    }
    const rows = yield* session.execute<{ amount: number }>(cql`SELECT amount FROM lines WHERE id = ${id}`)
    assert.deepStrictEqual(
      rows.map(({ amount }) => amount),
      amounts
    )
    const [last] = yield* session.execute<{ amount: number; sequence: bigint }>(
      cql`SELECT amount, sequence FROM last WHERE id = ${id}`
    )
    assert.deepStrictEqual({ ...last }, { amount: amounts.at(-1), sequence: BigInt(amounts.length) })
  }
  for (const [key, sum] of Object.entries(sums)) assert.deepStrictEqual(yield* Sums.stateOf(key), sum)
})

/** Waits until everything that is stored is in the views. */
const projected = Effect.gen(function* () {
  const journal = yield* Journal
  const readSide = yield* ReadSide
  for (let shard = 0; shard < journal.shards; shard++) {
    const position = { entityType: "Killed", shard, offset: yield* journal.head("Killed", shard) }
    for (const { id } of [Lines, Sums]) yield* readSide.awaitProjected(id, position, "60 seconds")
  }
})

const wait = Effect.suspend(() => Effect.sleep(100 + Math.random() * 400))

const Live = ReadSide.layerRequests.pipe(
  Layer.provideMerge(Journal.layer({ shards: 3 })),
  Layer.provideMerge(TestKeyspace.layer)
)

layer(Live, { excludeTestServices: true, timeout: "10 minutes" })("processes that run processors", (it) => {
  it.effect(
    "killed in the middle of batches, again and again, leave views that are equal to a fold of the journal",
    () =>
      Effect.gen(function* () {
        const stop = yield* traffic
        for (let i = 0; i < kills; i++) yield* Effect.scoped(Effect.andThen(runner, wait))
        yield* stop
        yield* runner
        yield* projected
        yield* equal
      }).pipe(Effect.scoped),
    { timeout: 60_000 + kills * 10_000 }
  )

  it.effect(
    "stopped beyond their lease, while another takes over, and continued, do no harm",
    () =>
      Effect.gen(function* () {
        const readSide = yield* ReadSide
        const first = yield* runner
        const owners = Effect.map(readSide.status, (all) => new Set(all.map(({ owner }) => owner)))
        yield* owners.pipe(
          Effect.repeat({
            until: (found) => found.size === 1 && !found.has(undefined),
            schedule: Schedule.spaced("100 millis")
          })
        )
        const second = yield* runner
        yield* owners.pipe(
          Effect.repeat({
            until: (found) => found.size === 2 && !found.has(undefined),
            schedule: Schedule.spaced("100 millis")
          })
        )
        for (const paused of [first, second, first]) {
          const stop = yield* traffic
          yield* wait
          paused.send("SIGSTOP")
          // Until the other has everything.
          yield* owners.pipe(
            Effect.repeat({
              until: (found) => found.size === 1 && !found.has(undefined),
              schedule: Schedule.spaced("100 millis")
            })
          )
          yield* wait
          paused.send("SIGCONT")
          yield* wait
          yield* stop
          yield* projected
          yield* equal
        }
      }).pipe(Effect.scoped),
    { timeout: 180_000 }
  )
})
