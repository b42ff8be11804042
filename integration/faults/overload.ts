/**
 * Twice the load that can be sustained: what is too much is refused at once, and the rest is done as before.
 */
import { PersistentEntity } from "@effect-cassandra/entity"
import * as Decision from "@effect-cassandra/entity/Decision"
import { Journal } from "@effect-cassandra/journal/Journal"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { Effect, Fiber, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"

/** What became of twice the sustainable load. Rates are per second. */
interface Overload {
  readonly name: string
  /** With as many callers as there are places, each of which waits for its answer. */
  readonly sustained: number
  readonly arrived: number
  readonly done: number
  readonly refused: number
  /** What failed in another way. */
  readonly failed: number
  /** Milliseconds that 99 of 100 refused ones waited at most, and the slowest. */
  readonly refusalP99: number
  readonly refusalMax: number
  /** The same of those that were done. */
  readonly doneP99: number
}

/** A kind of work, bounded in how much of it may wait. */
interface Work {
  readonly name: string
  readonly places: number
  /** One piece; `refused` where it was not accepted. */
  readonly one: (i: number) => Effect.Effect<"done" | "refused" | "failed">
}

const percentile = (times: Array<number>, share: number) => {
  const sorted = times.toSorted((a, b) => a - b)
  return Math.round((sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? 0) * 10) / 10
}

const measure = Effect.fnUntraced(function* ({ name, one, places }: Work, seconds: number) {
  let next = 0
  const sustain = Effect.fnUntraced(function* (millis: number) {
    const end = performance.now() + millis
    let done = 0
    const caller = Effect.gen(function* () {
      while (performance.now() < end) if ((yield* one(next++)) === "done") done++
    })
    yield* Effect.all(
      Array.from({ length: places }, () => caller),
      { concurrency: "unbounded", discard: true }
    )
    return (done * 1000) / millis
  })
  // The first time warms up.
  yield* sustain(seconds * 500)
  const sustained = yield* sustain(seconds * 1000)

  const times = { done: [] as Array<number>, refused: [] as Array<number>, failed: [] as Array<number> }
  const rate = 2 * sustained
  const begin = performance.now()
  const end = begin + seconds * 1000
  const fibers: Array<Fiber.Fiber<void>> = []
  let arrived = 0
  while (performance.now() < end) {
    const due = ((performance.now() - begin) * rate) / 1000
    for (; arrived < due; arrived++) {
      const at = performance.now()
      fibers.push(
        yield* Effect.forkChild(Effect.map(one(next++), (outcome) => void times[outcome].push(performance.now() - at)))
      )
    }
    yield* Effect.sleep("1 millis")
  }
  yield* Fiber.awaitAll(fibers)
  const took = (performance.now() - begin) / 1000
  const perSecond = (count: number) => Math.round(count / took)
  const outcome: Overload = {
    name,
    sustained: Math.round(sustained),
    arrived: perSecond(arrived),
    done: perSecond(times.done.length),
    refused: perSecond(times.refused.length),
    failed: perSecond(times.failed.length),
    refusalP99: percentile(times.refused, 0.99),
    refusalMax: percentile(times.refused, 1),
    doneP99: percentile(times.done, 0.99)
  }
  return outcome
})

const Counted = Schema.TaggedStruct("Counted", {})

const Counter = PersistentEntity.make("Counter", {
  state: Schema.Struct({}),
  initialState: {},
  events: [Counted],
  commands: [Rpc.make("Count")]
})

const behavior = Counter.behavior({
  apply: (state) => state,
  commands: { Count: () => Decision.persist(Counted.make({})) }
})

/** Statements of a session, then commands of entities; each with bounds that let little wait. */
export const overload = Effect.fnUntraced(function* (options: CassandraSession.Options, seconds: number) {
  const maxInFlight = 64
  const maxQueued = 64
  const statements = yield* Effect.gen(function* () {
    const session = yield* CassandraSession.CassandraSession
    yield* session.createTables(["CREATE TABLE IF NOT EXISTS written (k int PRIMARY KEY, v text)"])
    return yield* measure(
      {
        name: "statements of a session",
        places: maxInFlight + maxQueued,
        one: (i) =>
          session.execute(cql`INSERT INTO written (k, v) VALUES (${i % 10_000}, 'v')`).pipe(
            Effect.match({
              onSuccess: () => "done" as const,
              onFailure: ({ reason }) => (reason._tag === "Overloaded" ? ("refused" as const) : ("failed" as const))
            })
          )
      },
      seconds
    )
  }).pipe(Effect.provide(CassandraSession.CassandraSession.layer({ ...options, maxInFlight, maxQueued })))

  const entities = 64
  const mailboxSize = 4
  const commands = yield* Effect.gen(function* () {
    const counters = yield* Counter
    return yield* measure(
      {
        name: "commands of entities",
        places: entities * mailboxSize,
        one: (i) =>
          counters(`counter-${i % entities}`)
            .Count()
            .pipe(
              Effect.match({
                onSuccess: () => "done" as const,
                onFailure: ({ reason }) => (reason._tag === "MailboxFull" ? ("refused" as const) : ("failed" as const))
              })
            )
      },
      seconds
    )
  }).pipe(
    Effect.provide(
      Counter.layer(behavior, { mailboxSize }).pipe(
        Layer.provide(Journal.layer()),
        Layer.provide(CassandraSession.CassandraSession.layer(options))
      )
    )
  )
  return [statements, commands]
})
