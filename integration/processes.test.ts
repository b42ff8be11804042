// Processes of the operating system that append to the same entities at full speed, while some are killed and some paused.
import { once } from "node:events"
import { assert, describe, layer } from "@effect/vitest"
import { type EventEnvelope, Journal, type Options } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Schedule, Stream } from "effect"
import { inject } from "vitest"
import { entityType, Routed, type Setup, type Work } from "./appender.ts"
import { type Appender, type Stored, startAppender } from "./appenders.ts"

/** Small partitions, so that the processes meet at their borders, too. */
const options: Options = { shards: 2, bucketSize: 500, indexInterval: "200 millis" }
const work: Omit<Work, "expected"> = { loops: 20, entities: 10, millis: 600_000, tell: true }

const eventually = (condition: () => boolean) =>
  Effect.suspend(() => (condition() ? Effect.void : Effect.fail("not yet" as const))).pipe(
    Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 3000 }),
    Effect.orDie
  )

/** A process and what it was told to be stored. */
interface Writer extends Appender {
  readonly stored: Array<Stored>
  readonly begin: Effect.Effect<void>
}

const start = (name: string, expected: Work["expected"]) =>
  Effect.gen(function* () {
    const { keyspace } = yield* TestKeyspace
    const setup: Setup = { name, connection: inject("cassandra"), keyspace, journal: options }
    const stored: Array<Stored> = []
    const appender = yield* startAppender(setup, (one) => stored.push(one))
    const begin = Effect.sync(() => {
      appender.child.send({ ...work, expected } satisfies Work)
    })
    return { ...appender, stored, begin } satisfies Writer
  })

/** Waits until each has stored so many more. */
const more = (count: number, ...writers: ReadonlyArray<Writer>) =>
  Effect.suspend(() => {
    const before = writers.map(({ stored }) => stored.length)
    return eventually(() => writers.every(({ stored }, i) => stored.length >= before[i]! + count))
  })

/** Ends a process as a lack of memory does, and hears what it has said before. */
const kill = ({ child }: Writer) =>
  Effect.promise(async () => {
    const ended = once(child, "disconnect")
    child.kill("SIGKILL")
    await ended
  })

/** The log of all shards, after it was looked at by a process that has seen nothing. */
const history = Effect.fnUntraced(
  function* (type: string) {
    const journal = yield* Journal
    const events: Array<EventEnvelope> = []
    for (let shard = 0; shard < journal.shards; shard++) {
      const log = yield* Stream.runCollect(journal.currentEvents(type, shard, 0))
      assert.deepStrictEqual(
        log.map(({ offset }) => offset),
        log.map((_, i) => i + 1)
      )
      events.push(...log)
    }
    return events
  },
  Effect.provide(Journal.layer(options), { local: true })
)

/** What was acknowledged is there once, at its place, and no entity has a gap. */
const check = Effect.fnUntraced(function* (writers: ReadonlyArray<Writer>, type = entityType) {
  const events = yield* history(type)
  const byId = new Map<string, Array<EventEnvelope>>()
  const last = new Map<string, number>()
  for (const event of events) {
    const { id } = event.payload as { readonly id: string }
    byId.set(id, [...(byId.get(id) ?? []), event])
    assert.strictEqual(event.sequence, (last.get(event.entityId) ?? 0) + 1)
    last.set(event.entityId, event.sequence)
  }
  for (const [id, found] of byId) assert.strictEqual(found.length, 1, id)
  for (const { entityId, id, sequence } of writers.flatMap(({ stored }) => stored)) {
    assert.deepInclude(byId.get(id)?.[0], { entityId, sequence }, id)
  }
  // The index, which all of them wrote, says the same.
  yield* Effect.gen(function* () {
    const journal = yield* Journal
    for (const [entityId, sequence] of last) {
      const loaded = yield* journal.load({ entityType: type, entityId })
      // An update that was under way when its process was killed may have been later.
      assert.isAtLeast(loaded.sequence, sequence)
    }
  }).pipe(Effect.provide(Journal.layer(options), { local: true }))
})

/** Waits until all but one have lost their places among those that send each other commands. */
const alone = Effect.gen(function* () {
  const session = yield* CassandraSession
  const members = yield* session.execute(cql`SELECT name FROM entity_processes WHERE part = 'entities'`)
  if (members.length > 1) return yield* Effect.fail("not yet" as const)
}).pipe(Effect.retry({ schedule: Schedule.spaced("100 millis"), times: 600 }))

describe("processes that append to the same entities", () => {
  layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })((it) => {
    it.effect(
      "lose and double nothing when they are killed and paused, and all of them come to their turn",
      () =>
        Effect.gen(function* () {
          const [any, position, killed, paused, late] = yield* Effect.all(
            [
              start("any", "any"),
              start("position", "position"),
              start("killed", "any"),
              start("paused", "position"),
              start("late", "position")
            ],
            { concurrency: "unbounded" }
          )
          yield* Effect.all([any.begin, position.begin, killed.begin, paused.begin])
          yield* more(100, any, position, killed, paused)

          // Paused at work, for longer than its turn and all that it might have under way.
          paused.child.kill("SIGSTOP")
          yield* more(300, any, position, killed)
          yield* kill(killed)
          yield* more(300, any, position)
          // Two that take themselves for the one whose turn it is.
          paused.child.kill("SIGCONT")
          yield* more(100, any, position, paused)
          // One that nobody has seen yet, among others that have been at it.
          yield* late.begin
          yield* more(100, any, position, paused, late)
          const writers = [any, position, paused, late]
          yield* Effect.forEach(writers, kill, { concurrency: "unbounded" })
          yield* check([killed, ...writers])
        }),
      240_000
    )

    it.effect(
      "lose and double nothing when they send each other commands, and are killed and paused meanwhile",
      () =>
        Effect.gen(function* () {
          const [one, killed, paused] = yield* Effect.all(
            ["one", "killed", "paused"].map((name) => start(name, "routed command")),
            { concurrency: "unbounded" }
          )
          yield* Effect.all([one!.begin, killed!.begin, paused!.begin])
          yield* more(300, one!, killed!, paused!)
          yield* kill(killed!)
          // Also what it had goes on at once, in those that are left.
          yield* more(300, one!, paused!)
          // Longer than its place is kept.
          paused!.child.kill("SIGSTOP")
          yield* more(300, one!)
          yield* alone
          yield* more(300, one!)
          paused!.child.kill("SIGCONT")
          const late = yield* start("late", "routed command")
          yield* late.begin
          yield* more(300, one!, paused!, late)
          yield* Effect.forEach([one!, paused!, late], kill, { concurrency: "unbounded" })
          yield* check([one!, killed!, paused!, late], Routed.type)
        }),
      240_000
    )
  })
})
