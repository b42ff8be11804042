/**
 * A world in which nothing happens by itself: time moves from one planned task to the next, and chance comes from a seed.
 * The same seed gives the same history, to the last step.
 */
import { Clock, Context, Duration, Effect, type Exit, Random, References, Scheduler } from "effect"

/** Mulberry32 (https://github.com/bryc/code/blob/master/jshash/PRNGs.md#mulberry32). */
export class Chance {
  #state: number
  constructor(seed: number) {
    this.#state = seed >>> 0
  }
  /** From 0 to 1, which is excluded. */
  readonly next = (): number => {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0
    let t = this.#state
    t = Math.imul(t ^ (t >>> 15), t | 1)
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61)
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296
  }
  /** A whole number, both bounds included. */
  int(from: number, to: number): number {
    return from + Math.floor(this.next() * (to - from + 1))
  }
  of<A>(items: ReadonlyArray<A>): A {
    return items[Math.floor(this.next() * items.length)]!
  }
  happens(probability: number): boolean {
    return this.next() < probability
  }
  /** Milliseconds that a message takes: mostly few, now and then very many. */
  latency(): number {
    const x = this.next()
    return x < 0.9 ? 0.2 + x * 3 : x < 0.99 ? (x - 0.9) * 500 : (x - 0.99) * 50_000
  }
}

interface Task {
  readonly at: number
  readonly run: () => void
}

export class World {
  readonly chance: Chance
  /** Milliseconds since it began. */
  now = 0
  /** The soonest last, of equal ones the first. */
  readonly #tasks: Array<Task> = []

  constructor(seed: number) {
    this.chance = new Chance(seed)
  }

  after(millis: number, run: () => void): void {
    const at = this.now + millis
    let low = 0
    let high = this.#tasks.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#tasks[middle]!.at > at) low = middle + 1
      else high = middle
    }
    this.#tasks.splice(low, 0, { at, run })
  }

  /** Lets things happen until a condition holds; false when it does not within the time. */
  runUntil(condition: () => boolean, millis: number): boolean {
    const end = this.now + millis
    while (!condition()) {
      const task = this.#tasks.at(-1)
      if (task === undefined || task.at > end) {
        this.now = end
        return false
      }
      this.#tasks.pop()
      this.now = task.at
      task.run()
    }
    return true
  }
}

/** A process of a service: it can be paused, and killed, and its clock is off. */
export class Process {
  readonly #world: World
  readonly name: string
  /** Milliseconds by which the clock is ahead. */
  skew: number
  alive = true
  #pausedUntil = 0
  readonly #context: Context.Context<never>

  constructor(world: World, name: string, skew: number) {
    this.#world = world
    this.name = name
    this.skew = skew
    const clock: Clock.Clock = {
      currentTimeMillisUnsafe: () => this.time,
      currentTimeMillis: Effect.sync(() => this.time),
      currentTimeNanosUnsafe: () => BigInt(this.time) * 1_000_000n,
      currentTimeNanos: Effect.sync(() => BigInt(this.time) * 1_000_000n),
      monotonicTimeNanosUnsafe: () => BigInt(Math.round(world.now * 1e6)),
      monotonicTimeNanos: Effect.sync(() => BigInt(Math.round(world.now * 1e6))),
      sleep: (duration) =>
        Effect.callback<void>((resume) => {
          let cancelled = false
          this.after(Duration.toMillis(duration), () => cancelled || resume(Effect.void))
          return Effect.sync(() => {
            cancelled = true
          })
        })
    }
    const { chance } = world
    this.#context = Context.empty().pipe(
      Context.add(Clock.Clock, clock),
      Context.add(Random.Random, {
        nextDoubleUnsafe: chance.next,
        nextIntUnsafe: () => chance.int(Number.MIN_SAFE_INTEGER, Number.MAX_SAFE_INTEGER)
      }),
      Context.add(References.MinimumLogLevel, "None"),
      Context.add(
        Scheduler.Scheduler,
        new Scheduler.MixedScheduler("async", (run) => {
          let cancelled = false
          this.after(0, () => cancelled || run())
          return () => {
            cancelled = true
          }
        })
      )
    )
  }

  get time(): number {
    return Math.floor(1_700_000_000_000 + this.#world.now + this.skew)
  }

  /** Something that this process does or hears: not when it is dead, and later when it is paused. */
  after(millis: number, run: () => void): void {
    this.#world.after(millis, () => {
      if (!this.alive) return
      const paused = this.#pausedUntil - this.#world.now
      if (paused > 0) this.after(paused, run)
      else run()
    })
  }

  pause(millis: number): void {
    this.#pausedUntil = this.#world.now + millis
  }

  run<A, E>(effect: Effect.Effect<A, E>, onExit: (exit: Exit.Exit<A, E>) => void): void {
    Effect.runForkWith(this.#context)(effect).addObserver(onExit)
  }
}
