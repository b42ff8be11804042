/**
 * Who may handle an event once: the one whose conditional write of the offset is applied.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import type { Place, Reached } from "./sink.ts"

// Written by conditional writes only.
export const claimsTable = `CREATE TABLE IF NOT EXISTS read_side_claims (
  processor text, entity_type text, shard int, epoch bigint, offset bigint, claim uuid,
  PRIMARY KEY ((processor, entity_type, shard)))`

interface Row {
  readonly epoch: bigint
  readonly offset: bigint
  readonly claim: { toString(): string }
}

const isBehind = (a: Reached | undefined, b: Reached) =>
  a === undefined || a.epoch < b.epoch || (a.epoch === b.epoch && a.offset < b.offset)

export const makeClaims = (session: CassandraSession["Service"], { entityType, processor, shard }: Place) => {
  const key = [processor, entityType, shard]
  let current: Reached | undefined

  let holder: string | undefined

  const reached = Effect.map(
    session.execute<Row>(
      make(
        "SELECT epoch, offset, claim FROM read_side_claims WHERE processor = ? AND entity_type = ? AND shard = ?",
        key,
        {
          consistency: "SERIAL"
        }
      )
    ),
    ([row]) => {
      current = row === undefined ? undefined : { epoch: Number(row.epoch), offset: Number(row.offset) }
      holder = row?.claim?.toString()
      return current
    }
  )

  /** True when the event at an offset is ours; false when another process has it. */
  const claim = Effect.fnUntraced(function* (wanted: Reached): Effect.fn.Return<boolean, CassandraError> {
    const id = crypto.randomUUID()
    while (isBehind(current, wanted)) {
      const { epoch, offset } = wanted
      const statement: ReturnType<typeof make<Row>> =
        current === undefined
          ? make(
              "INSERT INTO read_side_claims (processor, entity_type, shard, epoch, offset, claim) VALUES (?, ?, ?, ?, ?, ?) IF NOT EXISTS",
              [...key, BigInt(epoch), BigInt(offset), id]
            )
          : make(
              `UPDATE read_side_claims SET epoch = ?, offset = ?, claim = ?
               WHERE processor = ? AND entity_type = ? AND shard = ? IF epoch = ? AND offset = ?`,
              [BigInt(epoch), BigInt(offset), id, ...key, BigInt(current.epoch), BigInt(current.offset)]
            )
      const outcome = yield* session.applied(statement).pipe(
        // The same again, until its outcome is known: what stands there tells whose it is.
        Effect.retry({ times: 5, while: ({ reason }) => reason._tag === "OutcomeUnknown" })
      )
      if (outcome.applied) {
        current = wanted
        return true
      }
      yield* reached
      // Its own write, whose outcome was unknown at first.
      if (holder === id) return true
    }
    return false
  })

  return { reached, claim }
}
