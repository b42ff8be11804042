import dns from "node:dns"
import { createServer } from "node:net"
import { assert, describe, layer } from "@effect/vitest"
import * as FaultProxy from "@effect-cassandra/testing/FaultProxy"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Exit, Fiber, Layer, Option, Redacted, Schedule, Schema, Stream } from "effect"
import { type MockInstance, vi } from "vitest"
import type { CassandraError } from "../src/CassandraError.ts"
import { CassandraSession, make, type Options } from "../src/CassandraSession.ts"
import { replicasOf, SpeculativeReads } from "../src/internal/client.ts"
import { makeOperations, type Transport } from "../src/internal/operations.ts"
import { withDefaults } from "../src/internal/options.ts"
import * as Lagom from "../src/Lagom.ts"
import {
  cql,
  identifier,
  type Options as StatementOptions,
  make as statement,
  withOptions,
  withSchema
} from "../src/Statement.ts"

/** A server that speaks just enough of the native protocol (v4) to ask for a password and refuse it. */
const refusing = Effect.acquireRelease(
  Effect.callback<{ readonly address: string; readonly close: () => void }>((resume) => {
    const frame = (opcode: number, stream: number, body: Buffer) => {
      const header = Buffer.alloc(9)
      header.writeUInt8(0x84, 0)
      header.writeInt16BE(stream, 2)
      header.writeUInt8(opcode, 4)
      header.writeInt32BE(body.length, 5)
      return Buffer.concat([header, body])
    }
    const text = (value: string) => {
      const size = Buffer.alloc(2)
      size.writeUInt16BE(value.length)
      return Buffer.concat([size, Buffer.from(value)])
    }
    const server = createServer((socket) => {
      socket.on("error", () => {})
      socket.on("data", (data: Buffer) => {
        const stream = data.readInt16BE(2)
        const opcode = data.readUInt8(4)
        if (opcode === 0x05) socket.write(frame(0x06, stream, Buffer.from([0, 0])))
        else if (opcode === 0x01) {
          socket.write(frame(0x03, stream, text("org.apache.cassandra.auth.PasswordAuthenticator")))
        } else if (opcode === 0x0f) {
          const code = Buffer.alloc(4)
          code.writeInt32BE(0x0100)
          socket.write(
            frame(0x00, stream, Buffer.concat([code, text("Provided username and/or password are incorrect")]))
          )
        }
      })
    })
    server.listen(0, "127.0.0.1", () =>
      resume(
        Effect.succeed({
          address: `127.0.0.1:${(server.address() as { port: number }).port}`,
          close: () => server.close()
        })
      )
    )
  }),
  ({ close }) => Effect.sync(close)
)

const table = Layer.effectDiscard(
  Effect.flatMap(CassandraSession, (session) =>
    session.createTables([
      "CREATE TABLE IF NOT EXISTS items (k text, n int, big bigint, at timestamp, PRIMARY KEY (k, n))",
      "CREATE TABLE IF NOT EXISTS counts (k text PRIMARY KEY, n counter)"
    ])
  )
)

const fill = (k: string, count: number) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    yield* Effect.forEach(
      Array.from({ length: count }, (_, n) => n),
      (n) => session.execute(cql`INSERT INTO items (k, n, big) VALUES (${k}, ${n}, ${BigInt(n)})`),
      { concurrency: 20, discard: true }
    )
  })

const opened = (options: Options) => Effect.scoped(make(options))

layer(table.pipe(Layer.provideMerge(TestKeyspace.layer)), { excludeTestServices: true, timeout: "2 minutes" })(
  "CassandraSession",
  (it) => {
    it.effect("gives back what was bound, with bigint and Date", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const at = new Date(1_700_000_000_123)
        yield* session.execute(cql`INSERT INTO items (k, n, big, at) VALUES ('types', ${1}, ${2n ** 62n}, ${at})`)
        const rows = yield* session.execute(cql`SELECT n, big, at FROM items WHERE k = 'types'`)
        assert.deepStrictEqual(
          rows.map((row) => ({ ...row })),
          [{ n: 1, big: 2n ** 62n, at }]
        )
      })
    )

    it.effect("gives all rows of all pages, also past empty ones", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* fill("pages", 230)
        const rows = yield* session.execute(withOptions(cql`SELECT n FROM items WHERE k = 'pages'`, { pageSize: 50 }))
        assert.strictEqual(rows.length, 230)
        const filtered = yield* session.execute(
          withOptions(cql`SELECT n FROM items WHERE k = 'pages' AND big = ${225n} ALLOW FILTERING`, { pageSize: 10 })
        )
        assert.deepStrictEqual(
          filtered.map(({ n }) => n),
          [225]
        )
        const behind = withOptions(
          cql<{ n: number }>`SELECT n FROM items WHERE k = 'pages' AND big = ${225n} ALLOW FILTERING`,
          { pageSize: 10 }
        )
        assert.deepStrictEqual(Option.getOrThrow(yield* behind.first).n, 225)
        assert.deepStrictEqual((yield* behind.one).n, 225)
        assert.deepStrictEqual(
          (yield* Stream.runCollect(behind.stream)).map(({ n }) => n),
          [225]
        )
      })
    )

    it.effect("streams rows in order, and fetches no more pages than are asked for", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* fill("stream", 120)
        const self = withOptions(cql<{ n: number }>`SELECT n FROM items WHERE k = 'stream'`, { pageSize: 10 })
        const all = yield* Stream.runCollect(session.stream(self))
        assert.deepStrictEqual(
          all.map(({ n }) => n),
          Array.from({ length: 120 }, (_, n) => n)
        )
        let pages = 0
        const counted = withSchema(
          self,
          Schema.Struct({
            n: Schema.Number.check(
              Schema.makeFilter((n) => {
                if (n % 10 === 0) pages++
                return true
              })
            )
          })
        )
        const some = yield* session.stream(counted).pipe(Stream.take(15), Stream.runCollect)
        assert.strictEqual(some.length, 15)
        assert.strictEqual(pages, 2)
        // Given up in the middle of a page, or while one is fetched: nothing stays behind.
        const fiber = yield* Effect.forkChild(Stream.runDrain(self.stream), { startImmediately: true })
        yield* Fiber.interrupt(fiber)
        assert.strictEqual((yield* session.health).inFlight, 0)
      })
    )

    it.effect("says whether a conditional write was applied, and the row that stood in its way", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const write = (big: bigint) =>
          session.applied<{ big: bigint }>(cql`INSERT INTO items (k, n, big) VALUES ('lwt', 1, ${big}) IF NOT EXISTS`)
        assert.deepStrictEqual(yield* write(1n), { applied: true })
        const second = yield* write(2n)
        assert.isFalse(second.applied)
        assert.strictEqual(second.applied ? undefined : second.current.big, 1n)
        const error = yield* Effect.flip(session.applied(cql`INSERT INTO items (k, n) VALUES ('lwt', 2)`))
        assert.strictEqual(error.reason._tag, "InvalidStatement")
        assert.match(error.message, /no IF/)
      })
    )

    it.effect("gives the first row or none, and exactly one or says how many", () =>
      Effect.gen(function* () {
        yield* fill("single", 2)
        const of = (n: number) => cql<{ n: number }>`SELECT n FROM items WHERE k = 'single' AND n >= ${n}`
        assert.strictEqual(Option.getOrThrow(yield* of(0).first).n, 0)
        assert.isTrue(Option.isNone(yield* of(5).first))
        assert.strictEqual((yield* of(1).one).n, 1)
        for (const [n, rows] of [
          [5, 0],
          [0, 2]
        ] as const) {
          const { reason } = yield* Effect.flip(of(n).one)
          assert(reason._tag === "UnexpectedRows")
          assert.strictEqual(reason.rows, rows)
        }
      })
    )

    it.effect("gives one page with what the server said beside it, and a trace where one is asked for", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* fill("raw", 3)
        const self = cql`SELECT n FROM items WHERE k = 'raw'`
        const page = yield* withOptions(self, { pageSize: 2 }).raw
        assert.deepInclude(page, { traceId: undefined, warnings: [] })
        assert.strictEqual(page.rows.length, 2)
        const next = yield* withOptions(self, { pageSize: 2, pageState: page.pageState! }).raw
        assert.deepStrictEqual(
          next.rows.map(({ n }) => n),
          [2]
        )
        const forged = yield* Effect.flip(withOptions(self, { pageState: "deadbeef" }).raw)
        assert.strictEqual(forged.reason._tag, "InvalidStatement", forged.message)
        const { pageState, traceId } = yield* withOptions(self, { trace: true }).raw
        assert.isUndefined(pageState)
        const recorded = withOptions(cql`SELECT command FROM system_traces.sessions WHERE session_id = ${traceId}`, {
          consistency: "ONE"
        })
        yield* Effect.retry(session.one(recorded), { schedule: Schedule.spaced("50 millis"), times: 200 })
      })
    )

    it.effect("a prepared statement is a function of its values; a text that is wrong is refused at once", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* fill("prepared", 2)
        const byNumber = yield* session.prepare<{ n: number }>("SELECT n FROM items WHERE k = ? AND n = ?")
        assert.strictEqual((yield* byNumber("prepared", 1).one).n, 1)
        const error = yield* Effect.flip(session.prepare("SELECT nothing FROM items"))
        assert.strictEqual(error.reason._tag, "InvalidStatement")
        const short = yield* Effect.flip(byNumber("prepared"))
        assert.strictEqual(short.reason._tag, "InvalidStatement", short.message)
      })
    )

    it.effect("writes with a time to live, which a column shows", () =>
      Effect.gen(function* () {
        yield* withOptions(cql`INSERT INTO items (k, n, big) VALUES ('ttl', 1, ${1n})`, { ttl: "1 hour" })
        yield* withOptions(cql`UPDATE items SET big = ${2n} WHERE k = 'ttl' AND n = 2`, { ttl: "2 hours" })
        const left = yield* cql<{ t: number }>`SELECT TTL(big) AS t FROM items WHERE k = 'ttl'`
        for (const [i, hours] of [1, 2].entries()) {
          assert.isAtMost(left[i]!.t, hours * 3600)
          assert.isAbove(left[i]!.t, hours * 3600 - 60)
        }
      })
    )

    it.effect("a profile is a name for settings, which the statement's own precede", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const session = yield* make({ ...options, profiles: { wide: { consistency: "THREE", pageSize: 2 } } })
        const self = cql`SELECT n FROM items WHERE k = 'pages'`
        const few = yield* Effect.flip(session.execute(withOptions(self, { profile: "wide" })))
        assert.strictEqual(few.reason._tag, "Unavailable")
        const page = yield* session.raw(withOptions(self, { profile: "wide", consistency: "ONE" }))
        assert.isAtMost(page.rows.length, 2)
        const unknown = yield* Effect.flip(session.execute(withOptions(self, { profile: "narrow" })))
        assert.match(unknown.message, /no profile "narrow" among "wide"/)
      })
    )

    it.effect("a name is quoted, so that it can neither end its quotes nor be another name", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const evil = 'items"; DROP TABLE items; --'
        const error = yield* Effect.flip(session.execute(cql`SELECT * FROM ${identifier(evil)}`))
        assert.strictEqual(error.reason._tag, "InvalidStatement")
        yield* session.execute(cql`SELECT n FROM ${identifier("items")} LIMIT 1`)
        const rows = yield* session.execute(cql`SELECT n FROM items WHERE k = ${evil}`)
        assert.deepStrictEqual(rows, [])
      })
    )

    it.effect("a counter batch adds, a conditional one of a partition is applied as a whole or not at all", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* session.batch(
          ["a", "b", "a"].map((k) => cql`UPDATE counts SET n = n + ${1n} WHERE k = ${k}`),
          { type: "counter" }
        )
        const counts = yield* session.execute(cql`SELECT k, n FROM counts`)
        assert.deepStrictEqual(Object.fromEntries(counts.map(({ k, n }) => [k, n])), { a: 2n, b: 1n })

        const insert = (n: number) =>
          cql<{ n: number; big: bigint }>`INSERT INTO items (k, n, big) VALUES ('together', ${n}, ${1n}) IF NOT EXISTS`
        assert.deepStrictEqual(yield* session.appliedBatch([insert(1), insert(2)]), { applied: true })
        const second = yield* session.appliedBatch([insert(2), insert(3)])
        assert(!second.applied)
        assert.strictEqual(second.current.n, 2)
        assert.strictEqual((yield* session.execute(cql`SELECT n FROM items WHERE k = 'together'`)).length, 2)
        const none = yield* Effect.flip(session.appliedBatch([cql`INSERT INTO items (k, n) VALUES ('together', 9)`]))
        assert.strictEqual(none.reason._tag, "InvalidStatement")
      })
    )

    it.effect("a batch over several partitions that is too large is not sent; one of one partition is", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* session.createTables(["CREATE TABLE IF NOT EXISTS texts (k text, n int, v text, PRIMARY KEY (k, n))"])
        const writes = (partitions: number) =>
          Array.from(
            { length: 8 },
            (_, n) =>
              cql`INSERT INTO texts (k, n, v) VALUES (${`large-${n % partitions}`}, ${n}, ${"x".repeat(10_000)})`
          )
        const { reason } = yield* Effect.flip(session.batch(writes(2)))
        assert(reason._tag === "BatchTooLarge")
        assert.match(reason.message, /80\d+ bytes over 2 partitions.*51200.*batch_size_fail_threshold/)
        assert.strictEqual((yield* session.execute(cql`SELECT n FROM texts`)).length, 0)
        // The server has no bound for one partition.
        yield* session.batch(writes(1))
        assert.strictEqual((yield* session.execute(cql`SELECT n FROM texts`)).length, 8)
        const large = yield* make({ ...(yield* TestKeyspace), maxBatchSize: 1_000_000 })
        const error = yield* Effect.flip(large.batch(writes(2)))
        assert.notStrictEqual(error.reason._tag, "BatchTooLarge", "the server decides what the setting lets pass")
      })
    )

    it.effect("executes a batch as one, and nothing for an empty one", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* session.batch([])
        for (const type of ["logged", "unlogged"] as const) {
          yield* session.batch(
            [0, 1, 2].map((n) => cql`INSERT INTO items (k, n) VALUES (${type}, ${n})`),
            { type }
          )
          assert.strictEqual((yield* session.execute(cql`SELECT n FROM items WHERE k = ${type}`)).length, 3)
        }
      })
    )

    it.effect("a batch has the settings of its statements, which must agree, and loses no outcome of an IF", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const write = (n: number, options: StatementOptions) =>
          withOptions(cql`INSERT INTO items (k, n, big) VALUES ('settings', ${n}, 1)`, options)
        yield* session.batch([write(1, { timestamp: 77 }), write(2, { timestamp: 77 })])
        const stamps = yield* session.execute(cql`SELECT WRITETIME(big) AS w FROM items WHERE k = 'settings'`)
        assert.deepStrictEqual(
          stamps.map(({ w }) => w),
          [77n, 77n]
        )
        const few = yield* Effect.flip(session.batch([write(1, { consistency: "THREE" })]))
        assert.strictEqual(few.reason._tag, "Unavailable")
        const conditional = cql`INSERT INTO items (k, n) VALUES ('settings', 9) IF NOT EXISTS`
        for (const [batch, message] of [
          [session.batch([write(1, { timestamp: 1 }), write(2, { timestamp: 2 })]), /differ in timestamp: give each a/],
          [session.batch([write(1, {}), write(2, { consistency: "ONE" })]), /differ in consistency: set it for the/],
          [session.batch([conditional]), /has an IF, whose outcome would be lost: use appliedBatch/],
          [session.appliedBatch([write(1, {})]), /none of its statements has an IF: use batch/],
          [session.appliedBatch([conditional, write(1, { timestamp: 1 })]), /differ in timestamp/],
          [session.batch([write(1, {})], { type: "all" as never }), /type is all: it must be one of logged, unlogged/],
          [session.batch([undefined as never]), /not a statement/],
          [session.batch(Array.from({ length: 65_536 }, () => write(1, {}))), /65536 statements.*65535/]
        ] as const) {
          const error = yield* Effect.flip(batch)
          assert.strictEqual(error.reason._tag, "InvalidStatement")
          assert.match(error.message, message)
        }
        yield* session.batch([write(1, {}), write(2, { consistency: "ONE" })], { consistency: "ONE" })
        assert.match(
          (yield* Effect.flip(Lagom.executeWrite(conditional))).message,
          /has an IF, whose outcome would be lost: run it by `applied`/
        )
      })
    )

    it.effect("settings that make no sense are refused before anything is sent", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const read = cql`SELECT n FROM items WHERE k = 'x'`
        const conditional = cql`INSERT INTO items (k, n) VALUES ('nonsense', 1) IF NOT EXISTS`
        for (const [self, message] of [
          [withOptions(read, { pageSize: Number.NaN }), /pageSize is NaN/],
          [withOptions(read, { pageSize: 0 }), /pageSize is 0: it must be a whole number of at least 1/],
          [withOptions(read, { consistency: "MOST" as never }), /consistency is MOST: it must be one of ANY/],
          [withOptions(read, { serialConsistency: "ONE" as never }), /serialConsistency is ONE/],
          [withOptions(read, { timeout: -1 }), /timeout is -1/],
          [withOptions(read, { timeout: "soon" as never }), /timeout is soon.*for example "5 seconds"/],
          [withOptions(read, { timestamp: 1.5 }), /timestamp is 1.5/],
          [withOptions(conditional, { timestamp: 5 }), /conditional write gets its timestamp from the server/],
          [withOptions(conditional, { ttl: "soon" as never }), /soon is not a whole number of seconds/],
          [statement(undefined as never), /not a statement: make one with cql/],
          [statement("SELECT n FROM items WHERE k = :k", { k: "x" } as never), /an array of values/]
        ] as const) {
          const error = yield* Effect.flip(session.execute(self))
          assert.strictEqual(error.reason._tag, "InvalidStatement")
          assert.match(error.message, message)
        }
        yield* session.execute(withOptions(read, { timeout: Number.POSITIVE_INFINITY }))
        assert.strictEqual((yield* session.execute(cql`SELECT n FROM items WHERE k = 'nonsense'`)).length, 0)
      })
    )

    it.effect("what is not to be known is said to be unknown: an error of a function given to `use`", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const error = yield* Effect.flip(session.use(() => Promise.reject(new Error("mine"))))
        assert.strictEqual(error.reason._tag, "UnknownError")
        assert.strictEqual(error.reason.message, "mine")
        assert.isFalse(error.isRetryable)
      })
    )

    it.effect("a closed session says so, and that trying again is of no use", () =>
      Effect.gen(function* () {
        const session = yield* Effect.scoped(make(yield* TestKeyspace))
        for (const late of [
          session.execute(cql`SELECT n FROM items`),
          session.applied(cql`INSERT INTO items (k, n) VALUES ('late', 1) IF NOT EXISTS`),
          session.prepare("SELECT n FROM items"),
          session.use((client) => client.execute("SELECT key FROM system.local"))
        ] as ReadonlyArray<Effect.Effect<unknown, CassandraError>>) {
          const error = yield* Effect.flip(late)
          assert.strictEqual(error.reason._tag, "SessionClosed")
          assert.isFalse(error.isRetryable)
        }
        assert.isFalse((yield* session.health).healthy)
      })
    )

    it.effect("tries that wait for each other longer than the time-out end with it", () =>
      Effect.gen(function* () {
        const session = yield* make({
          ...(yield* TestKeyspace),
          requestTimeout: "300 millis",
          retry: Schedule.spaced("1 minute")
        })
        const begin = performance.now()
        const error = yield* Effect.flip(
          session.execute(withOptions(cql`SELECT n FROM items WHERE k = 'x'`, { consistency: "THREE" }))
        )
        assert.strictEqual(error.reason._tag, "Unavailable", "what stood in the way, not that time is over")
        assert.isBelow(performance.now() - begin, 10_000)
      })
    )

    it.effect("opening ends in time before a server that accepts connections and nothing more", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const proxy = yield* FaultProxy.make(options.contactPoints![0]!)
        yield* proxy.hold
        const begin = performance.now()
        const error = yield* Effect.flip(
          opened({ ...options, contactPoints: [proxy.address], connectTimeout: "500 millis" })
        )
        assert.strictEqual(error.reason._tag, "NoHostAvailable")
        assert.isBelow(performance.now() - begin, 5000)
      })
    )

    it.effect("rows pass over pages that are empty though more follow", () =>
      Effect.gen(function* () {
        // Cassandra sends such pages only now and then, and its successors often.
        const pages = [[], [1, 2], [], [], [3], []]
        let fetched = 0
        const session = makeOperations(withDefaults({ keyspace: "k" }), {
          ...({} as Transport),
          send: (how, onPage) => {
            fetched++
            const i = Number(how.driverOptions.pageState ?? 0)
            const info = {
              queriedHost: "",
              speculativeExecutions: 0,
              isSchemaInAgreement: true,
              traceId: undefined,
              warnings: undefined
            }
            const pageState = i + 1 < pages.length ? `${i + 1}` : undefined
            return onPage({ rows: pages[i]!.map((n) => ({ n })), pageState, info }, how)
          }
        })
        const self = cql<{ n: number }>`SELECT n FROM t`
        const all = [{ n: 1 }, { n: 2 }, { n: 3 }]
        assert.deepStrictEqual(yield* session.execute(self), all)
        assert.deepStrictEqual(yield* Stream.runCollect(session.stream(self)), all)
        assert.deepStrictEqual(yield* session.first(self), Option.some({ n: 1 }))
        assert.match((yield* Effect.flip(session.one(self))).message, /several rows/)
        fetched = 0
        assert.deepStrictEqual(yield* session.stream(self).pipe(Stream.take(2), Stream.runCollect), all.slice(0, 2))
        assert.strictEqual(fetched, 2, "no page is fetched that nobody asked for")
      })
    )

    it.effect("writes with the timestamp that is given", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        yield* session.execute(
          withOptions(cql`INSERT INTO items (k, n, big) VALUES ('stamp', 1, ${5n})`, { timestamp: 1_234_567 })
        )
        const [row] = yield* session.execute(cql`SELECT WRITETIME(big) AS w FROM items WHERE k = 'stamp'`)
        assert.strictEqual(row?.w, 1_234_567n)
      })
    )

    describe("errors say what is wrong and the way out", () => {
      it.effect("wrong contact points", () =>
        Effect.gen(function* () {
          const options = yield* TestKeyspace
          const error = yield* Effect.flip(opened({ ...options, contactPoints: ["127.0.0.1:1"], connectTimeout: 0 }))
          assert.strictEqual(error.reason._tag, "NoHostAvailable")
          assert.match(error.message, /127\.0\.0\.1:1.*check contactPoints/)
        })
      )
      it.effect("options that make no sense, each by its name", () =>
        Effect.gen(function* () {
          const options = yield* TestKeyspace
          for (const [wrong, message] of [
            [{ contactPoints: [] }, /contactPoints is empty/],
            [{ contactPoints: ["10.0.0.1", undefined as never] }, /contact point "undefined" is neither/],
            [{ contactPoints: ["127.0.0.1:cql"] }, /contact point "127.0.0.1:cql" is neither "host" nor "host:port"/],
            [{ username: "ada" }, /username and password/],
            [{ username: "ada", password: "plain" as never }, /password is plain text.*Redacted\.make/],
            [{ keyspace: 'a"b' }, /keyspace "a"b" is not a name/],
            [{ keyspace: undefined as never }, /keyspace "undefined" is not a name/],
            [{ replication: { dc: 0 } }, /whole number of copies/],
            [{ consistency: "MOST" as never }, /consistency is MOST: it must be one of/],
            [{ access: "some" as never }, /access is some/],
            [{ requestTimeout: 0 }, /requestTimeout is 0: it must be a duration/],
            [{ requestTimeout: "soon" as never }, /requestTimeout is soon/],
            [{ pageSize: Number.NaN }, /pageSize is NaN/],
            [{ maxInFlight: 0 }, /maxInFlight is 0/],
            [{ maxQueued: Number.POSITIVE_INFINITY }, /maxQueued is Infinity/],
            [{ speculative: { delay: "50 millis", max: 0 } }, /speculative\.max is 0/],
            [{ profiles: { fast: { pageSize: -1 } } }, /profile "fast": pageSize is -1/],
            [{ localDataCenter: "" }, /localDataCenter is empty/],
            [{ service: "" }, /service is empty/]
          ] as const) {
            const error = yield* Effect.flip(opened({ ...options, ...wrong }))
            assert.strictEqual(error.reason._tag, "InvalidOptions")
            assert.match(error.message, message)
          }
        })
      )
      it.effect("wrong local data centre", () =>
        Effect.gen(function* () {
          const options = yield* TestKeyspace
          const error = yield* Effect.flip(opened({ ...options, localDataCenter: "mars" }))
          assert.strictEqual(error.reason._tag, "InvalidOptions")
          assert.match(error.message, /mars/)
        })
      )
      it.effect("missing keyspace", () =>
        Effect.gen(function* () {
          const { development: _, ...options } = yield* TestKeyspace
          const error = yield* Effect.flip(opened({ ...options, keyspace: "not_there" }))
          assert.strictEqual(error.reason._tag, "KeyspaceMissing")
          assert.match(error.message, /"not_there" does not exist: create it, or give `replication`/)
        })
      )
      it.effect("wrong password, which stands in no message", () =>
        Effect.gen(function* () {
          const { address } = yield* refusing
          const error = yield* Effect.flip(
            opened({ contactPoints: [address], keyspace: "k", username: "ada", password: Redacted.make("s3cret-word") })
          )
          assert.strictEqual(error.reason._tag, "AuthenticationFailed")
          assert.notInclude(JSON.stringify(error) + String(error) + error.message, "s3cret-word")
        })
      )
      it.effect(
        "a statement that the server does not understand, a table that is not there, a value of a wrong type",
        () =>
          Effect.gen(function* () {
            const session = yield* CassandraSession
            for (const wrong of [
              statement("SELEC 1"),
              cql`SELECT * FROM not_there`,
              cql`INSERT INTO items (k, n) VALUES ('x', ${"text"})`
            ]) {
              const error = yield* Effect.flip(session.execute(wrong))
              assert.strictEqual(error.reason._tag, "InvalidStatement", error.message)
              assert.isFalse(error.isRetryable)
            }
          })
      )
      it.effect("too few replicas", () =>
        Effect.gen(function* () {
          const session = yield* CassandraSession
          const error = yield* Effect.flip(
            session.execute(withOptions(cql`SELECT * FROM items WHERE k = 'x'`, { consistency: "THREE" }))
          )
          assert.strictEqual(error.reason._tag, "Unavailable")
          assert.deepInclude(error.reason, { consistency: "THREE", required: 3, received: 1 })
        })
      )
      it.effect("handled one by one with catchReason", () =>
        Effect.gen(function* () {
          const session = yield* CassandraSession
          const caught = yield* session
            .execute(cql`SELECT * FROM not_there`)
            .pipe(Effect.catchReason("CassandraError", "InvalidStatement", () => Effect.succeed("caught")))
          assert.strictEqual(caught, "caught")
        })
      )
    })

    it.effect("without an answer: RequestTimeout for a plain statement, OutcomeUnknown for a conditional write", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const { address, hold } = yield* FaultProxy.make(options.contactPoints![0]!)
        const session = yield* make({ ...options, contactPoints: [address], requestTimeout: "1 second" })
        const read = cql`SELECT * FROM items WHERE k = 'x'`
        const write = cql`INSERT INTO items (k, n) VALUES ('held', 1) IF NOT EXISTS`
        yield* session.execute(read)
        yield* session.applied(write)
        yield* hold
        assert.strictEqual((yield* Effect.flip(session.execute(read))).reason._tag, "RequestTimeout")
        assert.strictEqual((yield* Effect.flip(session.applied(write))).reason._tag, "OutcomeUnknown")
        // However it is run, and whatever is said of it.
        const plain = session.execute(withOptions(write, { idempotent: true }))
        assert.strictEqual((yield* Effect.flip(plain)).reason._tag, "OutcomeUnknown")
        assert.strictEqual((yield* Effect.flip(session.appliedBatch([write]))).reason._tag, "OutcomeUnknown")
      })
    )

    it.effect("goes on when the name of the contact point leads to another address", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const target = options.contactPoints![0]!
        const old = yield* FaultProxy.make(target)
        const port = old.address.split(":")[1]
        yield* FaultProxy.make(target, `127.0.0.2:${port}`)
        let address = "127.0.0.1"
        // Only the name service of the machine is not real here.
        const resolve4 = vi.spyOn(dns, "resolve4") as unknown as MockInstance<
          (name: string, done: (error: Error | null, found?: ReadonlyArray<string>) => void) => void
        >
        resolve4.mockImplementation((_, done) => done(null, [address]))
        yield* Effect.addFinalizer(() => Effect.sync(() => resolve4.mockRestore()))
        const session = yield* make({ ...options, contactPoints: [`cassandra.test:${port}`] })
        const coordinator = Effect.map(session.raw(cql`SELECT key FROM system.local`), (page) => page.coordinator)
        assert.strictEqual(yield* coordinator, `127.0.0.1:${port}`)
        address = "127.0.0.2"
        yield* old.refuse
        const later = yield* Effect.retry(coordinator, { schedule: Schedule.spaced("100 millis"), times: 150 })
        assert.strictEqual(later, `127.0.0.2:${port}`)
      })
    )

    it.effect("the driver knows the copies of the keyspace, for all its maps are Map", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const known = yield* session.use(async ({ metadata }) => {
          await metadata.refreshKeyspaces()
          return (metadata as unknown as { readonly keyspaces: Record<string, Record<string, unknown>> }).keyspaces
        })
        assert.match(String(known[session.keyspace]!.strategy), /NetworkTopologyStrategy$/)
        assert.deepStrictEqual(known[session.keyspace]!.strategyOptions, {
          [(yield* TestKeyspace).localDataCenter ?? "datacenter1"]: "1"
        })
      })
    )

    it("finds the nodes of a row by its key, unless every local node has every row", () => {
      const node = (address: string, datacenter: string) =>
        ({
          address,
          datacenter,
          isUp: () => true,
          isUpSince: null,
          getInFlight: () => 0,
          getResponseCount: () => 5
        }) as never
      const [a, b, c] = [node("a", "here"), node("b", "here"), node("c", "there")]
      let hosts = [a, b, c]
      const keyspaces = {
        two: { strategy: "org.NetworkTopologyStrategy", strategyOptions: { here: "2", there: "1" } },
        one: { strategy: "org.NetworkTopologyStrategy", strategyOptions: { here: "1" } },
        simple: { strategy: "org.SimpleStrategy", strategyOptions: { replication_factor: "3" } }
      }
      let hashed = 0
      const replicas = replicasOf(
        () =>
          ({
            hosts: {
              values: () => hosts,
              get length() {
                return hosts.length
              }
            },
            metadata: {
              keyspaces,
              getReplicas: () => {
                hashed++
                return [b]
              }
            }
          }) as never,
        () => "here"
      )
      assert.deepStrictEqual(replicas("two", "key"), [a, b])
      assert.deepStrictEqual(replicas("two", "key"), [a, b])
      assert.strictEqual(hashed, 0)
      assert.deepStrictEqual(replicas("one", "key"), [b])
      assert.deepStrictEqual(replicas("simple", "key"), [b])
      assert.deepStrictEqual(replicas("unknown", "key"), [b])
      assert.strictEqual(hashed, 3)
      hosts = [...hosts, node("d", "here")]
      assert.deepStrictEqual(replicas("two", "key"), [b])
    })

    it("sends reads only to a second node before the first has answered", () => {
      const policy = new SpeculativeReads(20, 2)
      const delays = (text: string) => {
        const plan = policy.newPlan("k", text)
        return Array.from({ length: 3 }, () => plan.nextExecution())
      }
      assert.deepStrictEqual(delays("SELECT * FROM items"), [20, 20, -1])
      assert.deepStrictEqual(delays("/* SELECT */ DELETE FROM items WHERE k = 1"), [-1, -1, -1])
    })

    it.effect("an interrupted request leaves its fiber at once", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const { address, hold } = yield* FaultProxy.make(options.contactPoints![0]!)
        const session = yield* make({ ...options, contactPoints: [address], requestTimeout: "2 seconds" })
        yield* hold
        const fiber = yield* Effect.forkChild(session.execute(cql`SELECT * FROM items WHERE k = 'x'`))
        yield* Effect.yieldNow
        const begin = Date.now()
        yield* Fiber.interrupt(fiber)
        assert.isBelow(Date.now() - begin, 1500)
      })
    )

    it.effect("closing waits for the requests under way", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const exits = yield* Effect.scoped(
          Effect.gen(function* () {
            const session = yield* make(options)
            const write = (n: number) =>
              Effect.exit(session.execute(cql`INSERT INTO items (k, n) VALUES ('close', ${n})`))
            return yield* Effect.forEach(
              Array.from({ length: 50 }, (_, n) => n),
              (n) => Effect.forkDetach(write(n), { startImmediately: true })
            )
          })
        ).pipe(Effect.flatMap((fibers) => Effect.forEach(fibers, Fiber.join)))
        assert.isTrue(exits.every(Exit.isSuccess))
      })
    )
  }
)
