import { inspect } from "node:util"
import { assert, layer } from "@effect/vitest"
import * as FaultProxy from "@effect-cassandra/testing/FaultProxy"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Fiber, Layer, Logger, Metric, Redacted, References, Schedule, Schema, Tracer } from "effect"
import { CassandraSession, make, type Options } from "../src/CassandraSession.ts"
import { cql, make as statement, withOptions, withSchema } from "../src/Statement.ts"

const secret = "s3cret-value"

const table = Layer.effectDiscard(
  Effect.flatMap(CassandraSession, (session) =>
    session.createTables(["CREATE TABLE IF NOT EXISTS items (k text, n int, v text, PRIMARY KEY (k, n))"])
  )
)

/** What is logged and traced while an effect runs. */
const observed = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const spans: Array<Tracer.NativeSpan> = []
    const logs: Array<string> = []
    const tracer = Tracer.make({
      span: (options) => {
        const span = new Tracer.NativeSpan(options)
        spans.push(span)
        return span
      }
    })
    const logger = Logger.make(({ cause, logLevel, message }) => logs.push(`${logLevel} ${message} ${cause}`))
    const result = yield* effect.pipe(
      Effect.withTracer(tracer),
      Effect.provide(Logger.layer([logger])),
      Effect.provideService(References.MinimumLogLevel, "All")
    )
    return { logs, result, spans }
  })

const opened = (changed: Partial<Options> = {}) =>
  Effect.flatMap(TestKeyspace, (options) => make({ ...options, ...changed }))

/** The values of a session's metrics by name, those of errors by reason. */
const values = Effect.map(Metric.snapshot, (snapshot) => {
  const found: Record<string, Record<string, number>> = {}
  for (const { attributes = {}, id, state } of snapshot) {
    const name = String(attributes["db.client.connection.pool.name"])
    const key = attributes["error.type"] === undefined ? id : `${id} ${attributes["error.type"]}`
    found[name] = { ...found[name], [key]: Number("count" in state ? state.count : "value" in state ? state.value : 0) }
  }
  return found
})

layer(table.pipe(Layer.provideMerge(TestKeyspace.layer)), { excludeTestServices: true, timeout: "2 minutes" })(
  "observability",
  (it) => {
    it.effect("a request is a client span with the attributes of OpenTelemetry, never with values", () =>
      Effect.gen(function* () {
        const session = yield* CassandraSession
        const options = yield* TestKeyspace
        const { logs, spans } = yield* observed(
          Effect.gen(function* () {
            yield* session.execute(cql`INSERT INTO items (k, n, v) VALUES (${"k"}, ${1}, ${secret})`)
            yield* session.execute(statement(`SELECT * FROM items WHERE k = 'k' AND v = '${secret}' ALLOW FILTERING`))
            yield* session.batch([
              cql`INSERT INTO items (k, n, v) VALUES (${"k"}, ${2}, ${secret})`,
              cql`DELETE FROM items WHERE k = ${secret}`
            ])
            yield* Effect.ignore(session.execute(cql`SELECT * FROM missing WHERE k = ${secret}`))
          }).pipe(Effect.withSpan("outer"))
        )
        const requests = spans.filter(({ name }) => name !== "outer")
        assert.deepStrictEqual(
          requests.map(({ kind, name }) => [name, kind]),
          [
            ["INSERT items", "client"],
            ["SELECT items", "client"],
            ["BATCH items", "client"],
            ["SELECT missing", "client"]
          ]
        )
        const [host, port] = options.contactPoints![0]!.split(":")
        assert.deepStrictEqual(Object.fromEntries(requests[1]!.attributes), {
          "db.system.name": "cassandra",
          "db.namespace": session.keyspace,
          "db.operation.name": "SELECT",
          "db.collection.name": "items",
          "db.query.summary": "SELECT items",
          "db.query.text": "SELECT * FROM items WHERE k = ? AND v = ? ALLOW FILTERING",
          "server.address": host,
          "server.port": Number(port),
          "db.response.returned_rows": 1
        })
        assert.strictEqual(requests[3]!.attributes.get("error.type"), "InvalidStatement")
        assert.strictEqual(requests[3]!.status._tag, "Ended")
        for (const span of requests) {
          assert.strictEqual(span.parent._tag, "Some")
          assert.notInclude(JSON.stringify([...span.attributes, span.events]), secret)
        }
        assert.notInclude(logs.join(), secret)
      })
    )

    it.effect("counts requests, errors by reason, durations and what is under way, of each session by itself", () =>
      Effect.gen(function* () {
        const proxy = yield* FaultProxy.make((yield* TestKeyspace).contactPoints![0]!)
        const session = yield* opened({ contactPoints: [proxy.address], maxInFlight: 1, maxQueued: 1 })
        const other = Object.keys(yield* values).filter((name) => name.startsWith(session.keyspace))
        assert.strictEqual(other.length, 2)
        const name = other.find((name) => name !== session.keyspace)!
        const before = (yield* values)[name]!
        const read = cql`SELECT n FROM items WHERE k = 'x'`
        yield* session.execute(read)
        yield* Effect.ignore(session.execute(cql`SELECT * FROM missing`))
        yield* proxy.hold
        const fibers = yield* Effect.forEach([1, 2], () =>
          Effect.forkChild(Effect.result(session.execute(read)), { startImmediately: true })
        )
        yield* Effect.ignore(session.execute(read))
        assert.include((yield* values)[name], {
          "cassandra.requests.in_flight": 1,
          "cassandra.requests.queued": 1,
          "cassandra.errors InvalidStatement": 1,
          "cassandra.errors Overloaded": 1
        })
        yield* proxy.release
        yield* Effect.forEach(fibers, Fiber.join)
        const after = (yield* values)[name]!
        assert.strictEqual(after["cassandra.requests"]! - before["cassandra.requests"]!, 4)
        assert.strictEqual(
          after["db.client.operation.duration"]! - before["db.client.operation.duration"]!,
          4,
          "what was refused took no time"
        )
        assert.include(after, { "cassandra.requests.in_flight": 0, "cassandra.requests.queued": 0 })
        assert.isAbove(after["cassandra.connections"]!, 0)
      })
    )

    it.effect("tries again by the Schedule that is given, what is idempotent only, and counts it", () =>
      Effect.gen(function* () {
        const delays: Array<number> = []
        const session = yield* opened({
          retry: Schedule.spaced("20 millis").pipe(
            Schedule.upTo({ times: 4 }),
            Schedule.tap(() => Effect.sync(() => void delays.push(performance.now())))
          )
        })
        const few = { consistency: "THREE" } as const
        const read = withOptions(cql`SELECT n FROM items WHERE k = 'x'`, few)
        assert.strictEqual((yield* Effect.flip(session.execute(read))).reason._tag, "Unavailable")
        assert.strictEqual(delays.length, 4)
        const write = withOptions(cql`INSERT INTO items (k, n) VALUES ('x', 1)`, few)
        yield* Effect.ignore(session.execute(write))
        yield* Effect.ignore(
          session.applied(withOptions(cql`INSERT INTO items (k, n) VALUES ('x', 1) IF NOT EXISTS`, few))
        )
        assert.strictEqual(delays.length, 4)
        yield* Effect.ignore(session.execute(withOptions(write, { idempotent: true })))
        assert.strictEqual(delays.length, 8)
        const counted = Object.values(yield* values).map((of) => of["cassandra.retries"])
        // The driver's own tries on further nodes are among them.
        assert.isAtLeast(Math.max(...counted.map(Number)), 8)
      })
    )

    it.effect("logs what is slow, now and then and without its values, and the warnings of the server once", () =>
      Effect.gen(function* () {
        const session = yield* opened({ slowStatement: 0 })
        const { logs } = yield* observed(session.execute(statement(`SELECT n FROM items WHERE k = '${secret}'`)))
        assert.match(logs.join(), /Warn slow statement, \d+ ms: SELECT n FROM items WHERE k = \?/)
        assert.notInclude(logs.join(), secret)

        const select = session.execute(cql`SELECT n FROM items WHERE k = ${"again"}`)
        const more = yield* observed(Effect.repeat(select, { times: 20 }))
        assert.strictEqual(more.logs.length, 0)

        const quiet = yield* opened({ slowStatement: "1 minute" })
        const many = Array.from({ length: 20 }, (_, n) => cql`INSERT INTO items (k, n) VALUES (${`p${n}`}, 1)`)
        const warned = yield* observed(
          Effect.forEach([1, 2], () => quiet.batch(many, { type: "unlogged" }), { discard: true })
        )
        assert.strictEqual(warned.logs.length, 1)
        assert.match(warned.logs[0]!, /Warn BATCH items: Unlogged batch covering 20 partitions/)
      })
    )

    it.effect("says in health which nodes it sees, and why it does not work", () =>
      Effect.gen(function* () {
        const options = yield* TestKeyspace
        const proxy = yield* FaultProxy.make(options.contactPoints![0]!)
        const session = yield* opened({ contactPoints: [proxy.address] })
        const { error, healthy, hosts } = yield* session.health
        assert.isTrue(healthy)
        assert.isUndefined(error)
        assert.deepInclude(hosts[0], { isUp: true, dataCenter: options.localDataCenter ?? "datacenter1" })
        assert.match(hosts[0]!.version, /^\d+\.\d+/)
        assert.isAbove(hosts[0]!.connections, 0)
        yield* proxy.refuse
        const ill = yield* session.health
        assert.isFalse(ill.healthy)
        assert.include(["NoHostAvailable", "ConnectionLost"], ill.error!.reason._tag)
      })
    )

    it.effect("no secret stands in a log, a span, an error or the session itself", () =>
      Effect.gen(function* () {
        const password = Redacted.make(secret)
        const { logs, result, spans } = yield* observed(
          Effect.gen(function* () {
            const session = yield* opened({ username: "ada", password })
            const wrong = yield* Effect.flip(session.execute(cql`INSERT INTO items (k, n) VALUES (${secret}, ${"x"})`))
            const closed = yield* Effect.flip(
              opened({ username: "ada", password, contactPoints: ["127.0.0.1:1"], connectTimeout: 0 })
            )
            const Wrong = Schema.Struct({ k: Schema.String.check(Schema.isPattern(/^x$/)) })
            yield* session.execute(cql`INSERT INTO items (k, n) VALUES (${secret}, ${1})`)
            const others = yield* Effect.forEach(
              [
                statement(`SELECT nothing FROM items WHERE k = '${secret}'`),
                statement(`INSERT INTO items (k, n) VALUES ('x', '${secret}')`),
                statement(`SELECT k FROM items WHERE k = '${secret}'`).pipe(withSchema(Wrong)),
                // The driver and the server repeat what they cannot read.
                cql`INSERT INTO items (k, n) VALUES ('x', ${secret})`,
                cql`INSERT INTO items (k, n) VALUES (${{ name: secret }}, 1)`,
                cql`INSERT INTO items JSON ${secret}`,
                cql`INSERT INTO items JSON ${JSON.stringify({ k: "x", n: secret })}`
              ],
              (self) => Effect.flip(session.execute<unknown>(self))
            )
            return [wrong, closed, ...others].map((error) => `${error} ${inspect(error, { depth: 20 })}`).join()
          })
        )
        const seen = [result, ...logs, ...spans.map((span) => JSON.stringify([...span.attributes]))].join()
        assert.notInclude(seen, "s3cret")
      })
    )
  }
)
