import { connect as connectTcp, createServer, type Socket } from "node:net"
import { assert, describe, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Config, ConfigProvider, Effect, Exit, Fiber, Layer, Redacted, Stream } from "effect"
import { CassandraSession, make, type Options } from "../src/CassandraSession.ts"
import { cql, make as statement, withOptions } from "../src/Statement.ts"

/** A TCP proxy before the server, which can hold back what it should pass on. */
const proxy = (target: string) =>
  Effect.acquireRelease(
    Effect.callback<{ readonly address: string; readonly hold: () => void; readonly close: () => void }>((resume) => {
      const [host, port] = target.split(":")
      const sockets = new Set<Socket>()
      const server = createServer((client) => {
        const upstream = connectTcp(Number(port), host)
        for (const [from, to] of [
          [client, upstream],
          [upstream, client]
        ] as const) {
          sockets.add(from)
          from.on("data", (data) => to.write(data))
          from.on("error", () => to.destroy())
          from.on("close", () => to.destroy())
        }
      })
      server.listen(0, "127.0.0.1", () =>
        resume(
          Effect.succeed({
            address: `127.0.0.1:${(server.address() as { port: number }).port}`,
            hold: () => {
              for (const socket of sockets) socket.pause()
            },
            close: () => {
              for (const socket of sockets) socket.destroy()
              server.close()
            }
          })
        )
      )
    }),
    ({ close }) => Effect.sync(close)
  )

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
      "CREATE TABLE IF NOT EXISTS items (k text, n int, big bigint, at timestamp, PRIMARY KEY (k, n))"
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
        const some = yield* session.stream(self).pipe(Stream.take(15), Stream.runCollect)
        assert.strictEqual(some.length, 15)
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
      it.effect("no contact points, user without password, impossible keyspace name", () =>
        Effect.gen(function* () {
          const options = yield* TestKeyspace
          for (const [wrong, message] of [
            [{ contactPoints: [] }, /contactPoints is empty/],
            [{ username: "ada" }, /username and password/],
            [{ keyspace: 'a"b' }, /keyspace "a"b" is not a name/],
            [{ replication: { dc: 0 } }, /whole number of copies/]
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
        const { address, hold } = yield* proxy(options.contactPoints![0]!)
        const session = yield* make({ ...options, contactPoints: [address], requestTimeout: "1 second" })
        const read = cql`SELECT * FROM items WHERE k = 'x'`
        const write = cql`INSERT INTO items (k, n) VALUES ('held', 1) IF NOT EXISTS`
        yield* session.execute(read)
        yield* session.applied(write)
        hold()
        assert.strictEqual((yield* Effect.flip(session.execute(read))).reason._tag, "RequestTimeout")
        assert.strictEqual((yield* Effect.flip(session.applied(write))).reason._tag, "OutcomeUnknown")
      })
    )

    it.effect("an interrupted request leaves its fiber at once", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const { address, hold } = yield* proxy(options.contactPoints![0]!)
        const session = yield* make({ ...options, contactPoints: [address], requestTimeout: "2 seconds" })
        hold()
        const fiber = yield* Effect.forkChild(session.execute(cql`SELECT * FROM items WHERE k = 'x'`))
        yield* Effect.yieldNow
        const begin = Date.now()
        yield* Fiber.interrupt(fiber)
        assert.isBelow(Date.now() - begin, 500)
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

    it.effect("takes its options from Config", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const provider = ConfigProvider.fromUnknown({ KEYSPACE: options.keyspace, POINT: options.contactPoints![0] })
        const Live = CassandraSession.layerConfig({
          keyspace: Config.String("KEYSPACE"),
          contactPoints: Config.String("POINT").pipe(Config.map((point) => [point])),
          localDataCenter: Config.String("DC").pipe(Config.withDefault("datacenter1"))
        })
        const rows = yield* Effect.flatMap(CassandraSession, (session) =>
          session.execute(cql`SELECT n FROM items LIMIT 1`)
        ).pipe(Effect.provide(Live.pipe(Layer.provide(ConfigProvider.layer(provider)))))
        assert.isAtMost(rows.length, 1)
      })
    )
  }
)
