import { assert, it, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { ConfigProvider, Effect, Layer, Logger } from "effect"
import { CassandraSession, config, make, type Options } from "../src/CassandraSession.ts"
import { open as openKeyspace } from "../src/internal/keyspace.ts"
import { withDefaults } from "../src/internal/options.ts"
import { cql, identifier, make as statement } from "../src/Statement.ts"
import { TestSession } from "../src/TestSession.ts"

/** A session in a keyspace of the test's own, with what was logged while it was opened. */
const open = Effect.fnUntraced(function* (changed: Partial<Options>) {
  const logs: Array<string> = []
  const logger = Logger.make(({ message }) => logs.push(String(message)))
  const session = yield* make({ ...(yield* TestKeyspace), ...changed }).pipe(Effect.provide(Logger.layer([logger])))
  return { session, logs }
})

/** The name of a keyspace that is dropped with the scope. */
const named = (name: string) =>
  Effect.gen(function* () {
    const admin = yield* CassandraSession
    const keyspace = `${name}_${crypto.randomUUID().slice(0, 8)}`
    yield* Effect.addFinalizer(() =>
      admin.execute(cql`DROP KEYSPACE IF EXISTS ${identifier(keyspace)}`).pipe(Effect.ignore)
    )
    return keyspace
  })

const replicationOf = (keyspace: string) =>
  Effect.flatMap(CassandraSession, (session) =>
    session.one<{ replication: Map<string, string> }>(
      cql`SELECT replication FROM system_schema.keyspaces WHERE keyspace_name = ${keyspace}`
    )
  )

/** What is said of a server with these answers. */
const judged = (release: string, paxosVariant: string) =>
  Effect.gen(function* () {
    const logs: Array<string> = []
    const logger = Logger.make(({ message }) => logs.push(String(message)))
    const session = yield* CassandraSession
    const error = yield* openKeyspace(
      { ...session, use: () => Effect.die("") },
      withDefaults({ keyspace: "k", access: "read" })
    ).pipe(
      Effect.provide(Logger.layer([logger])),
      Effect.catchDefect(() => Effect.void),
      Effect.match({ onFailure: (error) => error.message, onSuccess: () => "" })
    )
    return error + logs.join()
  }).pipe(
    Effect.provide(
      TestSession.layer(({ text }) =>
        text.includes("replication")
          ? [
              {
                replication: new Map([
                  ["class", "org.NetworkTopologyStrategy"],
                  ["datacenter1", "3"]
                ])
              }
            ]
          : text.includes("release_version")
            ? [{ release_version: release }]
            : [{ value: paxosVariant }]
      )
    )
  )

it.effect("checks the version of the server and its paxos variant", () =>
  Effect.gen(function* () {
    assert.match(yield* judged("3.11.4", "v1"), /Cassandra 3\.11\.4: 4\.0 or later is needed/)
    assert.match(yield* judged("4.0.1", "v1"), /no paxos_variant v2/)
    assert.match(yield* judged("4.1.0", "v1"), /four round trips, with v2 two/)
    assert.match(yield* judged("5.0.1", "v2_without_linearizable_reads"), /serial reads may miss/)
    assert.strictEqual(yield* judged("5.0.1", "v2"), "")
  })
)

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("opening a session", (it) => {
  it.effect("creates the keyspace in development, or as `replication` says; without either it must be there", () =>
    Effect.gen(function* () {
      const bare = { development: undefined }
      const keyspace = yield* named("made")
      const error = yield* Effect.flip(open({ ...bare, keyspace }))
      assert.strictEqual(error.reason._tag, "KeyspaceMissing")
      assert.match(error.message, /does not exist: create it, or give `replication`/)
      assert.strictEqual(
        (yield* Effect.flip(open({ keyspace, access: "read" }))).reason._tag,
        "KeyspaceMissing",
        "a reader creates nothing"
      )
      const { logs } = yield* open({ ...bare, keyspace, replication: { datacenter1: 1 } })
      assert.strictEqual((yield* replicationOf(keyspace)).replication.get("datacenter1"), "1")
      assert.match(logs.join(), /keeps one copy of each row.*ALTER KEYSPACE/)
      const quiet = yield* open({ keyspace: yield* named("dev"), development: true })
      assert.deepStrictEqual(quiet.logs, [])
      assert.match(
        (yield* Effect.flip(open({ keyspace: yield* named("none"), replication: {} }))).message,
        /replication \{\} must give/
      )
    })
  )

  it.effect("warns of SimpleStrategy, which knows no data centres", () =>
    Effect.gen(function* () {
      const admin = yield* CassandraSession
      const keyspace = yield* named("simple")
      yield* admin.execute(
        statement(`CREATE KEYSPACE ${keyspace} WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 3}`)
      )
      const { logs } = yield* open({ keyspace, development: false, service: undefined })
      assert.match(logs.join(), /SimpleStrategy.*NetworkTopologyStrategy/)
      yield* admin.execute(
        statement(`ALTER KEYSPACE ${keyspace} WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}`)
      )
      assert.match((yield* open({ keyspace, development: false })).logs.join(), /one copy.*SimpleStrategy/)
    })
  )

  it.effect("checks the consistency against the copies, and the local data centre", () =>
    Effect.gen(function* () {
      const few = yield* Effect.flip(open({ consistency: "THREE" }))
      assert.strictEqual(few.reason._tag, "InvalidOptions")
      assert.match(few.message, /THREE needs 3 replicas, and keyspace "\w+" keeps 1/)
      assert.match((yield* Effect.flip(open({ consistency: "ANY" }))).message, /ANY does not do for reads/)
      const admin = yield* CassandraSession
      const keyspace = yield* named("elsewhere")
      yield* admin.execute(
        statement(
          `CREATE KEYSPACE ${keyspace} WITH replication = {'class': 'NetworkTopologyStrategy', 'datacenter1': 3}`
        )
      )
      const stale = yield* open({ keyspace, consistency: "ONE" })
      assert.match(stale.logs.join(), /consistency ONE with 3 copies: a read may not see a write/)
      const wrong = yield* Effect.flip(open({ localDataCenter: "mars" }))
      assert.strictEqual(wrong.reason._tag, "InvalidOptions")
      assert.match(wrong.message, /mars.*datacenter1|datacenter1.*mars/s)
    })
  )

  it.effect("a keyspace belongs to the service that opened it first", () =>
    Effect.gen(function* () {
      const keyspace = yield* named("owned")
      const owner = yield* open({ keyspace, service: "orders" })
      yield* owner.session.createTables(["CREATE TABLE IF NOT EXISTS t (k int PRIMARY KEY)"])
      // Again, and in another process.
      yield* open({ keyspace, service: "orders" })
      for (const [service, way] of [
        ["billing", /"billing" needs a keyspace of its own, or `access: "read"`/],
        [undefined, /give `service: "orders"`/]
      ] as const) {
        const error = yield* Effect.flip(open({ keyspace, service }))
        assert(error.reason._tag === "KeyspaceOwned")
        assert.deepInclude(error.reason, { keyspace, owner: "orders" })
        assert.match(error.message, way)
      }
    })
  )

  it.effect("of services that open a new keyspace at the same moment one owns it", () =>
    Effect.gen(function* () {
      const keyspace = yield* named("raced")
      const services = ["a", "b", "c", "d"]
      const results = yield* Effect.forEach(services, (service) => Effect.result(open({ keyspace, service })), {
        concurrency: "unbounded"
      })
      assert.strictEqual(results.filter((result) => result._tag === "Success").length, 1)
      for (const result of results) {
        if (result._tag === "Failure") assert.strictEqual(result.failure.reason._tag, "KeyspaceOwned")
      }
    })
  )

  it.effect("a deliberate reader of another's keyspace reads, and everything else is refused before it is sent", () =>
    Effect.gen(function* () {
      const keyspace = yield* named("read")
      const { session: owner } = yield* open({ keyspace, service: "orders" })
      yield* owner.createTables(["CREATE TABLE IF NOT EXISTS t (k int PRIMARY KEY)"])
      yield* owner.execute(cql`INSERT INTO t (k) VALUES (1)`)
      const { session } = yield* open({ keyspace, service: "billing", access: "read" })
      assert.strictEqual((yield* session.execute(cql`SELECT * FROM t`)).length, 1)
      const insert = cql`/* SELECT */ INSERT INTO t (k) VALUES (2)`
      for (const refused of [
        session.execute(insert),
        session.applied(cql`INSERT INTO t (k) VALUES (2) IF NOT EXISTS`),
        session.batch([insert]),
        session.execute(cql`TRUNCATE t`),
        session.execute(cql`DROP TABLE t`),
        session.createTables(["CREATE TABLE IF NOT EXISTS more (k int PRIMARY KEY)"])
      ]) {
        const error = yield* Effect.flip(refused)
        assert.strictEqual(error.reason._tag, "ReadOnly")
        assert.match(error.message, /opened with `access: "read"`/)
      }
      assert.strictEqual((yield* owner.execute(cql`SELECT * FROM t`)).length, 1)
    })
  )

  it.effect("takes its options from Config by their names", () =>
    Effect.gen(function* () {
      const { contactPoints, keyspace, localDataCenter = "datacenter1" } = yield* TestKeyspace
      const env = (changed: Record<string, string>) =>
        Layer.provide(
          CassandraSession.layerConfig(),
          ConfigProvider.layer(
            ConfigProvider.fromEnv({
              env: {
                KEYSPACE: keyspace,
                CONTACT_POINTS: contactPoints!.join(", "),
                LOCAL_DATA_CENTER: localDataCenter,
                DEVELOPMENT: "true",
                REQUEST_TIMEOUT: "5 seconds",
                ...changed
              }
            }).pipe(ConfigProvider.constantCase)
          )
        )
      const run = (changed: Record<string, string>) =>
        Effect.flatMap(CassandraSession, (session) => session.execute(cql`SELECT key FROM system.local`)).pipe(
          Effect.provide(env(changed))
        )
      assert.strictEqual((yield* run({})).length, 1)
      for (const [wrong, message] of [
        [{ CONSISTENCY: "MOST" }, /"LOCAL_QUORUM".*consistency/s],
        [{ SPECULATIVE_DELAY: "50 millis" }, /Missing key.*max/s],
        [{ REPLICATION: "datacenter1" }, /replication \{\} must give/],
        [{ TLS: "perhaps" }, /tls/],
        [{ PAGE_SIZE: "0" }, /pageSize is 0/]
      ] as const) {
        assert.match((yield* Effect.flip(run(wrong))).message, message)
      }
      const read = config.parse(
        ConfigProvider.fromUnknown({
          keyspace: "k",
          replication: { datacenter1: "3", eu: "2" },
          tls: { ca: "pem", key: "s3cret" },
          speculative: { delay: "50 millis", max: "2" }
        })
      )
      const { replication, tls } = yield* read
      assert.deepStrictEqual(
        { replication, tls },
        { replication: { datacenter1: 3, eu: 2 }, tls: { ca: "pem", key: "s3cret" } }
      )
    })
  )
})
