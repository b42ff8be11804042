/**
 * Outages, one by one, told by hand: what callers hear meanwhile, and that everything goes on afterwards without anybody's
 * doing.
 */
import { readFileSync } from "node:fs"
import { join } from "node:path"
import * as CassandraSession from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import { Console, Effect, Redacted } from "effect"
import { isInside } from "./checker.ts"
import { ask, makeKeyspace, runBank, within } from "./service.ts"

/** What callers heard during an outage, and when it was over. */
export interface Outage {
  readonly name: string
  /** How many were answered, and refused with a reason. */
  readonly answered: number
  readonly refused: number
  /** Milliseconds that the slowest of them waited: of deposits, questions that must be up to date, and those to its memory. */
  readonly slowest: { readonly deposit: number; readonly read: number; readonly local: number }
  /** Milliseconds from the end of the outage until a command was done. */
  readonly recovered: number
}

interface Options {
  /** How long something is away. */
  readonly seconds: number
  /** For the logs of the services. */
  readonly folder: string
}

const nobody = { answered: 0, refused: 0, slowest: { deposit: 0, read: 0, local: 0 } }

const fail = (message: string) => Effect.die(new Error(message))

/** A bank, in a keyspace made before something begins; what its callers are told, and the rule that it neither ends by itself nor fails inside. */
const bankIn = Effect.fnUntraced(function* (name: string, folder: string, begin: Effect.Effect<unknown> = Effect.void) {
  const { connection, network } = yield* CassandraCluster
  const { keyspace } = yield* makeKeyspace(connection)
  yield* begin
  const log = join(folder, `${name}.log`)
  const secrets = { password: crypto.randomUUID(), owner: crypto.randomUUID() }
  // The nodes ask for no password, and the service does not know that.
  const credentials = { username: "bank", password: Redacted.make(secrets.password) }
  const bank = yield* runBank({ ...(yield* network).connection, ...credentials }, keyspace, log)
  const opened = within(3, `${name}: the bank has not opened`, Effect.sync(bank.url))
  let cents = 0
  let unknown = 0

  /** One deposit or question; whatever becomes of it, the caller is told so. */
  const one = Effect.fnUntraced(function* (method: string, path: string, body?: unknown) {
    const url = bank.url()
    if (url === undefined) return yield* fail(`${name}: the bank is gone`)
    const begin = performance.now()
    const answer = yield* ask(url, method, path, body)
    const millis = performance.now() - begin
    const isTyped =
      answer.status === 200 ||
      (answer.status === 503 && answer.body?._tag === "BankUnavailable") ||
      (answer.status === 409 && answer.body?._tag === "AccountExists")
    if (!isTyped)
      return yield* fail(`${name}: ${method} ${path} was answered with ${JSON.stringify(answer)} after ${millis} ms`)
    return { ...answer, millis }
  })
  const deposit = Effect.gen(function* () {
    const answer = yield* one("POST", "/accounts/a/deposits", { cents: 1 })
    if (answer.status === 200) cents++
    else if (!/has not done it/.test(answer.body.message)) unknown++
    return answer
  })
  const open = Effect.gen(function* () {
    yield* opened
    for (const account of ["a", "b"]) {
      yield* within(
        2,
        `${name}: no account can be opened`,
        Effect.map(
          one("PUT", `/accounts/${account}`, { owner: secrets.owner }),
          ({ status }) => status === 200 || status === 409 || undefined
        )
      )
    }
  })
  /** Asks for some seconds, one thing after the other. */
  const during = Effect.fnUntraced(function* (seconds: number) {
    const heard = { ...nobody, slowest: { ...nobody.slowest } }
    const asked = {
      deposit,
      read: one("GET", "/accounts/a"),
      // In memory, and nothing is in doubt there.
      local: one("GET", "/accounts/b?local=true")
    }
    const end = performance.now() + seconds * 1000
    while (performance.now() < end) {
      for (const kind of ["deposit", "read", "local"] as const) {
        const { millis, status } = yield* asked[kind]
        heard[status === 200 ? "answered" : "refused"]++
        heard.slowest[kind] = Math.max(heard.slowest[kind], Math.round(millis))
      }
      yield* Effect.sleep("100 millis")
    }
    return heard
  })
  /** Waits until it goes on, and counts the money. */
  const recover = Effect.gen(function* () {
    const begin = performance.now()
    yield* within(
      2,
      `${name}: no deposit is possible`,
      Effect.map(deposit, ({ status }) => status === 200 || undefined)
    )
    const recovered = Math.round(performance.now() - begin)
    const { body } = yield* one("GET", "/accounts/a")
    if (body.balance < cents || body.balance > cents + unknown) {
      return yield* fail(`${name}: ${cents} cents were acknowledged, ${unknown} unknown, and ${body.balance} are there`)
    }
    const inside = bank.complaints.filter(({ line }) => isInside(line))
    if (bank.ends.afterOpening + bank.ends.beforeOpening > 0) return yield* fail(`${name}: the bank ended by itself`)
    if (inside.length > 0) return yield* fail(`${name}: the bank said ${inside[0]!.line}`)
    const said = readFileSync(log, "utf8")
    if (!said.includes("The bank is open")) return yield* fail(`${name}: the log of the bank is not there`)
    for (const [secret, value] of Object.entries(secrets)) {
      if (said.includes(value)) return yield* fail(`${name}: the ${secret} is in the log of the bank`)
    }
    return recovered
  })
  return { open, during, recover }
})

/** Waits until all nodes agree on the schema. */
const agreed = Effect.gen(function* () {
  const { connection, nodes } = yield* CassandraCluster
  const versions = Effect.forEach(nodes, ({ address }) =>
    CassandraSession.make({ ...connection, contactPoints: [address], keyspace: "system" }).pipe(
      Effect.flatMap((session) => session.one<{ schema_version: unknown }>(cql`SELECT schema_version FROM local`)),
      Effect.map(({ schema_version }) => String(schema_version)),
      Effect.scoped
    )
  )
  yield* within(
    2,
    "the nodes do not agree on the schema",
    Effect.match(versions, {
      onFailure: () => undefined,
      onSuccess: (all) => new Set(all).size === 1 || undefined
    })
  )
})

/** All outages, one after the other; dies where something is not as it must be. */
export const outages = Effect.fnUntraced(function* ({ folder, seconds }: Options) {
  const { heal, nodes } = yield* CassandraCluster
  const found: Array<Outage> = []
  const add = (outage: Outage) =>
    Effect.andThen(
      Console.log(JSON.stringify(outage)),
      Effect.sync(() => found.push(outage))
    )

  const bank = yield* bankIn(
    "bank",
    folder,
    Effect.forEach(nodes, ({ stop }) => stop, { concurrency: 3 })
  )
  yield* Effect.sleep(seconds * 1000)
  yield* heal
  const there = performance.now()
  yield* bank.open
  yield* bank.recover
  const opened = Math.round(performance.now() - there)
  yield* add({ name: "a service is started while no node runs", ...nobody, recovered: opened })

  const kill = Effect.forEach(nodes, (node) => node.kill, { concurrency: 3 })
  const [away] = yield* Effect.all([bank.during(seconds), kill], { concurrency: 2 })
  yield* heal
  yield* add({ name: "all nodes killed at once, and away", ...away, recovered: yield* bank.recover })

  yield* Effect.all([nodes[0].kill, nodes[1].pause], { concurrency: 2 })
  const majority = yield* bank.during(seconds)
  yield* heal
  yield* add({ name: "two of three nodes away", ...majority, recovered: yield* bank.recover })

  const other = yield* bankIn("other-bank", folder, nodes[2].pause)
  yield* Effect.sleep(seconds * 1000)
  yield* nodes[2].resume
  const resumed = performance.now()
  yield* other.open
  yield* other.recover
  yield* agreed
  const recovered = Math.round(performance.now() - resumed)
  yield* add({ name: "a node does not answer while a service makes its tables", ...nobody, recovered })
  return found
})
