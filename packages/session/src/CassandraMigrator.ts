/**
 * Changes of a schema over time: numbered migrations, each executed once, in order, by one process while others wait.
 *
 * Cassandra has no transactions for its schema, so that a migration may stop half-way. What was executed is recorded
 * statement by statement, and the next run goes on behind it.
 */
import { createHash } from "node:crypto"
import { readdir, readFile } from "node:fs/promises"
import { join } from "node:path"
import { Effect, Layer, Schedule, Schema } from "effect"
import { CassandraError, SchemaDisagreement } from "./CassandraError.ts"
import { CassandraSession } from "./CassandraSession.ts"
import { isSchemaChanging } from "./internal/keyspace.ts"
import { statementsOf } from "./internal/script.ts"
import { make } from "./Statement.ts"

/** A migration that is code. It must bear to be run again, after a crash before it was recorded. */
export interface CodeMigration {
  /** Change it when the code changes, as the code itself cannot be compared. */
  readonly version: string
  readonly run: Effect.Effect<unknown, CassandraError, CassandraSession>
}

/** CQL scripts, or code, by name: a number, `_` and words, as in `0001_create_users`. The order is that of the numbers. */
export type Migrations = Readonly<Record<string, string | CodeMigration>>

/** The migrations do not fit what was recorded in the keyspace, or each other. */
export class MigrationError extends Schema.TaggedError<MigrationError>()("MigrationError", {
  reason: Schema.Literals(["BadName", "Duplicate", "Edited", "Missing", "OutOfOrder", "Failed", "Unreadable"]),
  message: Schema.String,
  /** The name of the migration. */
  migration: Schema.String,
  cause: Schema.Defect()
}) {}

interface Migration {
  readonly id: number
  readonly name: string
  readonly steps: ReadonlyArray<{ readonly text: string; readonly run: CodeMigration["run"] }>
}

/** What is recorded of a migration. */
interface Executed {
  readonly id: number
  readonly name: string
  readonly checksum: string
  readonly steps: number
  readonly finished: boolean
}

const error = (reason: MigrationError["reason"], migration: string, message: string, cause?: unknown) =>
  new MigrationError({ reason, migration, message: `migration ${migration} ${message}`, cause })

/** Reads the `.cql` files of a folder, whose names are those of the migrations. */
export const fromFolder = (folder: string): Effect.Effect<Migrations, MigrationError> =>
  Effect.tryPromise({
    try: async () => {
      const names = (await readdir(folder)).filter((file) => file.endsWith(".cql"))
      const scripts = names.map(
        async (file) => [file.slice(0, -4), await readFile(join(folder, file), "utf8")] as const
      )
      return Object.fromEntries(await Promise.all(scripts))
    },
    catch: (cause) => error("Unreadable", folder, `cannot be read as a folder of .cql files: ${cause}`, cause)
  })

/** A change of the schema may take long where a table is large, and the answer must be awaited. */
const patient = { timeout: "2 minutes" } as const
const quorum = { consistency: "QUORUM", idempotent: true } as const

const parse = Effect.fnUntraced(function* (migrations: Migrations) {
  const parsed: Array<Migration> = []
  for (const [name, source] of Object.entries(migrations)) {
    const id = Number(/^(\d+)_\w+$/.exec(name)?.[1])
    if (!Number.isSafeInteger(id)) {
      return yield* error("BadName", name, "needs a name of a number, _ and words, as in 0001_create_users")
    }
    const same = parsed.find((migration) => migration.id === id)
    if (same !== undefined) return yield* error("Duplicate", name, `has the number of ${same.name}: give it another`)
    const steps =
      typeof source === "string"
        ? statementsOf(source).map((text) => ({ text, run: Effect.asVoid(make(text, [], patient)) }))
        : [{ text: `version ${source.version}`, run: source.run }]
    parsed.push({ id, name, steps })
  }
  return parsed.sort((a, b) => a.id - b.id)
})

/** Of the first steps; layout does not count. */
const checksumOf = (migration: Migration, steps: number) =>
  createHash("sha256")
    .update(JSON.stringify(migration.steps.slice(0, steps).map(({ text }) => text.replaceAll(/\s+/g, " "))))
    .digest("hex")

/** What is recorded, checked against what is given; the migrations with the number of steps that are done. */
const compare = Effect.fnUntraced(function* (migrations: ReadonlyArray<Migration>, records: ReadonlyArray<Executed>) {
  const newest = Math.max(0, ...migrations.map(({ id }) => id))
  for (const { id, name } of records) {
    if (migrations.some((migration) => migration.id === id)) continue
    if (id < newest) {
      return yield* error(
        "Missing",
        name,
        "was executed and is not given: restore it, as all that were executed must stay"
      )
    }
    yield* Effect.logWarning(`migration ${name} was executed by a newer version of this service`)
  }
  const reached = Math.max(0, ...records.map(({ id }) => id))
  const open: Array<{ readonly migration: Migration; readonly done: number; readonly resumed: boolean }> = []
  for (const migration of migrations) {
    const record = records.find(({ id }) => id === migration.id)
    if (record === undefined) {
      if (migration.id < reached) {
        return yield* error(
          "OutOfOrder",
          migration.name,
          `was not executed, and number ${reached} was: give it a higher number`
        )
      }
      open.push({ migration, done: 0, resumed: false })
    } else if (
      record.name !== migration.name ||
      record.checksum !== checksumOf(migration, record.steps) ||
      (record.finished && migration.steps.length !== record.steps)
    ) {
      return yield* error(
        "Edited",
        migration.name,
        `is not as it was when it was executed${record.name === migration.name ? "" : ` (as ${record.name})`}: restore it, and put the change into a new migration`
      )
    } else if (!record.finished) open.push({ migration, done: record.steps, resumed: true })
  }
  return open
})

const awaitAgreement = (session: CassandraSession["Service"]) =>
  session
    // Missing in the driver's types.
    .use((client) =>
      (client.metadata as unknown as { checkSchemaAgreement(): Promise<boolean> }).checkSchemaAgreement()
    )
    .pipe(
      Effect.repeat({ until: (agreed: boolean) => agreed, schedule: Schedule.spaced("500 millis") }),
      Effect.timeoutOrElse({
        duration: "1 minute",
        orElse: () => {
          const message = "the nodes do not agree on the schema for a minute: see `nodetool describecluster`"
          return Effect.fail(new CassandraError({ reason: new SchemaDisagreement({ message, cause: undefined }) }))
        }
      })
    )

type RecordRow = Omit<Executed, "id"> & { readonly id: bigint }

/** Where it stands which migrations were executed: those of the service, or of a part of it with numbers of its own. */
const recordsOf = (owner: string | undefined) =>
  owner === undefined
    ? {
        table: `CREATE TABLE IF NOT EXISTS schema_migrations (
          id bigint PRIMARY KEY, name text, checksum text, steps int, finished boolean, executed_at timestamp)`,
        select: make<RecordRow>("SELECT id, name, checksum, steps, finished FROM schema_migrations", [], quorum),
        insert: `INSERT INTO schema_migrations (id, name, checksum, steps, finished, executed_at)
                 VALUES (?, ?, ?, ?, ?, ?)`,
        key: []
      }
    : {
        table: `CREATE TABLE IF NOT EXISTS owned_migrations (
          owner text, id bigint, name text, checksum text, steps int, finished boolean, executed_at timestamp,
          PRIMARY KEY (owner, id))`,
        select: make<RecordRow>(
          "SELECT id, name, checksum, steps, finished FROM owned_migrations WHERE owner = ?",
          [owner],
          quorum
        ),
        insert: `INSERT INTO owned_migrations (owner, id, name, checksum, steps, finished, executed_at)
                 VALUES (?, ?, ?, ?, ?, ?, ?)`,
        key: [owner]
      }

/**
 * Executes the migrations that were not executed yet, and gives their names. With an `owner` they are those of a part of the
 * service, whose numbers have nothing to do with those of others.
 */
export const run = Effect.fnUntraced(function* (migrations: Migrations, owner?: string) {
  const session = yield* CassandraSession
  const { insert, key, select, table } = recordsOf(owner)
  const parsed = yield* parse(migrations)
  const records = Effect.map(session.execute(select), (rows) =>
    rows.map((row): Executed => ({ ...row, id: Number(row.id) }))
  )
  // Most starts find nothing to do, and need no lock to see it.
  const early = yield* records.pipe(
    Effect.catchReason("CassandraError", "InvalidStatement", () => Effect.succeed(undefined))
  )
  if (early !== undefined && (yield* compare(parsed, early)).length === 0 && !(yield* isSchemaChanging(session)))
    return []

  return yield* session.withSchemaLock(
    Effect.gen(function* () {
      yield* make(table)
      const names: Array<string> = []
      for (const { done, migration, resumed } of yield* compare(parsed, yield* records)) {
        const { id, name, steps } = migration
        const record = (count: number) =>
          make(
            insert,
            [...key, BigInt(id), name, checksumOf(migration, count), count, count === steps.length, new Date()],
            quorum
          )
        if (!resumed) yield* record(0)
        for (let step = done; step < steps.length; step++) {
          yield* steps[step]!.run.pipe(
            Effect.catchReasons("CassandraError", {
              // The table is there, only not everywhere: it is awaited below.
              SchemaDisagreement: () => Effect.void,
              // Executed by a process that died before it could record it.
              AlreadyExists: (_, failure) => (resumed && step === done ? Effect.void : Effect.fail(failure))
            }),
            Effect.mapError((cause) =>
              error("Failed", name, `failed at statement ${step + 1} of ${steps.length}: ${cause.message}`, cause)
            )
          )
          yield* awaitAgreement(session)
          yield* record(step + 1)
        }
        yield* Effect.logInfo(`migration ${name} executed`)
        names.push(name)
      }
      return names as ReadonlyArray<string>
    })
  )
})

/** Executes the migrations before what depends on the layer starts. */
export const layer = (
  migrations: Migrations | Effect.Effect<Migrations, MigrationError>
): Layer.Layer<never, MigrationError | CassandraError, CassandraSession> =>
  Layer.effectDiscard(Effect.flatMap(Effect.isEffect(migrations) ? migrations : Effect.succeed(migrations), run))
