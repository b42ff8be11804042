import { Effect } from "effect"
import type { Deletion, IndexRow, LogId, Place, Store, StoredBlock, StoredSnapshot, TypeRecord } from "./store.ts"

interface Partition {
  head: number | null
  readonly blocks: Array<StoredBlock>
}

/** A store in the memory of this process; it forgets everything with it. */
export const memoryStore = (): Store => {
  const types = new Map<string, TypeRecord>()
  const partitions = new Map<string, Partition>()
  const index = new Map<string, Map<number, IndexRow>>()
  const watermarks = new Map<string, number>()
  const snapshots = new Map<string, Array<StoredSnapshot>>()
  const deletions = new Map<string, Map<string, Deletion>>()

  const key = (...parts: ReadonlyArray<string | number>) => JSON.stringify(parts)
  const getOrPut = <V>(map: Map<string, V>, name: string, empty: () => V): V => {
    const found = map.get(name) ?? empty()
    map.set(name, found)
    return found
  }
  const partitionOf = (log: LogId, { bucket, part }: Place) =>
    getOrPut(partitions, key(log.entityType, log.shard, bucket, part), (): Partition => ({ head: null, blocks: [] }))

  return {
    recordType: (entityType, record) => Effect.sync(() => getOrPut(types, entityType, () => record)),
    changeRecord: (entityType, from, to) =>
      Effect.sync(() => {
        const present = types.get(entityType)
        if (present?.epoch !== from.epoch || present.indexGeneration !== from.indexGeneration) return false
        types.set(entityType, { ...present, ...to })
        return true
      }),
    appendBlock: (log, block) =>
      Effect.sync(() => {
        const partition = partitionOf(log, block.place)
        const standing = partition.blocks.findLast((b) => b.offset === block.offset)
        if (partition.head !== block.head || standing !== undefined) {
          return { applied: false, head: partition.head, blockId: standing?.blockId ?? null } as const
        }
        partition.head = block.offset
        partition.blocks.push(block)
        return { applied: true } as const
      }),
    readHead: (log, place) => Effect.sync(() => partitionOf(log, place).head),
    readBlocks: (log, place, after, limit) =>
      Effect.sync(() =>
        partitionOf(log, place)
          .blocks.filter((block) => block.offset > after)
          .slice(0, limit)
      ),
    reviseBlock: (log, place, block) =>
      Effect.sync(() => {
        const { blocks } = partitionOf(log, place)
        const i = blocks.findIndex(({ offset, revision }) => offset === block.offset && revision === block.revision)
        if (i >= 0) blocks[i] = { ...block, revision: block.revision + 1 }
        return i >= 0
      }),
    writeIndexRows: (generation, written) =>
      Effect.sync(() => {
        for (const row of written) {
          const rows = getOrPut(index, key(generation, row.entityType, row.entityId, row.partition), () => new Map())
          const present = rows.get(row.sequence)
          if (
            present === undefined ||
            present.lastSequence < row.lastSequence ||
            (present.lastSequence === row.lastSequence && present.deleted <= row.deleted)
          ) {
            rows.set(row.sequence, row)
          }
        }
      }),
    readIndexRows: (generation, entityType, entityId, partition, sequence) =>
      Effect.sync(() =>
        [...(index.get(key(generation, entityType, entityId, partition))?.values() ?? [])]
          .filter((row) => row.sequence >= sequence)
          .sort((a, b) => a.sequence - b.sequence)
      ),
    readWatermark: (log, generation) =>
      Effect.sync(() => watermarks.get(key(log.entityType, log.shard, generation)) ?? 0),
    writeWatermark: (log, generation, offset) =>
      Effect.sync(() => {
        const name = key(log.entityType, log.shard, generation)
        watermarks.set(name, Math.max(offset, watermarks.get(name) ?? 0))
      }),
    // Only this process appends, and hears of it by itself.
    readHeads: () => Effect.succeed([]),
    writeHeads: () => Effect.void,
    readClaims: () => Effect.succeed([]),
    claimTurn: () => Effect.void,
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
      }),
    removeSnapshots: (entityType, entityId, sequence) =>
      Effect.sync(() => {
        const name = key(entityType, entityId)
        snapshots.set(
          name,
          (snapshots.get(name) ?? []).filter((s) => s.sequence > sequence)
        )
      }),
    readDeletions: (log) => Effect.sync(() => [...(deletions.get(key(log.entityType, log.shard))?.values() ?? [])]),
    writeDeletion: (log, deletion) =>
      Effect.sync(() => {
        const ofShard = getOrPut(deletions, key(log.entityType, log.shard), () => new Map())
        ofShard.set(key(deletion.entityId, deletion.marker), deletion)
      }),
    removeDeletion: (log, { entityId, marker }) =>
      Effect.sync(() => {
        deletions.get(key(log.entityType, log.shard))?.delete(key(entityId, marker))
      })
  }
}
