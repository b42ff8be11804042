/** What the journal's tables hold, whether it belongs there or not: every column can be anything. */
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { type Consistency, make, type Row } from "@effect-cassandra/session/Statement"
import { Effect, Stream } from "effect"
import { storeFailure } from "./failure.ts"

/** A partition of a log, by its key. */
export interface LogPartition {
  readonly shard: number
  readonly generation: number
  readonly bucket: number
  readonly part: number
}

/** A partition of an entity's history in the index, by its key. */
export interface IndexPartition {
  readonly entityId: string
  readonly generation: number
  readonly partition: number
}

/** A number, or what does not pass for one. */
export const numberOf = (value: unknown): number => (value === null || value === undefined ? Number.NaN : Number(value))

/** Reads whole tables; each read goes through all of a table's partitions, page by page. */
export const makeScans = (session: CassandraSession["Service"], consistency: Consistency) => {
  const rows = (text: string, params: ReadonlyArray<unknown> = []) =>
    session.stream<Row>(make(text, params, { consistency })).pipe(Stream.mapError(storeFailure))

  const ofType = (entityType: string, text: string) =>
    Stream.filter(rows(text), (row) => row.entity_type === entityType)

  const list = (text: string, params: ReadonlyArray<unknown>) =>
    session.execute<Row>(make(text, params, { consistency })).pipe(Effect.mapError(storeFailure))

  return {
    /** Entity types by the records that there are. */
    types: rows("SELECT * FROM entity_types"),
    /** Entity types by the logs that there are; each often. */
    typesOfLogs: Stream.map(
      rows("SELECT DISTINCT entity_type, shard, generation, bucket, part FROM event_log"),
      (row) => row.entity_type as string
    ),
    logPartitions: (entityType: string) =>
      Stream.map(
        ofType(entityType, "SELECT DISTINCT entity_type, shard, generation, bucket, part FROM event_log"),
        (row): LogPartition => ({
          shard: row.shard,
          generation: row.generation,
          bucket: Number(row.bucket),
          part: row.part
        })
      ),
    indexPartitions: (entityType: string) =>
      Stream.map(
        ofType(entityType, "SELECT DISTINCT entity_type, entity_id, generation, partition FROM entity_events"),
        (row): IndexPartition => ({
          entityId: row.entity_id,
          generation: row.generation,
          partition: Number(row.partition)
        })
      ),
    /** The ids of entities with snapshots. */
    snapshotEntities: (entityType: string) =>
      Stream.map(
        ofType(entityType, "SELECT DISTINCT entity_type, entity_id FROM snapshots"),
        (row) => row.entity_id as string
      ),
    watermarks: (entityType: string) =>
      Stream.map(ofType(entityType, "SELECT * FROM index_watermarks"), (row) => ({
        shard: row.shard as number,
        generation: row.generation as number,
        offset: numberOf(row.offset)
      })),
    /** Where processes said that logs end. */
    heads: (entityType: string) =>
      Effect.map(list("SELECT shard, offset FROM log_heads WHERE entity_type = ?", [entityType]), (found) =>
        found.map((row) => ({ shard: row.shard as number, offset: numberOf(row.offset) }))
      ),
    /** The shards with deletions that are not known to be complete. */
    deletionShards: (entityType: string) =>
      Stream.map(ofType(entityType, "SELECT DISTINCT entity_type, shard FROM deletions"), (row) => row.shard as number),
    deletions: (entityType: string, shard: number) =>
      Effect.map(
        list("SELECT entity_id, marker, through FROM deletions WHERE entity_type = ? AND shard = ?", [
          entityType,
          shard
        ]),
        (found) =>
          found.map((row) => ({
            entityId: row.entity_id as string,
            marker: numberOf(row.marker),
            through: numberOf(row.through)
          }))
      ),
    snapshots: (entityType: string, entityId: string) =>
      Effect.map(
        list(
          `SELECT sequence, offset, epoch, version, state, encoding FROM snapshots
           WHERE entity_type = ? AND entity_id = ?`,
          [entityType, entityId]
        ),
        (found) =>
          found.map((row) => ({
            sequence: numberOf(row.sequence),
            offset: numberOf(row.offset),
            epoch: numberOf(row.epoch),
            version: numberOf(row.version),
            state: row.state as string | null,
            encoding: row.encoding as string | null
          }))
      ),
    /** The rows of a partition of an entity's history that begin at a sequence number from `from` to `to`. */
    indexRows: (entityType: string, { entityId, generation, partition }: IndexPartition, from: number, to: number) =>
      Effect.map(
        list(
          `SELECT sequence, events FROM entity_events
           WHERE entity_type = ? AND entity_id = ? AND generation = ? AND partition = ? AND sequence >= ? AND sequence <= ?`,
          [entityType, entityId, generation, BigInt(partition), BigInt(from), BigInt(to)]
        ),
        (found) => found.map((row) => ({ sequence: Number(row.sequence), events: row.events as string | null }))
      ),
    removeIndexPartition: (entityType: string, { entityId, generation, partition }: IndexPartition) =>
      session
        .execute(
          make(
            "DELETE FROM entity_events WHERE entity_type = ? AND entity_id = ? AND generation = ? AND partition = ?",
            [entityType, entityId, generation, BigInt(partition)],
            { consistency, idempotent: true }
          )
        )
        .pipe(Effect.mapError(storeFailure)),
    removeWatermark: (entityType: string, shard: number, generation: number) =>
      session
        .execute(
          make(
            "DELETE FROM index_watermarks WHERE entity_type = ? AND shard = ? AND generation = ?",
            [entityType, shard, generation],
            { consistency, idempotent: true }
          )
        )
        .pipe(Effect.mapError(storeFailure))
  }
}

export type Scans = ReturnType<typeof makeScans>
