/**
 * What the journal asks of a database: conditional appends, reads, and writes that are safe to repeat.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { Effect } from "effect"

/** One shard's log. */
export interface LogId {
  readonly entityType: string
  readonly shard: number
}

/** Some events of a log, stored together. `offset` and `stamp` are those of the last event. */
export interface StoredBlock {
  readonly offset: number
  readonly blockId: string
  readonly stamp: number
  readonly events: string
}

/** A block to append after `head`, the head of its bucket: null when it is the bucket's first. */
export interface BlockAppend extends StoredBlock {
  readonly bucket: number
  readonly head: number | null
}

/** Applied, or the bucket's head and the id of the block that stands at the offset. */
type AppendOutcome =
  | { readonly applied: true }
  | { readonly applied: false; readonly head: number | null; readonly blockId: string | null }

/** Recorded at the first use of an entity type. */
export interface TypeRecord {
  readonly shards: number
  readonly serialConsistency: string
  readonly bucketSize: number
  readonly epoch: number
}

/** Some consecutive events of one entity in the index; `sequence` is that of the first. */
export interface IndexRow {
  readonly entityType: string
  readonly entityId: string
  readonly partition: number
  readonly sequence: number
  readonly lastSequence: number
  readonly events: string
}

/** The state of an entity after its event `sequence`, which stands at `offset` of the log. */
export interface StoredSnapshot {
  readonly sequence: number
  readonly offset: number
  readonly epoch: number
  readonly state: string
}

/** Everything the journal needs of its database. */
export interface Store {
  /** The record of an entity type: the one given, if there was none. */
  readonly recordType: (entityType: string, record: TypeRecord) => Effect.Effect<TypeRecord, CassandraError>
  readonly appendBlock: (log: LogId, block: BlockAppend) => Effect.Effect<AppendOutcome, CassandraError>
  /** The head of a bucket; when `serial`, it includes every append that was acknowledged before. */
  readonly readHead: (log: LogId, bucket: number, serial: boolean) => Effect.Effect<number | null, CassandraError>
  /** Blocks of a bucket with an offset above `after`, in order, `limit` at the most. */
  readonly readBlocks: (
    log: LogId,
    bucket: number,
    after: number,
    limit: number,
    serial: boolean
  ) => Effect.Effect<ReadonlyArray<StoredBlock>, CassandraError>
  /** Of two writes of one row, the one that reaches further wins. */
  readonly writeIndexRow: (row: IndexRow) => Effect.Effect<void, CassandraError>
  /** The index rows of one partition of an entity that begin at `sequence` or later, in order. */
  readonly readIndexRows: (
    entityType: string,
    entityId: string,
    partition: number,
    sequence: number
  ) => Effect.Effect<ReadonlyArray<string>, CassandraError>
  /** The offset up to where the index is complete; 0 when nothing is. */
  readonly readWatermark: (log: LogId, epoch: number) => Effect.Effect<number, CassandraError>
  /** Of two writes, the higher offset wins. */
  readonly writeWatermark: (log: LogId, epoch: number, offset: number) => Effect.Effect<void, CassandraError>
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
}
