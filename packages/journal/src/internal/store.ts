/**
 * What the journal asks of a database: conditional appends, reads, and writes that are safe to repeat.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { Effect } from "effect"
import type { Claim } from "./turns.ts"

/** One shard's log. */
export interface LogId {
  readonly entityType: string
  readonly shard: number
}

/** A partition of a log: buckets are counted by offsets, the parts of a bucket by what they hold. */
export interface Place {
  readonly bucket: number
  readonly part: number
}

/** Some events of a log, stored together. `offset` and `stamp` are those of the last event. */
export interface StoredBlock {
  readonly offset: number
  readonly blockId: string
  readonly stamp: number
  /** Characters of events in the partition, this block included. */
  readonly written: number
  readonly events: string
  /** How often payloads of it were deleted. */
  readonly revision: number
}

/** A block to append after `head`, the head of its partition: null when it is the partition's first. */
export interface BlockAppend extends StoredBlock {
  readonly place: Place
  readonly head: number | null
}

/** Applied, or the partition's head and the id of the block that stands at the offset. */
type AppendOutcome =
  | { readonly applied: true }
  | { readonly applied: false; readonly head: number | null; readonly blockId: string | null }

/** Recorded at the first use of an entity type. */
export interface TypeRecord {
  readonly shards: number
  readonly serialConsistency: string
  /** The only data centre that may append, with LOCAL_SERIAL. */
  readonly dataCenter: string | null
  /** Offsets per bucket of a log. */
  readonly bucketSize: number
  /** Characters of events after which a part of a bucket takes no more blocks. */
  readonly partSize: number
  /** Counts the restores of older data: positions of another epoch stand for nothing. */
  readonly epoch: number
  /** Counts the rebuilds of the index. */
  readonly indexGeneration: number
}

/** Some consecutive events of one entity in the index; `sequence` is that of the first. */
export interface IndexRow {
  readonly entityType: string
  readonly entityId: string
  readonly partition: number
  readonly sequence: number
  readonly lastSequence: number
  /** How many of its events are deleted: the first ones. */
  readonly deleted: number
  readonly events: string
}

/** The state of an entity after its event `sequence`, which stands at `offset` of the log. */
export interface StoredSnapshot {
  readonly sequence: number
  readonly offset: number
  readonly epoch: number
  /** Of the state's schema. */
  readonly version: number
  /** JSON, or base64 of bytes by the encoding. */
  readonly state: string
  readonly encoding: string | null
}

/** A deletion that has begun: events of an entity up to a sequence number, the logged fact being event `marker`. */
export interface Deletion {
  readonly entityId: string
  readonly through: number
  readonly marker: number
}

/** Everything the journal needs of its database. */
export interface Store {
  /** The record of an entity type: the one given, if there was none. */
  readonly recordType: (entityType: string, record: TypeRecord) => Effect.Effect<TypeRecord, CassandraError>
  /** Replaces a record's epoch and index generation; false when they were not those of `from`. */
  readonly changeRecord: (
    entityType: string,
    from: TypeRecord,
    to: Pick<TypeRecord, "epoch" | "indexGeneration">
  ) => Effect.Effect<boolean, CassandraError>
  readonly appendBlock: (log: LogId, block: BlockAppend) => Effect.Effect<AppendOutcome, CassandraError>
  /** The head of a partition; when `serial`, it includes every append that was acknowledged before. */
  readonly readHead: (log: LogId, place: Place, serial: boolean) => Effect.Effect<number | null, CassandraError>
  /** Blocks of a partition with an offset above `after`, in order, `limit` at the most. */
  readonly readBlocks: (
    log: LogId,
    place: Place,
    after: number,
    limit: number,
    serial: boolean
  ) => Effect.Effect<ReadonlyArray<StoredBlock>, CassandraError>
  /** Replaces a block's events by the same ones with less payload; false when its revision was another. */
  readonly reviseBlock: (log: LogId, place: Place, block: StoredBlock) => Effect.Effect<boolean, CassandraError>
  /** Of two writes of one row, the one that reaches further wins, and of those the one with more deleted. */
  readonly writeIndexRows: (generation: number, rows: ReadonlyArray<IndexRow>) => Effect.Effect<void, CassandraError>
  /** The index rows of one partition of an entity that begin at `sequence` or later, in order. */
  readonly readIndexRows: (
    generation: number,
    entityType: string,
    entityId: string,
    partition: number,
    sequence: number
  ) => Effect.Effect<ReadonlyArray<{ readonly sequence: number; readonly events: string }>, CassandraError>
  /** The offset up to where the index is complete; 0 when nothing is. */
  readonly readWatermark: (log: LogId, generation: number) => Effect.Effect<number, CassandraError>
  /** Of two writes, the higher offset wins. */
  readonly writeWatermark: (log: LogId, generation: number, offset: number) => Effect.Effect<void, CassandraError>
  /** Where the logs of an entity type end, by shard, as far as that was said. */
  readonly readHeads: (entityType: string) => Effect.Effect<ReadonlyArray<readonly [number, number]>, CassandraError>
  /** Of two writes of a shard, the later epoch wins, then the higher offset. */
  readonly writeHeads: (
    entityType: string,
    epoch: number,
    heads: ReadonlyArray<readonly [shard: number, offset: number]>
  ) => Effect.Effect<void, CassandraError>
  /** The processes that have said within the last seconds that they wait for their turn, and up to where they had followed. */
  readonly readClaims: (log: LogId) => Effect.Effect<ReadonlyArray<Claim>, CassandraError>
  readonly claimTurn: (log: LogId, writer: string, offset: number) => Effect.Effect<void, CassandraError>
  /** The newest snapshot at `sequence` or before. */
  readonly readSnapshot: (
    entityType: string,
    entityId: string,
    sequence: number
  ) => Effect.Effect<StoredSnapshot | undefined, CassandraError>
  /** Writes a snapshot and removes those at `removeThrough` or before. */
  readonly writeSnapshot: (
    entityType: string,
    entityId: string,
    snapshot: StoredSnapshot,
    removeThrough: number
  ) => Effect.Effect<void, CassandraError>
  /** Removes the snapshots at `sequence` or before. */
  readonly removeSnapshots: (
    entityType: string,
    entityId: string,
    sequence: number
  ) => Effect.Effect<void, CassandraError>
  /** The deletions of a shard that have begun and are not known to be complete. */
  readonly readDeletions: (log: LogId) => Effect.Effect<ReadonlyArray<Deletion>, CassandraError>
  readonly writeDeletion: (log: LogId, deletion: Deletion) => Effect.Effect<void, CassandraError>
  readonly removeDeletion: (log: LogId, deletion: Deletion) => Effect.Effect<void, CassandraError>
}
