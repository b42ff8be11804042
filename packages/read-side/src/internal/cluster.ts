/**
 * What the processes that run processors know of each other, and what operators asked of them: one partition, read and
 * written once a beat. A member's row names the shards that it works on and expires with its lease.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import { type Control, initial } from "./control.ts"

export const clusterTable = `CREATE TABLE IF NOT EXISTS read_side_cluster (
  part text, kind text, name text, value text, PRIMARY KEY (part, kind, name))`

/** What a process says of a shard that it works on. */
export interface Work {
  readonly offset: number
  readonly head: number
  /** Events a second, of late. */
  readonly rate: number
  /** Why it stands still. */
  readonly error?: string | undefined
  readonly reason?: string | undefined
  readonly attempts?: number | undefined
}

/** A process that runs processors. */
export interface Member {
  readonly id: string
  /** Host and process id, for people. */
  readonly label: string
  /** By processor, the revision of the control document that it acts by; absent for those that it has nothing to do with. */
  readonly seen: Readonly<Record<string, number>>
  /** By processor, of those that it can run, then by entity type and shard. */
  readonly owns: Readonly<Record<string, Readonly<Record<string, Work>>>>
}

/** What is known of a processor, also where it does not run. */
export interface Registration {
  readonly name: string
  readonly version: number
  readonly entityTypes: ReadonlyArray<string>
  readonly tables: ReadonlyArray<string>
  readonly truncates: boolean
}

/** All that the partition holds. */
export interface View {
  readonly members: ReadonlyArray<Member>
  readonly controls: ReadonlyMap<string, Control>
  readonly registrations: ReadonlyMap<string, Registration>
}

/** The cluster as the session's keyspace holds it; processes with another `part` do not know of each other. */
export const makeCluster = (session: CassandraSession["Service"], part = "read side") => {
  const read: Effect.Effect<View, CassandraError> = Effect.map(
    session.execute<{ kind: string; name: string; value: string | null }>(
      make("SELECT kind, name, value FROM read_side_cluster WHERE part = ?", [part])
    ),
    (rows) => {
      const of = <A>(kind: string) =>
        rows.flatMap((row) =>
          row.kind === kind && row.value !== null ? [[row.name, JSON.parse(row.value) as A] as const] : []
        )
      return {
        members: of<Member>("member").map(([, member]) => member),
        controls: new Map(of<Partial<Control>>("control").map(([name, control]) => [name, { ...initial, ...control }])),
        registrations: new Map(of<Registration>("processor"))
      }
    }
  )

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
      const before: Control =
        stored === undefined ? initial : { ...initial, ...(JSON.parse(stored) as Partial<Control>) }
      const changed = change(before)
      if (changed === undefined) return before
      // The id tells this change from another one that says the same.
      const after = { ...changed, revision: before.revision + 1, change: crypto.randomUUID() }
      const value = JSON.stringify(after)
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
