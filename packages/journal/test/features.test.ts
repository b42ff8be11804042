import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Option, Result, Schedule, Stream } from "effect"
import { gzip } from "../src/Encoding.ts"
import { CurrentMetadata, Journal, type Options } from "../src/Journal.ts"
import type { JournalError } from "../src/JournalError.ts"

/** Small partitions, so that every test crosses some. */
const options: Options = {
  shards: 2,
  bucketSize: 20,
  partitionSize: 2000,
  indexInterval: "30 millis",
  maxPollInterval: "100 millis",
  commandWindow: { events: 10, age: "1 hour" }
}

const event = (n: number) => ({ type: "Counted", payload: { n } })
const fresh = (name: string) => ({ entityType: "Feature", entityId: `${name} ${crypto.randomUUID()}` })

const reasonOf = <A>(effect: Effect.Effect<A, JournalError, Journal>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

const suite = <R, E>(
  name: string,
  Live: Layer.Layer<Journal | R, E>,
  /** Another journal on the same store, where it is not in memory. */
  make: (options: Options) => Layer.Layer<Journal, JournalError, R>
) =>
  layer(Live, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    it.effect("an event comes back with version and metadata: its own, the append's, the current one's", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("metadata")
        yield* journal
          .append({
            ...key,
            expected: "none",
            metadata: { causationId: "c", tenant: "append", nested: { list: [1, null] } },
            events: [event(1), { ...event(2), version: 3, metadata: { tenant: "event" } }],
            command: { id: "command 1" }
          })
          .pipe(Effect.provideService(CurrentMetadata, { correlationId: "r", tenant: "current" }))
        const check = (events: ReadonlyArray<{ version: number; metadata: unknown; sequence: number }>) => {
          const all = { correlationId: "r", causationId: "c", nested: { list: [1, null] }, commandId: "command 1" }
          assert.deepStrictEqual(
            events.map(({ metadata, version }) => ({ metadata, version })),
            [
              { version: 1, metadata: { ...all, tenant: "append" } },
              { version: 3, metadata: { ...all, tenant: "event" } }
            ]
          )
        }
        check((yield* journal.load(key)).events)
        const shard = journal.shardOf(key.entityId)
        const stream = yield* Stream.runCollect(journal.currentEvents(key.entityType, shard, 0))
        check(stream.filter(({ entityId }) => entityId === key.entityId))
        yield* journal.append({ ...key, expected: 2, events: [event(3)] })
        assert.deepStrictEqual((yield* journal.load(key)).events[2]?.metadata, {})
      })
    )

    it.effect("an append says what it expects: a position, a sequence number, none, some, anything", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("expected")
        const add = (expected: Parameters<Journal["Service"]["append"]>[0]["expected"]) =>
          journal.append({ ...key, expected, events: [event(1)] })
        for (const [wrong, message] of [
          ["exists", /has no events, expected was: exists/],
          [1, /has no events, expected was: 1/]
        ] as const) {
          const reason = yield* reasonOf(add(wrong))
          assert.strictEqual(reason._tag, "SequenceConflict")
          assert.match(reason.message, message)
        }
        const first = yield* add("none")
        assert.deepInclude(first, { sequence: 1, repeated: false })
        yield* add("exists")
        yield* add(2)
        const fourth = yield* add("any")
        assert.strictEqual(fourth.sequence, 4)
        for (const wrong of ["none", 3, 5, first] as const) {
          assert.strictEqual((yield* reasonOf(add(wrong)))._tag, "SequenceConflict")
        }
        yield* add(fourth)
        assert.strictEqual((yield* journal.load(key)).sequence, 5)
      })
    )

    it.effect("of a hundred appends at once to one entity, expecting anything, all are stored", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("any")
        yield* Effect.forEach(
          Array.from({ length: 100 }, (_, n) => n),
          (n) => journal.append({ ...key, expected: "any", events: [event(n)] }),
          { concurrency: "unbounded" }
        )
        const { events } = yield* journal.load(key)
        const stored = events.map(({ payload }) => (payload as { n: number }).n).sort((a, b) => a - b)
        assert.deepStrictEqual(
          stored,
          Array.from({ length: 100 }, (_, n) => n)
        )
      })
    )

    it.effect("a command that is known stores nothing and gets the first answer; without events too", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("command")
        const send = (id: string, events: ReadonlyArray<{ type: string; payload: unknown }>, answer: number) =>
          journal.append({ ...key, expected: "any", events, command: { id, answer } })
        assert.deepInclude(yield* send("a", [event(1), event(2)], 7), { sequence: 2, repeated: false, answer: 7 })
        assert.deepInclude(yield* send("b", [], 8), { sequence: 3, repeated: false, answer: 8 })
        assert.deepInclude(yield* send("a", [event(9)], 9), { sequence: 2, repeated: true, answer: 7 })
        assert.deepInclude(yield* send("b", [event(9)], 9), { sequence: 3, repeated: true, answer: 8 })
        const loaded = yield* journal.load(key, { commands: true })
        assert.deepStrictEqual(
          loaded.events.map(({ type }) => type),
          ["Counted", "Counted", "$command"]
        )
        assert.deepStrictEqual(
          [...loaded.commands],
          [
            ["a", { sequence: 2, answer: 7 }],
            ["b", { sequence: 3, answer: 8 }]
          ]
        )
        // Behind a snapshot they are known too, until newer events have pushed them out of the window.
        const { sequence, validThrough } = loaded
        yield* journal.saveSnapshot(key, { sequence, validThrough, state: 2 }, 0)
        assert.isTrue((yield* send("a", [event(9)], 9)).repeated)
        for (let n = 0; n < 10; n++) yield* journal.append({ ...key, expected: "any", events: [event(n)] })
        assert.isFalse((yield* send("a", [event(9)], 9)).repeated)
        // Of two at once, one is stored.
        const both = yield* Effect.all([send("twin", [event(1)], 1), send("twin", [event(2)], 2)], { concurrency: 2 })
        assert.deepStrictEqual(both.map(({ repeated }) => repeated).sort(), [false, true])
        assert.strictEqual(both[0].answer, both[1].answer)
      })
    )

    it.effect("what is not of the right form is refused by name, and nothing of it is stored", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("malformed")
        const circular: { self?: unknown } = {}
        circular.self = circular
        for (const [append, message] of [
          [{ events: [{ type: "$deleted", payload: 1 }] }, /"\$deleted" cannot be the type of an event/],
          [{ events: [{ type: "", payload: 1 }] }, /cannot be the type/],
          [{ events: [{ ...event(1), version: 0 }] }, /Counted has version 0, it must be a whole number from 1 on/],
          [{ events: [{ ...event(1), version: 1.5 }] }, /version 1.5/],
          [{ events: [{ type: "Big", payload: 1n }] }, /Big .*cannot be written as JSON.*BigInt/],
          [{ events: [event(1), { type: "Circular", payload: circular }] }, /Circular .*circular/],
          [{ events: [event(1)], expected: undefined as never }, /expected is undefined, it must be a position/],
          [{ events: [event(1)], expected: -1 }, /expected is -1/],
          [{ events: [event(1)], entityId: "" }, /entityId must be text of 1 to 1024 characters/],
          [{ events: [event(1)], entityType: "x".repeat(2000) }, /entityType must be text/],
          [{ events: [event(1)], command: { id: "" } }, /the id of a command must be text/]
        ] as const) {
          const reason = yield* reasonOf(journal.append({ ...key, expected: "any", ...append }))
          assert.strictEqual(reason._tag, "MalformedAppend")
          assert.match(reason.message, message)
          assert.match(reason.message, /nothing was stored/)
        }
        assert.strictEqual((yield* journal.load(key)).sequence, 0)
      })
    )

    it.effect("a snapshot of what JSON cannot hold is refused", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("snapshots")
        const { validThrough } = yield* journal.append({ ...key, expected: "none", events: [event(1)] })
        const reason = yield* reasonOf(journal.saveSnapshot(key, { sequence: 1, validThrough, state: undefined }, 0))
        assert.strictEqual(reason._tag, "EncodingFailure")
        assert.match(reason.message, /a snapshot of Feature .* cannot be written: .*undefined/)
      })
    )

    it.effect("deletes an entity's payloads everywhere; places, sequence numbers and neighbours stay", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("deleted")
        const neighbour = { ...key, entityId: fresh("neighbour").entityId }
        for (let n = 1; n <= 30; n++) {
          yield* journal.append({ ...key, expected: "any", events: [{ type: "Secret", payload: { secret: `s${n}` } }] })
          yield* journal.append({ ...neighbour, expected: "any", events: [event(n)] })
        }
        yield* journal.saveSnapshot(key, { ...(yield* journal.load(key)), state: "secret" }, 0)
        const { sequence } = yield* journal.delete(key)
        assert.strictEqual(sequence, 31)
        const loaded = yield* journal.load(key)
        assert.isTrue(Option.isNone(loaded.snapshot))
        assert.strictEqual(loaded.sequence, 31)
        assert.strictEqual(loaded.deletedThrough, 30)
        assert.isTrue(loaded.events.slice(0, 30).every(({ deleted, payload }) => deleted && payload === undefined))
        assert.strictEqual((yield* journal.load(neighbour)).events.filter(({ deleted }) => !deleted).length, 30)
        // The log is without a hole, and without the secret.
        const shard = journal.shardOf(key.entityId)
        const log = yield* Stream.runCollect(journal.currentEvents(key.entityType, shard, 0))
        assert.deepStrictEqual(
          log.map(({ offset }) => offset),
          log.map((_, i) => i + 1)
        )
        assert.notMatch(JSON.stringify(log.filter(({ entityId }) => entityId === key.entityId)), /"s\d+"/)
        // It goes on from here.
        assert.strictEqual((yield* journal.append({ ...key, expected: 31, events: [event(1)] })).sequence, 32)
        yield* journal.delete(key)
        assert.strictEqual((yield* journal.load(key)).deletedThrough, 32)
      })
    )

    it.effect("deletes up to a sequence number only what a snapshot stands for", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("partly")
        yield* journal.append({ ...key, expected: "none", events: [1, 2, 3, 4, 5].map(event) })
        const refused = yield* reasonOf(journal.delete(key, 3))
        assert.strictEqual(refused._tag, "MalformedAppend")
        assert.match(refused.message, /need a snapshot of the state before: save one first/)
        assert.match((yield* reasonOf(journal.delete(key, 6))).message, /it has 5 events/)
        const { validThrough } = yield* journal.load(key)
        yield* journal.saveSnapshot(key, { sequence: 3, validThrough, state: 6 }, 0)
        yield* journal.delete(key, 3)
        const { deletedThrough, events, snapshot } = yield* journal.load(key)
        assert.strictEqual(Option.getOrThrow(snapshot).state, 6)
        assert.deepStrictEqual(
          events.map(({ sequence, type }) => [sequence, type]),
          [
            [4, "Counted"],
            [5, "Counted"],
            [6, "$deleted"]
          ]
        )
        assert.strictEqual(deletedThrough, 3)
        // Nothing was stored by what was refused.
        assert.deepInclude(yield* journal.delete(fresh("nobody")), { sequence: 0 })
      })
    )

    it.effect("payloads in another encoding are read by whoever has it, and named to whoever has not", () =>
      Effect.gen(function* () {
        // In memory, another journal has a store of its own.
        if (name.includes("memory")) return
        const journal = yield* Journal
        const key = fresh("encoded")
        yield* journal.append({ ...key, expected: "none", events: [event(1)] })
        const text = "so long that it is packed ".repeat(100)
        yield* Effect.gen(function* () {
          const packing = yield* Journal
          yield* packing.append({ ...key, expected: 1, events: [{ type: "Long", payload: { text } }] })
          const { events, sequence, validThrough } = yield* packing.load(key)
          assert.deepStrictEqual(events[1]?.payload, { text })
          yield* packing.saveSnapshot(key, { sequence, validThrough, state: { text } }, 0)
          assert.deepStrictEqual(Option.getOrThrow((yield* packing.load(key)).snapshot).state, { text })
        }).pipe(Effect.provide(Layer.fresh(make({ ...options, encoding: gzip() }))))
        const read = journal.load(key).pipe(Effect.repeat({ until: ({ sequence }) => sequence === 2 }))
        yield* journal.head(key.entityType, journal.shardOf(key.entityId))
        const reason = (yield* Effect.flip(read)).reason
        assert.strictEqual(reason._tag, "EncodingFailure")
        assert.match(reason.message, /event 2 \(Long\) of Feature .* is stored as "gzip": give this encoding/)
        const seen = yield* Effect.provide(
          Effect.flatMap(Journal, (other) => other.load(key)),
          Layer.fresh(make({ ...options, encodings: [gzip()] }))
        )
        assert.strictEqual(seen.sequence, 2)
      })
    )

    it.effect("large events fill a partition each, and are read across partitions from any offset", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: `Large-${crypto.randomUUID()}`, entityId: "x" }
        const shard = journal.shardOf(key.entityId)
        for (let n = 1; n <= 45; n++) {
          const payload = { n, text: "x".repeat(n % 3 === 0 ? 3000 : 10) }
          yield* journal.append({ ...key, expected: "any", events: [{ type: "L", payload }] })
        }
        for (let after = 0; after <= 45; after += 4) {
          // Another reader than the one with everything in memory.
          const events = yield* Effect.provide(
            Effect.flatMap(Journal, (other) =>
              Stream.runCollect((name.includes("memory") ? journal : other).currentEvents(key.entityType, shard, after))
            ),
            Layer.fresh(make(options))
          ).pipe(Effect.when(Effect.succeed(after % 12 === 0 || name.includes("memory"))))
          if (Option.isSome(events)) {
            assert.deepStrictEqual(
              events.value.map(({ payload }) => (payload as { n: number }).n),
              Array.from({ length: 45 - after }, (_, i) => after + 1 + i)
            )
          }
        }
      })
    )

    it.effect("an event of a megabyte is read by entity and by shard", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = fresh("megabyte")
        const payload = { text: "x".repeat(1_000_000) }
        yield* journal.append({ ...key, expected: "none", events: [{ type: "Big", payload }] })
        assert.deepStrictEqual((yield* journal.load(key)).events[0]?.payload, payload)
        const indexed = yield* journal
          .load(key)
          .pipe(
            Effect.repeat({ schedule: Schedule.spaced("20 millis"), times: 5 }),
            Effect.andThen(Effect.result(journal.load(key)))
          )
        assert.isTrue(Result.isSuccess(indexed))
      })
    )
  })

suite("Journal's features in memory", Journal.layerMemory(options), Journal.layerMemory)

suite(
  "Journal's features on Cassandra",
  Journal.layer(options).pipe(Layer.provideMerge(TestKeyspace.layer)),
  Journal.layer
)
