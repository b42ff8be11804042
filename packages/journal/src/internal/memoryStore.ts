import { Effect } from "effect"
import type { IndexRow, LogId, Store, StoredBlock, StoredSnapshot, TypeRecord } from "./store.ts"

interface Bucket {
  head: number | null
  readonly blocks: Array<StoredBlock>
}

/** A store in the memory of this process; it forgets everything with it. */
export const memoryStore = (): Store => {
  const types = new Map<string, TypeRecord>()
  const buckets = new Map<string, Bucket>()
  const index = new Map<string, Map<number, IndexRow>>()
  const watermarks = new Map<string, number>()
  const snapshots = new Map<string, Array<StoredSnapshot>>()

  const key = (...parts: ReadonlyArray<string | number>) => JSON.stringify(parts)
  const getOrPut = <V>(map: Map<string, V>, name: string, empty: () => V): V => {
    const found = map.get(name) ?? empty()
    map.set(name, found)
    return found
  }
  const bucketOf = (log: LogId, bucket: number) =>
    getOrPut(buckets, key(log.entityType, log.shard, bucket), (): Bucket => ({ head: null, blocks: [] }))

  return {
    recordType: (entityType, record) => Effect.sync(() => getOrPut(types, entityType, () => record)),
    appendBlock: (log, block) =>
      Effect.sync(() => {
        const bucket = bucketOf(log, block.bucket)
        const standing = bucket.blocks.findLast((b) => b.offset === block.offset)
        if (bucket.head !== block.head || standing !== undefined) {
          return { applied: false, head: bucket.head, blockId: standing?.blockId ?? null } as const
        }
        bucket.head = block.offset
        bucket.blocks.push(block)
        return { applied: true } as const
      }),
    readHead: (log, bucket) => Effect.sync(() => bucketOf(log, bucket).head),
    readBlocks: (log, bucket, after, limit) =>
      Effect.sync(() =>
        bucketOf(log, bucket)
          .blocks.filter((block) => block.offset > after)
          .slice(0, limit)
      ),
    writeIndexRow: (row) =>
      Effect.sync(() => {
        const rows = getOrPut(index, key(row.entityType, row.entityId, row.partition), () => new Map())
        const present = rows.get(row.sequence)
        if (present === undefined || present.lastSequence <= row.lastSequence) rows.set(row.sequence, row)
      }),
    readIndexRows: (entityType, entityId, partition, sequence) =>
      Effect.sync(() =>
        [...(index.get(key(entityType, entityId, partition))?.values() ?? [])]
          .filter((row) => row.sequence >= sequence)
          .sort((a, b) => a.sequence - b.sequence)
          .map((row) => row.events)
      ),
    readWatermark: (log, epoch) => Effect.sync(() => watermarks.get(key(log.entityType, log.shard, epoch)) ?? 0),
    writeWatermark: (log, epoch, offset) =>
      Effect.sync(() => {
        const name = key(log.entityType, log.shard, epoch)
        watermarks.set(name, Math.max(offset, watermarks.get(name) ?? 0))
      }),
    readSnapshot: (entityType, entityId, sequence) =>
      Effect.sync(() => snapshots.get(key(entityType, entityId))?.findLast((s) => s.sequence <= sequence)),
    writeSnapshot: (entityType, entityId, snapshot, removeThrough) =>
      Effect.sync(() => {
        const kept = getOrPut(snapshots, key(entityType, entityId), (): Array<StoredSnapshot> => []).filter(
          (s) => s.sequence > removeThrough && s.sequence !== snapshot.sequence
        )
        snapshots.set(
          key(entityType, entityId),
          [...kept, snapshot].sort((a, b) => a.sequence - b.sequence)
        )
      })
  }
}
