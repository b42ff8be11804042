import { connect as connectPlain } from "node:net"
import { connect } from "node:tls"
import { assert, layer } from "@effect/vitest"
import { CurrentMetadata, Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Context, Effect, Exit, Fiber, Layer, Schedule, Scope, Tracer } from "effect"
import { CommandRouting } from "../src/CommandRouting.ts"
import { EntityError } from "../src/EntityError.ts"
import { encodeFrame } from "../src/internal/frames.ts"
import { security } from "../src/internal/peer.ts"
import { withCommandId, withPosition } from "../src/PersistentEntity.ts"
import { behavior, Counter, Limits, Negative } from "./counter.ts"

const settings = { shards: 2 }

/** Holds the entities of a process up. */
interface Gate {
  wait: Effect.Effect<void>
}

/** A process, in this one: a journal, entities, and a place among the others. */
const start = Effect.fnUntraced(function* (gate: Gate = { wait: Effect.void }) {
  const scope = yield* Scope.fork(yield* Effect.scope)
  const session = yield* CassandraSession
  const context = yield* Layer.buildWithScope(
    Layer.fresh(
      Counter.layer(
        Counter.behavior({
          ...behavior,
          commands: {
            ...behavior.commands,
            // Decided when the gate is open.
            Limited: (state, payload) =>
              Effect.andThen(
                Effect.suspend(() => gate.wait),
                Effect.suspend(() => behavior.commands.Limited(state, payload) as Effect.Effect<any, Negative, Limits>)
              )
          }
        }),
        { shutdownTimeout: "3 seconds" }
      ).pipe(
        Layer.provideMerge(Layer.fresh(CommandRouting.layer())),
        Layer.provideMerge(Layer.fresh(Journal.layer(settings))),
        Layer.provide(Layer.succeed(Limits, { max: 100 })),
        Layer.provide(Layer.succeed(CassandraSession, session))
      )
    ),
    scope
  )
  return {
    counters: Context.get(context, Counter),
    journal: Context.get(context, Journal),
    routing: Context.get(context, CommandRouting),
    close: Scope.close(scope, Exit.void)
  }
})

type Process = Effect.Success<ReturnType<typeof start>>

const eventually = <A, E, R>(effect: Effect.Effect<A, E, R>) =>
  Effect.retry(effect, { schedule: Schedule.spaced("10 millis"), times: 1500 })

/** Waits until a process sends the commands of an entity to another one, and says whether it does, at all times. */
const isElsewhere = ({ journal, routing }: Process, id: string) =>
  routing.ownerOf("Counter", journal.shardOf(id), journal.shards) !== undefined

/** Two that know of each other, and entities that are the second one's. */
const two = Effect.fnUntraced(function* (name: string, gate?: Gate) {
  const first = yield* start()
  const second = yield* start(gate)
  const ids = Array.from({ length: 8 }, (_, i) => `${name}-${i}`)
  const settled = Effect.suspend(() => {
    const away = ids.filter((id) => isElsewhere(first, id))
    const disjoint = ids.every((id) => isElsewhere(first, id) !== isElsewhere(second, id))
    return away.length > 0 && away.length < ids.length && disjoint ? Effect.succeed(away) : Effect.fail("not yet")
  })
  const away = yield* eventually(settled)
  return { first, second, id: away[0]!, ids }
})

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("Commands between processes", (it) => {
  it.effect("are carried out by the one that has the entity, and all that comes of them comes back", () =>
    Effect.gen(function* () {
      const { first, id, second } = yield* two("answers")
      const counter = first.counters(id)
      assert.strictEqual(yield* counter.Add({ amount: 3 }), 3)
      // Its log is not even open in the process that was asked.
      assert.strictEqual(first.journal.seen("Counter", first.journal.shardOf(id)), 0)
      assert.isAbove(second.journal.seen("Counter", second.journal.shardOf(id)), 0)
      assert.strictEqual(yield* second.counters(id).Add({ amount: 4 }), 7)
      assert.strictEqual(yield* counter.Total(), 7)
      assert.strictEqual(yield* counter.Look(), 7)
      assert.strictEqual(yield* counter.Peek(), 7)
      assert.isUndefined(yield* counter.Rename({ name: "ada" }))
      assert.strictEqual(yield* counter.Name(), "ada")

      const rejected = yield* Effect.flip(counter.Add({ amount: -10 }))
      assert.instanceOf(rejected, Negative)
      assert.deepInclude(rejected, { total: 7 })
      const malformed = yield* Effect.flip(counter.Add({ amount: 0.5 }))
      assert.match((malformed as EntityError).message, /MalformedCommand: Add for Counter "answers-\d": .*integer/)
      const defect = yield* Effect.flip(Effect.sandbox(counter.Boom()))
      assert.match(String(defect), /boom/)
    })
  )

  it.effect("carry their ids, metadata and places", () =>
    Effect.gen(function* () {
      const { first, id, second } = yield* two("carry")
      const add = (counters: Process["counters"], amount: number) =>
        counters(id).Add({ amount }).pipe(withCommandId("once"))
      assert.strictEqual(yield* add(first.counters, 2), 2)
      assert.strictEqual(yield* add(second.counters, 2), 2)
      assert.strictEqual(yield* add(first.counters, 2), 2)
      assert.match(String(yield* Effect.flip(add(first.counters, 3))), /CommandIdReused/)

      const [total, place] = yield* first
        .counters(id)
        .Add({ amount: 5 })
        .pipe(Effect.provideService(CurrentMetadata, { correlationId: "c", tenant: "t" }), withPosition)
      assert.strictEqual(total, 7)
      const { events } = yield* second.journal.load({ entityType: "Counter", entityId: id })
      const last = events.at(-1)!
      assert.deepInclude(last.metadata, { correlationId: "c", tenant: "t" })
      assert.deepStrictEqual(place, { entityType: "Counter", shard: last.shard, offset: last.offset })
    })
  )

  it.effect("are seen as part of what they come from", () =>
    Effect.gen(function* () {
      const { first, id, second } = yield* two("traced")
      const spans: Array<Tracer.Span> = []
      const tracer = Tracer.make({
        span: (options) => {
          const span = new Tracer.NativeSpan(options)
          spans.push(span)
          return span
        }
      })
      yield* first.counters(id).Add({ amount: 1 }).pipe(Effect.withSpan("request"), Effect.withTracer(tracer))
      const { events } = yield* second.journal.load({ entityType: "Counter", entityId: id })
      const sent = spans.find(({ name }) => name === "Counter.Add forwarded")!
      assert.deepInclude(sent, { kind: "client", traceId: spans[0]!.traceId })
      assert.strictEqual(events.length, 1)
    })
  )

  it.effect("are read by whoever gave them, also where the entity has gone elsewhere meanwhile", () =>
    Effect.gen(function* () {
      const { first, id, second } = yield* two("moved")
      // In memory here, before it goes on there.
      yield* first.journal.load({ entityType: "Counter", entityId: id })
      for (let i = 1; i <= 20; i++) assert.strictEqual(yield* first.counters(id).Add({ amount: 1 }), i)
      yield* second.close
      yield* eventually(Effect.suspend(() => (isElsewhere(first, id) ? Effect.fail("not yet") : Effect.void)))
      assert.strictEqual(yield* first.counters(id).Peek(), 20)
      assert.strictEqual(yield* first.counters(id).Add({ amount: 1 }), 21)
    })
  )

  it.effect("given while their process closes are carried out once, here or there", () =>
    Effect.gen(function* () {
      const { first, id, ids, second } = yield* two("closing")
      let added = 0
      const adding = Effect.forEach(
        ids,
        (id) =>
          Effect.forEach(Array.from({ length: 50 }), () =>
            Effect.tap(first.counters(id).Add({ amount: 1 }), () => Effect.sync(() => added++))
          ),
        { concurrency: "unbounded", discard: true }
      )
      const fiber = yield* Effect.forkChild(adding)
      yield* eventually(Effect.suspend(() => (added > 50 ? Effect.void : Effect.fail("not yet"))))
      yield* second.close
      yield* Fiber.join(fiber)
      for (const id of ids) assert.strictEqual(yield* first.counters(id).Look(), 50)
      assert.isFalse(isElsewhere(first, id))
    })
  )

  it.effect("are withdrawn with their callers, and what is not known of others is said", () =>
    Effect.gen(function* () {
      const gate: Gate = { wait: Effect.never }
      const { first, id, second } = yield* two("lost", gate)
      const counter = first.counters(id)
      yield* counter.Add({ amount: 1 })

      const withdrawn = yield* Effect.forkChild(counter.Limited({ amount: 10 }), { startImmediately: true })
      const waits = yield* Effect.forkChild(counter.Add({ amount: 2 }), { startImmediately: true })
      yield* Fiber.interrupt(withdrawn)
      assert.strictEqual(yield* Fiber.join(waits), 3)

      const doubtful = yield* Effect.forkChild(Effect.flip(counter.Limited({ amount: 20 })), { startImmediately: true })
      const named = yield* Effect.forkChild(counter.Limited({ amount: 4 }).pipe(withCommandId("4")), {
        startImmediately: true
      })
      // What was sent has arrived, for this comes behind it.
      yield* counter.Peek()
      yield* second.routing.close
      const error = yield* Fiber.join(doubtful)
      assert.isTrue(error instanceof EntityError && error.maybeStored)
      assert.match(
        String(error),
        /ConnectionLost: Limited for Counter "lost-\d": the process that has the entity is gone/
      )
      assert.strictEqual(yield* Fiber.join(named), 7)
    })
  )

  it.effect("come from those who know the key, and from nobody else", () =>
    Effect.gen(function* () {
      const { first, id, second } = yield* two("keys")
      const session = yield* CassandraSession
      const rows = yield* session.execute<{ value: string }>(cql`SELECT value FROM entity_processes`)
      const { key, name, port } = JSON.parse(rows[0]!.value) as { key: string; name: string; port: number }
      /** What becomes of a connection. */
      const knock = (psk: Buffer, identity: string) =>
        Effect.callback<string>((resume) => {
          const socket = connect({
            ...security,
            host: "127.0.0.1",
            port,
            pskCallback: () => ({ psk, identity }),
            checkServerIdentity: () => undefined
          })
          socket.on("secureConnect", () => {
            resume(Effect.succeed("let in"))
            socket.destroy()
          })
          socket.on("error", () => resume(Effect.succeed("refused")))
        })
      assert.strictEqual(yield* knock(Buffer.from(key, "hex"), name), "let in")
      assert.strictEqual(yield* knock(Buffer.alloc(32), name), "refused")
      assert.strictEqual(yield* knock(Buffer.from(key, "hex"), "somebody"), "refused")
      // Who knows the key may speak another language, or of another version.
      const odd = [1, "x", null, {}, [0], [0, "Nobody"], [0, "Counter", 5, "Add", {}], [1, "Counter", "x", "Add", {}]]
      for (const message of [...odd, [2, "Counter", "x", "constructor", {}], [3, "Counter", "x", "Peek", null, 7]]) {
        yield* Effect.callback<void>((resume) => {
          const socket = connect({
            ...security,
            host: "127.0.0.1",
            port,
            pskCallback: () => ({ psk: Buffer.from(key, "hex"), identity: name }),
            checkServerIdentity: () => undefined
          })
          // What comes after it is answered, or nothing is any more.
          socket.on("secureConnect", () => socket.write(Buffer.concat([encodeFrame([message]), encodeFrame([[]])])))
          socket.on("data", () => socket.destroy())
          socket.on("error", () => {})
          socket.on("close", () => resume(Effect.void))
        })
      }
      const plain = yield* Effect.callback<string>((resume) => {
        const socket = connectPlain(port, "127.0.0.1", () => socket.write("GET / HTTP/1.1\r\n\r\n"))
        socket.on("close", () => resume(Effect.succeed("closed")))
        socket.on("error", () => {})
      })
      assert.strictEqual(plain, "closed")
      assert.strictEqual(yield* first.counters(id).Add({ amount: 1 }), 1)
      assert.strictEqual(yield* second.counters(id).Add({ amount: 1 }), 2)
    })
  )

  it.effect("stay where they are while the others cannot be reached, or are unreadable", () =>
    Effect.gen(function* () {
      const session = yield* CassandraSession
      const ghost = { name: "ghost", host: "127.0.0.1", port: 1, key: "00".repeat(32), types: ["Counter"] }
      const put = (name: string, value: string) =>
        session.execute(cql`INSERT INTO entity_processes (part, name, value) VALUES ('entities', ${name}, ${value})`)
      yield* put("ghost", JSON.stringify(ghost))
      yield* put("broken", "{")
      const process = yield* start()
      const ids = Array.from({ length: 8 }, (_, i) => `alone-${i}`)
      yield* eventually(
        Effect.suspend(() => (ids.some((id) => isElsewhere(process, id)) ? Effect.void : Effect.fail("not yet")))
      )
      for (const id of ids) assert.strictEqual(yield* process.counters(id).Add({ amount: 1 }), 1)
      yield* session.execute(cql`DELETE FROM entity_processes WHERE part = 'entities' AND name IN ('ghost', 'broken')`)
    })
  )

  it.effect("a process that cannot listen says where, and what to do", () =>
    Effect.gen(function* () {
      const error = (options: CommandRoutingOptions) =>
        Effect.map(
          Effect.flip(Effect.scoped(Layer.build(Layer.fresh(CommandRouting.layer(options))))),
          ({ message }) => message
        )
      const { routing } = yield* start()
      const { port } = routing.address
      assert.match(yield* error({ port }), new RegExp(`cannot listen at 127.0.0.1:${port}, choose another port`))
      assert.match(yield* error({ port: 70_000 }), /port is 70000, it must be a whole number from 0 to 65535/)
      assert.match(yield* error({ host: "10.1.2.3", listen: "256.0.0.1" }), /cannot listen at 256.0.0.1:0/)
    })
  )
})

type CommandRoutingOptions = Parameters<typeof CommandRouting.layer>[0]
