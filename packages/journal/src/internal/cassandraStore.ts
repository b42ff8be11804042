import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Options, type SerialConsistency } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import type { Compression } from "../Journal.ts"
import { pack, unpack } from "./pack.ts"
import type { IndexRow, LogId, Place, Store, TypeRecord } from "./store.ts"

/** Of the log's key: a later one can have more shards. */
const logGeneration = 1

// Every write to event_log and entity_types is conditional: a plain one carries another clock, and could hide them.
// A partition of event_log is written once, from its begin to its end, and so lies in few files without compaction.
export const tables = [
  `CREATE TABLE IF NOT EXISTS entity_types (
     entity_type text PRIMARY KEY, shards int, serial_consistency text, data_center text, bucket_size int, part_size int,
     epoch int, index_generation int)`,
  `CREATE TABLE IF NOT EXISTS event_log (
     entity_type text, shard int, generation int, bucket bigint, part int, head bigint STATIC,
     offset bigint, block_id timeuuid, stamp bigint, written bigint, revision int, events text, events_zstd blob,
     PRIMARY KEY ((entity_type, shard, generation, bucket, part), offset))
   WITH compaction = {'class': 'SizeTieredCompactionStrategy', 'min_threshold': 16}`,
  `CREATE TABLE IF NOT EXISTS entity_events (
     entity_type text, entity_id text, generation int, partition bigint, sequence bigint, events text,
     PRIMARY KEY ((entity_type, entity_id, generation, partition), sequence))`,
  `CREATE TABLE IF NOT EXISTS index_watermarks (
     entity_type text, shard int, generation int, offset bigint,
     PRIMARY KEY ((entity_type, shard, generation)))`,
  `CREATE TABLE IF NOT EXISTS log_heads (
     entity_type text, shard int, offset bigint, PRIMARY KEY (entity_type, shard))`,
  `CREATE TABLE IF NOT EXISTS turn_claims (
     entity_type text, shard int, writer text, offset bigint,
     PRIMARY KEY ((entity_type, shard), writer))
   WITH default_time_to_live = 10 AND gc_grace_seconds = 3600`,
  `CREATE TABLE IF NOT EXISTS snapshots (
     entity_type text, entity_id text, sequence bigint, offset bigint, epoch int, version int, state text,
     encoding text, saved_at timestamp,
     PRIMARY KEY ((entity_type, entity_id), sequence)) WITH CLUSTERING ORDER BY (sequence DESC)`,
  `CREATE TABLE IF NOT EXISTS deletions (
     entity_type text, shard int, entity_id text, marker bigint, through bigint,
     PRIMARY KEY ((entity_type, shard), entity_id, marker))`
]

const of = "entity_type = ? AND shard = ? AND generation = ? AND bucket = ? AND part = ?"

/** The key of a log's partition. */
const keyOf = ({ entityType, shard }: LogId, { bucket, part }: Place) => [
  entityType,
  shard,
  logGeneration,
  BigInt(bucket),
  part
]

/** A row's write timestamp: what reaches further wins, and of equal ones what has more deleted; a row has 100 events. */
const indexStamp = ({ deleted, lastSequence }: IndexRow) => lastSequence * 128 + deleted

/** The data centre whose nodes a session uses. */
export const dataCenterOf = (session: CassandraSession["Service"]) =>
  Effect.map(
    session.one<{ data_center: string }>(make("SELECT data_center FROM system.local", [], { consistency: "ONE" })),
    (row) => row.data_center
  )

/** Offsets of an epoch stay below it. */
const epochStep = 10n ** 13n

/** The store in the keyspace of a session. */
export const cassandraStore = (
  session: CassandraSession["Service"],
  serialConsistency: SerialConsistency,
  compression: Compression = "zstd"
): Store => {
  const quorum = serialConsistency === "SERIAL" ? "QUORUM" : "LOCAL_QUORUM"
  const conditional: Options = { consistency: quorum, serialConsistency }
  const serialRead: Options = { consistency: serialConsistency }
  const plainRead: Options = { consistency: quorum }
  const plainWrite: Options = { consistency: quorum, idempotent: true }
  const repeatable = (timestamp: number): Options => ({ ...plainWrite, timestamp })

  const removalOfSnapshots = (entityType: string, entityId: string, sequence: number) =>
    make(
      "DELETE FROM snapshots WHERE entity_type = ? AND entity_id = ? AND sequence <= ?",
      [entityType, entityId, BigInt(sequence)],
      plainWrite
    )

  return {
    recordType: Effect.fnUntraced(function* (entityType, record) {
      type Row = {
        shards: number
        serial_consistency: string
        data_center: string | null
        bucket_size: number
        part_size: number
        epoch: number
        index_generation: number
      }
      const read = (options: Options) =>
        session.execute<Row>(
          make(
            `SELECT shards, serial_consistency, data_center, bucket_size, part_size, epoch, index_generation
             FROM entity_types WHERE entity_type = ?`,
            [entityType],
            options
          )
        )
      let rows = yield* read(serialRead)
      // The first use is agreed on by all data centres, so that two of them cannot both be the one that appends.
      if (rows.length === 0 && serialConsistency !== "SERIAL") rows = yield* read({ consistency: "SERIAL" })
      if (rows.length === 0) {
        const { bucketSize, dataCenter, epoch, indexGeneration, partSize, serialConsistency, shards } = record
        yield* session
          .applied(
            make(
              `INSERT INTO entity_types
                 (entity_type, shards, serial_consistency, data_center, bucket_size, part_size, epoch,
                  index_generation)
               VALUES (?, ?, ?, ?, ?, ?, ?, ?) IF NOT EXISTS`,
              [entityType, shards, serialConsistency, dataCenter, bucketSize, partSize, epoch, indexGeneration],
              { consistency: "QUORUM", serialConsistency: "SERIAL" }
            )
          )
          .pipe(Effect.retry({ times: 5, while: (error) => error.reason._tag === "OutcomeUnknown" }))
        rows = yield* read({ consistency: "SERIAL" })
      }
      const row = rows[0]
      return row === undefined
        ? yield* Effect.die(`the record of entity type ${entityType} was written and cannot be read`)
        : ({
            shards: row.shards,
            serialConsistency: row.serial_consistency,
            dataCenter: row.data_center,
            bucketSize: row.bucket_size,
            partSize: row.part_size,
            epoch: row.epoch,
            indexGeneration: row.index_generation
          } satisfies TypeRecord)
    }),

    changeRecord: (entityType, from, to) =>
      Effect.map(
        session.applied(
          make(
            `UPDATE entity_types SET epoch = ?, index_generation = ? WHERE entity_type = ?
             IF epoch = ? AND index_generation = ?`,
            [to.epoch, to.indexGeneration, entityType, from.epoch, from.indexGeneration],
            conditional
          )
        ),
        ({ applied }) => applied
      ),

    appendBlock: (log, block) => {
      const events = compression === "none" ? block.events : pack(block.events)
      const column = typeof events === "string" ? "events" : "events_zstd"
      return Effect.map(
        session.applied<{ head: bigint | null; block_id: { toString(): string } | null }>(
          make(
            `UPDATE event_log SET head = ?, block_id = ?, stamp = ?, written = ?, ${column} = ?
             WHERE ${of} AND offset = ?
             IF head = ? AND block_id = null`,
            [
              BigInt(block.offset),
              block.blockId,
              BigInt(block.stamp),
              BigInt(block.written),
              events,
              ...keyOf(log, block.place),
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
      )
    },

    readHead: (log, place, serial) =>
      Effect.map(
        session.execute<{ head: bigint | null }>(
          make(`SELECT head FROM event_log WHERE ${of} LIMIT 1`, keyOf(log, place), serial ? serialRead : plainRead)
        ),
        (rows) => (rows[0]?.head == null ? null : Number(rows[0].head))
      ),

    readBlocks: (log, place, after, limit, serial) =>
      Effect.map(
        session.execute<{
          offset: bigint
          block_id: unknown
          stamp: bigint
          written: bigint
          revision: number | null
          events: string | null
          events_zstd: Buffer | null
        }>(
          make(
            `SELECT offset, block_id, stamp, written, revision, events, events_zstd FROM event_log
             WHERE ${of} AND offset > ? LIMIT ?`,
            [...keyOf(log, place), BigInt(after), limit],
            serial ? serialRead : plainRead
          )
        ),
        (rows) =>
          rows.map((row) => ({
            offset: Number(row.offset),
            blockId: String(row.block_id),
            stamp: Number(row.stamp),
            written: Number(row.written),
            revision: row.revision ?? 0,
            events: row.events_zstd === null ? row.events! : unpack(row.events_zstd)
          }))
      ),

    reviseBlock: (log, place, block) =>
      Effect.map(
        session.applied(
          make(
            `UPDATE event_log SET events = ?, events_zstd = null, revision = ? WHERE ${of} AND offset = ? IF revision = ?`,
            [
              block.events,
              block.revision + 1,
              ...keyOf(log, place),
              BigInt(block.offset),
              block.revision === 0 ? null : block.revision
            ],
            conditional
          )
        ),
        ({ applied }) => applied
      ),

    // With clocks as write timestamps, a shorter row of a dead process could hide a longer one.
    writeIndexRows: (generation, rows) => {
      const statements = rows.map((row) =>
        make(
          `INSERT INTO entity_events (entity_type, entity_id, generation, partition, sequence, events)
           VALUES (?, ?, ?, ?, ?, ?) USING TIMESTAMP ?`,
          [
            row.entityType,
            row.entityId,
            generation,
            BigInt(row.partition),
            BigInt(row.sequence),
            row.events,
            BigInt(indexStamp(row))
          ],
          plainWrite
        )
      )
      return statements.length === 1
        ? Effect.asVoid(session.execute(statements[0]!))
        : session.batch(statements, { type: "unlogged" })
    },

    readIndexRows: (generation, entityType, entityId, partition, sequence) =>
      Effect.map(
        session.execute<{ sequence: bigint; events: string }>(
          make(
            `SELECT sequence, events FROM entity_events
             WHERE entity_type = ? AND entity_id = ? AND generation = ? AND partition = ? AND sequence >= ?`,
            [entityType, entityId, generation, BigInt(partition), BigInt(sequence)],
            plainRead
          )
        ),
        (rows) => rows.map((row) => ({ sequence: Number(row.sequence), events: row.events }))
      ),

    readWatermark: (log, generation) =>
      Effect.map(
        session.execute<{ offset: bigint }>(
          make(
            "SELECT offset FROM index_watermarks WHERE entity_type = ? AND shard = ? AND generation = ?",
            [log.entityType, log.shard, generation],
            plainRead
          )
        ),
        (rows) => Number(rows[0]?.offset ?? 0)
      ),

    writeWatermark: (log, generation, offset) =>
      Effect.asVoid(
        session.execute(
          make(
            "INSERT INTO index_watermarks (entity_type, shard, generation, offset) VALUES (?, ?, ?, ?)",
            [log.entityType, log.shard, generation, BigInt(offset)],
            repeatable(offset)
          )
        )
      ),

    readHeads: (entityType) =>
      Effect.map(
        session.execute<{ shard: number; offset: bigint }>(
          make("SELECT shard, offset FROM log_heads WHERE entity_type = ?", [entityType], plainRead)
        ),
        (rows) => rows.map(({ offset, shard }) => [shard, Number(offset)] as const)
      ),

    writeHeads: (entityType, epoch, heads) =>
      session.batch(
        heads.map(([shard, offset]) =>
          make("INSERT INTO log_heads (entity_type, shard, offset) VALUES (?, ?, ?) USING TIMESTAMP ?", [
            entityType,
            shard,
            BigInt(offset),
            BigInt(epoch - 1) * epochStep + BigInt(offset)
          ])
        ),
        { ...plainWrite, type: "unlogged" }
      ),

    readClaims: (log) =>
      Effect.map(
        session.execute<{ writer: string; offset: bigint }>(
          make(
            "SELECT writer, offset FROM turn_claims WHERE entity_type = ? AND shard = ?",
            [log.entityType, log.shard],
            plainRead
          )
        ),
        (rows) => rows.map(({ offset, writer }) => [writer, Number(offset)] as const)
      ),

    claimTurn: (log, writer, offset) =>
      Effect.asVoid(
        session.execute(
          make(
            "INSERT INTO turn_claims (entity_type, shard, writer, offset) VALUES (?, ?, ?, ?)",
            [log.entityType, log.shard, writer, BigInt(offset)],
            plainWrite
          )
        )
      ),

    readSnapshot: (entityType, entityId, sequence) =>
      Effect.map(
        session.execute<{
          sequence: bigint
          offset: bigint
          epoch: number
          version: number
          state: string
          encoding: string | null
        }>(
          make(
            `SELECT sequence, offset, epoch, version, state, encoding FROM snapshots
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
                version: rows[0].version,
                state: rows[0].state,
                encoding: rows[0].encoding
              }
      ),

    writeSnapshot: (entityType, entityId, snapshot, removeThrough) => {
      const insert = make(
        `INSERT INTO snapshots (entity_type, entity_id, sequence, offset, epoch, version, state, encoding, saved_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        [
          entityType,
          entityId,
          BigInt(snapshot.sequence),
          BigInt(snapshot.offset),
          snapshot.epoch,
          snapshot.version,
          snapshot.state,
          snapshot.encoding,
          new Date()
        ],
        plainWrite
      )
      // Both are in one partition, so that it is one write for the server.
      return removeThrough > 0
        ? session.batch([insert, removalOfSnapshots(entityType, entityId, removeThrough)], { type: "unlogged" })
        : Effect.asVoid(session.execute(insert))
    },

    removeSnapshots: (entityType, entityId, sequence) =>
      Effect.asVoid(session.execute(removalOfSnapshots(entityType, entityId, sequence))),

    readDeletions: (log) =>
      Effect.map(
        session.execute<{ entity_id: string; marker: bigint; through: bigint }>(
          make(
            "SELECT entity_id, marker, through FROM deletions WHERE entity_type = ? AND shard = ?",
            [log.entityType, log.shard],
            plainRead
          )
        ),
        (rows) =>
          rows.map((row) => ({ entityId: row.entity_id, marker: Number(row.marker), through: Number(row.through) }))
      ),

    writeDeletion: (log, { entityId, marker, through }) =>
      Effect.asVoid(
        session.execute(
          make(
            "INSERT INTO deletions (entity_type, shard, entity_id, marker, through) VALUES (?, ?, ?, ?, ?)",
            [log.entityType, log.shard, entityId, BigInt(marker), BigInt(through)],
            plainWrite
          )
        )
      ),

    removeDeletion: (log, { entityId, marker }) =>
      Effect.asVoid(
        session.execute(
          make(
            "DELETE FROM deletions WHERE entity_type = ? AND shard = ? AND entity_id = ? AND marker = ?",
            [log.entityType, log.shard, entityId, BigInt(marker)],
            plainWrite
          )
        )
      )
  }
}
