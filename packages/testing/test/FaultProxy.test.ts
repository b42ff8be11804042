import { connect, createServer, type Socket } from "node:net"
import { assert, describe, it } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import * as FaultProxy from "../src/FaultProxy.ts"

/** Answers everything with itself, and keeps what it was sent. */
const echo = Effect.gen(function* () {
  const state = { received: "", connections: 0 }
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    state.connections++
    sockets.add(socket)
    socket.on("data", (data) => {
      state.received += data
      socket.write(data)
    })
    socket.on("error", () => {})
  })
  yield* Effect.acquireRelease(
    Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void))),
    () =>
      Effect.sync(() => {
        for (const socket of sockets) socket.destroy()
        server.close()
      })
  )
  return { state, address: `127.0.0.1:${(server.address() as { readonly port: number }).port}` }
})

/** A client, with what it was answered. */
const dial = (address: string) =>
  Effect.acquireRelease(
    Effect.callback<{ answered: string; closed: boolean; readonly socket: Socket }>((resume) => {
      const [host, port] = address.split(":")
      const socket = connect({ host, port: Number(port) })
      const client = { answered: "", closed: false, socket }
      socket.on("data", (data) => {
        client.answered += data
      })
      socket.on("error", () => {})
      socket.on("close", () => {
        client.closed = true
      })
      socket.on("connect", () => resume(Effect.succeed(client)))
    }),
    ({ socket }) => Effect.sync(() => socket.destroy())
  )

const until = (condition: () => boolean) =>
  Effect.sync(condition).pipe(
    Effect.repeat({ schedule: Schedule.spaced("1 millis"), until: (fulfilled) => fulfilled }),
    Effect.timeout("10 seconds")
  )

/** Time for what would pass to pass: a message there and back by another way. */
const meanwhile = (address: string) =>
  Effect.gen(function* () {
    const other = yield* dial(address)
    other.socket.write("?")
    yield* until(() => other.answered === "?")
  })

describe("a proxy", () => {
  it.live("passes everything on, in both directions and in its order, ends included", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      const sent = Array.from({ length: 20_000 }, (_, i) => `${i};`).join("")
      client.socket.write(sent)
      client.socket.end()
      yield* until(() => client.closed)
      assert.strictEqual(client.answered, sent)
    })
  )

  it.live("delays in both directions, without changing the order", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      yield* proxy.delay(40)
      const begin = performance.now()
      client.socket.write("a")
      yield* until(() => server.state.received === "a")
      assert.isAtLeast(performance.now() - begin, 39)
      yield* until(() => client.answered === "a")
      assert.isAtLeast(performance.now() - begin, 79)
      client.socket.write("b")
      yield* meanwhile(server.address)
      // What is sent with less delay does not overtake what was sent before.
      yield* proxy.delay(0)
      for (const letter of "cdefgh") {
        client.socket.write(letter)
        yield* meanwhile(server.address)
      }
      yield* until(() => client.answered.length === 8)
      assert.strictEqual(client.answered, "abcdefgh")
    })
  )

  it.live("delays many messages at once by no more than one: it is a latency, not a bound on messages", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const clients = yield* Effect.forEach(Array.from({ length: 50 }), () => dial(proxy.address))
      yield* proxy.delay(20)
      const begin = performance.now()
      // Each message of a client waits for the answer to the one before: 5 round trips of 40 ms.
      for (let i = 1; i <= 5; i++) {
        for (const { socket } of clients) socket.write("x")
        yield* until(() => clients.every(({ answered }) => answered.length === i))
      }
      const took = performance.now() - begin
      assert.isAtLeast(took, 195)
      assert.isBelow(took, 1000)
    })
  )

  it.live("holds both directions, and passes on what was held", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      yield* proxy.hold
      client.socket.write("a")
      yield* meanwhile(server.address)
      assert.strictEqual(server.state.received, "?")
      yield* proxy.holdRequests
      client.socket.write("b")
      yield* meanwhile(server.address)
      assert.strictEqual(server.state.received, "??")
      yield* proxy.release
      yield* until(() => client.answered === "ab")
    })
  )

  it.live("holds requests back and lets answers pass", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      yield* proxy.delay(30)
      client.socket.write("a")
      yield* until(() => server.state.received === "a")
      yield* proxy.holdRequests
      client.socket.write("b")
      yield* until(() => client.answered === "a")
      yield* meanwhile(server.address)
      assert.strictEqual(server.state.received, "a?")
    })
  )

  it.live("delivers at release what a client has sent that is gone", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      client.socket.write("a")
      yield* until(() => client.answered === "a")
      yield* proxy.hold
      client.socket.write("late")
      yield* meanwhile(server.address)
      client.socket.resetAndDestroy()
      yield* until(() => client.closed)
      yield* meanwhile(server.address)
      assert.strictEqual(server.state.received, "a??")
      yield* proxy.release
      yield* until(() => server.state.received === "a??late")
    })
  )

  it.live("cuts connections, and loses what it held", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      const client = yield* dial(proxy.address)
      client.socket.write("a")
      yield* until(() => client.answered === "a")
      yield* proxy.hold
      client.socket.write("lost")
      yield* meanwhile(server.address)
      yield* proxy.drop
      yield* until(() => client.closed)
      yield* proxy.release
      const next = yield* dial(proxy.address)
      next.socket.write("b")
      yield* until(() => next.answered === "b")
      assert.strictEqual(server.state.received, "a?b")
    })
  )

  it.live("refuses connections until it accepts them again, and tells when the server is not there", () =>
    Effect.gen(function* () {
      const server = yield* echo
      const proxy = yield* FaultProxy.make(server.address)
      yield* proxy.refuse
      const refused = yield* dial(proxy.address)
      yield* until(() => refused.closed)
      assert.strictEqual(server.state.connections, 0)
      yield* proxy.accept
      const accepted = yield* dial(proxy.address)
      accepted.socket.write("a")
      yield* until(() => accepted.answered === "a")
      const nowhere = yield* FaultProxy.make("127.0.0.1:1")
      const lost = yield* dial(nowhere.address)
      yield* until(() => lost.closed)
    })
  )
})
