import { type ChildProcess, spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { assert, layer } from "@effect/vitest"
import * as EventStream from "@effect-cassandra/journal/EventStream"
import { Journal } from "@effect-cassandra/journal/Journal"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Fiber, Schedule, Stream } from "effect"
import * as Sse from "effect/encoding/Sse"

const root = fileURLToPath(new URL("..", import.meta.url))

/** A bank in a process of its own. */
const bank = Effect.gen(function* () {
  const { contactPoints, keyspace, localDataCenter } = yield* TestKeyspace
  return yield* Effect.acquireRelease(
    Effect.callback<{ readonly url: string; readonly child: ChildProcess; readonly gone: Promise<unknown> }>(
      (resume) => {
        const child = spawn(process.execPath, ["--conditions=@effect-cassandra/source", "examples/bank/src/main.ts"], {
          cwd: root,
          env: {
            ...process.env,
            CASSANDRA_CONTACT_POINTS: contactPoints!.join(","),
            CASSANDRA_LOCAL_DC: localDataCenter ?? "datacenter1",
            BANK_KEYSPACE: keyspace,
            PORT: "0"
          },
          stdio: ["ignore", "pipe", "inherit"]
        })
        const gone = new Promise((resolve) => child.on("exit", resolve))
        createInterface(child.stdout).on("line", (line) => {
          const url = /The bank is open at (http:\S+)\. /.exec(line)?.[1]
          if (url !== undefined) resume(Effect.succeed({ url, child, gone }))
        })
        child.on("exit", (code) => resume(Effect.die(`the bank ended with code ${code} before it opened`)))
      }
    ),
    ({ child, gone }) =>
      Effect.promise(() => {
        child.kill("SIGTERM")
        return gone
      })
  )
})

interface Answer {
  readonly status: number
  readonly body: any
}

const request = (url: string, method: string, path: string, body?: unknown): Effect.Effect<Answer, unknown> =>
  Effect.tryPromise(async () => {
    const response = await fetch(url + path, {
      method,
      ...(body === undefined
        ? {}
        : {
            headers: { "content-type": "application/json" },
            body: typeof body === "string" ? body : JSON.stringify(body)
          })
    })
    const text = await response.text()
    return { status: response.status, body: text === "" ? undefined : JSON.parse(text) }
  })

const accounts = Array.from({ length: 10 }, (_, i) => `account-${i}`)

/** Also where they are open. */
const open = (url: string) =>
  Effect.forEach(
    accounts,
    (account) =>
      Effect.map(request(url, "PUT", `/accounts/${account}`, { owner: "ada" }), ({ status }) =>
        assert.include([200, 409], status)
      ),
    { concurrency: 10, discard: true }
  )

/** Deposits amounts that occur only once, until the bank is gone or enough are acknowledged; gives those. */
const traffic = (
  url: string,
  first: number,
  enough: number,
  acknowledged: Array<{ readonly account: string; readonly cents: number }> = []
) =>
  Effect.gen(function* () {
    let cents = first
    yield* Effect.forEach(
      [...accounts, ...accounts],
      (account) =>
        Effect.gen(function* () {
          while (acknowledged.length < enough) {
            const mine = cents++
            const answer = yield* request(url, "POST", `/accounts/${account}/deposits`, { cents: mine })
            if (answer.status === 200) acknowledged.push({ account, cents: mine })
          }
        }).pipe(Effect.ignore),
      { concurrency: "unbounded", discard: true }
    )
    return acknowledged
  })

/** Every acknowledged deposit exactly once in the history, in order; the views and the balances equal to it. */
const check = (url: string, acknowledged: ReadonlyArray<{ readonly account: string; readonly cents: number }>) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    let total = 0
    for (const account of accounts) {
      const { events } = yield* journal.load({ entityType: "Account", entityId: account }, { snapshotsUpTo: 0 })
      const deposits = events.flatMap(({ payload, type }) =>
        type === "Deposited" ? [payload as { cents: number; balance: number }] : []
      )
      const amounts = deposits.map(({ cents }) => cents)
      assert.strictEqual(new Set(amounts).size, amounts.length, "a deposit is there twice")
      const expected = acknowledged.filter((one) => one.account === account).map(({ cents }) => cents)
      assert.deepStrictEqual(
        expected.filter((cents) => !amounts.includes(cents)),
        [],
        "acknowledged deposits are missing"
      )
      assert.deepStrictEqual(
        events.map(({ sequence }) => sequence),
        events.map((_, i) => i + 1)
      )
      let balance = 0
      for (const deposit of deposits) {
        balance += deposit.cents
        assert.strictEqual(deposit.balance, balance)
      }
      assert.strictEqual((yield* request(url, "GET", `/accounts/${account}`)).body.balance, balance)
      total += balance

      const lines = yield* statement(url, account).pipe(
        Effect.filterOrFail((found) => found.length === events.length),
        Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 400 })
      )
      assert.deepStrictEqual(
        lines.map((line) => line.sequence).reverse(),
        events.map(({ sequence }) => sequence)
      )
      assert.strictEqual(lines[0].balance, balance)
    }
    const { body } = yield* request(url, "GET", "/owners/ada/accounts").pipe(
      Effect.filterOrFail((found) => found.body.total === total),
      Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 400 })
    )
    assert.strictEqual(body.accounts.length, accounts.length)
  })

interface FeedEvent {
  readonly account: string
  readonly sequence: number
}

/** Another service, which follows the events of the accounts: until it has enough, or the connection breaks. */
const follow = (url: string, seen: { id: string | undefined; readonly events: Array<FeedEvent> }, enough: number) =>
  Effect.promise(async () => {
    const parser = Sse.makeParser((message) => {
      if (message._tag !== "Event") return
      seen.id = message.id
      seen.events.push(JSON.parse(message.data))
    })
    const broken = new AbortController()
    try {
      const headers: Record<string, string> = seen.id === undefined ? {} : { "last-event-id": seen.id }
      const response = await fetch(`${url}/events`, { headers, signal: broken.signal })
      for await (const text of response.body!.pipeThrough(new TextDecoderStream())) {
        parser.feed(text)
        if (seen.events.length >= enough) break
      }
    } catch {
      // It goes on after the last event that it has seen whole.
    } finally {
      broken.abort()
    }
  })

/** All lines, page by page. */
const statement = (url: string, account: string) =>
  Effect.gen(function* () {
    const lines: Array<any> = []
    let before = ""
    for (;;) {
      const { body } = yield* request(url, "GET", `/accounts/${account}/statement?limit=100${before}`)
      lines.push(...body.lines)
      if (body.next === undefined) return lines
      before = `&before=${body.next}`
    }
  })

/** What takes longer than it can on any machine has stopped. */
const within = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) =>
  Effect.timeoutOrElse(effect, {
    duration: "1 minute",
    orElse: () => Effect.die(new Error(`${what}: not within a minute`))
  })

/** The journal as another process sees it. */
const outside = Journal.layer()

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("the bank", (it) => {
  it.effect("answers with status codes and JSON, also to what is wrong", () =>
    Effect.gen(function* () {
      const { url } = yield* bank
      const post = (path: string, body: unknown) => request(url, "POST", path, body)
      assert.strictEqual((yield* request(url, "PUT", "/accounts/a", { owner: "bob" })).status, 200)
      assert.strictEqual((yield* request(url, "PUT", "/accounts/a", { owner: "bob" })).status, 409)
      assert.deepStrictEqual((yield* post("/accounts/a/deposits", { cents: 500 })).body, { account: "a", balance: 500 })
      const overdraft = yield* post("/accounts/a/withdrawals", { cents: 501 })
      assert.deepStrictEqual(overdraft, {
        status: 422,
        body: { _tag: "Overdraft", message: "$5.01 is more than the $5.00 there", balance: 500 }
      })
      assert.strictEqual((yield* post("/accounts/nobody/deposits", { cents: 1 })).body._tag, "AccountUnknown")
      assert.strictEqual((yield* request(url, "DELETE", "/accounts/a")).body._tag, "BalanceNotZero")
      yield* request(url, "PUT", "/accounts/b", { owner: "eve" })
      const transfer = { from: "a", to: "b", cents: 100 }
      assert.strictEqual((yield* request(url, "PUT", "/transfers/t", transfer)).status, 200)
      assert.strictEqual((yield* request(url, "PUT", "/transfers/t", transfer)).status, 409)
      const shown = yield* request(url, "GET", "/transfers/t").pipe(
        Effect.filterOrFail(({ body }) => body.status === "completed"),
        Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 })
      )
      assert.deepStrictEqual(shown.body, { transfer: "t", ...transfer, status: "completed", reason: "" })
      assert.strictEqual((yield* request(url, "GET", "/accounts/b")).body.balance, 100)
      assert.strictEqual((yield* request(url, "GET", "/transfers/nothing")).body._tag, "TransferUnknown")
      yield* post("/accounts/a/withdrawals", { cents: 400 })
      // As soon as the transfer needs it no more.
      yield* request(url, "DELETE", "/accounts/a").pipe(
        Effect.filterOrFail(({ status }) => status === 204),
        Effect.retry({ schedule: Schedule.spaced("20 millis"), times: 500 })
      )
      assert.strictEqual((yield* post("/accounts/a/deposits", { cents: 1 })).status, 410)
      for (const body of [{ cents: -1 }, { cents: 1.5 }, { cents: "1" }, {}, "{rubbish", { cents: 1e300 }]) {
        const answer = yield* post("/accounts/a/deposits", body)
        assert.strictEqual(answer.status, 400, JSON.stringify(body))
        assert.strictEqual(answer.body._tag, "MalformedRequest")
        assert.isNotEmpty(answer.body.message)
      }
      assert.strictEqual((yield* request(url, "GET", "/accounts/a/statement?limit=1000")).status, 400)
      assert.strictEqual((yield* request(url, "GET", "/accounts/a%20b")).status, 400)
      assert.include(JSON.stringify((yield* request(url, "GET", "/openapi.json")).body), "Overdraft")
    })
  )

  it.effect(
    "killed in the middle of traffic and started again, it has every acknowledged event exactly once, and so has who follows",
    () =>
      Effect.gen(function* () {
        const all: Array<{ readonly account: string; readonly cents: number }> = []
        const seen: Parameters<typeof follow>[1] = { id: undefined, events: [] }
        for (const round of [1, 2, 3]) {
          const { child, gone, url } = yield* bank
          yield* open(url)
          const acknowledged: typeof all = []
          const busy = yield* Effect.forkChild(
            traffic(url, round * 1_000_000, Number.POSITIVE_INFINITY, acknowledged),
            {
              startImmediately: true
            }
          )
          const following = yield* Effect.forkChild(follow(url, seen, Number.POSITIVE_INFINITY), {
            startImmediately: true
          })
          const some = 150 + Math.random() * 300
          yield* within(
            `${some} deposits in round ${round}`,
            Effect.sleep("5 millis").pipe(Effect.repeat({ while: () => acknowledged.length < some }))
          )
          child.kill("SIGKILL")
          yield* Effect.promise(() => gone)
          all.push(...(yield* within("the end of the requests", Fiber.join(busy))))
          yield* within("the end of the feed", Fiber.join(following))
        }
        const { url } = yield* bank
        yield* within("the check", check(url, all).pipe(Effect.provide(outside)))
        const stored = yield* Stream.runCollect(EventStream.currentEventsByType("Account")).pipe(
          Effect.provide(outside)
        )
        yield* within(`${stored.length} events of the feed`, follow(url, seen, stored.length))
        const byAccount = (events: ReadonlyArray<FeedEvent>) =>
          Map.groupBy(
            events.map(({ account, sequence }) => ({ account, sequence })),
            ({ account }) => account
          )
        assert.deepStrictEqual(
          byAccount(seen.events),
          byAccount(stored.map(({ entityId, sequence }) => ({ account: entityId, sequence })))
        )
      }),
    300_000
  )

  it.effect(
    "two processes write the same accounts as fast as they can, and nothing is lost, doubled or out of order",
    () =>
      Effect.gen(function* () {
        const one = yield* bank
        const two = yield* bank
        yield* open(one.url)
        const [first, second] = yield* Effect.all(
          [traffic(one.url, 10_000_000, 300), traffic(two.url, 20_000_000, 300)],
          { concurrency: 2 }
        )
        yield* check(two.url, [...first, ...second]).pipe(Effect.provide(outside))
      })
  )
})
