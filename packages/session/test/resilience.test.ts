import { assert, layer } from "@effect/vitest"
import { CassandraProcess } from "@effect-cassandra/testing/CassandraProcess"
import * as FaultProxy from "@effect-cassandra/testing/FaultProxy"
import { Effect, Fiber, Layer, Redacted, Schedule, type Scope } from "effect"
import type { CassandraError } from "../src/CassandraError.ts"
import { make, type Options } from "../src/CassandraSession.ts"
import { cql, withOptions } from "../src/Statement.ts"

const until = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, { schedule: Schedule.spaced("100 millis"), times: 600 })

const read = cql`SELECT v FROM items WHERE k = 1`
const write = cql`INSERT INTO items (k, v) VALUES (1, 'x')`
const conditional = cql`INSERT INTO items (k, v) VALUES (2, 'x') IF NOT EXISTS`

const open = (options?: Partial<Options>) =>
  Effect.gen(function* () {
    const { connection } = yield* CassandraProcess
    const session = yield* make({ ...connection, keyspace: "faults", development: true, ...options })
    yield* session.createTables(["CREATE TABLE IF NOT EXISTS items (k int PRIMARY KEY, v text)"])
    return session
  })

/** A session whose connections pass a proxy. */
const proxied = (options?: Partial<Options>) =>
  Effect.gen(function* () {
    const { connection } = yield* CassandraProcess
    const proxy = yield* FaultProxy.make(connection.contactPoints![0]!)
    return { proxy, session: yield* open({ contactPoints: [proxy.address], ...options }) }
  })

/** Of its own, for it is killed; with passwords, as no other test has one. */
const server = CassandraProcess.layer({ heap: "512M", settings: { authenticator: "PasswordAuthenticator" } })
const hasJava = await Effect.runPromise(CassandraProcess.isPossible)

layer(hasJava ? server : (Layer.empty as Layer.Layer<any> as typeof server), {
  excludeTestServices: true,
  timeout: "2 minutes"
})("a session when things go wrong", (it) => {
  const test = <E>(name: string, effect: Effect.Effect<void, E, CassandraProcess | Scope.Scope>) =>
    it.effect.skipIf(!hasJava)(name, () => effect, 120_000)

  test(
    "user and password: the right ones, wrong ones, none; none of them in a message",
    Effect.gen(function* () {
      const session = yield* open()
      yield* session.execute(write)
      for (const wrong of [
        { username: "cassandra", password: Redacted.make("wr0ng-secret") },
        { username: undefined, password: undefined }
      ]) {
        const error = yield* Effect.flip(open(wrong))
        assert.strictEqual(error.reason._tag, "AuthenticationFailed", error.message)
        assert.notMatch(JSON.stringify(error) + String(error) + error.stack, /wr0ng-secret/)
      }
    })
  )

  test(
    "a broken connection: a read is tried again, a write is not, a conditional write has an unknown outcome",
    Effect.gen(function* () {
      // Until the time-out of the request, however long a busy machine takes to connect again.
      const { proxy, session } = yield* proxied({ retry: Schedule.spaced("100 millis") })
      const broken = <A>(effect: Effect.Effect<A, CassandraError>) =>
        Effect.gen(function* () {
          // Prepared on the new connection, so that what breaks is its execution.
          yield* until(effect)
          yield* proxy.hold
          const fiber = yield* Effect.forkChild(Effect.result(effect), { startImmediately: true })
          yield* Effect.sleep("50 millis")
          yield* proxy.drop
          yield* proxy.release
          return yield* Fiber.join(fiber)
        }).pipe(
          // A connection that was not whole yet sends nothing, and the session says so: once more.
          Effect.repeat({
            while: (result) => result._tag === "Failure" && result.failure.reason._tag === "NoHostAvailable",
            times: 20
          })
        )
      assert.strictEqual((yield* broken(session.execute(read)))._tag, "Success")
      const plain = yield* broken(session.execute(write))
      assert(plain._tag === "Failure")
      assert.strictEqual(plain.failure.reason._tag, "ConnectionLost")
      assert.isTrue(plain.failure.isRetryable)
      const idempotent = yield* broken(session.execute(withOptions(write, { idempotent: true })))
      assert.strictEqual(idempotent._tag, "Success")
      const lost = yield* broken(session.applied(conditional))
      assert(lost._tag === "Failure")
      assert.strictEqual(lost.failure.reason._tag, "OutcomeUnknown")
      assert.isFalse(lost.failure.isRetryable)
    })
  )

  test(
    "a control connection that breaks again while it is renewed ends no process",
    Effect.gen(function* () {
      const { proxy, session } = yield* proxied()
      yield* session.use(async (client) => {
        const control = (client as unknown as { readonly controlConnection: any }).controlConnection
        const refreshHosts = control._refreshHosts
        // The moment is a matter of luck: the other renewal begins where this one has a connection and asks for the nodes.
        control._refreshHosts = async () => {
          control._refreshHosts = refreshHosts
          const other = control._refresh()
          await proxy.drop.pipe(Effect.runPromise)
          await other
          control.connection = null
          throw new Error("Connection closed")
        }
        await control._refresh()
      })
      yield* until(session.execute(read))
    })
  )

  test(
    "a slow network: only what takes longer than its own time-out fails",
    Effect.gen(function* () {
      const { proxy, session } = yield* proxied()
      yield* session.execute(read)
      yield* proxy.delay(300)
      yield* session.execute(read)
      const begin = performance.now()
      const error = yield* Effect.flip(session.execute(withOptions(read, { timeout: "200 millis" })))
      assert.strictEqual(error.reason._tag, "RequestTimeout")
      assert.isBelow(performance.now() - begin, 1000)
    })
  )

  test(
    "beyond the bounds: Overloaded at once; interruption frees the place",
    Effect.gen(function* () {
      const { proxy, session } = yield* proxied({ maxInFlight: 2, maxQueued: 2, requestTimeout: "2 seconds" })
      yield* session.execute(read)
      yield* proxy.hold
      const fibers = yield* Effect.forEach([1, 2, 3, 4], () =>
        Effect.forkChild(Effect.result(session.execute(read)), { startImmediately: true })
      )
      const begin = performance.now()
      const error = yield* Effect.flip(session.execute(read))
      assert.isBelow(performance.now() - begin, 1000)
      assert.strictEqual(error.reason._tag, "Overloaded")
      assert.match(error.message, /2 requests are under way and 2 wait.*maxInFlight or maxQueued/)
      assert.deepInclude(
        { ...(yield* Effect.map(session.health, ({ inFlight, queued }) => ({ inFlight, queued }))) },
        { inFlight: 2, queued: 2 }
      )
      // One that waits, and one that is under way.
      yield* Fiber.interrupt(fibers[3]!)
      yield* Fiber.interrupt(fibers[0]!)
      const late = yield* Effect.forkChild(Effect.result(session.execute(read)), { startImmediately: true })
      yield* proxy.release
      for (const fiber of [fibers[1]!, fibers[2]!, late]) assert.strictEqual((yield* Fiber.join(fiber))._tag, "Success")
    })
  )

  test(
    "a server that is stopped in its tracks: time-outs in time, health says so, and all is well when it goes on",
    Effect.gen(function* () {
      const cassandra = yield* CassandraProcess
      const session = yield* open({ requestTimeout: "1 second" })
      assert.isTrue((yield* session.health).healthy)
      yield* cassandra.pause
      yield* Effect.gen(function* () {
        const begin = performance.now()
        assert.strictEqual((yield* Effect.flip(session.execute(read))).reason._tag, "RequestTimeout")
        assert.strictEqual((yield* Effect.flip(session.applied(conditional))).reason._tag, "OutcomeUnknown")
        assert.isBelow(performance.now() - begin, 8000)
        const health = yield* session.health
        assert.isFalse(health.healthy)
        assert.strictEqual(health.hosts.length, 1)
        assert.isDefined(health.error)
      }).pipe(Effect.ensuring(cassandra.resume))
      yield* until(session.execute(write))
      yield* until(session.health.pipe(Effect.filterOrFail(({ healthy }) => healthy)))
    })
  )

  test(
    "a server that is killed and comes back: failures are typed and quick, and the same session goes on by itself",
    Effect.gen(function* () {
      const cassandra = yield* CassandraProcess
      const session = yield* open()
      yield* cassandra.kill
      const begin = performance.now()
      for (let i = 0; i < 5; i++) {
        const error = yield* Effect.flip(session.execute(write))
        assert.include(["NoHostAvailable", "ConnectionLost"], error.reason._tag)
      }
      assert.isBelow(performance.now() - begin, 9000)
      assert.isFalse((yield* session.health).hosts.some(({ isUp }) => isUp))
      yield* cassandra.start
      yield* until(session.execute(write))
    })
  )

  test(
    "a session that is opened before the server is there waits for it, and gives up in time",
    Effect.gen(function* () {
      const cassandra = yield* CassandraProcess
      yield* cassandra.stop
      const begin = performance.now()
      const error = yield* Effect.flip(open({ connectTimeout: "1 second" }))
      assert.strictEqual(error.reason._tag, "NoHostAvailable")
      assert.isBelow(performance.now() - begin, 9000)
      const opening = yield* Effect.forkChild(
        Effect.flatMap(open({ connectTimeout: "1 minute" }), (session) => session.execute(write)),
        { startImmediately: true }
      )
      yield* cassandra.start
      yield* Fiber.join(opening)
    })
  )
})
