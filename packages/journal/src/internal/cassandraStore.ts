import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Options, type SerialConsistency } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import type { Store, TypeRecord } from "./store.ts"

// Every write to event_log and entity_types is conditional: a plain one carries another clock, and could hide them.
export const tables = [
  `CREATE TABLE IF NOT EXISTS entity_types (
     entity_type text PRIMARY KEY, shards int, serial_consistency text, bucket_size int, epoch int)`,
  `CREATE TABLE IF NOT EXISTS event_log (
     entity_type text, shard int, bucket bigint, head bigint STATIC,
     offset bigint, block_id timeuuid, stamp bigint, events text,
     PRIMARY KEY ((entity_type, shard, bucket), offset))`,
  `CREATE TABLE IF NOT EXISTS entity_events (
     entity_type text, entity_id text, partition bigint, sequence bigint, events text,
     PRIMARY KEY ((entity_type, entity_id, partition), sequence))`,
  `CREATE TABLE IF NOT EXISTS index_watermarks (
     entity_type text, shard int, epoch int, offset bigint,
     PRIMARY KEY ((entity_type, shard, epoch)))`,
  `CREATE TABLE IF NOT EXISTS snapshots (
     entity_type text, entity_id text, sequence bigint, offset bigint, epoch int, state text, saved_at timestamp,
     PRIMARY KEY ((entity_type, entity_id), sequence)) WITH CLUSTERING ORDER BY (sequence DESC)`
]

/** The store in the keyspace of a session. */
export const cassandraStore = (session: CassandraSession["Service"], serialConsistency: SerialConsistency): Store => {
  const quorum = serialConsistency === "SERIAL" ? "QUORUM" : "LOCAL_QUORUM"
  const conditional: Options = { consistency: quorum, serialConsistency }
  const serialRead: Options = { consistency: serialConsistency }
  const plainRead: Options = { consistency: quorum }
  const repeatable = (timestamp: number): Options => ({ consistency: quorum, idempotent: true, timestamp })

  return {
    recordType: Effect.fnUntraced(function* (entityType, record) {
      type Row = { shards: number; serial_consistency: string; bucket_size: number; epoch: number }
      const read = session.execute<Row>(
        make(
          "SELECT shards, serial_consistency, bucket_size, epoch FROM entity_types WHERE entity_type = ?",
          [entityType],
          serialRead
        )
      )
      let rows = yield* read
      if (rows.length === 0) {
        yield* session
          .applied(
            make(
              `INSERT INTO entity_types (entity_type, shards, serial_consistency, bucket_size, epoch)
               VALUES (?, ?, ?, ?, ?) IF NOT EXISTS`,
              [entityType, record.shards, record.serialConsistency, record.bucketSize, record.epoch],
              conditional
            )
          )
          .pipe(Effect.retry({ times: 5, while: (error) => error.reason._tag === "OutcomeUnknown" }))
        rows = yield* read
      }
      const row = rows[0]
      return row === undefined
        ? yield* Effect.die(`the record of entity type ${entityType} was written and cannot be read`)
        : ({
            shards: row.shards,
            serialConsistency: row.serial_consistency,
            bucketSize: row.bucket_size,
            epoch: row.epoch
          } satisfies TypeRecord)
    }),

    appendBlock: (log, block) =>
      Effect.map(
        session.applied<{ head: bigint | null; block_id: { toString(): string } | null }>(
          make(
            `UPDATE event_log SET head = ?, block_id = ?, stamp = ?, events = ?
             WHERE entity_type = ? AND shard = ? AND bucket = ? AND offset = ?
             IF head = ? AND block_id = null`,
            [
              BigInt(block.offset),
              block.blockId,
              BigInt(block.stamp),
              block.events,
              log.entityType,
              log.shard,
              BigInt(block.bucket),
              BigInt(block.offset),
              block.head === null ? null : BigInt(block.head)
            ],
            conditional
          )
        ),
        (outcome) =>
          outcome.applied
            ? outcome
            : {
                applied: false,
                head: outcome.current.head == null ? null : Number(outcome.current.head),
                blockId: outcome.current.block_id == null ? null : outcome.current.block_id.toString()
              }
      ),

    readHead: (log, bucket, serial) =>
      Effect.map(
        session.execute<{ head: bigint | null }>(
          make(
            "SELECT head FROM event_log WHERE entity_type = ? AND shard = ? AND bucket = ? LIMIT 1",
            [log.entityType, log.shard, BigInt(bucket)],
            serial ? serialRead : plainRead
          )
        ),
        (rows) => (rows[0]?.head == null ? null : Number(rows[0].head))
      ),

    readBlocks: (log, bucket, after, limit, serial) =>
      Effect.map(
        session.execute<{ offset: bigint; block_id: { toString(): string }; stamp: bigint; events: string }>(
          make(
            `SELECT offset, block_id, stamp, events FROM event_log
             WHERE entity_type = ? AND shard = ? AND bucket = ? AND offset > ? LIMIT ?`,
            [log.entityType, log.shard, BigInt(bucket), BigInt(after), limit],
            serial ? serialRead : plainRead
          )
        ),
        (rows) =>
          rows.map((row) => ({
            offset: Number(row.offset),
            blockId: row.block_id.toString(),
            stamp: Number(row.stamp),
            events: row.events
          }))
      ),

    // The last sequence number as write timestamp: with clocks, a shorter row of a dead process could hide a longer one.
    writeIndexRow: (row) =>
      Effect.asVoid(
        session.execute(
          make(
            "INSERT INTO entity_events (entity_type, entity_id, partition, sequence, events) VALUES (?, ?, ?, ?, ?)",
            [row.entityType, row.entityId, BigInt(row.partition), BigInt(row.sequence), row.events],
            repeatable(row.lastSequence)
          )
        )
      ),

    readIndexRows: (entityType, entityId, partition, sequence) =>
      Effect.map(
        session.execute<{ events: string }>(
          make(
            `SELECT events FROM entity_events
             WHERE entity_type = ? AND entity_id = ? AND partition = ? AND sequence >= ?`,
            [entityType, entityId, BigInt(partition), BigInt(sequence)],
            plainRead
          )
        ),
        (rows) => rows.map((row) => row.events)
      ),

    readWatermark: (log, epoch) =>
      Effect.map(
        session.execute<{ offset: bigint }>(
          make(
            "SELECT offset FROM index_watermarks WHERE entity_type = ? AND shard = ? AND epoch = ?",
            [log.entityType, log.shard, epoch],
            plainRead
          )
        ),
        (rows) => Number(rows[0]?.offset ?? 0)
      ),

    writeWatermark: (log, epoch, offset) =>
      Effect.asVoid(
        session.execute(
          make(
            "INSERT INTO index_watermarks (entity_type, shard, epoch, offset) VALUES (?, ?, ?, ?)",
            [log.entityType, log.shard, epoch, BigInt(offset)],
            repeatable(offset)
          )
        )
      ),

    readSnapshot: (entityType, entityId, sequence) =>
      Effect.map(
        session.execute<{ sequence: bigint; offset: bigint; epoch: number; state: string }>(
          make(
            `SELECT sequence, offset, epoch, state FROM snapshots
             WHERE entity_type = ? AND entity_id = ? AND sequence <= ? LIMIT 1`,
            [entityType, entityId, BigInt(sequence)],
            plainRead
          )
        ),
        (rows) =>
          rows[0] === undefined
            ? undefined
            : {
                sequence: Number(rows[0].sequence),
                offset: Number(rows[0].offset),
                epoch: rows[0].epoch,
                state: rows[0].state
              }
      ),

    writeSnapshot: Effect.fnUntraced(function* (entityType, entityId, snapshot, removeThrough) {
      yield* session.execute(
        make(
          `INSERT INTO snapshots (entity_type, entity_id, sequence, offset, epoch, state, saved_at)
           VALUES (?, ?, ?, ?, ?, ?, ?)`,
          [
            entityType,
            entityId,
            BigInt(snapshot.sequence),
            BigInt(snapshot.offset),
            snapshot.epoch,
            snapshot.state,
            new Date()
          ],
          { consistency: quorum, idempotent: true }
        )
      )
      if (removeThrough > 0) {
        yield* session.execute(
          make(
            "DELETE FROM snapshots WHERE entity_type = ? AND entity_id = ? AND sequence <= ?",
            [entityType, entityId, BigInt(removeThrough)],
            { consistency: quorum, idempotent: true }
          )
        )
      }
    })
  }
}
