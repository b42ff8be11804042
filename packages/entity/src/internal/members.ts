/**
 * Which processes of a service there are, by a row that each renews: where it can be reached, with which key, and the types of
 * entities that it runs. From the same rows all of them conclude the same: which process has the entities of a shard.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect, Option, Schema } from "effect"

export const table = `CREATE TABLE IF NOT EXISTS entity_processes (
  part text, name text, value text, PRIMARY KEY (part, name))`

const part = "entities"

export const Member = Schema.Struct({
  name: Schema.String,
  host: Schema.String,
  port: Schema.Int,
  /** Whoever can read the keyspace may connect: 32 bytes in hexadecimal. */
  key: Schema.String,
  types: Schema.Array(Schema.String)
})
export type Member = typeof Member.Type

const decode = Schema.decodeUnknownOption(Schema.fromJsonString(Member))

export const makeMembers = (session: CassandraSession["Service"], leaseSeconds: number) => ({
  /** Those whose rows have not expired; what is not readable is of no use, and no harm. */
  read: Effect.map(
    session.execute<{ value: string | null }>(make("SELECT value FROM entity_processes WHERE part = ?", [part])),
    (rows) => rows.flatMap(({ value }) => Option.toArray(decode(value)))
  ),
  write: (member: Member): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(
      session.execute(
        make(
          "INSERT INTO entity_processes (part, name, value) VALUES (?, ?, ?) USING TTL ?",
          [part, member.name, JSON.stringify(member), leaseSeconds],
          // One that is late must not count: it is not sent again.
          { timeout: "2 seconds" }
        )
      )
    ),
  remove: (name: string): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(
      session.execute(
        make("DELETE FROM entity_processes WHERE part = ? AND name = ?", [part, name], { idempotent: true })
      )
    )
})

/** FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), mixed once more (MurmurHash3's finalizer) as names differ little. */
const hash = (text: string): number => {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/**
 * The process of each shard of an entity type: by rendezvous hashing (https://www.eecs.umich.edu/techreports/cse/96/CSE-TR-316-96.pdf),
 * so that few shards move when processes come and go, but none has more than its part, rounded up.
 */
export const assign = (entityType: string, shards: number, members: ReadonlyArray<Member>): ReadonlyArray<Member> => {
  const serving = members.filter(({ types }) => types.includes(entityType))
  const most = Math.ceil(shards / serving.length)
  const counts = new Map<Member, number>()
  const assigned: Array<Member> = []
  for (let shard = 0; shard < shards && serving.length > 0; shard++) {
    let best: Member | undefined
    let bestScore = -1
    for (const member of serving) {
      if ((counts.get(member) ?? 0) === most) continue
      const score = hash(`${entityType}/${shard}/${member.name}`)
      if (score < bestScore || (score === bestScore && member.name > best!.name)) continue
      best = member
      bestScore = score
    }
    counts.set(best!, (counts.get(best!) ?? 0) + 1)
    assigned.push(best!)
  }
  return assigned
}
