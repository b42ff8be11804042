/**
 * The fault run: banks in processes of their own on three nodes, callers, a nemesis, and at the end the checker.
 */
import { mkdirSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { type EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import * as SkewedClock from "@effect-cassandra/testing/SkewedClock"
import { Console, Effect, Fiber, Layer, Random, Stream } from "effect"
import { check, type Resources, type Sample, type Verdict, type View } from "./checker.ts"
import { type Entry, History, type Type, type Value } from "./history.ts"
import { type Done, type Kind, runNemesis } from "./nemesis.ts"
import { ask, makeKeyspace, runBank, type Service, within } from "./service.ts"

export interface Options {
  /** How long things go wrong. */
  readonly seconds: number
  /** They go on, for four times as long at most, until so many commands were acknowledged. */
  readonly atLeast: number
  readonly seed: string
  /** Service processes that write the same accounts. */
  readonly writers: number
  readonly nemesis: ReadonlyArray<Kind>
  readonly accounts: number
  /** Callers of each service, each of which does one thing after the other. */
  readonly callers: number
  /** Operations a second that the callers of a service begin together at most. */
  readonly rate: number
  /** How often to measure what the services hold and how far their views are behind; a soak. */
  readonly sampleSeconds?: number | undefined
  /** For the history and the logs of the services. */
  readonly folder: string
}

interface Report extends Verdict {
  readonly faults: ReadonlyArray<Done>
  /** Milliseconds from the last fault until every service had answered for every account. */
  readonly answered: number
  /** Milliseconds from the last fault until no transfer was on its way. */
  readonly settled: number
  /** Milliseconds from the last fault until every view was equal to the log. */
  readonly caughtUp: number
  readonly samples: ReadonlyArray<Sample>
  readonly resources: ReadonlyArray<{ readonly before: Resources | undefined; readonly after: Resources | undefined }>
  /** Services that ended without having been killed: before they had opened, and after. */
  readonly ends: { readonly beforeOpening: number; readonly afterOpening: number }
}

const owner = "ada"

/** How each operation is asked for. */
const requestOf = (
  f: Entry["f"],
  key: string,
  { cents, to, transfer }: Value
): readonly [method: string, path: string, body?: unknown] => {
  switch (f) {
    case "read":
      return ["GET", `/accounts/${key}`]
    case "local":
      return ["GET", `/accounts/${key}?local=true`]
    case "deposit":
      return ["POST", `/accounts/${key}/deposits`, { cents }]
    case "withdraw":
      return ["POST", `/accounts/${key}/withdrawals`, { cents }]
    case "transfer":
      return ["PUT", `/transfers/${transfer}`, { from: key, to, cents }]
  }
}

/** One operation, written down. */
const operate = Effect.fnUntraced(function* (
  history: History,
  process: number,
  service: Service,
  f: Entry["f"],
  key: string,
  asked: Value = {}
) {
  const url = service.url()
  if (url === undefined) return undefined
  const life = service.life()
  const write = (type: Type, value: Value) =>
    history.add({ process, service: service.index, life, type, f, key, value })
  write("invoke", asked)
  const { body, status } = yield* ask(url, ...requestOf(f, key, asked))
  const type: Type =
    status === 200
      ? "ok"
      : status === "not sent" || (typeof status === "number" && status < 500)
        ? "fail"
        : status === 503 && /has not done it/.test(body?.message ?? "")
          ? "fail"
          : "info"
  const balance = body?.balance === undefined ? {} : { balance: body.balance }
  write(type, { ...asked, ...balance, ...(type === "ok" ? {} : { error: body?._tag ?? String(status) }) })
  return type
})

/** Amounts that occur once. */
let amounts = 0
const amount = (most: number) =>
  Effect.map(Random.nextIntBetween(1, most), (size) => size * 1_000_000 + (amounts++ % 1_000_000))

const caller = Effect.fnUntraced(function* (
  history: History,
  service: Service,
  accounts: ReadonlyArray<string>,
  interval: number,
  isOver: () => boolean
) {
  let process = history.newProcess()
  let next = performance.now() + interval * (yield* Random.next)
  while (!isOver()) {
    yield* Effect.sleep(Math.max(0, next - performance.now()))
    next = Math.max(next, performance.now() - interval) + interval
    const key = yield* Random.choice(accounts)
    const chance = yield* Random.next
    const type =
      chance < 0.35
        ? yield* operate(history, process, service, "deposit", key, { cents: yield* amount(100) })
        : chance < 0.65
          ? yield* operate(history, process, service, "withdraw", key, { cents: yield* amount(150) })
          : chance < 0.8
            ? yield* operate(history, process, service, "read", key)
            : chance < 0.9
              ? yield* operate(history, process, service, "local", key)
              : yield* operate(history, process, service, "transfer", key, {
                  cents: yield* amount(100),
                  transfer: crypto.randomUUID(),
                  to: yield* Random.choice(accounts.filter((other) => other !== key))
                })
    if (type === "info") process = history.newProcess()
    if (type !== "ok") yield* Effect.sleep("100 millis")
  }
})

/** Reads every account by every service until each has answered. */
const readEverything = (history: History, services: ReadonlyArray<Service>, accounts: ReadonlyArray<string>) =>
  Effect.forEach(
    services,
    (service) =>
      Effect.forEach(
        accounts,
        (key) =>
          within(
            2,
            `service ${service.index} does not answer for ${key}`,
            Effect.suspend(() =>
              Effect.map(operate(history, history.newProcess(), service, "read", key), (type) =>
                type === "ok" ? true : undefined
              )
            )
          ),
        { concurrency: 8, discard: true }
      ),
    { concurrency: "unbounded", discard: true }
  )

/** Milliseconds until an event is in the view of the service that has stored it; `undefined` if it is not in time. */
const lagOf = Effect.fnUntraced(function* (history: History, service: Service, account: string) {
  const url = service.url() ?? ""
  const process = history.newProcess()
  if ((yield* operate(history, process, service, "deposit", account, { cents: yield* amount(100) })) !== "ok")
    return undefined
  const begin = performance.now()
  const { balance } = history.entries.findLast((entry) => entry.process === process)!.value
  for (;;) {
    const page = yield* ask(url, "GET", `/accounts/${account}/statement?limit=1`)
    const lag = Math.round(performance.now() - begin)
    if (page.body?.lines?.[0]?.balance === balance) return lag
    if (lag > 60_000) return undefined
    yield* Effect.sleep("10 millis")
  }
})

/** Measures now and then. */
const sample = Effect.fnUntraced(function* (
  history: History,
  services: ReadonlyArray<Service>,
  seconds: number,
  isOver: () => boolean
) {
  const samples: Array<Sample> = []
  const begin = performance.now()
  while (!isOver()) {
    const at = performance.now()
    for (const service of services) {
      const lag = yield* lagOf(history, service, probeOf(service.index))
      const held = yield* service.resources
      if (lag === undefined || held === undefined) continue
      const { handles, heapMegabytes } = held
      samples.push({ service: service.index, at: Math.round(at - begin), heapMegabytes, handles, lag })
    }
    yield* Effect.sleep(Math.max(0, at + seconds * 1000 - performance.now()))
  }
  return samples
})

/** An account that only measurements use. */
const probeOf = (service: number) => `probe-${service}`

/** The log and the index, by a journal that had no part in the run. */
const readJournal = (accounts: ReadonlyArray<string>) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    const logs: Array<ReadonlyArray<EventEnvelope>> = []
    for (let shard = 0; shard < journal.shards; shard++) {
      logs.push(yield* Stream.runCollect(journal.currentEvents("Account", shard, 0)))
    }
    const index = new Map<string, ReadonlyArray<EventEnvelope>>()
    for (const entityId of accounts) {
      index.set(entityId, (yield* journal.load({ entityType: "Account", entityId }, { snapshotsUpTo: 0 })).events)
    }
    return { logs, index }
  })

/** What became of the transfers; none may stay on its way. */
const readTransfers = Effect.fnUntraced(function* (service: Service, history: ReadonlyArray<Entry>) {
  const found = new Map<string, string | undefined>()
  yield* Effect.forEach(
    history.filter(({ f, type }) => f === "transfer" && type === "invoke"),
    ({ value: { transfer } }) =>
      within(
        2,
        `transfer ${transfer} is still on its way`,
        Effect.suspend(() =>
          Effect.map(ask(service.url() ?? "", "GET", `/transfers/${transfer}`), ({ body, status }) => {
            if (status !== 404 && !(status === 200 && /^(completed|failed)$/.test(body.status))) return undefined
            found.set(transfer!, body.status)
            return true
          })
        )
      ),
    { concurrency: 8, discard: true }
  )
  return found
})

/** What the views of a service say of an account. */
const readViews = Effect.fnUntraced(function* (url: string, accounts: ReadonlyArray<string>) {
  const views = new Map<string, View>()
  const list = yield* ask(url, "GET", `/owners/${owner}/accounts`)
  if (list.status !== 200) return undefined
  const balances = new Map<string, number>(list.body.accounts.map((row: any) => [row.account, row.balance]))
  for (const account of accounts) {
    const lines: Array<View["lines"][number]> = []
    let next = ""
    do {
      const page = yield* ask(url, "GET", `/accounts/${account}/statement?limit=100${next}`)
      if (page.status !== 200) return undefined
      lines.push(...page.body.lines)
      next = page.body.next === undefined ? "" : `&before=${page.body.next}`
    } while (next !== "")
    views.set(account, { lines: lines.reverse(), balance: balances.get(account) })
  }
  return views
})

/** Runs, and checks. */
export const run = Effect.fnUntraced(function* (options: Options) {
  mkdirSync(options.folder, { recursive: true })
  const cluster = yield* CassandraCluster
  const history = new History(join(options.folder, "history.ndjson"))
  yield* Effect.addFinalizer(() => Effect.sync(() => history.flush()))
  const busy = Array.from({ length: options.accounts }, (_, i) => `account-${i}`)
  const accounts = [...busy, ...Array.from({ length: options.writers }, (_, i) => probeOf(i))]
  const { keyspace, session } = yield* makeKeyspace(cluster.connection)

  const services: Array<Service> = []
  for (let i = 0; i < options.writers; i++) {
    const network = yield* cluster.network
    const clock = options.nemesis.includes("clocks") ? yield* SkewedClock.make : undefined
    // The others send each other commands, and the first one writes what it likes.
    const settings = { clock, routing: i > 0 }
    const bank = yield* runBank(network.connection, keyspace, join(options.folder, `service-${i}.log`), settings)
    services.push({ ...bank, index: i, network })
  }
  yield* Effect.forEach(services, (service) => within(2, "a bank has not opened", Effect.sync(service.url)), {
    concurrency: "unbounded"
  })
  yield* Effect.forEach(
    accounts,
    (account) =>
      within(
        1,
        `${account} cannot be opened`,
        Effect.map(ask(services[0]!.url()!, "PUT", `/accounts/${account}`, { owner }), ({ status }) =>
          status === 200 || status === 409 ? true : undefined
        )
      ),
    { concurrency: 16, discard: true }
  )
  yield* readEverything(history, services, accounts)
  const before = yield* Effect.forEach(services, ({ resources }) => resources)

  yield* Console.log(
    `${options.writers} service processes, ${options.accounts} accounts, seed ${options.seed}: ${options.seconds} s of faults (${options.nemesis.join(", ") || "none"})`
  )
  let over = false
  const callers = yield* Effect.forEach(
    services.flatMap((service) => Array.from({ length: options.callers }, () => service)),
    (service, i) =>
      Effect.forkChild(
        caller(history, service, busy, (options.callers * 1000) / options.rate, () => over).pipe(
          Random.withSeed(`${options.seed} caller ${i}`)
        )
      )
  )
  const begin = performance.now()
  const { sampleSeconds } = options
  const sampler = yield* Effect.forkChild(
    sampleSeconds === undefined
      ? Effect.succeed([])
      : sample(history, services, sampleSeconds, () => over).pipe(Random.withSeed(`${options.seed} samples`))
  )
  const faults: Array<Done> = []
  for (let round = 1; round <= 4; round++) {
    const until = begin + round * options.seconds * 1000
    faults.push(
      ...(yield* runNemesis(options.nemesis, cluster, services, begin, until).pipe(
        Random.withSeed(`${options.seed} nemesis ${round}`)
      ))
    )
    yield* Effect.sleep(Math.max(0, until - performance.now()))
    if (history.acknowledged() >= options.atLeast) break
  }
  yield* cluster.heal
  const mended = performance.now()
  over = true
  for (const fiber of callers) yield* Fiber.join(fiber)
  const samples = yield* Fiber.join(sampler)
  yield* readEverything(history, services, accounts)
  const calm = performance.now()
  const answered = calm - mended

  const transfers = yield* readTransfers(services[0]!, history.entries)
  const settled = performance.now() - mended

  const stored = yield* readJournal(accounts).pipe(Effect.provide(Journal.layer().pipe(Layer.provide(session))))
  const after = yield* Effect.forEach(services, ({ resources }) => resources)
  const looked = {
    history: history.entries,
    transfers,
    ...stored,
    resources: services.map((_, i) => ({ before: before[i], after: after[i] })),
    samples,
    calm
  }
  const verdict = yield* within(
    2,
    "the views cannot be read",
    Effect.gen(function* () {
      const views = yield* readViews(services[0]!.url() ?? "", accounts)
      if (views === undefined) return undefined
      const complaints = services.flatMap((service) =>
        service.complaints.map((complaint) => ({ service: service.index, ...complaint }))
      )
      const found = check({ ...looked, complaints, views })
      const isBehind = found.problems.some(({ rule }) => rule === "views equal the log")
      return isBehind && performance.now() < mended + 90_000 ? undefined : found
    })
  )
  const caughtUp = performance.now() - mended
  history.flush()
  const report: Report = {
    ...verdict,
    faults,
    answered: Math.round(answered),
    settled: Math.round(settled),
    caughtUp: Math.round(caughtUp),
    samples,
    resources: looked.resources,
    ends: {
      beforeOpening: services.reduce((total, { ends }) => total + ends.beforeOpening, 0),
      afterOpening: services.reduce((total, { ends }) => total + ends.afterOpening, 0)
    }
  }
  writeFileSync(join(options.folder, "report.json"), `${JSON.stringify({ ...options, ...report }, undefined, 2)}\n`)
  return report
})
