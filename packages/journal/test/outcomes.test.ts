import { assert, layer } from "@effect/vitest"
import { CassandraError, OutcomeUnknown } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Exit, Fiber, Latch, Layer, Schedule, Stream } from "effect"
import { type Appended, type Appender, Journal, type NewEvent, type Options, type Position } from "../src/Journal.ts"
import type { JournalError } from "../src/JournalError.ts"

/** What happens to the next append: its answer is lost, it is not executed, it is executed later than answered, or when a latch opens. */
type Fault = "answer lost" | "not executed" | "executed late" | Latch.Latch

const unknown = Effect.fail(
  new CassandraError({ reason: new OutcomeUnknown({ message: "injected", cause: undefined }) })
)

/** The real session, with appends that go wrong in the order given. */
const faulty = (faults: Array<Fault>) =>
  Layer.effect(
    CassandraSession,
    Effect.map(
      CassandraSession,
      (session) =>
        ({
          ...session,
          applied: (statement) => {
            const fault = statement.text.includes("event_log") ? faults.shift() : undefined
            const real = session.applied(statement)
            if (typeof fault === "object") return Effect.andThen(fault.await, real)
            switch (fault) {
              case undefined:
                return real
              case "answer lost":
                return Effect.andThen(real, unknown)
              case "not executed":
                return unknown
              case "executed late":
                return Effect.andThen(Effect.forkDetach(Effect.delay(real, "30 millis")), unknown)
            }
          }
        }) satisfies CassandraSession["Service"]
    )
  )

const run = <A, E, R>(
  faults: Array<Fault>,
  options: Options,
  use: (journal: Journal["Service"]) => Effect.Effect<A, E, R>
) =>
  Effect.provide(Effect.flatMap(Journal, use), Layer.fresh(Journal.layer(options).pipe(Layer.provide(faulty(faults)))))

const numbers = (count: number) => Array.from({ length: count }, (_, i) => i + 1)

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("appends of unknown outcome", (it) => {
  const sequences: ReadonlyArray<ReadonlyArray<Fault>> = [
    ["answer lost"],
    ["not executed"],
    ["executed late"],
    ["answer lost", "answer lost"],
    ["not executed", "executed late", "answer lost"],
    ["executed late", "executed late", "not executed"]
  ]
  for (const faults of sequences) {
    for (const rival of [false, true]) {
      it.effect(`are stored exactly once: ${faults.join(", ")}${rival ? ", with a rival writer" : ""}`, () =>
        Effect.gen(function* () {
          const entityType = `Unknown-${crypto.randomUUID()}`
          const options: Options = { shards: 1, bucketSize: 5 }
          const write = (journal: Journal["Service"], entityId: string) =>
            Effect.gen(function* () {
              let at: Position = { sequence: 0, validThrough: 0 }
              for (const n of numbers(8)) {
                at = yield* journal.append({ entityType, entityId, expected: at, events: [{ type: "N", payload: n }] })
              }
            })
          yield* run([...faults], options, (journal) =>
            rival
              ? run([], options, (other) => Effect.all([write(journal, "a"), write(other, "b")], { concurrency: 2 }))
              : write(journal, "a")
          )
          const ids = rival ? ["a", "b"] : ["a"]
          yield* run([], options, (journal) =>
            Effect.gen(function* () {
              for (const entityId of ids) {
                const { events } = yield* journal.load({ entityType, entityId })
                assert.deepStrictEqual(
                  events.map(({ payload }) => payload),
                  numbers(8)
                )
              }
              const all = yield* Stream.runCollect(journal.currentEvents(entityType, 0, 0))
              assert.deepStrictEqual(
                all.map(({ offset }) => offset),
                numbers(8 * ids.length)
              )
            })
          )
        })
      )
    }
  }

  it.effect("a journal that is closed meanwhile leaves nobody waiting", () =>
    Effect.gen(function* () {
      const key = { entityType: "Closed", entityId: "x" }
      const faults = Array.from({ length: 100 }, (): Fault => "not executed")
      const [append, look] = yield* run(faults, { shards: 1, appendTimeout: "50 millis" }, (journal) =>
        Effect.gen(function* () {
          yield* journal.head("Closed", 0)
          const events = [{ type: "N", payload: 1 }]
          const first = yield* Effect.forkDetach(
            Effect.flip(journal.append({ ...key, expected: { sequence: 0, validThrough: 0 }, events })),
            {
              startImmediately: true
            }
          )
          yield* Effect.sleep("20 millis")
          return [
            first,
            yield* Effect.forkDetach(Effect.flip(journal.head("Closed", 0)), { startImmediately: true })
          ] as const
        })
      )
      assert.strictEqual((yield* Fiber.join(append)).reason._tag, "OutcomeUnknown")
      assert.include(["StoreFailure", "JournalClosed"], (yield* Fiber.join(look)).reason._tag)
    })
  )

  it.effect("without an answer in time the caller hears so, and the events are there later, once", () =>
    Effect.gen(function* () {
      const options: Options = { shards: 1, appendTimeout: "100 millis" }
      const key = { entityType: "Late", entityId: "x" }
      const start = { sequence: 0, validThrough: 0 }
      const faults = Array.from({ length: 4 }, (): Fault => "answer lost")
      yield* run(faults, options, (journal) =>
        Effect.gen(function* () {
          const error = yield* Effect.flip(
            journal.append({ ...key, expected: start, events: [{ type: "N", payload: 1 }] })
          )
          assert.strictEqual(error.reason._tag, "OutcomeUnknown")
          // The same again would be a second event, were it not for the expected sequence number.
          const again = yield* Effect.flip(
            journal.append({ ...key, expected: start, events: [{ type: "N", payload: 1 }] })
          )
          assert.include(["SequenceConflict", "StoreFailure"], again.reason._tag)
          // Fails for as long as there is no answer.
          yield* Effect.retry(journal.head("Late", 0), { schedule: Schedule.spaced("20 millis"), times: 500 })
          assert.strictEqual((yield* journal.load(key)).sequence, 1)
        })
      )
    })
  )

  it.effect("an appender is asked once what it has to store, and hears nothing where that is nothing", () =>
    run([], { shards: 1 }, (journal) =>
      Effect.gen(function* () {
        yield* journal.head("Later", 0)
        const heard: Array<string> = []
        const appender = (entityId: string, events: ReadonlyArray<NewEvent> | undefined | "throws"): Appender => ({
          entityType: "Later",
          entityId,
          metadata: {},
          decide: () => {
            heard.push(`${entityId} is asked`)
            if (events === "throws") throw new Error("boom")
            return events && { entityType: "Later", entityId, expected: { sequence: 0, validThrough: 0 }, events }
          },
          onExit: (exit) => heard.push(`${entityId}: ${Exit.isSuccess(exit) ? exit.value.sequence : exit.cause}`)
        })
        journal.append.unsafe?.(appender("none", undefined))
        journal.append.unsafe?.(appender("empty", []))
        journal.append.unsafe?.(appender("broken", "throws"))
        journal.append.unsafe?.(
          appender(
            "two",
            [1, 2].map((payload) => ({ type: "N", payload }))
          )
        )
        journal.append.unsafe?.(appender("bad", [{ type: "$N", payload: 1 }]))
        const all = Effect.suspend(() => (heard.length === 9 ? Effect.void : Effect.fail("not yet")))
        yield* Effect.retry(all, { schedule: Schedule.spaced("5 millis"), times: 500 })
        assert.sameMembers(
          heard.map((one) => one.replace(/Cause.*"\$N".*/, "refused").replace(/Cause.*boom.*/, "boom")),
          [
            "none is asked",
            "empty is asked",
            "empty: 0",
            "broken is asked",
            "broken: boom",
            "two is asked",
            "two: 2",
            "bad is asked",
            "bad: refused"
          ]
        )
      })
    )
  )

  it.effect("while Cassandra says nothing, those who wait hear in time what is known of theirs, and once", () =>
    Effect.gen(function* () {
      const silence = yield* Latch.make()
      const options: Options = { shards: 1, appendTimeout: "200 millis" }
      const faults: Array<Fault> = [silence]
      yield* run(faults, options, (journal) =>
        Effect.gen(function* () {
          const append = (entityId: string) => ({
            entityType: "Silent",
            entityId,
            expected: { sequence: 0, validThrough: 0 },
            events: [{ type: "N", payload: 1 }]
          })
          yield* journal.head("Silent", 0)
          const answers: Array<Exit.Exit<Appended, JournalError>> = []
          journal.append.unsafe?.({
            entityType: "Silent",
            entityId: "sent",
            metadata: {},
            decide: () => append("sent"),
            onExit: (exit) => answers.push(exit)
          })
          const isSent = Effect.suspend(() => (faults.length === 0 ? Effect.void : Effect.fail("not yet")))
          yield* Effect.retry(isSent, { schedule: Schedule.spaced("5 millis"), times: 500 })
          const behind = yield* Effect.flip(journal.append(append("behind")))
          assert.strictEqual(behind.reason._tag, "StoreFailure")
          assert.match(behind.message, /not been answered for 200 ms, nothing was stored/)
          assert.match(String(answers), /OutcomeUnknown: no answer within 200 ms/)
          yield* silence.open
          yield* Effect.retry(journal.head("Silent", 0), { schedule: Schedule.spaced("20 millis"), times: 500 })
          const sequenceOf = (entityId: string) =>
            Effect.map(journal.load({ entityType: "Silent", entityId }), ({ sequence }) => sequence)
          assert.strictEqual(yield* sequenceOf("sent"), 1)
          assert.strictEqual(yield* sequenceOf("behind"), 0)
          assert.strictEqual(answers.length, 1)
        })
      )
    })
  )
})
