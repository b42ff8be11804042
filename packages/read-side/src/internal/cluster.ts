/**
 * What the processes that run processors know of each other, and what operators asked of them: one partition, read and
 * written once a beat. A member's row names the shards that it works on and expires with its lease.
 */
import { describeIssue } from "@effect-cassandra/journal/EventCodec"
import { CassandraError, RowMismatch } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect, Result, Schema, SchemaParser } from "effect"
import { type Control, initial, Stored } from "./control.ts"

export const clusterTable = `CREATE TABLE IF NOT EXISTS read_side_cluster (
  part text, kind text, name text, value text, PRIMARY KEY (part, kind, name))`

/** What a process says of a shard that it works on. */
const Work = Schema.Struct({
  offset: Schema.Finite,
  head: Schema.Finite,
  /** Events a second, of late. */
  rate: Schema.Finite,
  /** Why it stands still. */
  error: Schema.optional(Schema.String),
  reason: Schema.optional(Schema.String),
  attempts: Schema.optional(Schema.Finite)
})
export type Work = typeof Work.Type

/** A process that runs processors. */
const Member = Schema.Struct({
  id: Schema.String,
  /** Host and process id, for people. */
  label: Schema.String,
  /** By processor, the revision of the control document that it acts by; absent for those that it has nothing to do with. */
  seen: Schema.Record(Schema.String, Schema.Int),
  /** By processor, of those that it can run, then by entity type and shard. */
  owns: Schema.Record(Schema.String, Schema.Record(Schema.String, Work))
})
export type Member = typeof Member.Type

/** What is known of a processor, also where it does not run. */
const Registration = Schema.Struct({
  name: Schema.String,
  version: Schema.Int,
  entityTypes: Schema.Array(Schema.String),
  tables: Schema.Array(Schema.String),
  /** Not known of one that an older process has registered. */
  truncates: Schema.optional(Schema.Boolean)
})
export type Registration = typeof Registration.Type

/** All that the partition holds. */
export interface View {
  readonly members: ReadonlyArray<Member>
  readonly controls: ReadonlyMap<string, Control>
  readonly registrations: ReadonlyMap<string, Registration>
}

const unreadable = (kind: string, part: string, name: string, why: string) => {
  const message = `the ${kind} "${name}" in read_side_cluster is not readable: mend its row (part = '${part}'), or delete it. ${why}`
  return new CassandraError({ reason: new RowMismatch({ message, cause: undefined }) })
}

const parse = SchemaParser.decodeUnknownResult(Schema.fromJsonString(Schema.Unknown))

/** What a row of some kind says, with whatever a newer process has added to it. */
const decoder = <A>(kind: string, schema: Schema.Codec<A>) => {
  const check = SchemaParser.decodeUnknownResult(schema)
  return (part: string, name: string, value: string): Effect.Effect<A, CassandraError> =>
    Result.match(
      Result.flatMap(parse(value), (parsed) => Result.map(check(parsed), () => parsed as A)),
      {
        onSuccess: Effect.succeed,
        onFailure: (issue) => Effect.fail(unreadable(kind, part, name, describeIssue(issue)))
      }
    )
}
const decodeMember = decoder("member", Member)
const decodeRegistration = decoder("processor", Registration)
const decodeStored = decoder("control", Stored)
const decodeControl = (part: string, name: string, value: string): Effect.Effect<Control, CassandraError> =>
  Effect.map(decodeStored(part, name, value), (stored) => ({ ...initial, ...stored }))

/** The cluster as the session's keyspace holds it; processes with another `part` do not know of each other. */
export const makeCluster = (session: CassandraSession["Service"], part = "read side") => {
  const read: Effect.Effect<View, CassandraError> = Effect.gen(function* () {
    const rows = yield* session.execute<{ kind: string; name: string; value: string | null }>(
      make("SELECT kind, name, value FROM read_side_cluster WHERE part = ?", [part])
    )
    const members: Array<Member> = []
    const controls = new Map<string, Control>()
    const registrations = new Map<string, Registration>()
    for (const { kind, name, value } of rows) {
      if (value === null) continue
      if (kind === "member") members.push(yield* decodeMember(part, name, value))
      if (kind === "control") controls.set(name, yield* decodeControl(part, name, value))
      if (kind === "processor") registrations.set(name, yield* decodeRegistration(part, name, value))
    }
    return { members, controls, registrations }
  })

  const put = (kind: string, name: string, value: unknown) =>
    make("INSERT INTO read_side_cluster (part, kind, name, value) VALUES (?, ?, ?, ?)", [
      part,
      kind,
      name,
      JSON.stringify(value)
    ])

  const writeMember = (member: Member, leaseSeconds: number): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(
      session.execute(
        make(
          "INSERT INTO read_side_cluster (part, kind, name, value) VALUES (?, 'member', ?, ?) USING TTL ?",
          [part, member.id, JSON.stringify(member), leaseSeconds],
          // One that is late must not count: it is not sent again.
          { timeout: "2 seconds" }
        )
      )
    )

  const removeMember = (id: string): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(
      session.execute(
        make("DELETE FROM read_side_cluster WHERE part = ? AND kind = 'member' AND name = ?", [part, id], {
          idempotent: true
        })
      )
    )

  const register = (id: string, registration: Registration): Effect.Effect<void, CassandraError> =>
    Effect.asVoid(session.execute(put("processor", id, registration)))

  const readControl = (id: string): Effect.Effect<string | undefined, CassandraError> =>
    Effect.map(
      session.execute<{ value: string | null }>(
        make("SELECT value FROM read_side_cluster WHERE part = ? AND kind = 'control' AND name = ?", [part, id], {
          consistency: "SERIAL"
        })
      ),
      ([row]) => row?.value ?? undefined
    )

  /**
   * Changes a control document; of two changes at the same time both are made, one after the other. `change` may be called
   * several times, and leaves it with undefined.
   */
  const control = Effect.fnUntraced(function* (
    id: string,
    change: (control: Control) => Control | undefined
  ): Effect.fn.Return<Control, CassandraError> {
    for (;;) {
      const stored = yield* readControl(id)
      const before = stored === undefined ? initial : yield* decodeControl(part, id, stored)
      const changed = change(before)
      if (changed === undefined) return before
      // The id tells this change from another one that says the same.
      const after = { ...changed, revision: before.revision + 1, change: crypto.randomUUID() }
      const value = yield* Effect.try({
        try: () => JSON.stringify(after),
        // What others have added to it may be too deep.
        catch: (cause) => unreadable("control", part, id, String(cause))
      })
      const outcome = yield* session
        .applied<{ value: string | null }>(
          stored === undefined
            ? make(
                "INSERT INTO read_side_cluster (part, kind, name, value) VALUES (?, 'control', ?, ?) IF NOT EXISTS",
                [part, id, value]
              )
            : make(
                "UPDATE read_side_cluster SET value = ? WHERE part = ? AND kind = 'control' AND name = ? IF value = ?",
                [value, part, id, stored]
              )
        )
        .pipe(Effect.retry({ times: 5, while: ({ reason }) => reason._tag === "OutcomeUnknown" }))
      if (outcome.applied || outcome.current.value === value) return after
      yield* Effect.sleep(Math.random() * 20)
    }
  })

  return { read, writeMember, removeMember, register, control }
}

export type Cluster = ReturnType<typeof makeCluster>
