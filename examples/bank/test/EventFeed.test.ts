import { createServer, get, type IncomingMessage } from "node:http"
import { NodeHttpServer } from "@effect/platform-node"
import { assert, layer } from "@effect/vitest"
import * as EventStream from "@effect-cassandra/journal/EventStream"
import { Journal, type Position } from "@effect-cassandra/journal/Journal"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Context, Effect, Exit, Fiber, Layer, Ref, Schedule, Scope, Stream } from "effect"
import * as Sse from "effect/encoding/Sse"
import { HttpRouter, HttpServer } from "effect/http"
import { HttpApi, HttpApiBuilder } from "effect/http-api"
import { Feed, type FeedEvent, Validation } from "../src/Api.ts"
import { ValidationLive } from "../src/Bank.ts"
import { EventFeed, OpenFeeds } from "../src/EventFeed.ts"

const FeedApi = HttpApi.make("bank").add(Feed).middleware(Validation)

/** What the server has read from the journal, and how many streams it has open there. */
class Readings extends Context.Service<
  Readings,
  { readonly events: Ref.Ref<number>; readonly open: Ref.Ref<number> }
>()("Readings") {}

const Counted = Layer.effectContext(
  Effect.gen(function* () {
    const journal = yield* Journal
    const events = yield* Ref.make(0)
    const open = yield* Ref.make(0)
    const counted: Journal["Service"] = {
      ...journal,
      events: (entityType, shard, after) =>
        journal.events(entityType, shard, after).pipe(
          Stream.tap(() => Ref.update(events, (n) => n + 1)),
          Stream.onStart(Ref.update(open, (n) => n + 1)),
          Stream.ensuring(Ref.update(open, (n) => n - 1))
        )
    }
    return Context.make(Journal, counted).pipe(Context.add(Readings, { events, open }))
  })
)

/** The feed behind HTTP, on a free port. */
const Server = OpenFeeds.closing.pipe(
  Layer.provideMerge(
    HttpRouter.serve(
      HttpApiBuilder.layer(FeedApi).pipe(Layer.provide(EventFeed("50 millis")), Layer.provide(ValidationLive)),
      { disableLogger: true, disableListenLog: true }
    )
  ),
  Layer.provide(OpenFeeds.layer),
  Layer.provideMerge(NodeHttpServer.layer(createServer, { port: 0, host: "127.0.0.1" }))
)

interface Message {
  readonly id: string
  readonly event: typeof FeedEvent.Encoded
}

type Parse = (onMessage: (message: Message) => void) => (text: string) => void

const parseSse: Parse = (onMessage) => {
  const parser = Sse.makeParser((event) => {
    if (event._tag === "Event") onMessage({ id: event.id!, event: JSON.parse(event.data) })
  })
  return (text) => parser.feed(text)
}

const parseNdjson: Parse = (onMessage) => {
  let rest = ""
  return (text) => {
    const lines = (rest + text).split("\n")
    rest = lines.pop()!
    for (const line of lines) {
      if (line === "") continue
      const event = JSON.parse(line)
      onMessage({ id: event.position, event })
    }
  }
}

/** An answer whose body was not read yet; the connection is cut when the scope is closed. */
const request = Effect.fnUntraced(function* (path: string, headers: Record<string, string> = {}) {
  const { address } = yield* HttpServer.HttpServer
  return yield* Effect.acquireRelease(
    Effect.callback<IncomingMessage>((resume) => {
      get(HttpServer.formatAddress(address) + path, { agent: false, headers }, (response) =>
        resume(Effect.succeed(response))
      )
    }),
    (response) => Effect.sync(() => response.destroy())
  )
})

/** Reads messages until there are enough, or the answer ends. */
const take = (response: IncomingMessage, parse: Parse, enough = Number.POSITIVE_INFINITY) =>
  Effect.callback<ReadonlyArray<Message>, Error>((resume) => {
    const messages: Array<Message> = []
    const done = () => {
      response.pause().removeAllListeners("data")
      resume(Effect.succeed(messages.slice(0, enough)))
    }
    const feed = parse((message) => messages.push(message))
    response
      .setEncoding("utf8")
      .resume()
      .on("data", (text: string) => {
        feed(text)
        if (messages.length >= enough) done()
      })
    response.on("end", done).on("error", (error) => resume(Effect.fail(error)))
  })

const json = (response: IncomingMessage) =>
  Effect.promise(async () => {
    let text = ""
    for await (const chunk of response.setEncoding("utf8")) text += chunk
    return JSON.parse(text) as { readonly _tag: string; readonly message: string }
  })

/** Appends deposits, whose cents count the events of the account. */
const deposit = Effect.fnUntraced(function* (account: string, count: number, note = "") {
  const journal = yield* Journal
  const key = { entityType: "Account", entityId: account }
  let expected: Position = yield* journal.load(key)
  for (let i = 0; i < count; i++) {
    const events = [{ type: "Deposited", payload: { cents: expected.sequence + 1, note } }]
    expected = yield* journal.append({ ...key, expected, events })
  }
})

const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, i) => from + i)

const accountsFrom = (name: string, count: number) => numbers(1, count).map((n) => `${name}-${n}`)

/** Every event of the accounts once, and in order. */
const check = (messages: ReadonlyArray<Message>, accounts: ReadonlyArray<string>, each: number) => {
  for (const account of accounts) {
    const own = messages.filter(({ event }) => event.account === account)
    assert.deepStrictEqual(
      own.map(({ event }) => event.sequence),
      numbers(1, each)
    )
    assert.deepStrictEqual(
      own.map(({ event }) => (event.payload as { readonly cents: number }).cents),
      numbers(1, each)
    )
  }
  assert.strictEqual(messages.length, accounts.length * each)
}

/** Follows the feed from now on, in a request of its own for every few messages, until there are so many. */
const followInPieces = Effect.fnUntraced(function* (path: string, parse: Parse, from: string, enough: number) {
  const messages: Array<Message> = []
  let last = from
  while (messages.length < enough) {
    const part = yield* Effect.scoped(
      Effect.gen(function* () {
        const response = yield* request(path, { "last-event-id": last })
        assert.strictEqual(response.statusCode, 200)
        return yield* take(response, parse, Math.min(1 + (messages.length % 17), enough - messages.length))
      })
    )
    messages.push(...part)
    last = messages.at(-1)!.id
  }
  return messages
})

const here = Effect.map(EventStream.currentOffset("Account"), EventStream.formatOffset)

const eventually = <A, E, R>(effect: Effect.Effect<A, E, R>, holds: (value: A) => boolean) =>
  Effect.repeat(effect, { until: holds, schedule: Schedule.spaced("10 millis") })

const suite = <E>(name: string, JournalLive: Layer.Layer<Journal, E>) =>
  layer(Server.pipe(Layer.provideMerge(Counted), Layer.provide(JournalLive)), {
    excludeTestServices: true,
    timeout: "2 minutes"
  })(name, (it) => {
    it.effect("sends what is stored, and goes on with what is to come", () =>
      Effect.gen(function* () {
        const from = yield* here
        yield* deposit("first", 3)
        const response = yield* request(`/events?after=${from}`)
        assert.strictEqual(response.statusCode, 200)
        assert.strictEqual(response.headers["content-type"], "text/event-stream")
        const fiber = yield* Effect.forkChild(take(response, parseSse, 6))
        yield* deposit("first", 3)
        const messages = yield* Fiber.join(fiber)
        check(messages, ["first"], 6)
        const { time, ...event } = messages[4]!.event
        assert.isBelow(Math.abs(Date.parse(time) - Date.now()), 60_000)
        assert.deepStrictEqual(event, {
          position: messages[4]!.id,
          account: "first",
          sequence: 5,
          type: "Deposited",
          version: 1,
          metadata: {},
          payload: { cents: 5, note: "" }
        })
      })
    )

    it.effect("as NDJSON without `live` ends with the last event that is stored", () =>
      Effect.gen(function* () {
        const from = yield* here
        yield* deposit("stored", 5)
        const response = yield* request(`/events.ndjson?live=false&after=${from}`)
        assert.strictEqual(response.headers["content-type"], "application/x-ndjson")
        check(yield* take(response, parseNdjson), ["stored"], 5)
      })
    )

    it.effect("begins with a point in time", () =>
      Effect.gen(function* () {
        const from = yield* here
        yield* Effect.forEach(accountsFrom("time", 4), (account) => deposit(account, 10), { concurrency: "unbounded" })
        const all = yield* take(yield* request(`/events.ndjson?live=false&after=${from}`), parseNdjson)
        const times = all.map(({ event }) => event.time).sort()
        for (const since of [times[0]!, times[20]!, times[39]!]) {
          const messages = yield* take(yield* request(`/events.ndjson?live=false&since=${since}`), parseNdjson)
          const expected = all.filter(({ event }) => event.time >= since)
          const named = ({ event }: Message) => `${event.account} ${event.sequence}`
          assert.sameMembers(messages.map(named), expected.map(named))
        }
      })
    )

    for (const [path, parse] of [
      ["/events", parseSse],
      ["/events.ndjson", parseNdjson]
    ] as const) {
      it.effect(`${path}: over many broken connections, while others write, nothing is lost or doubled`, () =>
        Effect.gen(function* () {
          const from = yield* here
          const accounts = accountsFrom(`pieces${path}`, 8)
          const fiber = yield* Effect.forkChild(followInPieces(path, parse, from, 8 * 40))
          yield* Effect.forEach(accounts, (account) => deposit(account, 40), {
            concurrency: "unbounded",
            discard: true
          })
          check(yield* Fiber.join(fiber), accounts, 40)
        })
      )
    }

    it.effect("a client that stops reading holds back its own feed only, and misses nothing", () =>
      Effect.gen(function* () {
        const { events } = yield* Readings
        const from = yield* here
        const before = yield* Ref.get(events)
        const slow = yield* request(`/events?after=${from}`)
        slow.pause()
        const quick = yield* Effect.forkChild(take(yield* request(`/events?after=${from}`), parseSse, 1200))
        const note = "x".repeat(30_000)
        yield* Effect.forEach(accountsFrom("slow", 6), (account) => deposit(account, 200, note), {
          concurrency: "unbounded",
          discard: true
        })
        check(yield* Fiber.join(quick), accountsFrom("slow", 6), 200)
        // The quick one has caused 1200.
        assert.isBelow((yield* Ref.get(events)) - before - 1200, 1000)
        check(yield* take(slow, parseSse, 1200), accountsFrom("slow", 6), 200)
      })
    )

    it.effect("a client that goes away leaves nothing open", () =>
      Effect.gen(function* () {
        const { open } = yield* Readings
        const journal = yield* Journal
        yield* eventually(Ref.get(open), (n) => n === 0)
        yield* Effect.scoped(
          Effect.gen(function* () {
            yield* request("/events")
            yield* request("/events.ndjson")
            yield* eventually(Ref.get(open), (n) => n === 2 * journal.shards)
          })
        )
        yield* eventually(Ref.get(open), (n) => n === 0)
      })
    )

    it.effect("a quiet connection shows signs of life", () =>
      Effect.gen(function* () {
        const from = yield* here
        for (const [path, alive] of [
          ["/events", ":\n\n"],
          ["/events.ndjson", "\n"]
        ] as const) {
          const response = yield* request(`${path}?after=${from}`)
          const text = yield* Effect.callback<string>((resume) => {
            let text = ""
            response.setEncoding("utf8").on("data", (chunk) => {
              text += chunk
              if (text.length >= 3 * alive.length) resume(Effect.succeed(text))
            })
          })
          assert.strictEqual(text.replaceAll(alive, ""), "")
        }
      })
    )

    it.effect("refuses a position that is none, or not of this journal, with the reason", () =>
      Effect.gen(function* () {
        const { epoch, shards } = yield* EventStream.currentOffset("Account")
        const beyond = EventStream.formatOffset({ epoch, shards: shards.map((n) => n + 1) })
        for (const [path, headers, expected] of [
          ["/events", { "last-event-id": "17" }, /"17" is not an offset/],
          ["/events.ndjson?after=x", {}, /"x" is not an offset/],
          ["/events", { "last-event-id": beyond }, /whose last event has \d+: it is not of this journal/],
          [`/events?after=${beyond}`, {}, /it is not of this journal/],
          ["/events?since=yesterday", {}, /since/],
          [`/events?since=2020-01-01T00:00:00Z&after=${yield* here}`, {}, /one of `after` and `since`/]
        ] as const) {
          const response = yield* request(path, headers)
          assert.strictEqual(response.statusCode, 400, path)
          const { _tag, message } = yield* json(response)
          assert.strictEqual(_tag, "MalformedRequest")
          assert.match(message, expected)
        }
      })
    )

    it.effect("passes over deleted events, and tells of the deletion", () =>
      Effect.gen(function* () {
        const from = yield* here
        yield* deposit("gone", 3)
        yield* (yield* Journal).delete({ entityType: "Account", entityId: "gone" })
        yield* deposit("gone", 1)
        const messages = yield* take(yield* request(`/events.ndjson?live=false&after=${from}`), parseNdjson)
        assert.deepStrictEqual(
          messages.map(({ event: { payload, sequence, type } }) => [sequence, type, payload]),
          [
            [4, "$deleted", { through: 3 }],
            [5, "Deposited", { cents: 5, note: "" }]
          ]
        )
      })
    )

    it.effect("open feeds end when the server does, and do not hold it up", () =>
      Effect.gen(function* () {
        const scope = yield* Scope.make()
        const journal = yield* Journal
        const server = yield* Layer.buildWithScope(
          Layer.fresh(Server).pipe(Layer.provide(Layer.succeed(Journal, journal))),
          scope
        )
        const response = yield* Effect.provide(request(`/events.ndjson?after=${yield* here}`), server)
        const ended = yield* Effect.forkChild(take(response, parseNdjson))
        yield* Scope.close(scope, Exit.void).pipe(Effect.timeout("5 seconds"))
        yield* Fiber.join(ended)
      })
    )
  })

suite("the feed of a journal in memory", Journal.layerMemory({ maxPollInterval: "100 millis" }))

suite(
  "the feed of a journal on Cassandra",
  Journal.layer({ maxPollInterval: "100 millis" }).pipe(Layer.provide(TestKeyspace.layer))
)
