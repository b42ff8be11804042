/**
 * Events that were put aside: those that could not be handled, and the later ones of the same entity.
 */
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import type { Place } from "./sink.ts"

export const parkedTable = `CREATE TABLE IF NOT EXISTS read_side_parked (
  processor text, entity_type text, shard int, entity_id text, sequence bigint, offset bigint, event_type text,
  error text, attempts int, parked_at timestamp, request text,
  PRIMARY KEY ((processor, entity_type, shard), entity_id, sequence))`

/** An event that was put aside. */
export interface Parked {
  readonly processor: string
  readonly entityType: string
  readonly shard: number
  readonly entityId: string
  readonly sequence: number
  readonly offset: number
  readonly eventType: string
  /** Why it could not be handled; undefined where it only stands behind another event of its entity. */
  readonly error: string | undefined
  readonly attempts: number
  readonly parkedAt: Date
  /** What was asked, and is not done yet. */
  readonly request: "retry" | "skip" | undefined
}

interface Row {
  readonly entity_id: string
  readonly sequence: bigint
  readonly offset: bigint
  readonly event_type: string
  readonly error: string | null
  readonly attempts: number
  readonly parked_at: Date
  readonly request: string | null
}

const key = "processor = ? AND entity_type = ? AND shard = ?"

export const makeParking = (session: CassandraSession["Service"]) => {
  const keyOf = ({ entityType, processor, shard }: Place) => [processor, entityType, shard]

  /** In the order of entities and their events. */
  const list = (place: Place): Effect.Effect<ReadonlyArray<Parked>, CassandraError> =>
    Effect.map(
      session.execute<Row>(
        make(
          `SELECT entity_id, sequence, offset, event_type, error, attempts, parked_at, request FROM read_side_parked WHERE ${key}`,
          keyOf(place)
        )
      ),
      (rows) =>
        rows
          // A request that came too late leaves a row without an event.
          .filter((row) => row.offset != null)
          .map((row) => ({
            ...place,
            entityId: row.entity_id,
            sequence: Number(row.sequence),
            offset: Number(row.offset),
            eventType: row.event_type,
            error: row.error ?? undefined,
            attempts: row.attempts,
            parkedAt: row.parked_at,
            request: (row.request ?? undefined) as Parked["request"]
          }))
    )

  const park = (
    place: Place,
    { entityId, offset, sequence, type }: EventEnvelope,
    error: string | null,
    attempts: number
  ) =>
    session.execute(
      make(
        `INSERT INTO read_side_parked
           (processor, entity_type, shard, entity_id, sequence, offset, event_type, error, attempts, parked_at)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)`,
        [...keyOf(place), entityId, BigInt(sequence), BigInt(offset), type, error, attempts, new Date()],
        { idempotent: true }
      )
    )

  const remove = (place: Place, entityId: string, sequence: number) =>
    session.execute(
      make(
        `DELETE FROM read_side_parked WHERE ${key} AND entity_id = ? AND sequence = ?`,
        [...keyOf(place), entityId, BigInt(sequence)],
        { idempotent: true }
      )
    )

  const setRequest = (place: Place, entityId: string, sequence: number, request: "retry" | "skip" | null) =>
    session.execute(
      make(
        `UPDATE read_side_parked SET request = ? WHERE ${key} AND entity_id = ? AND sequence = ?`,
        [request, ...keyOf(place), entityId, BigInt(sequence)],
        { idempotent: true }
      )
    )

  return { list, park, remove, setRequest }
}

export type Parking = ReturnType<typeof makeParking>
