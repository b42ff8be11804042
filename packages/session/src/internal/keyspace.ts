/**
 * What happens to the keyspace when a session is opened: it is created, checked against the session's options, and its
 * owner is recorded.
 */
import { createHash, randomUUID } from "node:crypto"
import { Effect, Schedule } from "effect"
import {
  CassandraError,
  InvalidOptions,
  KeyspaceMissing,
  KeyspaceOwned,
  OutcomeUnknown,
  type Reason,
  SchemaDisagreement
} from "../CassandraError.ts"
import type { CassandraSession } from "../CassandraSession.ts"
import { type Consistency, identifier, make } from "../Statement.ts"
import type { Settings } from "./options.ts"

type Session = CassandraSession["Service"]

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

/** For tables that each node keeps for itself. */
const ofNode = { consistency: "ONE" } as const

const literal = (text: string) => `'${text.replaceAll("'", "''")}'`

/** The replication of the keyspace, made first if it is to be. */
const replicationOf = Effect.fnUntraced(function* (session: Session, options: Settings) {
  const read = session.first<{ replication: ReadonlyMap<string, string> }>(
    make("SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ?", [options.keyspace], ofNode)
  )
  const found = yield* read
  if (found._tag === "Some") return found.value.replication
  const copies = options.replication ?? (options.development ? { [options.localDataCenter]: 1 } : {})
  if (Object.keys(copies).length === 0 || options.access === "read") {
    return yield* fail(
      new KeyspaceMissing({
        message: `keyspace "${options.keyspace}" does not exist: create it, or give \`replication\` (in development: \`development: true\`) and it is created`,
        keyspace: options.keyspace,
        cause: undefined
      })
    )
  }
  yield* session.execute(
    make(
      `CREATE KEYSPACE IF NOT EXISTS ${identifier(options.keyspace).quoted} WITH replication = {'class': ` +
        `'NetworkTopologyStrategy', ${Object.entries(copies).map(([dc, n]) => `${literal(dc)}: ${n}`)}}`
    )
  )
  const created = yield* read
  return created._tag === "Some"
    ? created.value.replication
    : yield* fail(
        new SchemaDisagreement({
          message: `keyspace "${options.keyspace}" was created, and the nodes do not know it yet`,
          cause: undefined
        })
      )
})

/** Replicas that must answer, as far as the number is fixed by the level. */
const fixed: Partial<Record<Consistency, number>> = { TWO: 2, THREE: 3 }

/** What does not fit, as an error, or as the warnings of it. */
const compare = (options: Settings, replication: ReadonlyMap<string, string>) => {
  const { consistency, keyspace, localDataCenter: local } = options
  const strategy = (replication.get("class") ?? "").split(".").pop()!
  // Transient copies stand as "3/1".
  const copies = [...replication]
    .filter(([name]) => name !== "class")
    .map(([name, n]) => [name, Number.parseInt(n, 10)])
  const total = copies.reduce((sum, [, n]) => sum + (n as number), 0)
  const needed = fixed[consistency]
  if (needed !== undefined && needed > total) {
    return {
      error: `consistency ${consistency} needs ${needed} replicas, and keyspace "${keyspace}" keeps ${total}: raise its replication, or set another consistency`
    }
  }
  if (
    strategy === "NetworkTopologyStrategy" &&
    !copies.some(([name]) => name === local) &&
    /^LOCAL/.test(consistency)
  ) {
    return {
      error: `keyspace "${keyspace}" has no replica in data centre "${local}", which consistency ${consistency} asks: it is kept in ${copies.map(([name]) => `"${name}"`).join(", ") || "none"}; set localDataCenter to one of them, or ALTER KEYSPACE`
    }
  }
  const warnings: Array<string> = []
  if (!options.development && total === 1) {
    warnings.push(
      `keyspace "${keyspace}" keeps one copy of each row (${strategy}, replication factor 1): with its node the data are gone. ALTER KEYSPACE to NetworkTopologyStrategy with 3 copies, or set \`development: true\``
    )
  } else if (strategy === "SimpleStrategy" && !options.development) {
    warnings.push(
      `keyspace "${keyspace}" has SimpleStrategy, which knows no data centres: ALTER KEYSPACE to NetworkTopologyStrategy`
    )
  }
  if (total > 1 && /ONE$/.test(consistency)) {
    warnings.push(
      `consistency ${consistency} with ${total} copies: a read may not see a write that was acknowledged. Set LOCAL_QUORUM for the session, and ${consistency} for the statements that may be stale`
    )
  }
  return { warnings }
}

/** Warnings about the server; one that has no such tables is not asked. */
const serverWarnings = Effect.fnUntraced(function* (session: Session) {
  const [local] = yield* session.execute<{ release_version: string }>(
    make("SELECT release_version FROM system.local", [], ofNode)
  )
  const release = local?.release_version ?? ""
  const [major = 0, minor = 0] = release.split(".").map(Number)
  if (major < 4) {
    return yield* fail(
      new InvalidOptions({
        message: `the server is Cassandra ${release}: 4.0 or later is needed, 4.1 or later recommended`,
        cause: undefined
      })
    )
  }
  if (major === 4 && minor === 0) {
    return [`Cassandra ${release} has no paxos_variant v2: conditional writes take twice the round trips of 4.1`]
  }
  const settings = yield* session
    .execute<{ value: string | null }>(
      make("SELECT value FROM system_views.settings WHERE name = 'paxos_variant'", [], ofNode)
    )
    .pipe(Effect.catch(() => Effect.succeed([])))
  const variant = settings[0]?.value ?? "v2"
  return /without_linearizable/i.test(variant)
    ? [`paxos_variant is ${variant}: serial reads may miss conditional writes. Set v2 in cassandra.yaml`]
    : /v1/i.test(variant)
      ? [`paxos_variant is ${variant}: conditional writes take four round trips, with v2 two. Set it in cassandra.yaml`]
      : []
})

/** One row per name: the owner of the keyspace, the holder of the lock on its schema. */
const records = "keyspace_records"

/**
 * Two nodes that create one table at the same time give it two ids ("Column family ID mismatch"); this one, which no lock
 * can protect, has an id that follows from its name.
 */
const createRecords = (keyspace: string) => {
  const hash = createHash("sha256").update(`${keyspace}.${records}`).digest("hex")
  const id = `${hash.slice(0, 8)}-${hash.slice(8, 12)}-5${hash.slice(13, 16)}-a${hash.slice(17, 20)}-${hash.slice(20, 32)}`
  return make(`CREATE TABLE IF NOT EXISTS ${records} (name text PRIMARY KEY, value text) WITH id = ${id}`)
}

const hasTable = (session: Session, table: string) =>
  Effect.map(
    session.first(
      make(
        "SELECT table_name FROM system_schema.tables WHERE keyspace_name = ? AND table_name = ?",
        [session.keyspace, table],
        ofNode
      )
    ),
    (row) => row._tag === "Some"
  )

const serial = { consistency: "QUORUM", serialConsistency: "SERIAL" } as const

const recordOf = (session: Session, name: string) =>
  Effect.map(
    session.first<{ value: string | null }>(
      make(`SELECT value FROM ${records} WHERE name = ?`, [name], { consistency: "SERIAL" })
    ),
    (row) => (row._tag === "Some" ? (row.value.value ?? undefined) : undefined)
  )

/** As `recordOf`, where the table may be missing, or just be created: then it is in the schema before it can be read. */
const recordIfAny = Effect.fnUntraced(function* (session: Session, name: string) {
  if (!(yield* hasTable(session, records))) return undefined
  return yield* recordOf(session, name).pipe(
    Effect.catchReason("CassandraError", "InvalidStatement", () =>
      Effect.andThen(session.execute(createRecords(session.keyspace)), recordOf(session, name))
    )
  )
})

/** Whether some process changes the schema now, so that what can be seen of it may not be usable yet. */
export const isSchemaChanging = (session: Session): Effect.Effect<boolean, CassandraError> =>
  Effect.map(recordIfAny(session, "schema lock"), (holder) => holder !== undefined)

const checkOwner = Effect.fnUntraced(function* (session: Session, { keyspace, service }: Settings) {
  let owner = yield* recordIfAny(session, "owner")
  if (owner === undefined && service !== undefined) {
    yield* session.execute(createRecords(keyspace))
    yield* session
      .applied(make(`INSERT INTO ${records} (name, value) VALUES ('owner', ?) IF NOT EXISTS`, [service], serial))
      .pipe(Effect.retry({ times: 5, while: ({ reason }) => reason._tag === "OutcomeUnknown" }))
    owner = yield* recordOf(session, "owner")
  }
  if (owner === service || owner === undefined) return
  const way =
    service === undefined
      ? `if this is it give \`service: "${owner}"\`, to read only give \`access: "read"\``
      : `"${service}" needs a keyspace of its own, or \`access: "read"\``
  yield* fail(
    new KeyspaceOwned({
      message: `keyspace "${keyspace}" belongs to service "${owner}": ${way}`,
      keyspace,
      owner,
      cause: undefined
    })
  )
})

/** Makes the keyspace that of the session. */
export const open = Effect.fnUntraced(function* (session: Session, options: Settings) {
  if (!/^system(_|$)/.test(options.keyspace)) {
    const fit = compare(options, yield* replicationOf(session, options))
    if (fit.error !== undefined) return yield* fail(new InvalidOptions({ message: fit.error, cause: undefined }))
    for (const warning of [...fit.warnings, ...(yield* serverWarnings(session))]) yield* Effect.logWarning(warning)
  }
  yield* session
    .use((client) => client.execute(`USE ${identifier(options.keyspace).quoted}`))
    .pipe(
      // One that another process creates now is in the schema before it can be used.
      Effect.retry({
        schedule: Schedule.spaced("50 millis").pipe(Schedule.upTo({ duration: "5 seconds" })),
        while: ({ reason }) => reason._tag === "KeyspaceMissing"
      })
    )
  if (options.access !== "read") yield* checkOwner(session, options)
})

const lockSeconds = 60

/**
 * Runs an effect while no other process changes the schema of the keyspace. The lock expires a minute after its holder
 * died; one that lost it is interrupted.
 */
export const withSchemaLock = Effect.fnUntraced(function* <A, E, R>(session: Session, effect: Effect.Effect<A, E, R>) {
  yield* session.execute(createRecords(session.keyspace))
  const holder = randomUUID()
  const held = Effect.map(recordOf(session, "schema lock"), (value) => value === holder)
  const settle = (applied: Effect.Effect<{ readonly applied: boolean }, CassandraError>) =>
    Effect.map(applied, (outcome) => outcome.applied).pipe(
      Effect.catchReason("CassandraError", "OutcomeUnknown", () => held)
    )
  const acquire = Effect.gen(function* () {
    let waiting = false
    while (
      !(yield* settle(
        session.applied(
          make(
            `INSERT INTO ${records} (name, value) VALUES ('schema lock', ?) IF NOT EXISTS USING TTL ${lockSeconds}`,
            [holder],
            serial
          )
        )
      ))
    ) {
      if (yield* held) break
      if (!waiting) yield* Effect.logInfo(`another process changes the schema of ${session.keyspace}, waiting for it`)
      waiting = true
      yield* Effect.sleep(100 + Math.random() * 200)
    }
  })
  const release = session
    .applied(make(`DELETE FROM ${records} WHERE name = 'schema lock' IF value = ?`, [holder], serial))
    .pipe(Effect.ignore)
  const renew = settle(
    session.applied(
      make(
        `UPDATE ${records} USING TTL ${lockSeconds} SET value = ? WHERE name = 'schema lock' IF value = ?`,
        [holder, holder],
        serial
      )
    )
  ).pipe(
    Effect.retry({ schedule: Schedule.spaced("2 seconds"), times: 10, while: (error) => error.isRetryable }),
    Effect.flatMap((kept) =>
      kept
        ? Effect.void
        : fail(
            new OutcomeUnknown({
              message: `the lock on the schema of ${session.keyspace} was lost to another process: this one was away for more than ${lockSeconds} seconds`,
              cause: undefined
            })
          )
    )
  )
  return yield* Effect.acquireUseRelease(
    Effect.interruptible(acquire).pipe(Effect.onInterrupt(() => release)),
    () =>
      Effect.raceFirst(
        effect,
        Effect.andThen(renew.pipe(Effect.delay("15 seconds"), Effect.repeat(Schedule.forever)), Effect.never)
      ),
    () => release
  )
})

/** The tables of the keyspace. */
export const tablesOf = (session: Session) =>
  Effect.map(
    session.execute<{ table_name: string }>(
      make("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?", [session.keyspace], ofNode)
    ),
    (rows) => new Set(rows.map((row) => row.table_name))
  )
