import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Random, Redacted, Schedule } from "effect"
import { runBank } from "./faults/service.ts"

const password = crypto.randomUUID()
const owner = crypto.randomUUID()

const headers = { "content-type": "application/json" }

interface Reply {
  readonly status: number
  readonly text: string
}

const send = (url: string, path: string, init: RequestInit): Effect.Effect<Reply, unknown> =>
  Effect.tryPromise(async () => {
    const response = await fetch(url + path, { ...init, signal: AbortSignal.timeout(10_000) })
    return { status: response.status, text: await response.text() }
  })

const bank = Effect.gen(function* () {
  const folder = yield* Effect.acquireRelease(
    Effect.sync(() => mkdtempSync(join(tmpdir(), "security-"))),
    (path) => Effect.sync(() => rmSync(path, { recursive: true }))
  )
  const log = join(folder, "bank.log")
  const { keyspace, ...connection } = yield* TestKeyspace
  // The server asks for no password, and the bank does not know that.
  const credentials = { username: "bank", password: Redacted.make(password) }
  const running = yield* runBank({ ...connection, ...credentials }, keyspace, log)
  const url = yield* Effect.sync(running.url).pipe(
    Effect.filterOrFail((found) => found !== undefined),
    Effect.retry({ schedule: Schedule.spaced("50 millis"), times: 1200 })
  )
  return { ...running, opened: url, log }
})

const deep = (depth: number) => `${'{"cents":'.repeat(depth)}1${"}".repeat(depth)}`

/** None of them is a deposit. */
const bodies: ReadonlyArray<readonly [string, string | Uint8Array<ArrayBuffer>]> = [
  ["nothing", ""],
  ["no JSON", "{rubbish"],
  ["half a document", '{"cents":1'],
  ["two documents", '{"cents":1}{"cents":1}'],
  ["bytes that are no text", new Uint8Array([0xff, 0xfe, 0x00, 0x80])],
  ["null", "null"],
  ["a number", "1"],
  ["an array", '[{"cents":1}]'],
  ["no amount", "{}"],
  ["text for an amount", '{"cents":"1"}'],
  ["a fraction", '{"cents":0.5}'],
  ["less than nothing", '{"cents":-1}'],
  ["nothing at all", '{"cents":0}'],
  ["minus nothing", '{"cents":-0}'],
  ["more than there is", '{"cents":1e300}'],
  ["what overflows", '{"cents":1e400}'],
  ["what is not exact", '{"cents":9007199254740993}'],
  ["an object for an amount", '{"cents":{"valueOf":1}}'],
  ["an array for an amount", '{"cents":[1]}'],
  ["a prototype", '{"__proto__":{"cents":1}}'],
  ["a constructor", '{"constructor":{"prototype":{"cents":1}}}'],
  ["depth", deep(100_000)],
  ["arrays within arrays", `{"cents":${"[".repeat(100_000)}${"]".repeat(100_000)}}`],
  ["size", `{"cents":"${"9".repeat(20_000_000)}"}`],
  ["an amount with much beside it", `{"cents":1,"note":"${"x".repeat(20_000_000)}"}`]
]

const paths: ReadonlyArray<readonly [string, string]> = [
  ["POST", "/accounts//deposits"],
  ["POST", "/accounts/../deposits"],
  ["POST", "/accounts/%2e%2e%2f/deposits"],
  ["POST", "/accounts/%00/deposits"],
  ["POST", "/accounts/%ff/deposits"],
  ["POST", "/accounts/%/deposits"],
  ["POST", "/accounts/a'b/deposits"],
  ["POST", "/accounts/a%22b/deposits"],
  ["POST", "/accounts/a;DROP%20KEYSPACE%20bank/deposits"],
  ["POST", `/accounts/${"a".repeat(65)}/deposits`],
  ["POST", `/accounts/${"a".repeat(8000)}/deposits`],
  ["POST", "/accounts/__proto__/deposits"],
  ["POST", "/accounts/constructor/deposits"],
  ["PUT", "/transfers/a%20b"],
  ["GET", "/accounts/a/statement?limit=0"],
  ["GET", "/accounts/a/statement?limit=1e9"],
  ["GET", "/accounts/a/statement?limit=NaN"],
  ["GET", "/accounts/a/statement?before=-1"],
  ["GET", "/accounts/a/statement?before=9".padEnd(400, "9")],
  ["GET", "/nowhere"],
  ["DELETE", "/nowhere"],
  ["PATCH", "/accounts/a"]
]

/** Of an answer to nonsense: it is refused, and says nothing of the inside. */
const isCivil = ({ status, text }: Reply, what: string) => {
  assert.isAtLeast(status, 400, what)
  assert.isBelow(status, 500, `${what}: ${text.slice(0, 300)}`)
  assert.isBelow(text.length, 2000, what)
  assert.notMatch(text, /node_modules|file:\/\/|\.ts:\d|\n\s+at |cassandra-driver|SELECT |INSERT /, what)
}

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("the HTTP surface of the bank", (it) => {
  it.effect(
    "refuses nonsense with a reason, whatever it is, and goes on",
    () =>
      Effect.gen(function* () {
        const { ends, log, opened: url, resources } = yield* bank
        const put = (account: string) =>
          send(url, `/accounts/${account}`, { method: "PUT", headers, body: JSON.stringify({ owner }) })
        assert.strictEqual((yield* put("a")).status, 200)
        const deposit = (body: string | Uint8Array<ArrayBuffer>, type = "application/json") =>
          send(url, "/accounts/a/deposits", { method: "POST", headers: { "content-type": type }, body })
        assert.strictEqual((yield* deposit('{"cents":1}')).status, 200)
        const before = (yield* resources)!

        for (const [name, body] of bodies) isCivil(yield* deposit(body), name)
        for (const type of [
          "text/plain",
          "application/xml",
          "multipart/form-data",
          "application/json; charset=utf-7"
        ]) {
          isCivil(yield* deposit('{"cents":"', type), type)
        }
        for (const [method, path] of paths) {
          const body = method === "GET" || method === "DELETE" ? {} : { headers, body: '{"cents":1}' }
          isCivil(yield* send(url, path, { method, ...body }), `${method} ${path.slice(0, 80)}`)
        }

        for (const id of [
          "",
          "x",
          "-1",
          "1-",
          "1-1-",
          "1-1e400",
          `1-${"9".repeat(5000)}`,
          "__proto__",
          "1-0x10",
          "1-1;1"
        ]) {
          const path = "/events?live=false"
          const reply = yield* send(url, path, { method: "GET", headers: { "last-event-id": id } })
          if (reply.status !== 200) isCivil(reply, `Last-Event-ID ${id.slice(0, 80)}`)
          isCivil(yield* send(url, `${path}&after=${id}x`, { method: "GET" }), `after=${id.slice(0, 80)}x`)
        }

        // What is nearly right, broken at random.
        const valid = '{"cents":1,"note":{"a":[1,2,{"b":null}],"c":"d"}}'
        for (let i = 0; i < 500; i++) {
          const at = yield* Random.nextIntBetween(0, valid.length)
          const inserted = yield* Random.choice([
            '"',
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\\",
            "\u0000",
            "\ud800",
            "-",
            "e",
            "9"
          ])
          const body = valid.slice(0, at) + inserted + valid.slice(at + (yield* Random.nextIntBetween(0, 3)))
          const reply = yield* deposit(body)
          if (reply.status !== 200) isCivil(reply, body)
        }

        // It is the same process, it serves as before, and has kept nothing of all that.
        assert.deepStrictEqual(ends, { beforeOpening: 0, afterOpening: 0 })
        const balance = yield* send(url, "/accounts/a", { method: "GET" })
        assert.strictEqual(balance.status, 200)
        assert.isAtLeast(JSON.parse(balance.text).balance, 1)
        const after = (yield* resources)!
        assert.isBelow(after.megabytes - before.megabytes, 250)
        assert.isBelow(after.handles - before.handles, 20)
        const said = readFileSync(log, "utf8")
        assert.include(said, "The bank is open")
        assert.notMatch(said, /unhandled|FATAL/i)
        for (const secret of [password, owner]) assert.notInclude(said, secret)
      }).pipe(Random.withSeed("fuzz")),
    240_000
  )
})
