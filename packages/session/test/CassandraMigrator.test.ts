import { execFile } from "node:child_process"
import { fileURLToPath } from "node:url"
import { promisify } from "node:util"
import { NodeFileSystem } from "@effect/platform-node"
import { assert, describe, it, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, FileSystem, Redacted, Ref } from "effect"
import * as CassandraMigrator from "../src/CassandraMigrator.ts"
import { CassandraSession, make, type Options } from "../src/CassandraSession.ts"
import { statementsOf } from "../src/internal/script.ts"
import { cql, make as statement } from "../src/Statement.ts"

describe("statements of a script", () => {
  it("are parted by semicolons outside of quotes, comments and batches", () => {
    assert.deepStrictEqual(
      statementsOf(`
        -- users; of all kinds
        CREATE TABLE users (name text PRIMARY KEY); /* ; */ INSERT INTO users (name) VALUES ('a;''b');
        BEGIN BATCH INSERT INTO users (name) VALUES ('c'); INSERT INTO users (name) VALUES ($$d;$$); APPLY BATCH;
        ALTER TABLE users ADD "odd;name" int`),
      [
        "CREATE TABLE users (name text PRIMARY KEY)",
        "INSERT INTO users (name) VALUES ('a;''b')",
        "BEGIN BATCH INSERT INTO users (name) VALUES ('c'); INSERT INTO users (name) VALUES ($$d;$$); APPLY BATCH",
        'ALTER TABLE users ADD "odd;name" int'
      ]
    )
    assert.deepStrictEqual(statementsOf(" ; -- nothing\n"), [])
  })
})

/** In a keyspace of its own, which is dropped. */
const fresh = Effect.gen(function* () {
  const options = { ...(yield* TestKeyspace), keyspace: `migrate_${crypto.randomUUID().replaceAll("-", "")}` }
  const session = yield* CassandraSession
  yield* Effect.addFinalizer(() =>
    session.use((client) => client.execute(`DROP KEYSPACE IF EXISTS ${options.keyspace}`)).pipe(Effect.ignore)
  )
  return options
})

const first = { "0001_users": "CREATE TABLE users (name text PRIMARY KEY)" }
const both = { ...first, "2_age": "ALTER TABLE users ADD age int; INSERT INTO users (name, age) VALUES ('ada', 36)" }

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("CassandraMigrator", (it) => {
  const migrated = (migrations: CassandraMigrator.Migrations) =>
    Effect.flatMap(fresh, (options) =>
      Effect.map(make(options), (session) => ({
        session,
        run: (next: CassandraMigrator.Migrations) =>
          Effect.provideService(CassandraMigrator.run(next), CassandraSession, session)
      }))
    ).pipe(Effect.tap(({ run }) => run(migrations)))

  it.effect("executes what is new, in order of the numbers, once", () =>
    Effect.gen(function* () {
      const { run, session } = yield* migrated(first)
      assert.deepStrictEqual(yield* run(both), ["2_age"])
      assert.deepStrictEqual(yield* run(both), [])
      assert.strictEqual((yield* session.one<{ age: number }>(cql`SELECT age FROM users`)).age, 36)
    })
  )

  /** What a process of its own says of its start. */
  const start = (options: Options, migrations: CassandraMigrator.Migrations) =>
    Effect.tryPromise(async () => {
      const { password, ...rest } = options
      const plain = password === undefined ? undefined : Redacted.value(password)
      const script = fileURLToPath(new URL("./migrate.ts", import.meta.url))
      const { stdout } = await promisify(execFile)(process.execPath, [
        "--conditions=@effect-cassandra/source",
        script,
        JSON.stringify({ migrations, options: rest, password: plain })
      ])
      return JSON.parse(stdout) as { readonly executed?: ReadonlyArray<string>; readonly error?: string }
    })

  it.effect("of ten processes that start at once on an empty cluster, one executes, and all see one clean schema", () =>
    Effect.gen(function* () {
      const options = { ...(yield* fresh), service: "people" }
      const said = yield* Effect.forEach(Array.from({ length: 10 }), () => start(options, both), {
        concurrency: "unbounded"
      })
      assert.deepStrictEqual(
        said.map(({ error }) => error),
        said.map(() => undefined)
      )
      assert.deepStrictEqual(said.flatMap(({ executed = [] }) => executed).toSorted(), ["0001_users", "2_age"])
      const session = yield* make(options)
      assert.strictEqual((yield* session.execute(cql`SELECT name FROM users`)).length, 11)
      // The race leaves tables with two ids, of which one has no place in the schema.
      const ids = yield* session.execute(
        cql`SELECT id FROM system_schema.tables WHERE keyspace_name = ${options.keyspace}`
      )
      assert.strictEqual(ids.length, 3, "users, schema_migrations and keyspace_records")
      // One that comes later with an old one that was edited.
      const { error } = yield* start(options, {
        ...both,
        "0001_users": "CREATE TABLE users (name text PRIMARY KEY, x int)"
      })
      assert.match(error!, /0001_users is not as it was when it was executed: restore it/)
    })
  )

  it.effect("waits for the lock of a process that died with it, until it expires", () =>
    Effect.gen(function* () {
      const options = yield* fresh
      const session = yield* make(options)
      yield* session.withSchemaLock(Effect.void)
      yield* session.applied(
        cql`INSERT INTO keyspace_records (name, value) VALUES ('schema lock', 'dead') IF NOT EXISTS USING TTL 2`
      )
      const begin = performance.now()
      const names = yield* Effect.provideService(CassandraMigrator.run(first), CassandraSession, session)
      assert.deepStrictEqual(names, ["0001_users"])
      assert.isAbove(performance.now() - begin, 500)
      const lock = cql`SELECT value FROM keyspace_records WHERE name = 'schema lock'`
      assert.strictEqual((yield* session.execute(lock)).length, 0, "it is given back")
    })
  )

  it.effect("goes on behind the statement that failed, and lets what was not executed be corrected", () =>
    Effect.gen(function* () {
      const { run, session } = yield* migrated(first)
      const half = (last: string) => ({
        ...first,
        "2_half": `CREATE TABLE a (k int PRIMARY KEY); ${last}; CREATE TABLE c (k int PRIMARY KEY)`
      })
      const error = yield* Effect.flip(run(half("CREATE TABLE b (k nonsense PRIMARY KEY)")))
      assert.strictEqual(error._tag === "MigrationError" && error.reason, "Failed")
      assert.match(error.message, /migration 2_half failed at statement 2 of 3.*nonsense/)
      assert.deepStrictEqual(yield* run(half("CREATE TABLE b (k int PRIMARY KEY)")), ["2_half"])
      for (const table of ["a", "b", "c"]) yield* session.execute(statement(`SELECT * FROM ${table}`))
    })
  )

  it.effect("an edited, a missing, a late, a doubled and a badly named migration are refused by name", () =>
    Effect.gen(function* () {
      const { run } = yield* migrated(both)
      for (const [migrations, reason, message] of [
        [{ ...both, "0001_users": `${first["0001_users"]} ` }, undefined, undefined],
        [{ ...both, "0001_users": "CREATE TABLE users (name text PRIMARY KEY, x int)" }, "Edited", /0001_users is not/],
        [{ "2_age": both["2_age"] }, "Missing", /0001_users was executed and is not given/],
        [{ ...both, "0_late": "SELECT 1" }, "OutOfOrder", /0_late was not executed.*higher number/],
        [{ ...both, "02_again": "SELECT 1" }, "Duplicate", /02_again has the number of 2_age/],
        [{ ...both, users: "SELECT 1" }, "BadName", /users needs a name/]
      ] as const) {
        const exit = yield* Effect.result(run(migrations))
        if (reason === undefined) assert.strictEqual(exit._tag, "Success")
        else {
          assert(exit._tag === "Failure" && exit.failure._tag === "MigrationError")
          assert.strictEqual(exit.failure.reason, reason)
          assert.match(exit.failure.message, message)
        }
      }
    })
  )

  it.effect("an older version of a service starts on a newer schema", () =>
    Effect.gen(function* () {
      const { run } = yield* migrated(both)
      assert.deepStrictEqual(yield* run(first), [])
    })
  )

  it.effect("runs code once for each of its versions", () =>
    Effect.gen(function* () {
      const count = yield* Ref.make(0)
      const code = { version: "1", run: Ref.update(count, (n) => n + 1) }
      const { run } = yield* migrated({ ...first, "2_code": code })
      yield* run({ ...first, "2_code": code })
      assert.strictEqual(yield* Ref.get(count), 1)
      const error = yield* Effect.flip(run({ ...first, "2_code": { ...code, version: "2" } }))
      assert.strictEqual(error._tag === "MigrationError" && error.reason, "Edited")
    })
  )

  it.effect("reads a folder, and says when there is none", () =>
    Effect.gen(function* () {
      const fs = yield* FileSystem.FileSystem
      const folder = yield* fs.makeTempDirectoryScoped()
      yield* fs.writeFileString(`${folder}/0001_users.cql`, first["0001_users"])
      yield* fs.writeFileString(`${folder}/README.md`, "not a migration")
      assert.deepStrictEqual(yield* CassandraMigrator.fromFolder(folder), first)
      const error = yield* Effect.flip(CassandraMigrator.fromFolder(`${folder}/nowhere`))
      assert.match(error.message, /nowhere cannot be read/)
    }).pipe(Effect.provide(NodeFileSystem.layer))
  )
})
