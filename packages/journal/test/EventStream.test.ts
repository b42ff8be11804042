import { assert, describe, it, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Deferred, Effect, Fiber, Layer, Option, Ref, Result, Schedule, Schema, Stream } from "effect"
import * as EventCodec from "../src/EventCodec.ts"
import * as EventStream from "../src/EventStream.ts"
import { type EventEnvelope, Journal, type Options, type Position } from "../src/Journal.ts"

/** Small buckets, so that every test crosses some. */
const options: Options = { shards: 3, bucketSize: 20, indexInterval: "50 millis", maxPollInterval: "100 millis" }

const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

/** Appends events to an entity, with their sequence numbers as payload, as many at once as a bucket holds. */
const append = Effect.fnUntraced(function* (entityType: string, entityId: string, count: number, atOnce = 20) {
  const journal = yield* Journal
  let at: Position = yield* journal.load({ entityType, entityId })
  const last = at.sequence + count
  while (at.sequence < last) {
    const events = numbers(at.sequence + 1, Math.min(last, at.sequence + atOnce)).map((n) => ({
      type: "Added",
      payload: { n }
    }))
    at = yield* journal.append({ entityType, entityId, expected: at, events })
  }
})

const ids = numbers(1, 12).map((n) => `e${n}`)

const appendToAll = (entityType: string, count: number) =>
  Effect.forEach(ids, (id) => append(entityType, id, count), { concurrency: "unbounded", discard: true })

const sequencesOf = (events: ReadonlyArray<EventEnvelope>, id: string) =>
  events.filter(({ entityId }) => entityId === id).map(({ sequence }) => sequence)

/** Every event of every entity once and in order. */
const checkAll = (events: ReadonlyArray<EventEnvelope>, from: number, to: number) => {
  for (const id of ids) assert.deepStrictEqual(sequencesOf(events, id), numbers(from, to))
  assert.strictEqual(events.length, ids.length * (to - from + 1))
}

const toCents = ({ euros }: { readonly euros: number }) => ({ cents: Math.round(euros * 100) })

/** The events of a service as its three releases know them. */
const releases = {
  first: EventCodec.make([Schema.TaggedStruct("PaidIn", { euros: Schema.Finite })]),
  second: EventCodec.make([
    Schema.TaggedStruct("Paid", { cents: Schema.Int }).annotate(
      EventCodec.history({
        version: 2,
        upcasters: { 1: toCents },
        downcasters: { 3: ({ cents, currency }) => (currency === "EUR" ? { cents } : []) },
        formerly: ["PaidIn"]
      })
    )
  ]),
  third: EventCodec.make([
    Schema.TaggedStruct("Paid", { cents: Schema.Int, currency: Schema.String }).annotate(
      EventCodec.history({
        version: 3,
        upcasters: { 1: toCents, 2: ({ cents }) => ({ cents, currency: "EUR" }) },
        formerly: ["PaidIn"]
      })
    )
  ])
}

const suite = <E>(name: string, Live: Layer.Layer<Journal, E>) =>
  layer(Live, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    it.effect("gives all events of a type, those of an entity in their order", () =>
      Effect.gen(function* () {
        yield* appendToAll("All", 7)
        checkAll(yield* Stream.runCollect(EventStream.currentEventsByType("All")), 1, 7)
      })
    )

    it.effect("a type without events has none", () =>
      Effect.gen(function* () {
        assert.deepStrictEqual(yield* Stream.runCollect(EventStream.currentEventsByType("None")), [])
        assert.deepStrictEqual(yield* Stream.runCollect(EventStream.currentEntityIds("None")), [])
        assert.deepStrictEqual(yield* EventStream.currentOffset("None"), { epoch: 1, shards: [0, 0, 0] })
      })
    )

    it.effect("resumes after any event, with nothing lost or doubled, through the text of its position", () =>
      Effect.gen(function* () {
        yield* appendToAll("Resume", 5)
        const read: Array<EventEnvelope> = []
        let after: EventStream.Offset | undefined
        for (const count of [1, 2, 13, 1, 30, 13]) {
          const part = yield* EventStream.currentEventsByType("Resume", { after }).pipe(
            Stream.take(count),
            Stream.runCollect
          )
          read.push(...part)
          after = Result.getOrThrow(EventStream.parseOffset(EventStream.formatOffset(part.at(-1)!.position)))
        }
        checkAll(read, 1, 5)
        assert.deepStrictEqual(after, yield* EventStream.currentOffset("Resume"))
        assert.deepStrictEqual(yield* Stream.runCollect(EventStream.currentEventsByType("Resume", { after })), [])
      })
    )

    it.effect("a live stream goes on with the events to come, from the first, or from now on", () =>
      Effect.gen(function* () {
        yield* appendToAll("Live", 3)
        const follow = (from: EventStream.From<EventStream.Offset>, count: number) =>
          EventStream.eventsByType("Live", from).pipe(Stream.take(count), Stream.runCollect, Effect.forkChild)
        const all = yield* follow({}, ids.length * 5)
        const fresh = yield* follow({ after: yield* EventStream.currentOffset("Live") }, ids.length * 2)
        yield* appendToAll("Live", 1)
        yield* appendToAll("Live", 1)
        checkAll(yield* Fiber.join(all), 1, 5)
        checkAll(yield* Fiber.join(fresh), 4, 5)
      })
    )

    it.effect("begins at a point in time, exactly", () =>
      Effect.gen(function* () {
        for (let round = 0; round < 4; round++) yield* appendToAll("Time", 10)
        const all = yield* Stream.runCollect(EventStream.currentEventsByType("Time"))
        const millis = [...new Set(all.map(({ stamp }) => Math.floor(stamp / 1000)))].sort((a, b) => a - b)
        const middle = millis[Math.floor(millis.length / 2)]!
        for (const time of [0, millis[0]!, middle, millis.at(-1)!, millis.at(-1)! + 1]) {
          const expected = all.filter(({ stamp }) => stamp >= time * 1000)
          const key = ({ offset, shard }: EventEnvelope) => `${shard}/${offset}`
          const since = yield* Stream.runCollect(EventStream.currentEventsByType("Time", { since: time }))
          assert.deepStrictEqual(since.map(key).sort(), expected.map(key).sort())
          for (const shard of numbers(0, 2)) {
            const ofShard = yield* Stream.runCollect(
              EventStream.currentEventsByShard("Time", shard, { since: new Date(time) })
            )
            assert.deepStrictEqual(
              ofShard.map(({ offset }) => offset),
              expected.filter((event) => event.shard === shard).map(({ offset }) => offset)
            )
          }
          const ofEntity = yield* Stream.runCollect(
            EventStream.currentEventsByEntity({ entityType: "Time", entityId: "e1" }, { since: time })
          )
          assert.deepStrictEqual(
            ofEntity.map(({ sequence }) => sequence),
            sequencesOf(expected, "e1")
          )
        }
      })
    )

    it.effect("live since a time to come, passes over what comes before", () =>
      Effect.gen(function* () {
        yield* append("Future", "f", 1)
        const [last] = yield* Stream.runCollect(EventStream.currentEventsByType("Future"))
        const since = Math.floor(last!.stamp / 1000) + 300
        const fiber = yield* EventStream.eventsByType("Future", { since }).pipe(
          Stream.runHead,
          Effect.forkChild({ startImmediately: true })
        )
        const first = yield* append("Future", "f", 1).pipe(
          Effect.andThen(Effect.suspend(() => Effect.succeed(fiber.pollUnsafe()))),
          Effect.repeat({ until: (done) => done !== undefined, schedule: Schedule.spaced("10 millis") }),
          Effect.andThen(Fiber.join(fiber))
        )
        const stamps = (yield* Stream.runCollect(EventStream.currentEventsByType("Future"))).map(({ stamp }) => stamp)
        assert.strictEqual(
          Option.getOrThrow(first).stamp,
          stamps.find((stamp) => stamp >= since * 1000)
        )
      })
    )

    it.effect("gives the events of an entity from a sequence number on, and those to come", () =>
      Effect.gen(function* () {
        const key = { entityType: "Entity", entityId: "e" }
        yield* append("Entity", "e", 45)
        yield* append("Entity", "other", 45)
        const journal = yield* Journal
        const at = yield* journal.load(key)
        // A snapshot hides the history from those who load the entity, not from a stream of its events.
        yield* journal.saveSnapshot(key, { ...at, state: {} }, 0)
        const current = (after: number) => Stream.runCollect(EventStream.currentEventsByEntity(key, { after }))
        assert.deepStrictEqual(sequencesOf(yield* current(0), "e"), numbers(1, 45))
        assert.deepStrictEqual(sequencesOf(yield* current(44), "e"), [45])
        assert.deepStrictEqual(yield* current(45), [])
        const fiber = yield* EventStream.eventsByEntity(key, { after: 40 }).pipe(
          Stream.take(15),
          Stream.runCollect,
          Effect.forkChild
        )
        for (let i = 0; i < 5; i++) {
          yield* append("Entity", "other", 3)
          yield* append("Entity", "e", 2)
        }
        const live = yield* Fiber.join(fiber)
        assert.deepStrictEqual(sequencesOf(live, "e"), numbers(41, 55))
      })
    )

    it.effect("gives the events of a shard after an offset", () =>
      Effect.gen(function* () {
        const shard = (yield* Journal).shardOf("s")
        yield* append("Shard", "s", 50)
        for (const after of [0, 19, 20, 49, 50]) {
          const events = yield* Stream.runCollect(EventStream.currentEventsByShard("Shard", shard, { after }))
          assert.deepStrictEqual(sequencesOf(events, "s"), numbers(after + 1, 50))
        }
        const live = EventStream.eventsByShard("Shard", shard, { after: 48 }).pipe(Stream.take(2), Stream.runCollect)
        assert.deepStrictEqual(sequencesOf(yield* live, "s"), [49, 50])
      })
    )

    it.effect("what three releases of a service have stored, is read by each as far as it was told", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const key = { entityType: "Releases", entityId: "r" }
        const write = <E extends { readonly _tag: string }>(codec: EventCodec.EventCodec<E>, event: E) =>
          journal.append({ ...key, expected: "any", events: [codec.encode(event)] })
        const read = <E>(codec: EventCodec.EventCodec<E>) =>
          EventStream.currentEventsByEntity(key).pipe(
            Stream.map(({ payload, type, version }): unknown =>
              Result.getOrElse(codec.decode(type, payload, version), () => "unreadable")
            ),
            Stream.runCollect
          )
        const { first, second, third } = releases
        yield* write(first, { _tag: "PaidIn", euros: 12.34 })
        yield* write(second, { _tag: "Paid", cents: 5 })
        yield* write(third, { _tag: "Paid", cents: 7, currency: "USD" })
        assert.deepStrictEqual(yield* read(third), [
          [{ _tag: "Paid", cents: 1234, currency: "EUR" }],
          [{ _tag: "Paid", cents: 5, currency: "EUR" }],
          [{ _tag: "Paid", cents: 7, currency: "USD" }]
        ])
        // It was told to pass over other currencies than the one that it knows.
        assert.deepStrictEqual(yield* read(second), [[{ _tag: "Paid", cents: 1234 }], [{ _tag: "Paid", cents: 5 }], []])
        assert.deepStrictEqual(yield* read(first), [[{ _tag: "PaidIn", euros: 12.34 }], "unreadable", "unreadable"])
      })
    )

    it.effect("gives the ids of entities, each once, and those to come", () =>
      Effect.gen(function* () {
        yield* appendToAll("Ids", 3)
        assert.deepStrictEqual((yield* Stream.runCollect(EventStream.currentEntityIds("Ids"))).sort(), [...ids].sort())
        const fiber = yield* EventStream.entityIds("Ids").pipe(
          Stream.take(ids.length + 2),
          Stream.runCollect,
          Effect.forkChild
        )
        yield* appendToAll("Ids", 1)
        yield* append("Ids", "new-1", 2)
        yield* append("Ids", "new-2", 2)
        assert.deepStrictEqual((yield* Fiber.join(fiber)).sort(), [...ids, "new-1", "new-2"].sort())
      })
    )

    it.effect("refuses an offset that is not of this journal, and says why", () =>
      Effect.gen(function* () {
        yield* append("Refuse", "r", 3)
        const shard = (yield* Journal).shardOf("r")
        const { epoch, shards } = yield* EventStream.currentOffset("Refuse")
        for (const [after, expected] of [
          [
            { epoch, shards: shards.map((offset, i) => (i === shard ? offset + 1 : 0)) },
            /says 4 for shard \d, whose last event has 3/
          ],
          [{ epoch, shards: shards.slice(1) }, /has 2 shards, and this journal 3/],
          [{ epoch: epoch + 1, shards }, /is of epoch 2, and the journal is in epoch 1/]
        ] as const) {
          for (const events of [EventStream.eventsByType, EventStream.currentEventsByType]) {
            const error = yield* Effect.flip(Stream.runDrain(events("Refuse", { after })))
            assert.strictEqual(error._tag, "InvalidOffset")
            assert.match(error.message, expected)
          }
          assert.match((yield* Effect.flip(EventStream.checkOffset("Refuse", after))).message, expected)
        }
        for (const after of [4, -1, 0.5]) {
          const key = { entityType: "Refuse", entityId: "r" }
          for (const events of [
            EventStream.eventsByEntity(key, { after }),
            EventStream.eventsByShard("Refuse", shard, { after })
          ]) {
            assert.strictEqual((yield* Effect.flip(Stream.runDrain(events)))._tag, "InvalidOffset")
          }
        }
      })
    )
  })

/** With buckets of the usual size, to append much at once. */
const slowly = <E>(name: string, Live: Layer.Layer<Journal, E>) =>
  layer(Live, { excludeTestServices: true, timeout: "2 minutes" })(name, (it) => {
    it.effect("a slow consumer holds back the reading, and not the writers", () =>
      Effect.gen(function* () {
        const journal = yield* Journal
        const read = yield* Ref.make(0)
        const counting =
          (events: Journal["Service"]["events"]): Journal["Service"]["events"] =>
          (type, shard, after) =>
            Stream.tap(events(type, shard, after), () => Ref.update(read, (n) => n + 1))
        const go = yield* Deferred.make<void>()
        const held = yield* Deferred.make<void>()
        const consumer = yield* EventStream.eventsByType("Slow").pipe(
          Stream.provideService(Journal, { ...journal, events: counting(journal.events) }),
          Stream.tap(({ sequence }) =>
            sequence === 1 ? Effect.andThen(Deferred.succeed(held, undefined), Deferred.await(go)) : Effect.void
          ),
          Stream.take(40_001),
          Stream.runCollect,
          Effect.forkChild
        )
        yield* append("Slow", "s", 1)
        yield* Deferred.await(held)
        yield* append("Slow", "s", 40_000, 2000)
        // One page of up to 6000 in the consumer's hand, one ahead, one on the way.
        assert.isBelow(yield* Ref.get(read), 18_001)
        yield* Deferred.succeed(go, undefined)
        assert.deepStrictEqual(sequencesOf(yield* Fiber.join(consumer), "s"), numbers(1, 40_001))
      })
    )
  })

slowly("EventStream in memory, with much to read", Journal.layerMemory())

slowly("EventStream on Cassandra, with much to read", Journal.layer().pipe(Layer.provide(TestKeyspace.layer)))

suite("EventStream in memory", Journal.layerMemory(options))

suite("EventStream on Cassandra", Journal.layer(options).pipe(Layer.provide(TestKeyspace.layer)))

describe("offsets as text", () => {
  const Natural = Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: Number.MAX_SAFE_INTEGER }))

  it.prop("come back", [Schema.Struct({ epoch: Natural, shards: Schema.NonEmptyArray(Natural) })], ([offset]) => {
    // One zero only.
    const plain = { epoch: offset.epoch + 0, shards: offset.shards.map((n) => n + 0) }
    const text = EventStream.formatOffset(plain)
    assert.deepStrictEqual(EventStream.parseOffset(text), Result.succeed(plain))
    assert.match(text, /^[0-9a-z.]+$/)
    assert.deepStrictEqual(Schema.decodeSync(EventStream.OffsetFromString)(text), plain)
    assert.strictEqual(Schema.encodeSync(EventStream.OffsetFromString)(plain), text)
  })

  it.each([
    "",
    "1",
    "1.",
    ".1",
    "1..2",
    "1.-1",
    "1.0x1",
    "1.A",
    " 1.2",
    "1.2 ",
    "1.01",
    "1.2.",
    "1,2",
    "1.zzzzzzzzzzzz",
    "1.1e3é"
  ])("refuses %j", (text) => {
    const parsed = EventStream.parseOffset(text)
    assert.isTrue(
      Result.isFailure(parsed) && parsed.failure.message.startsWith(`${JSON.stringify(text)} is not an offset`)
    )
  })

  it("a schema refuses it in the same words", () => {
    assert.throws(() => Schema.decodeSync(EventStream.OffsetFromString)("none"), /"none" is not an offset/)
  })
})
