/**
 * What goes wrong, picked by a seed: one thing, or several at once, for some seconds each.
 */
import type { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import { Effect, Fiber, Random } from "effect"
import type { Service } from "./service.ts"

export const kinds = ["nodes", "connections", "pauses", "services", "power", "replacement", "clocks"] as const
export type Kind = (typeof kinds)[number]

/** A fault under way is known by what it is done to, so that nothing is broken twice at a time. */
interface Fault {
  readonly name: string
  readonly target: string
  readonly begin: Effect.Effect<void, unknown>
  readonly end: Effect.Effect<void, unknown>
}

/** What was done, and when: milliseconds since the start. */
export interface Done {
  readonly name: string
  readonly from: number
  readonly to: number
}

type Cluster = CassandraCluster["Service"]

const faults = (allowed: ReadonlyArray<Kind>, { heal, nodes }: Cluster, services: ReadonlyArray<Service>) => {
  const all: Array<Fault> = []
  const add = (kind: Kind, name: string, target: string, begin: Fault["begin"], end: Fault["end"] = Effect.void) => {
    if (allowed.includes(kind)) all.push({ name, target, begin, end })
  }
  const clock = (of: string, shift: (millis: number) => Effect.Effect<void, unknown>) => {
    for (const millis of [-5000, -700, 700, 5000]) {
      add("clocks", `clock of ${of} off by ${millis} ms`, `clock of ${of}`, shift(millis), shift(0))
    }
  }
  for (const [i, { kill, pause, replace, resume, shift, start, stop }] of nodes.entries()) {
    const target = `node ${i}`
    clock(target, shift)
    add("nodes", `${target} killed`, target, kill, start)
    add("nodes", `${target} stopped`, target, stop, start)
    add("pauses", `${target} paused`, target, pause, resume)
    add("replacement", `${target} replaced`, "all nodes", Effect.andThen(heal, replace))
  }
  const together = <A>(effects: ReadonlyArray<Effect.Effect<A, unknown>>) =>
    Effect.all(effects, { concurrency: "unbounded", discard: true })
  add("power", "all nodes killed", "all nodes", together(nodes.map(({ kill }) => kill)), heal)
  for (const { index, kill, network, pause, resume, shift } of services) {
    const target = `service ${index}`
    clock(target, shift)
    add("services", `${target} killed`, target, kill)
    add("pauses", `${target} paused`, target, pause, resume)
    const { proxies } = network
    const links = [
      ...proxies.map((proxy, i) => ({ name: `${target} to node ${i}`, some: [proxy] })),
      { name: `${target} to all nodes`, some: [...proxies] }
    ]
    for (const { name, some } of links) {
      const each = (f: (proxy: (typeof some)[number]) => Effect.Effect<void>) => together(some.map(f))
      const delay = (millis: number) => each((proxy) => proxy.delay(millis))
      const links = `links of ${target}`
      add("connections", `${name} delayed by 100 ms`, links, delay(100), delay(0))
      add("connections", `${name} delayed by 1000 ms`, links, delay(1000), delay(0))
      add(
        "connections",
        `${name} dropped`,
        links,
        each(({ drop }) => drop)
      )
      add(
        "connections",
        `${name} refused`,
        links,
        each(({ refuse }) => refuse),
        each(({ accept }) => accept)
      )
      add(
        "connections",
        `${name} halted`,
        links,
        each(({ hold }) => hold),
        each(({ release }) => release)
      )
      add(
        "connections",
        `${name} with requests held back`,
        links,
        each(({ holdRequests }) => holdRequests),
        each(({ release }) => release)
      )
      add(
        "connections",
        `${name} halted, then dropped`,
        links,
        each(({ hold }) => hold),
        each(({ drop, release }) => Effect.andThen(drop, release))
      )
    }
  }
  return all
}

/** Breaks and mends until `until`; what is broken then is mended. Times are milliseconds of `performance.now`. */
export const runNemesis = Effect.fnUntraced(function* (
  allowed: ReadonlyArray<Kind>,
  cluster: Cluster,
  services: ReadonlyArray<Service>,
  begin: number,
  until: number
) {
  const all = faults(allowed, cluster, services)
  const done: Array<Done> = []
  if (all.length === 0) return done
  const between = (least: number, most: number) => Random.nextBetween(least, most)
  const one = Effect.fnUntraced(function* (fault: Fault) {
    const from = performance.now()
    yield* fault.begin
    yield* Effect.sleep(Math.min(yield* between(500, 8000), Math.max(0, until - performance.now())))
    yield* fault.end
    done.push({ name: fault.name, from: Math.round(from - begin), to: Math.round(performance.now() - begin) })
  })
  /** A replacement takes long: other things break meanwhile, but no nodes, as all others must run. */
  let replacing: Fiber.Fiber<void, unknown> | undefined
  while (performance.now() < until) {
    if (replacing?.pollUnsafe() !== undefined) {
      yield* Fiber.join(replacing)
      replacing = undefined
    }
    const chance = yield* Random.next
    const size = chance < 0.6 ? 1 : chance < 0.9 ? 2 : 3
    const picked: Array<Fault> = []
    // Each kind of target as often as the others, however many ways there are to break it.
    const targets = yield* Random.shuffle([...new Set(all.map(({ target }) => target))])
    for (const target of targets) {
      if (picked.length >= size) break
      const isNode = (other: string) => /^(all nodes|node)/.test(other)
      if (replacing !== undefined && isNode(target)) continue
      // All nodes and one of them would be in each other's way.
      if (picked.some((other) => isNode(target) && isNode(other.target) && /all/.test(target + other.target))) continue
      picked.push(yield* Random.choice(all.filter((fault) => fault.target === target)))
    }
    const isLong = ({ name }: Fault) => name.endsWith("replaced")
    for (const fault of picked.filter(isLong)) replacing = yield* Effect.forkChild(one(fault))
    yield* Effect.forEach(
      picked.filter((fault) => !isLong(fault)),
      one,
      { concurrency: "unbounded", discard: true }
    )
    yield* Effect.sleep(yield* between(500, 3000))
  }
  if (replacing !== undefined) yield* Fiber.join(replacing)
  return done
})
