/**
 * How far processors have come, in Cassandra. A write's timestamp is made of epoch and offset, so that of two owners of a
 * shard the one that came further wins, and one of an earlier epoch never does.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import type { Place, Reached } from "./sink.ts"

export const offsetsTable = `CREATE TABLE IF NOT EXISTS read_side_offsets (
  processor text, entity_type text, shard int, epoch bigint, offset bigint, stamp bigint, log_epoch int,
  PRIMARY KEY ((processor), entity_type, shard))`

export interface StoredOffset extends Reached {
  readonly entityType: string
  readonly shard: number
  /** Of the last event, in microseconds; 0 before the first. */
  readonly stamp: number
  /** Of the log, which a restore of old data raises. */
  readonly logEpoch: number
}

/** Offsets of an epoch stay below it. */
const epochStep = 10n ** 13n

export const makeOffsets = (session: CassandraSession["Service"]) => {
  type Row = {
    entity_type: string
    shard: number
    epoch: bigint
    offset: bigint
    stamp: bigint | null
    log_epoch: number | null
  }
  const stored = (row: Row): StoredOffset => ({
    entityType: row.entity_type,
    shard: row.shard,
    epoch: Number(row.epoch),
    offset: Number(row.offset),
    stamp: Number(row.stamp ?? 0),
    logEpoch: row.log_epoch ?? 1
  })
  const columns = "entity_type, shard, epoch, offset, stamp, log_epoch"

  const all = (processor: string): Effect.Effect<ReadonlyArray<StoredOffset>, CassandraError> =>
    Effect.map(
      session.execute<Row>(make(`SELECT ${columns} FROM read_side_offsets WHERE processor = ?`, [processor])),
      (rows) => rows.map(stored)
    )

  const load = ({ entityType, processor, shard }: Place): Effect.Effect<StoredOffset | undefined, CassandraError> =>
    Effect.map(
      session.execute<Row>(
        make(`SELECT ${columns} FROM read_side_offsets WHERE processor = ? AND entity_type = ? AND shard = ?`, [
          processor,
          entityType,
          shard
        ])
      ),
      ([row]) => (row === undefined ? undefined : stored(row))
    )

  const save = (
    { entityType, processor, shard }: Place,
    { epoch, logEpoch, offset, stamp }: Omit<StoredOffset, "entityType" | "shard">
  ): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(
      session.execute(
        make(
          `INSERT INTO read_side_offsets (processor, entity_type, shard, epoch, offset, stamp, log_epoch)
           VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?`,
          [
            processor,
            entityType,
            shard,
            BigInt(epoch),
            BigInt(offset),
            BigInt(stamp),
            logEpoch,
            BigInt(epoch) * epochStep + BigInt(offset)
          ],
          { idempotent: true }
        )
      )
    )

  return { all, load, save }
}

export type Offsets = ReturnType<typeof makeOffsets>
