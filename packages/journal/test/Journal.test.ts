import { assert, describe, layer } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Fiber, Layer, Option, Schedule, Schema, Stream } from "effect"
import { type EventEnvelope, Journal, type Options, type Position } from "../src/Journal.ts"

/** Small buckets, so that every test crosses some. */
const options: Options = { shards: 3, bucketSize: 20, indexInterval: "50 millis", maxPollInterval: "100 millis" }

const start: Position = { sequence: 0, validThrough: 0 }
const deposited = (cents: number) => ({ type: "Deposited", payload: { cents } })

const appendAll = (entityType: string, entityId: string, count: number, from: Position = start) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    let at = from
    for (let i = 0; i < count; i++) {
      at = yield* journal.append({ entityType, entityId, expected: at, events: [deposited(at.sequence + 1)] })
    }
    return at
  })

const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

const sequences = (events: ReadonlyArray<EventEnvelope>) => events.map(({ sequence }) => sequence)

/** Waits until a condition holds. */
const eventually = <A, E, R>(effect: Effect.Effect<A, E, R>, holds: (value: A) => boolean) =>
  effect.pipe(
    Effect.flatMap((value) => (holds(value) ? Effect.succeed(value) : Effect.fail("not yet" as const))),
    Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 })
  )

const suite = <R, E>(name: string, Live: Layer.Layer<Journal | R, E>) =>
  layer(Live, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    it.effect("gives back the events of an entity in order, as JSON gives them", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Order", entityId: 'a "quoted" id, äöü' }
        const payload = { text: 'line\n"x"', list: [1, null], gone: undefined, nested: { deep: true } }
        const first = yield* journal.append({ ...key, expected: start, events: [{ type: "A", payload }, deposited(2)] })
        assert.strictEqual(first.sequence, 2)
        const loaded = yield* journal.load(key)
        assert.deepStrictEqual(sequences(loaded.events), [1, 2])
        assert.deepStrictEqual(loaded.events[0]?.payload, {
          text: 'line\n"x"',
          list: [1, null],
          nested: { deep: true }
        })
        assert.strictEqual(loaded.events[0]?.type, "A")
        assert.isTrue(loaded.validThrough >= first.validThrough)
      })
    )

    it.effect("an unknown entity has no events", () =>
      Effect.gen(function* () {
        const loaded = yield* (yield* Journal).load({ entityType: "Order", entityId: "nobody" })
        assert.deepInclude(loaded, { events: [], sequence: 0 })
        assert.isTrue(Option.isNone(loaded.snapshot))
      })
    )

    it.effect("refuses an append that does not know the entity's last event, and stores nothing of it", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Order", entityId: "conflict" }
        const first = yield* journal.append({ ...key, expected: start, events: [deposited(1)] })
        for (const wrong of [start, { sequence: 2, validThrough: first.validThrough }]) {
          const error = yield* Effect.flip(journal.append({ ...key, expected: wrong, events: [deposited(9)] }))
          assert.strictEqual(error.reason._tag, "SequenceConflict")
          assert.match(error.message, /"conflict" has events after/)
        }
        assert.deepStrictEqual(sequences((yield* journal.load(key)).events), [1])
      })
    )

    it.effect("of two concurrent appends with the same expectation one is stored", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Order", entityId: "race" }
        const results = yield* Effect.forEach(
          numbers(1, 10),
          (n) => Effect.result(journal.append({ ...key, expected: start, events: [deposited(n)] })),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(results.filter(({ _tag }) => _tag === "Success").length, 1)
        assert.strictEqual((yield* journal.load(key)).sequence, 1)
      })
    )

    it.effect("begins with an entity type once, whatever asks for it first and at the same time", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Begun", entityId: "first" }
        const append = journal.append({ ...key, expected: start, events: [deposited(1)] })
        const epochs = Effect.forEach(numbers(1, 20), () => journal.epoch("Begun"), { concurrency: "unbounded" })
        const [appended] = yield* Effect.all([append, epochs], { concurrency: 2 })
        // Known to the process, without asking anybody.
        assert.isTrue(journal.isCurrent(key, appended))
      })
    )

    it.effect("numbers the events of a shard without a hole, over many buckets, with increasing stamps", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const ids = numbers(1, 30).map((n) => `e${n}`)
        yield* Effect.forEach(ids, (id) => appendAll("Log", id, 10), { concurrency: "unbounded" })
        let total = 0
        for (const shard of numbers(0, journal.shards - 1)) {
          const events = yield* Stream.runCollect(journal.currentEvents("Log", shard, 0))
          assert.deepStrictEqual(
            events.map(({ offset }) => offset),
            numbers(1, events.length)
          )
          assert.strictEqual(yield* journal.head("Log", shard), events.length)
          for (let i = 1; i < events.length; i++) assert.isTrue(events[i]!.stamp - events[i - 1]!.stamp >= 10)
          for (const id of new Set(events.map(({ entityId }) => entityId))) {
            assert.strictEqual(journal.shardOf(id), shard)
            assert.deepStrictEqual(sequences(events.filter(({ entityId }) => entityId === id)), numbers(1, 10))
          }
          total += events.length
        }
        assert.strictEqual(total, 300)
      })
    )

    it.effect("reads a shard from any offset", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        yield* appendAll("From", "x", 75)
        const shard = journal.shardOf("x")
        for (const after of [0, 1, 19, 20, 21, 40, 74, 75]) {
          const events = yield* Stream.runCollect(journal.currentEvents("From", shard, after))
          assert.deepStrictEqual(
            events.map(({ offset }) => offset),
            numbers(after + 1, 75)
          )
        }
      })
    )

    it.effect("a live stream goes on with the events to come", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const shard = journal.shardOf("live")
        const fiber = yield* journal.events("Live", shard, 0).pipe(Stream.take(30), Stream.runCollect, Effect.forkChild)
        yield* appendAll("Live", "live", 30)
        assert.deepStrictEqual(sequences(yield* Fiber.join(fiber)), numbers(1, 30))
      })
    )

    it.effect("loads an entity from its newest snapshot and the events after it", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Snap", entityId: "s" }
        let at = start
        for (const n of [10, 20, 30]) {
          at = yield* appendAll("Snap", "s", 10, at)
          yield* journal.saveSnapshot(key, { ...at, state: { total: n } }, n - 20)
        }
        yield* appendAll("Snap", "s", 5, at)
        const loaded = yield* journal.load(key)
        assert.deepStrictEqual(
          Option.map(loaded.snapshot, ({ sequence, state }) => ({ sequence, state })),
          Option.some({ sequence: 30, state: { total: 30 } })
        )
        assert.deepStrictEqual(sequences(loaded.events), numbers(31, 35))
        const older = yield* journal.load(key, { snapshotsUpTo: 29 })
        assert.deepStrictEqual(sequences(older.events), numbers(21, 35))
        const none = yield* journal.load(key, { snapshotsUpTo: 19 })
        assert.isTrue(Option.isNone(none.snapshot), "snapshots at 10 and before were removed")
        assert.deepStrictEqual(sequences(none.events), numbers(1, 35))
      })
    )

    it.effect("confirms the position of the newest state, and refuses an older one", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Order", entityId: "confirm" }
        const old = yield* appendAll("Order", "confirm", 1)
        const newest = yield* appendAll("Order", "confirm", 1, old)
        const confirmed = yield* journal.confirm(key, newest)
        assert.strictEqual(confirmed.sequence, 2)
        assert.isTrue(confirmed.validThrough >= newest.validThrough)
        assert.strictEqual((yield* Effect.flip(journal.confirm(key, old))).reason._tag, "SequenceConflict")
      })
    )

    it.effect("stores an event of nearly a megabyte and refuses a larger one by name", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Large", entityId: "l" }
        const event = (size: number) => ({ type: "Big", payload: { text: "x".repeat(size) } })
        const at = yield* journal.append({ ...key, expected: start, events: [event(1_000_000)] })
        const error = yield* Effect.flip(journal.append({ ...key, expected: at, events: [event(1_100_000)] }))
        assert.strictEqual(error.reason._tag, "AppendTooLarge")
        assert.match(error.message, /event Big has 11\d{5} characters/)
        assert.strictEqual((yield* journal.load(key)).events.length, 1)
      })
    )

    it.effect.prop(
      "any appends to any entities come back in order, from the entity and from its shard",
      [Schema.Array(Schema.Struct({ entity: Schema.Literals(["a", "b", "c"]), events: Schema.Literals([1, 2, 3]) }))],
      ([appends]) =>
        Effect.gen(function* () {
          const journal = yield* Journal
          const entityType = `Prop-${crypto.randomUUID()}`
          const expected = new Map<string, Position>()
          for (const { entity, events } of appends) {
            const at = expected.get(entity) ?? start
            const added = numbers(at.sequence + 1, at.sequence + events).map(deposited)
            expected.set(entity, yield* journal.append({ entityType, entityId: entity, expected: at, events: added }))
          }
          for (const [entityId, { sequence }] of expected) {
            const loaded = yield* journal.load({ entityType, entityId })
            assert.deepStrictEqual(
              loaded.events.map(({ payload }) => payload),
              numbers(1, sequence).map((cents) => ({ cents }))
            )
          }
        }),
      { arbitrary: { runs: 20 } as never }
    )
  })

suite("Journal in memory", Journal.layerMemory(options))

suite("Journal on Cassandra", Journal.layer(options).pipe(Layer.provideMerge(TestKeyspace.layer)))

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("Journal of several processes", (it) => {
  /** Another process, as far as Cassandra can tell: its own session, its own journal. */
  const run = <A, E, R>(settings: Options, use: (journal: Journal["Service"]) => Effect.Effect<A, E, R>) =>
    Effect.gen(function* () {
      const keyspace = yield* TestKeyspace
      const Live = Journal.layer(settings).pipe(Layer.provide(CassandraSession.layer(keyspace)), Layer.fresh)
      return yield* Effect.provide(Effect.flatMap(Journal, use), Live)
    })

  it.effect("finds everything after a restart, from index, snapshot and log", () =>
    Effect.gen(function* () {
      const key = { entityType: "Restart", entityId: "r" }
      const settings = { ...options, indexInterval: "1 hour" } as const
      const at = yield* run(settings, (journal) =>
        Effect.provideService(appendAll("Restart", "r", 45), Journal, journal)
      )
      for (const more of [10, 10]) {
        const loaded = yield* run(settings, (journal) => journal.load(key))
        assert.deepStrictEqual(sequences(loaded.events), numbers(1, loaded.sequence))
        yield* run(settings, (journal) =>
          Effect.provideService(appendAll("Restart", "r", more, loaded), Journal, journal)
        )
      }
      assert.strictEqual((yield* run(settings, (journal) => journal.load(key))).sequence, at.sequence + 20)
    })
  )

  it.effect("a command is known after a restart, and to another process that has seen its entity before", () =>
    run(options, (other) =>
      Effect.gen(function* () {
        const key = { entityType: "Commands", entityId: "c" }
        const send = (journal: Journal["Service"]) =>
          journal.append({
            ...key,
            expected: "any",
            events: [deposited(1)],
            command: { id: "once", answer: { ok: true } }
          })
        const before = yield* other.append({ ...key, expected: "none", events: [deposited(0)] })
        const first = yield* run(options, send)
        assert.deepInclude(first, { sequence: 2, repeated: false })
        for (const again of [run(options, send), send(other)]) {
          assert.deepInclude(yield* again, { sequence: 2, repeated: true, answer: { ok: true } })
        }
        assert.strictEqual((yield* Effect.flip(other.confirm(key, before))).reason._tag, "SequenceConflict")
        assert.strictEqual((yield* other.load(key)).sequence, 2)
      })
    )
  )

  it.effect("of corrupt snapshots the newest two are passed over, and the third is loaded", () =>
    run(options, (journal) =>
      Effect.gen(function* () {
        const key = { entityType: "Corrupt", entityId: "s" }
        const events = [1, 2, 3, 4].map(deposited)
        const { validThrough } = yield* journal.append({ ...key, expected: "none", events })
        for (const sequence of [1, 2, 3]) {
          yield* journal.saveSnapshot(key, { sequence, validThrough, version: 4, state: { sequence } }, 0)
        }
        const session = yield* CassandraSession
        for (const sequence of [2n, 3n]) {
          yield* session.execute(
            cql`UPDATE snapshots SET state = '{"rubbish' WHERE entity_type = 'Corrupt' AND entity_id = 's' AND sequence = ${sequence}`
          )
        }
        const loaded = yield* journal.load(key)
        const snapshot = { sequence: 1, validThrough, version: 4, state: { sequence: 1 } }
        assert.deepStrictEqual(Option.getOrThrow(loaded.snapshot), snapshot)
        assert.deepStrictEqual(sequences(loaded.events), [2, 3, 4])
      })
    )
  )

  it.effect("a process sees what another has stored: by its stream, by confirm, by a refused append", () =>
    run(options, (one) =>
      run(options, (two) =>
        Effect.gen(function* () {
          const key = { entityType: "Shared", entityId: "s" }
          const seen = yield* two
            .events("Shared", two.shardOf("s"), 0)
            .pipe(Stream.take(40), Stream.runCollect, Effect.forkChild)
          const before = yield* two.load(key)
          const at = yield* Effect.provideService(appendAll("Shared", "s", 40), Journal, one)
          assert.strictEqual(
            (yield* Effect.flip(two.append({ ...key, expected: before, events: [deposited(1)] }))).reason._tag,
            "SequenceConflict"
          )
          assert.strictEqual((yield* Effect.flip(two.confirm(key, before))).reason._tag, "SequenceConflict")
          const after = yield* two.load(key)
          assert.strictEqual(after.sequence, 40)
          yield* two.append({ ...key, expected: after, events: [deposited(41)] })
          assert.strictEqual((yield* Effect.flip(one.confirm(key, at))).reason._tag, "SequenceConflict")
          assert.strictEqual((yield* Fiber.join(seen)).length, 40)
        })
      )
    )
  )

  it.effect("two processes that write the same entities lose, double and reorder nothing", () =>
    run(options, (one) =>
      run(options, (two) =>
        Effect.gen(function* () {
          const ids = numbers(1, 6).map((n) => `e${n}`)
          const acknowledged = new Map<string, number>()
          const write = (journal: Journal["Service"], who: string, entityId: string) =>
            Effect.gen(function* () {
              const key = { entityType: "Fight", entityId }
              let at: Position = yield* journal.load(key)
              for (let stored = 0; stored < 25; ) {
                const result = yield* Effect.result(
                  journal.append({ ...key, expected: at, events: [{ type: "By", payload: { who, n: stored } }] })
                )
                if (result._tag === "Success") {
                  at = result.success
                  acknowledged.set(`${entityId} ${who} ${stored++}`, at.sequence)
                } else {
                  assert.strictEqual(result.failure.reason._tag, "SequenceConflict")
                  at = yield* journal.load(key)
                }
              }
            })
          yield* Effect.forEach(
            ids,
            (id) => Effect.all([write(one, "one", id), write(two, "two", id)], { concurrency: 2 }),
            {
              concurrency: "unbounded"
            }
          )
          for (const entityId of ids) {
            const { events } = yield* run(options, (third) => third.load({ entityType: "Fight", entityId }))
            assert.deepStrictEqual(sequences(events), numbers(1, 50))
            for (const { payload, sequence } of events) {
              const { n, who } = payload as { who: string; n: number }
              assert.strictEqual(acknowledged.get(`${entityId} ${who} ${n}`), sequence)
            }
          }
        })
      )
    )
  )

  describe("what does not fit is refused", () => {
    it.effect("another number of shards than the recorded one", () =>
      Effect.gen(function* () {
        yield* run(options, (journal) => journal.head("Recorded", 0))
        const error = yield* Effect.flip(
          run({ ...options, shards: 5 }, (journal) => journal.load({ entityType: "Recorded", entityId: "x" }))
        )
        assert.deepInclude(error.reason, { _tag: "SettingsMismatch", setting: "shards", recorded: "3", given: "5" })
        assert.match(error.message, /set shards to 3/)
      })
    )

    it.effect("a log that has become shorter than its index", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const indexed = session
          .execute(cql`SELECT sequence FROM entity_events WHERE entity_type = 'Lost' ALLOW FILTERING`)
          .pipe(Effect.repeat({ until: (rows) => rows.length > 0, schedule: Schedule.spaced("20 millis") }))
        const { sequence } = yield* run(options, (journal) =>
          Effect.provideService(appendAll("Lost", "x", 5), Journal, journal).pipe(Effect.tap(indexed))
        )
        assert.strictEqual(sequence, 5)
        for (const shard of [0, 1, 2]) {
          yield* session.execute(
            cql`DELETE FROM event_log WHERE entity_type = 'Lost' AND shard = ${shard} AND generation = 1 AND bucket = ${0n} AND part = 0`
          )
        }
        const error = yield* Effect.flip(run(options, (journal) => journal.load({ entityType: "Lost", entityId: "x" })))
        assert.strictEqual(error.reason._tag, "DataLost")
        assert.match(error.message, /lost, or an older copy restored/)
      })
    )

    it.effect("a block that is not readable, and a gap", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        for (const [entityType, damage] of [
          [
            "Unreadable",
            (shard: number) =>
              cql`UPDATE event_log SET events = 'rubbish' WHERE entity_type = 'Unreadable' AND shard = ${shard} AND generation = 1 AND bucket = ${0n} AND part = 0 AND offset = ${3n} IF EXISTS`
          ],
          [
            "Gap",
            (shard: number) =>
              cql`DELETE FROM event_log WHERE entity_type = 'Gap' AND shard = ${shard} AND generation = 1 AND bucket = ${0n} AND part = 0 AND offset = ${3n} IF EXISTS`
          ]
        ] as const) {
          const shard = yield* run(options, (journal) =>
            Effect.as(Effect.provideService(appendAll(entityType, "x", 5), Journal, journal), journal.shardOf("x"))
          )
          yield* session.applied(damage(shard))
          const error = yield* Effect.flip(
            run(options, (journal) => Stream.runDrain(journal.currentEvents(entityType, shard, 0)))
          )
          assert.strictEqual(error.reason._tag, "DataCorrupt")
        }
      })
    )
  })

  it.effect("large blocks are packed where nothing else is set; deleted payloads are in neither form", () =>
    Effect.gen(function* () {
      const session = yield* CassandraSession
      const log = session.execute<{ entity_type: string; events: string | null; events_zstd: Buffer | null }>(
        cql`SELECT entity_type, events, events_zstd FROM event_log`
      )
      const stored = (entityType: string) =>
        Effect.map(log, (rows) =>
          rows
            .filter((row) => row.entity_type === entityType && (row.events ?? row.events_zstd) !== null)
            .map(({ events, events_zstd }) => [events?.length, events_zstd?.length])
        )
      const note = "well done ".repeat(10)
      const batch = (n: number) => Array.from({ length: n }, (_, i) => ({ type: "Noted", payload: { i, note } }))
      for (const [entityType, compression] of [
        ["Packed", undefined],
        ["Plain", "none"]
      ] as const) {
        const key = { entityType, entityId: "x" }
        yield* run({ ...options, bucketSize: 1000, compression }, (journal) =>
          Effect.gen(function* () {
            yield* journal.append({ ...key, expected: "none", events: batch(3) })
            yield* journal.append({ ...key, expected: 3, events: batch(100) })
          })
        )
        const [[small], [large, packed]] = (yield* stored(entityType)) as [Array<number>, Array<number | undefined>]
        assert.isBelow(small!, 500)
        if (compression === "none") assert.isAbove(large!, 13_000)
        else {
          assert.isUndefined(large)
          assert.isBelow(packed!, 1500)
        }
        // Whoever is set otherwise reads it, and deletes from it.
        yield* run({ ...options, bucketSize: 1000, compression: compression === "none" ? "zstd" : "none" }, (journal) =>
          Effect.gen(function* () {
            const shard = journal.shardOf("x")
            const read = yield* Stream.runCollect(journal.currentEvents(entityType, shard, 0))
            assert.deepStrictEqual(
              read.map(({ payload }) => payload),
              [...batch(3), ...batch(100)].map(({ payload }) => payload)
            )
            yield* journal.delete(key)
            assert.strictEqual((yield* journal.load(key)).deletedThrough, 103)
          })
        )
        const left = yield* stored(entityType)
        assert.deepStrictEqual(
          left.map(([, packed]) => packed),
          [undefined, undefined, undefined]
        )
        for (const row of yield* log)
          if (row.entity_type === entityType) assert.notInclude(row.events ?? "", "well done")
      }
    })
  )

  it.effect("two index rows that overlap, as two processes write them, are one history", () =>
    Effect.gen(function* () {
      const key = { entityType: "Overlap", entityId: "o" }
      yield* run(options, (one) =>
        run(options, (two) =>
          Effect.gen(function* () {
            let at: Position = yield* one.load(key)
            for (let i = 0; i < 10; i++) {
              for (const journal of [one, two]) {
                at = yield* Effect.retry(
                  Effect.flatMap(journal.load(key), (from) =>
                    Effect.provideService(appendAll("Overlap", "o", 3, from), Journal, journal)
                  ),
                  { times: 5 }
                )
              }
              yield* eventually(one.load(key), ({ sequence }) => sequence >= 3)
            }
            assert.strictEqual(at.sequence, 60)
          })
        )
      )
      const { events } = yield* run(options, (third) => third.load(key))
      assert.deepStrictEqual(sequences(events), numbers(1, 60))
    })
  )
})
