import { assert, describe, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { deletedType, type Entry } from "../src/internal/block.ts"
import { EntityIndex } from "../src/internal/entityIndex.ts"
import { makeJournal } from "../src/internal/journal.ts"
import { memoryStore } from "../src/internal/memoryStore.ts"
import { ShardLog } from "../src/internal/shardLog.ts"
import type { Store } from "../src/internal/store.ts"

const log = { entityType: "Account", shard: 0 }

/** One event of each of so many entities. */
const events = (entities: number, sequence: number, type = "Deposited"): ReadonlyArray<Entry> =>
  Array.from({ length: entities }, (_, i) => ({
    entityId: `account-${i}`,
    sequence,
    offset: (sequence - 1) * entities + i + 1,
    stamp: 10 * ((sequence - 1) * entities + i + 1),
    type,
    item: { n: sequence, t: type, p: { through: 1 } }
  }))

describe("the index of entities", () => {
  const after = (...added: ReadonlyArray<ReadonlyArray<Entry>>) => {
    const index = new EntityIndex(memoryStore(), log, 1)
    for (const entries of added) index.add(entries)
    return index
  }

  it("waits while many entities have few events each", () => {
    assert.strictEqual(after(events(999, 1)).isPatient, false)
    assert.strictEqual(after(events(1000, 1)).isPatient, true)
    const rounds = [1, 2, 3, 4, 5, 6, 7, 8].map((sequence) => events(1000, sequence))
    assert.strictEqual(after(...rounds.slice(0, 7)).isPatient, true)
    assert.strictEqual(after(...rounds).isPatient, false)
  })

  it("does not wait with very many events, or with something deleted", () => {
    assert.strictEqual(after(events(49_999, 1)).isPatient, true)
    assert.strictEqual(after(events(50_000, 1)).isPatient, false)
    assert.strictEqual(after(events(1000, 1), events(1, 2, deletedType)).isPatient, false)
  })

  it.effect("remembers what was written, by this process or another one, until it is to forget it", () =>
    Effect.gen(function* () {
      const index = new EntityIndex(memoryStore(), log, 1)
      const recent = (after: number) => index.recentOf("account-0", after)?.map(({ sequence }) => sequence)
      index.add(events(2, 1))
      yield* index.flush(2)
      index.add(events(2, 2))
      index.add(events(2, 3))
      index.drop(4)
      assert.deepStrictEqual([0, 1, 2, 3].map(recent), [[1, 2, 3], [2, 3], [3], []])
      assert.isUndefined(index.recentOf("account-2", 0))
      index.forget(2)
      assert.deepStrictEqual([0, 1, 2].map(recent), [undefined, [2, 3], [3]])
      index.forget(4)
      assert.deepStrictEqual([1, 2].map(recent), [[2, 3], [3]])
      yield* index.flush(6)
      index.forget(4)
      assert.deepStrictEqual([1, 2, 3].map(recent), [undefined, [3], []])
      // What is deleted is in memory no more, either: `through` is 1.
      const next = new EntityIndex(memoryStore(), log, 1)
      next.add(events(2, 1))
      yield* next.flush(2)
      next.add(events(1, 2, deletedType))
      assert.deepStrictEqual(
        ["account-0", "account-1"].map((id) => next.recentOf(id, 0)?.map(({ item }) => item?.d)),
        [[1, undefined], [undefined]]
      )
    })
  )

  it.live("is written at last, however few events they have", () =>
    Effect.gen(function* () {
      const store = memoryStore()
      const journal = yield* makeJournal(store, { shards: 1, indexInterval: "10 millis" })
      yield* Effect.forEach(
        Array.from({ length: 1000 }, (_, i) => `account-${i}`),
        (entityId) =>
          journal.append({
            entityType: log.entityType,
            entityId,
            expected: "any",
            events: [{ type: "Deposited", payload: {} }]
          }),
        { concurrency: "unbounded", discard: true }
      )
      yield* store
        .readWatermark(log, 1)
        .pipe(Effect.repeat({ until: (offset) => offset === 1000 }), Effect.timeout("5 seconds"))
    })
  )

  it.live("is written by one of the processes that follow a log, and by another when that one does it no more", () =>
    Effect.gen(function* () {
      const store = memoryStore()
      const limits = {
        maxBlockEvents: 10,
        maxBlockSize: 1000,
        appendTimeoutMillis: 10_000,
        rememberedEntities: 10,
        recordMillis: 20_000
      }
      const record = {
        shards: 1,
        serialConsistency: "SERIAL",
        dataCenter: null,
        bucketSize: 1000,
        partSize: 1000,
        epoch: 1,
        indexGeneration: 1
      }
      const rows = { writer: 0, follower: 0 }
      const start = Effect.fnUntraced(function* (name: keyof typeof rows) {
        const counting: Store = {
          ...store,
          writeIndexRows: (generation, written) => {
            rows[name] += written.length
            return store.writeIndexRows(generation, written)
          }
        }
        const shard = new ShardLog(counting, log, record, limits, yield* Clock.Clock, Buffer.from(name.slice(0, 6)))
        yield* shard.start
        yield* Effect.forkScoped(shard.run)
        return shard
      })
      const writer = yield* start("writer")
      const follower = yield* start("follower")
      let sequence = 0
      const append = Effect.gen(function* () {
        const events = [{ type: "Deposited", text: '"t":"Deposited","p":{}' }]
        const request = { entityId: "account", floating: false, behind: undefined, events, size: 10, answer: undefined }
        yield* writer.append({ ...request, expected: sequence++, validThrough: writer.head })
        yield* follower.sync
      })
      for (let round = 1; round <= 10; round++) {
        yield* append
        yield* follower.indexWhenDue
        yield* writer.indexWhenDue
      }
      assert.deepStrictEqual(rows, { writer: 10, follower: 0 })
      assert.strictEqual(yield* store.readWatermark(log, 1), 10)
      for (let round = 1; round <= 3; round++) {
        yield* append
        yield* follower.indexWhenDue
      }
      assert.strictEqual(yield* store.readWatermark(log, 1), 13)
    }).pipe(Effect.scoped)
  )
})
