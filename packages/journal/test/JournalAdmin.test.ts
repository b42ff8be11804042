import { assert, describe, layer } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make as statement } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Clock, Effect, Layer, Option, Stream } from "effect"
import { gzip } from "../src/Encoding.ts"
import { Journal, type Options } from "../src/Journal.ts"
import { type Finding, JournalAdmin, type Progress } from "../src/JournalAdmin.ts"
import type { JournalError } from "../src/JournalError.ts"
import { setOff } from "./clocks.ts"

const options: Options = {
  shards: 1,
  bucketSize: 20,
  partitionSize: 2000,
  indexInterval: "30 millis",
  maxPollInterval: "100 millis"
}

// The admin needs the tables to be there.
const Live = JournalAdmin.layer().pipe(
  Layer.provideMerge(Journal.layer(options)),
  Layer.provideMerge(TestKeyspace.layer)
)

/** With a journal that is closed afterwards, so that its index is complete. */
const withJournal = <A, E, R>(effect: Effect.Effect<A, E, R>, changed: Options = {}) =>
  Effect.provide(effect, Layer.fresh(Journal.layer({ ...options, ...changed })))

const cql = (text: string, ...params: ReadonlyArray<unknown>) =>
  Effect.flatMap(CassandraSession, (session) => session.execute(statement(text, params)))

const reasonOf = <A, R>(effect: Effect.Effect<A, JournalError, R>) =>
  Effect.map(Effect.flip(effect), ({ reason }) => reason)

const entityIds = ["a", "b", "c"]
const fresh = () => `T-${crypto.randomUUID()}`
const events = (from: number, count: number) =>
  Array.from({ length: count }, (_, i) => ({ type: "E", payload: { n: from + i } }))

/** 54 events of three entities in blocks of three, over several buckets and parts. */
const store = Effect.fnUntraced(function* (entityType: string) {
  const journal = yield* Journal
  for (let n = 1; n <= 18; n += 3) {
    for (const entityId of entityIds) {
      yield* journal.append({ entityType, entityId, expected: "any", events: events(n, 3) })
    }
  }
  const position = yield* journal.load({ entityType, entityId: "a" })
  yield* journal.saveSnapshot({ entityType, entityId: "a" }, { ...position, state: 18 }, 0)
})

const fill = (entityType: string, changed: Options = {}) => withJournal(store(entityType), changed)

interface Block {
  readonly shard: number
  readonly bucket: bigint
  readonly part: number
  readonly offset: bigint
  readonly events: string
  readonly stamp: bigint
}

const blocksOf = (entityType: string) =>
  Effect.map(cql("SELECT * FROM event_log"), (rows) =>
    (rows as unknown as ReadonlyArray<Block & { entity_type: string }>)
      .filter((row) => row.entity_type === entityType && row.offset !== null)
      .sort((a, b) => Number(a.offset - b.offset))
  )

const atBlock = "entity_type = ? AND shard = ? AND generation = 1 AND bucket = ? AND part = ?"
const keyOf = (entityType: string, { bucket, part, shard }: Block) => [entityType, shard, bucket, part]

/** Changes a column of the block that ends at an offset. */
const setBlock = (entityType: string, offset: number, column: string, value: (block: Block) => unknown) =>
  Effect.gen(function* () {
    const block = (yield* blocksOf(entityType)).find((one) => one.offset === BigInt(offset))!
    yield* cql(
      `UPDATE event_log SET ${column} = ? WHERE ${atBlock} AND offset = ?`,
      value(block),
      ...keyOf(entityType, block),
      block.offset
    )
  })

const atIndex = "entity_type = ? AND entity_id = ? AND generation = 1 AND partition = ?"

const indexRow = (entityType: string, entityId: string, sequence: number) =>
  Effect.map(
    cql(
      `SELECT events FROM entity_events WHERE ${atIndex} AND sequence = ?`,
      entityType,
      entityId,
      0n,
      BigInt(sequence)
    ),
    (rows) => rows[0]!.events as string
  )

const setIndex = (entityType: string, entityId: string, partition: number, sequence: number, text: string | null) =>
  cql(
    "INSERT INTO entity_events (entity_type, entity_id, generation, partition, sequence, events) VALUES (?, ?, 1, ?, ?, ?)",
    entityType,
    entityId,
    BigInt(partition),
    BigInt(sequence),
    text
  )

const setSnapshot = (entityType: string, entityId: string, sequence: number, columns: Record<string, unknown>) => {
  const all = { offset: 54n, epoch: 1, version: 1, state: "1", ...columns }
  const names = Object.keys(all)
  return cql(
    `INSERT INTO snapshots (entity_type, entity_id, sequence, ${names}) VALUES (?, ?, ?, ${names.map(() => "?")})`,
    entityType,
    entityId,
    BigInt(sequence),
    ...Object.values(all)
  )
}

const setWatermark = (entityType: string, offset: bigint | null) =>
  cql(
    "UPDATE index_watermarks SET offset = ? WHERE entity_type = ? AND shard = 0 AND generation = 1",
    offset,
    entityType
  )

type Damage = readonly [
  name: string,
  damage: (entityType: string) => Effect.Effect<unknown, unknown, CassandraSession>,
  expected: Partial<Omit<Finding, "message">> & { readonly message: RegExp },
  /** Findings in all, where there are more; "some" where it depends on how the index was cut into rows. */
  count?: number | "some"
]

const rubbish = "rubbish{"

// Blocks end at 3, 6, 9 ... 54; events 1 to 3 of "a" are those of offsets 1 to 3, of "b" those of 4 to 6.
const damages: ReadonlyArray<Damage> = [
  [
    "a block that is no JSON",
    (type) => setBlock(type, 9, "events", () => rubbish),
    { kind: "unreadable", table: "event_log", offset: 9, message: /block of events 7 to 9 is damaged: .*SyntaxError/ }
  ],
  [
    "a block whose packed text is damaged",
    (type) => setBlock(type, 9, "events_zstd", () => Buffer.from(rubbish)),
    { kind: "unreadable", table: "event_log", offset: 9, message: /block of events 7 to 9 is damaged: .*not zstd/ }
  ],
  [
    "a block that is JSON of something else",
    (type) => setBlock(type, 9, "events", () => `{"events":1}`),
    { kind: "unreadable", offset: 9, message: /no list of events/ }
  ],
  [
    "a block with an event of wrong types",
    (type) => setBlock(type, 9, "events", () => `[{"e":7,"n":1,"t":"E"}]`),
    { kind: "unreadable", offset: 9, message: /event 1 belongs to the entity 7/ }
  ],
  [
    "a block without events",
    (type) => setBlock(type, 9, "events", () => "[]"),
    { kind: "unreadable", offset: 9, message: /it has no events/ }
  ],
  [
    "a block whose text is null",
    (type) => setBlock(type, 9, "events", () => null),
    { kind: "unreadable", offset: 9, message: /no list of events/ }
  ],
  [
    "a block without an id",
    (type) => setBlock(type, 9, "block_id", () => null),
    { kind: "unreadable", offset: 9, message: /lacks one of the columns/ }
  ],
  [
    "a block without a stamp",
    (type) => setBlock(type, 9, "stamp", () => null),
    { kind: "unreadable", offset: 9, message: /lacks one of the columns/ }
  ],
  [
    "a block that is gone",
    (type) =>
      Effect.gen(function* () {
        const block = (yield* blocksOf(type)).find(({ offset }) => offset === 9n)!
        yield* cql(`DELETE FROM event_log WHERE ${atBlock} AND offset = 9`, ...keyOf(type, block))
      }),
    { kind: "missing", table: "event_log", offset: 7, message: /events 7 to 9 are missing, 10 follows/ }
  ],
  [
    "a partition that is gone",
    (type) =>
      Effect.gen(function* () {
        const block = (yield* blocksOf(type)).find(({ offset }) => offset === 33n)!
        yield* cql(`DELETE FROM event_log WHERE ${atBlock}`, ...keyOf(type, block))
      }),
    { kind: "missing", table: "event_log", message: /events \d+ to \d+ are missing/ }
  ],
  [
    "the last block gone, and its head still there",
    (type) =>
      Effect.gen(function* () {
        const block = (yield* blocksOf(type)).find(({ offset }) => offset === 54n)!
        yield* cql(`DELETE FROM event_log WHERE ${atBlock} AND offset = 54`, ...keyOf(type, block))
      }),
    { kind: "missing", offset: 52, message: /head of bucket 2, part \d is 54, its last block ends at 51/ },
    3
  ],
  [
    "a head behind its blocks",
    (type) =>
      Effect.gen(function* () {
        const block = (yield* blocksOf(type)).find(({ offset }) => offset === 54n)!
        yield* cql(`UPDATE event_log SET head = 51 WHERE ${atBlock}`, ...keyOf(type, block))
      }),
    { kind: "ahead", offset: 54, message: /a block ends at 54, beyond the head of bucket 2, part \d, which is 51/ }
  ],
  [
    "a stamp that goes back",
    (type) => setBlock(type, 9, "stamp", ({ stamp }) => stamp - 60_000_000n),
    { kind: "order", offset: 7, message: /event 7 has the stamp \d+, the one before it/ },
    // The index has the right one.
    4
  ],
  [
    "a stamp of the future",
    (type) => setBlock(type, 54, "stamp", ({ stamp }) => stamp + 3_600_000_000n),
    { kind: "order", offset: 54, message: /event 54 is stamped 3\d\d\d s ahead/ },
    4
  ],
  [
    "a sequence number twice",
    (type) => setBlock(type, 12, "events", ({ events }) => events.replace('"n":4', '"n":3')),
    { kind: "doubled", table: "event_log", entityId: "a", sequence: 3, offset: 10, message: /"a" .* twice/ },
    2
  ],
  [
    "a sequence number left out",
    (type) => setBlock(type, 12, "events", ({ events }) => events.replace('"n":6', '"n":7')),
    {
      kind: "missing",
      table: "event_log",
      entityId: "a",
      sequence: 6,
      message: /event 6 of "a" is missing in the log/
    },
    3
  ],
  [
    "a block of another program beyond the end",
    (type) =>
      cql(
        `INSERT INTO event_log (entity_type, shard, generation, bucket, part, head, offset, block_id, stamp, written, events)
         VALUES (?, 0, 1, 99, 0, 2000, 2000, now(), 1, 10, '[{"e":"x","n":1,"t":"E","p":1}]')`,
        type
      ),
    { kind: "missing", offset: 55, message: /events 55 to 1999 are missing, 2000 follows/ },
    // Its stamp is not of these days.
    2
  ],
  [
    "a block of another program in a partition that is full",
    (type) =>
      cql(
        `INSERT INTO event_log (entity_type, shard, generation, bucket, part, head, offset, block_id, stamp, written, events)
         VALUES (?, 0, 1, 0, 70, 3, 3, now(), 1, 10, '[{"e":"x","n":1,"t":"E","p":1}]')`,
        type
      ),
    {
      kind: "doubled",
      offset: 3,
      message: /block ends at offset 3, where the log already has events \(bucket 0, part 70\)/
    }
  ],
  [
    "a log of a shard that there is not",
    (type) =>
      cql("INSERT INTO event_log (entity_type, shard, generation, bucket, part, head) VALUES (?, 7, 1, 0, 0, 1)", type),
    { kind: "misplaced", table: "event_log", shard: 7, message: /a log of shard 7 .*there are shards 0 to 0/ }
  ],
  [
    "a log of another generation",
    (type) =>
      cql("INSERT INTO event_log (entity_type, shard, generation, bucket, part, head) VALUES (?, 0, 5, 0, 0, 1)", type),
    { kind: "misplaced", table: "event_log", message: /a log of generation 5/ }
  ],
  [
    "an index row that is no JSON",
    (type) => setIndex(type, "a", 0, 1, rubbish),
    {
      kind: "unreadable",
      table: "entity_events",
      entityId: "a",
      sequence: 1,
      message: /index row of "a" .*SyntaxError/
    },
    2
  ],
  [
    "an index row without text",
    (type) => setIndex(type, "a", 0, 1, null),
    { kind: "unreadable", table: "entity_events", message: /index row of "a" .*no list of events/ },
    2
  ],
  [
    "an index row of wrong types",
    (type) => setIndex(type, "a", 0, 1, `[{"n":1,"t":"E","o":"1","s":2}]`),
    { kind: "unreadable", table: "entity_events", message: /event 1 has the offset 1 and the stamp 2/ },
    2
  ],
  [
    "an index row that is gone",
    (type) => cql(`DELETE FROM entity_events WHERE ${atIndex} AND sequence = 1`, type, "a", 0n),
    {
      kind: "missing",
      table: "entity_events",
      entityId: "a",
      sequence: 1,
      message: /event 1 of "a" and \d+ more is not in the index, which should be complete up to offset 54/
    }
  ],
  [
    "an index row with another payload",
    (type) =>
      Effect.flatMap(indexRow(type, "a", 1), (text) => setIndex(type, "a", 0, 1, text.replace('"n":1}', '"n":9}'))),
    {
      kind: "different",
      table: "entity_events",
      entityId: "a",
      sequence: 1,
      message: /another in the index than in the log/
    }
  ],
  [
    "an index row of another entity",
    (type) => Effect.flatMap(indexRow(type, "b", 1), (text) => setIndex(type, "a", 0, 1, text)),
    {
      kind: "different",
      table: "entity_events",
      entityId: "a",
      sequence: 1,
      offset: 1,
      message: /event 1 of "a" has offset 4 .* in the index, 1 .* in the log/
    },
    "some"
  ],
  [
    "an index row of an entity that there is not",
    (type) => Effect.flatMap(indexRow(type, "b", 1), (text) => setIndex(type, "x", 0, 1, text)),
    {
      kind: "different",
      entityId: "x",
      message: /the index has event 1 of "x" at offset 4, where the log does not have it/
    }
  ],
  [
    "an index row of events to come",
    (type) => setIndex(type, "a", 0, 19, `[{"o":900,"s":1,"n":19,"t":"E","p":1}]`),
    {
      kind: "ahead",
      entityId: "a",
      sequence: 19,
      message: /index has event 19 of "a" at offset 900, the log ends at 54/
    }
  ],
  [
    "an index row in a partition where nobody looks",
    (type) => setIndex(type, "a", 4, 19, `[{"o":900,"s":1,"n":19,"t":"E","p":1}]`),
    { kind: "ahead", entityId: "a", sequence: 19, message: /index has event 19 of "a" at offset 900/ }
  ],
  [
    "a watermark beyond the head",
    (type) => setWatermark(type, 77n),
    { kind: "ahead", table: "index_watermarks", offset: 77, message: /complete up to offset 77, the log ends at 54/ }
  ],
  [
    "a watermark inside a block",
    (type) => setWatermark(type, 53n),
    { kind: "different", table: "index_watermarks", offset: 53, message: /up to offset 53, where no block ends/ }
  ],
  [
    "a watermark without an offset",
    (type) =>
      Effect.andThen(
        cql("INSERT INTO index_watermarks (entity_type, shard, generation) VALUES (?, 0, 1)", type),
        setWatermark(type, null)
      ),
    { kind: "unreadable", table: "index_watermarks", message: /the watermark has no offset/ }
  ],
  [
    "a watermark of a shard that there is not",
    (type) => cql("INSERT INTO index_watermarks (entity_type, shard, generation, offset) VALUES (?, 3, 1, 1)", type),
    { kind: "misplaced", table: "index_watermarks", message: /a watermark of shard 3/ }
  ],
  [
    "a head that was said and is not there",
    (type) => cql("UPDATE log_heads SET offset = 99 WHERE entity_type = ? AND shard = 0", type),
    { kind: "ahead", table: "log_heads", offset: 99, message: /have said that the log ends at 99, it ends at 54/ }
  ],
  [
    "a head that was said of a shard that there is not",
    (type) => cql("INSERT INTO log_heads (entity_type, shard, offset) VALUES (?, 5, 1)", type),
    { kind: "misplaced", table: "log_heads", shard: 5, message: /shard 5 is said to end at 1, there are shards 0 to 0/ }
  ],
  [
    "a snapshot that is no JSON",
    (type) => setSnapshot(type, "a", 18, { state: rubbish }),
    { kind: "unreadable", table: "snapshots", entityId: "a", sequence: 18, message: /its state is not JSON/ }
  ],
  [
    "a snapshot without an offset",
    (type) => setSnapshot(type, "a", 17, { offset: null }),
    { kind: "unreadable", table: "snapshots", sequence: 17, message: /lacks a column/ }
  ],
  [
    "a snapshot ahead of the log",
    (type) => setSnapshot(type, "a", 30, { offset: 99n }),
    { kind: "ahead", table: "snapshots", sequence: 30, message: /was made at offset 99, the log ends at 54/ }
  ],
  [
    "a snapshot of more events than there are",
    (type) => setSnapshot(type, "a", 30, {}),
    { kind: "ahead", table: "snapshots", sequence: 30, message: /stands for more than the 18 events/ }
  ],
  [
    "a snapshot of an entity that there is not",
    (type) => setSnapshot(type, "x", 1, {}),
    { kind: "ahead", table: "snapshots", entityId: "x", message: /stands for more than the 0 events/ }
  ],
  [
    "a snapshot that claims events it does not have",
    (type) => setSnapshot(type, "a", 2, {}),
    {
      kind: "different",
      table: "snapshots",
      sequence: 2,
      message: /everything up to offset 54, where the entity has other/
    }
  ],
  [
    "a snapshot of an epoch to come",
    (type) => setSnapshot(type, "a", 18, { epoch: 4 }),
    { kind: "ahead", table: "snapshots", message: /is of epoch 4, the entity type is in epoch 1/ }
  ],
  [
    "a deletion that cannot be",
    (type) => cql("INSERT INTO deletions (entity_type, shard, entity_id, marker) VALUES (?, 0, 'a', 3)", type),
    {
      kind: "unreadable",
      table: "deletions",
      entityId: "a",
      sequence: 3,
      message: /up to NaN, to be logged as event 3/
    }
  ],
  [
    "a deletion that was not logged",
    (type) =>
      cql("INSERT INTO deletions (entity_type, shard, entity_id, marker, through) VALUES (?, 0, 'a', 19, 18)", type),
    { kind: "deletion", table: "deletions", entityId: "a", sequence: 19, message: /begun and not logged/ }
  ],
  [
    "a deletion of a shard that there is not",
    (type) =>
      cql("INSERT INTO deletions (entity_type, shard, entity_id, marker, through) VALUES (?, 9, 'a', 19, 18)", type),
    { kind: "misplaced", table: "deletions", message: /a deletion of shard 9/ }
  ],
  [
    "a marker of a deletion that makes no sense",
    (type) =>
      setBlock(type, 54, "events", ({ events }) =>
        events.replace(/"t":"E","p":\{"n":18\}/, '"t":"$deleted","p":{"through":99}')
      ),
    {
      kind: "unreadable",
      table: "event_log",
      sequence: 18,
      message: /says that events up to 99 are deleted, which it cannot/
    },
    3
  ],
  [
    "a record without shards",
    (type) => cql("UPDATE entity_types SET shards = null WHERE entity_type = ?", type),
    { kind: "record", table: "entity_types", message: /the record has no shards, or an impossible one: NaN/ }
  ],
  [
    "a record of an unknown consistency",
    (type) => cql("UPDATE entity_types SET serial_consistency = 'ANY' WHERE entity_type = ?", type),
    { kind: "record", table: "entity_types", message: /no serialConsistency, or an impossible one: ANY/ }
  ],
  [
    "a log without a record",
    (type) => cql("DELETE FROM entity_types WHERE entity_type = ?", type),
    { kind: "record", table: "entity_types", message: /there is no record of it/ }
  ]
]

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("JournalAdmin", (it) => {
  it.effect("lists entity types and their shards", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* fill(entityType, { shards: 3 })
      const state = (yield* admin.types).find((one) => one.entityType === entityType)!
      assert.deepInclude(state, {
        serialConsistency: "SERIAL",
        bucketSize: 20,
        partitionSize: 2000,
        epoch: 1,
        indexGeneration: 1,
        otherIndexGenerations: [],
        problem: undefined
      })
      assert.strictEqual(
        state.shards.reduce((sum, { head }) => sum + head, 0),
        54
      )
      for (const { head, lastEvent, watermark } of state.shards) {
        assert.strictEqual(watermark, head)
        assert.strictEqual(lastEvent === undefined, head === 0)
        if (lastEvent !== undefined) assert.isBelow(Date.now() - lastEvent.getTime(), 60_000)
      }
      const reason = yield* reasonOf(admin.verify("Nothing"))
      assert.strictEqual(reason._tag, "OperationRefused")
      assert.match(reason.message, /there is no entity type "Nothing" in keyspace "\w+", there is /)
      assert.match((yield* reasonOf(admin.verify(entityType, { shard: 3 }))).message, /no shard 3: there are 0 to 2/)
    })
  )

  it.effect("shows the history of an entity, with metadata, deleted events and those to come", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const key = { entityType: fresh(), entityId: "a" }
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          yield* journal.append({ ...key, expected: "none", events: events(1, 2) })
          yield* journal.delete(key)
          const text = "long enough to be packed ".repeat(100)
          yield* journal.append({
            ...key,
            expected: "any",
            events: [{ type: "Long", version: 2, payload: { text }, metadata: { correlationId: "r" } }]
          })
          const all = yield* Stream.runCollect(admin.history(key))
          assert.deepStrictEqual(
            all.map(({ deleted, sequence, type, version }) => [sequence, type, version, deleted]),
            [
              [1, "E", 1, true],
              [2, "E", 1, true],
              [3, "$deleted", 1, false],
              [4, "Long", 2, false]
            ]
          )
          assert.deepStrictEqual(all[3]?.metadata, { correlationId: "r" })
          assert.deepStrictEqual(all[3]?.payload, { text })
          const followed = admin.history(key, { after: 3, follow: true }).pipe(
            Stream.tap(({ sequence }) =>
              sequence === 4 ? journal.append({ ...key, expected: 4, events: events(5, 1) }) : Effect.void
            ),
            Stream.take(2),
            Stream.runCollect
          )
          assert.deepStrictEqual(
            (yield* followed).map(({ sequence }) => sequence),
            [4, 5]
          )
        }),
        { encoding: gzip() }
      )
    })
  )

  it.effect("finds nothing where nothing is wrong; in slices of entities too; while services append", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      const seen: Array<Progress> = []
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          // Over a window, an index partition, and many blocks.
          for (let n = 1; n <= 10_500; n += 1500) {
            yield* journal.append({ entityType, entityId: "long", expected: "any", events: events(n, 1500) })
          }
          const names = Array.from({ length: 300 }, (_, i) => `entity ${i}`)
          yield* Effect.forEach(
            names,
            (entityId) => journal.append({ entityType, entityId, expected: "any", events: events(1, 40) }),
            { concurrency: "unbounded" }
          )
          yield* journal.delete({ entityType, entityId: "entity 7" })
          const position = yield* journal.load({ entityType, entityId: "long" })
          yield* journal.saveSnapshot({ entityType, entityId: "long" }, { ...position, state: 1 }, 0)
          yield* Effect.raceFirst(
            Effect.forEach(
              [{}, { maxEntities: 40 }],
              (limits) =>
                Effect.gen(function* () {
                  const found = yield* admin.verify(entityType, {
                    ...limits,
                    onProgress: (progress) => Effect.sync(() => seen.push(progress))
                  })
                  assert.deepStrictEqual(found.findings, [])
                  assert.isAtLeast(found.shards[0]!.events, 22_500)
                  assert.strictEqual(found.shards[0]!.entities, 302)
                }),
              { discard: true }
            ),
            Effect.forever(journal.append({ entityType, entityId: "busy", expected: "any", events: events(1, 1) }))
          )
        }),
        { bucketSize: 5000, partitionSize: 500_000 }
      )
      const { done, total } = seen.at(-1)!
      assert.isAtLeast(done, total)
      assert.isAbove(seen.length, 5)
    })
  )

  describe("finds and names", () => {
    for (const [name, damage, expected, count = 1] of damages) {
      it.effect(name, () =>
        Effect.gen(function* () {
          const admin = yield* JournalAdmin
          const entityType = fresh()
          yield* store(entityType)
          yield* cql(
            "SELECT offset FROM index_watermarks WHERE entity_type = ? AND shard = 0 AND generation = 1",
            entityType
          ).pipe(Effect.repeat({ until: ([row]) => row?.offset === 54n }))
          assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
          yield* damage(entityType)
          const found = yield* admin.verify(entityType)
          const { message, ...exact } = expected
          const all = found.findings.map((finding) => JSON.stringify(finding)).join("\n")
          const finding = found.findings.find(
            (one) => message.test(one.message) && Object.entries(exact).every(([k, v]) => one[k as keyof Finding] === v)
          )
          assert.isDefined(finding, all)
          assert.strictEqual(finding!.entityType, entityType)
          assert.isNotEmpty(finding!.remedy)
          if (count === "some") assert.isAtLeast(found.count, 1)
          else assert.strictEqual(found.count, count, all)
          // Neither does anything else of the admin break.
          const states = yield* admin.types
          const state = states.find((one) => one.entityType === entityType)
          if (finding!.kind === "record") assert.isTrue(state === undefined || state.problem !== undefined)
          yield* Effect.exit(Stream.runDrain(admin.history({ entityType, entityId: "a" }))).pipe(
            Effect.tap((exit) =>
              Effect.sync(() => {
                if (exit._tag === "Failure") assert.isFalse(exit.cause.reasons.some((one) => one._tag === "Die"))
              })
            )
          )
        })
      )
    }
  })

  it.effect("an event of an entity of another shard", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* fill(entityType, { shards: 2 })
      const block = (yield* blocksOf(entityType))[0]!
      yield* cql(
        `UPDATE event_log SET events = ? WHERE ${atBlock} AND offset = ?`,
        block.events.replace(/"e":"\w"/g, `"e":"${block.events.includes('"e":"a"') ? "b" : "a"}"`),
        ...keyOf(entityType, block),
        block.offset
      )
      const found = yield* admin.verify(entityType)
      const misplaced = found.findings.filter(({ kind }) => kind === "misplaced")
      const journal = yield* Effect.provide(Journal, Journal.layerMemory({ shards: 2 }))
      if (journal.shardOf("a") !== journal.shardOf("b")) {
        assert.match(misplaced[0]!.message, /event 1 of "\w" stands at offset 1, the entity belongs to shard/)
      } else assert.isNotEmpty(found.findings)
    })
  )

  it.effect("rebuilds the index while a service appends; deletions stay deleted; the old one is removed", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* fill(entityType)
      // The index is damaged, so that loading fails.
      yield* setIndex(entityType, "a", 0, 1, rubbish)
      let millis = 0
      const later = setOff(yield* Clock.Clock, () => millis)
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          const load = (entityId: string) => journal.load({ entityType, entityId }, { snapshotsUpTo: 0 })
          assert.strictEqual((yield* reasonOf(load("a")))._tag, "DataCorrupt")
          yield* journal.delete({ entityType, entityId: "b" })
          const rebuilt = yield* Effect.raceFirst(
            admin.rebuildIndex(entityType),
            Effect.forever(journal.append({ entityType, entityId: "busy", expected: "any", events: events(1, 1) }))
          )
          assert.strictEqual(rebuilt.generation, 2)
          assert.isAtLeast(rebuilt.events, 55)
          yield* journal.append({ entityType, entityId: "c", expected: 18, events: events(19, 1) })
          yield* journal.delete({ entityType, entityId: "c" })

          const refused = yield* reasonOf(admin.removeOldIndexes(entityType))
          assert.match(refused.message, /generation 2 of ".*" is in use since \d+ s, .*: try again in 10 min/)
          const would = yield* admin.removeOldIndexes(entityType, { dryRun: true })
          assert.deepStrictEqual([...would], [[1, 4]])
          const removed = yield* admin.removeOldIndexes(entityType, { minAge: 0 })
          assert.deepStrictEqual(removed, would)
          assert.deepStrictEqual([...(yield* admin.removeOldIndexes(entityType, { minAge: 0 }))], [])

          // A service that was stopped for so long looks before it trusts what it has read.
          millis = 61_000
          const { events: found, sequence } = yield* load("a")
          assert.strictEqual(sequence, 18)
          assert.deepStrictEqual(
            found.map(({ payload }) => payload),
            events(1, 18).map(({ payload }) => payload)
          )
          for (const entityId of ["b", "c"]) {
            assert.isTrue((yield* load(entityId)).events.every(({ deleted, type }) => deleted || type === "$deleted"))
          }
        })
      ).pipe(Effect.provideService(Clock.Clock, later))
      const { findings } = yield* admin.verify(entityType)
      assert.deepStrictEqual(findings, [])
      const rows = yield* cql("SELECT entity_type, entity_id, generation, events FROM entity_events")
      for (const row of rows) {
        if (row.entity_type !== entityType) continue
        assert.strictEqual(row.generation, 2)
        if (row.entity_id === "b" || row.entity_id === "c") assert.notInclude(row.events, '"p":{"n"')
      }
    })
  )

  it.effect("a rebuild that was broken off goes on where it was", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          for (let n = 0; n < 20; n++) {
            yield* journal.append({ entityType, entityId: "a", expected: "any", events: events(1, 1000) })
          }
        }),
        { bucketSize: 5000, partitionSize: 500_000 }
      )
      const broken = yield* Effect.exit(admin.rebuildIndex(entityType, { onProgress: () => Effect.interrupt }))
      assert.strictEqual(broken._tag, "Failure")
      const { events: left } = yield* admin.rebuildIndex(entityType)
      assert.isAbove(left, 0)
      assert.isBelow(left, 20_000)
      assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          assert.strictEqual((yield* journal.load({ entityType, entityId: "a" })).sequence, 20_000)
        }),
        { bucketSize: 5000, partitionSize: 500_000 }
      )
    })
  )

  it.effect("a deletion that is not finished is found, and finished", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* fill(entityType)
      const text = yield* indexRow(entityType, "a", 1)
      yield* withJournal(Effect.flatMap(Journal, (journal) => journal.delete({ entityType, entityId: "a" })))
      assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
      // As a process leaves it that dies after it has logged the fact.
      yield* setBlock(entityType, 12, "events", () =>
        JSON.stringify([4, 5, 6].map((n) => ({ e: "a", n, t: "E", p: { n } })))
      )
      yield* setIndex(entityType, "a", 0, 1, text)
      yield* cql(
        "INSERT INTO deletions (entity_type, shard, entity_id, marker, through) VALUES (?, 0, 'a', 19, 18)",
        entityType
      )
      const { findings } = yield* admin.verify(entityType)
      assert.deepInclude(findings[0], { kind: "deletion", table: "event_log", entityId: "a", offset: 10 })
      assert.match(findings[0]!.message, /deletion of events of "a" up to 18 is not finished: the log has a payload/)
      assert.match(findings[0]!.remedy, /finish it: journal finish-deletions/)
      assert.strictEqual(
        (yield* admin.types).find((one) => one.entityType === entityType)?.shards[0]?.pendingDeletions,
        1
      )
      // The index row was put there by another clock than the journal's, so only a rebuild gets rid of it.
      assert.deepStrictEqual(yield* admin.finishDeletions(entityType), [
        { entityId: "a", through: 18, outcome: "finished" }
      ])
      const after = (yield* admin.verify(entityType)).findings
      assert.deepStrictEqual(
        after.map(({ kind, table }) => [kind, table]),
        [["deletion", "entity_events"]]
      )
      yield* admin.rebuildIndex(entityType)
      assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
    })
  )

  it.effect("a deletion whose place another event has taken takes nothing", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      yield* fill(entityType)
      // Begun by a process that died; then another event was stored, and a snapshot after it.
      yield* cql(
        "INSERT INTO deletions (entity_type, shard, entity_id, marker, through) VALUES (?, 0, 'a', 18, 17)",
        entityType
      )
      assert.deepStrictEqual(yield* admin.finishDeletions(entityType), [
        { entityId: "a", through: 17, outcome: "void" }
      ])
      assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
      const found = yield* Stream.runCollect(admin.history({ entityType, entityId: "a" }))
      assert.isTrue(found.every(({ deleted }) => !deleted))
    })
  )

  it.effect("deletes an entity's events; a dry run says what would go", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const key = { entityType: fresh(), entityId: "a" }
      yield* fill(key.entityType)
      const would = yield* admin.deleteEvents(key, { dryRun: true })
      assert.deepInclude(would, { events: 18, snapshots: 1, position: undefined })
      assert.isTrue(would.firstEvent! <= would.lastEvent!)
      assert.isTrue((yield* Stream.runCollect(admin.history(key))).every(({ deleted }) => !deleted))
      assert.match((yield* reasonOf(admin.deleteEvents(key, { through: 19 }))).message, /it has 18 events/)
      const refused = yield* reasonOf(admin.deleteEvents({ ...key, entityId: "b" }, { through: 3 }))
      assert.match(refused.message, /need a snapshot of the state before, save one first/)
      const { position } = yield* admin.deleteEvents(key)
      assert.strictEqual(position?.sequence, 19)
      assert.deepInclude(yield* admin.deleteEvents(key, { dryRun: true }), { events: 0, snapshots: 0 })
      assert.deepStrictEqual((yield* admin.verify(key.entityType)).findings, [])
    })
  )

  it.effect("an older backup is noticed, accepted, and served in a new epoch", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const session = yield* CassandraSession
      const entityType = fresh()
      const other = fresh()
      yield* fill(entityType)
      yield* fill(other)
      // The backup: rows with their write timestamps.
      const columns = ["block_id", "stamp", "written", "revision", "events", "events_zstd", "head"]
      const times = columns.map((name) => `WRITETIME(${name}) AS t_${name}`)
      const backup = yield* cql(
        `SELECT entity_type, shard, generation, bucket, part, offset, ${columns}, ${times} FROM event_log`
      )
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          const { sequence, validThrough } = yield* journal.append({
            entityType,
            entityId: "a",
            expected: 18,
            events: events(19, 12)
          })
          yield* journal.saveSnapshot({ entityType, entityId: "a" }, { sequence, validThrough, state: 30 }, 0)
        })
      )
      yield* session.execute(statement("TRUNCATE event_log", [], { timeout: "1 minute" }))
      yield* Effect.forEach(
        backup,
        (row) =>
          Effect.forEach(
            columns.filter((name) => row[name] !== null),
            (name) =>
              session.execute(
                name === "head"
                  ? statement(
                      `INSERT INTO event_log (entity_type, shard, generation, bucket, part, head) VALUES (?, ?, ?, ?, ?, ?)`,
                      [row.entity_type, row.shard, row.generation, row.bucket, row.part, row.head],
                      { timestamp: Number(row.t_head) }
                    )
                  : statement(
                      `INSERT INTO event_log (entity_type, shard, generation, bucket, part, offset, ${name}) VALUES (?, ?, ?, ?, ?, ?, ?)`,
                      [row.entity_type, row.shard, row.generation, row.bucket, row.part, row.offset, row[name]],
                      { timestamp: Number(row[`t_${name}`]) }
                    )
              )
          ),
        { concurrency: 16, discard: true }
      )

      // Noticed by services, by the list and by verify.
      const key = { entityType, entityId: "a" }
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          const reason = yield* reasonOf(journal.load(key))
          assert.strictEqual(reason._tag, "DataLost")
          assert.strictEqual(
            (yield* reasonOf(journal.append({ ...key, expected: "any", events: events(1, 1) })))._tag,
            "DataLost"
          )
          assert.strictEqual((yield* journal.load({ ...key, entityType: other })).sequence, 18)
        })
      )
      const state = (yield* admin.types).find((one) => one.entityType === entityType)!
      assert.match(state.shards[0]!.problem!, /DataLost/)
      const found = yield* admin.verify(entityType)
      assert.deepStrictEqual([...new Set(found.findings.map(({ kind, table }) => `${kind} ${table}`))].sort(), [
        "ahead entity_events",
        "ahead index_watermarks",
        "ahead log_heads",
        "ahead snapshots"
      ])

      assert.match((yield* reasonOf(admin.acceptRestore(other))).message, /nothing of ".*" is lost/)
      const would = yield* admin.acceptRestore(entityType, { dryRun: true })
      assert.deepStrictEqual(would, {
        epoch: 2,
        indexGeneration: 2,
        shards: [{ shard: 0, head: 54, watermark: 66 }]
      })
      assert.deepStrictEqual(yield* admin.acceptRestore(entityType), would)

      // It serves again, with what there is; the snapshot of what is lost counts for nothing.
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          assert.strictEqual(yield* journal.epoch(entityType), 2)
          const loaded = yield* journal.load(key)
          assert.strictEqual(loaded.sequence, 18)
          assert.isTrue(Option.isNone(loaded.snapshot))
          const { sequence, validThrough } = yield* journal.append({ ...key, expected: 18, events: events(100, 2) })
          assert.strictEqual(sequence, 20)
          yield* journal.saveSnapshot(key, { sequence, validThrough, state: "new" }, 0)
          assert.strictEqual(Option.getOrThrow((yield* journal.load(key)).snapshot).state, "new")
          const all = yield* Stream.runCollect(journal.currentEvents(entityType, 0, 0))
          assert.deepStrictEqual(
            all.map(({ offset }) => offset),
            Array.from({ length: 56 }, (_, i) => i + 1)
          )
        })
      )
      assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [])
      assert.match((yield* reasonOf(admin.acceptRestore(entityType))).message, /nothing of ".*" is lost/)
    })
  )

  it.effect("a service that still runs when a restore is accepted stops with an error that says so", () =>
    Effect.gen(function* () {
      const admin = yield* JournalAdmin
      const entityType = fresh()
      let millis = 0
      const later = setOff(yield* Clock.Clock, () => millis)
      yield* withJournal(
        Effect.gen(function* () {
          const journal = yield* Journal
          const key = { entityType, entityId: "a" }
          yield* journal.append({ ...key, expected: "none", events: events(1, 1) })
          assert.strictEqual((yield* admin.acceptRestore(entityType, { force: true })).epoch, 2)
          millis = 61_000
          const reason = yield* reasonOf(journal.load(key))
          assert.strictEqual(reason._tag, "DataLost")
          assert.match(reason.message, /a restore of .* was accepted, .*: start it again/)
          millis = 0
          assert.strictEqual(
            (yield* reasonOf(journal.append({ ...key, expected: 1, events: events(2, 1) })))._tag,
            "DataLost"
          )
        })
      ).pipe(Effect.provideService(Clock.Clock, later))
    })
  )

  it.effect("a keyspace without a journal is named", () =>
    Effect.gen(function* () {
      const connection = yield* TestKeyspace
      const keyspace = `empty_${crypto.randomUUID().replaceAll("-", "")}`
      const error = yield* Effect.flip(
        Layer.build(JournalAdmin.layer()).pipe(
          Effect.provide(Layer.fresh(CassandraSession.layer({ ...connection, keyspace }))),
          Effect.scoped
        )
      )
      assert.match(
        error.message,
        new RegExp(`keyspace "${keyspace}" holds no journal: it lacks the tables entity_types`)
      )
      yield* cql(`DROP KEYSPACE ${keyspace}`)
    })
  )
})
