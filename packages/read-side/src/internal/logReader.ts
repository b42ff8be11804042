/**
 * One reader for all processors of this process that follow a shard: what is read for one serves the others. Those who are
 * at about the same place share a window of the log, which moves on when all of them have. Nobody is waited for at the
 * log's end, nor is one who is much slower: who is left behind reads by itself.
 */
import type { EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { type Array as Arr, type Context, Effect, Exit, Fiber, Latch, type Pull, Scope, Stream } from "effect"

type Events = ReadonlyArray<EventEnvelope>

/** Consecutive events. */
interface Page {
  readonly after: number
  readonly through: number
  readonly events: Events
}

/** One who follows the log. */
interface Follower {
  /** What it has, undefined as long as it does not know itself. */
  after: number | undefined
  window: Window | undefined
  /** When it got what it is working on, how long it took for what it had of late, and how much that was. */
  since: number | undefined
  millis: number
  events: number
  /** For how long this process was idle because others waited for it. */
  idleMillis: number
}

interface Open {
  readonly pull: Pull.Pull<Arr.NonEmptyReadonlyArray<EventEnvelope>, JournalError>
  readonly scope: Scope.Closeable
}

/** A stretch of the log in memory. */
interface Window {
  readonly pages: Array<Page>
  /** The offset of its last event, and the stream that goes on behind it. */
  end: number
  open: Open | undefined
  /** Those who wait for what follows. */
  readonly waiting: Map<Follower, (effect: Effect.Effect<Events, JournalError>) => void>
  fiber: Fiber.Fiber<unknown> | undefined
}

/** Events of a window that are kept for those who are behind in it. */
const keptEvents = 10_000
/** As many events at once are a backlog: the next ones are there, too, and are read ahead. */
const backlog = 500
/** Who holds up the others until the process was idle for so long, and is so much slower, is left behind. */
const maxIdleMillis = 500
const slower = 4

/**
 * Whether events were stored just now, by about the same clock: what follows them is collected until it is asked for, so
 * that a processor gets more at once.
 */
export const isYoung = (events: Events) => Date.now() - events.at(-1)!.stamp / 1000 < 1000

const idleMillis = () => performance.eventLoopUtilization().idle

const newFollower = (): Follower => ({
  after: undefined,
  window: undefined,
  since: undefined,
  millis: 0,
  events: 0,
  idleMillis: 0
})

/** Milliseconds for an event, with what is under way. */
const pace = ({ events, millis, since }: Follower) =>
  (millis + (since === undefined ? 0 : performance.now() - since)) / (events + 1)

const sizeOf = ({ pages }: Window) => pages.reduce((sum, { events }) => sum + events.length, 0)

export class LogReader {
  /** Offset of the last event that was read. */
  head = 0
  readonly #journal: Journal["Service"]
  readonly #services: Context.Context<never>
  readonly #entityType: string
  readonly #shard: number
  readonly #followers = new Map<object, Follower>()
  readonly #windows = new Set<Window>()
  /** Opened when somebody has moved on. */
  readonly #moved = Latch.makeUnsafe(false)

  constructor(journal: Journal["Service"], entityType: string, shard: number, services: Context.Context<never>) {
    this.#journal = journal
    this.#services = services
    this.#entityType = entityType
    this.#shard = shard
  }

  /** From now on, and until the scope is closed, the others wait for one who follows the log. */
  join(who: object): Effect.Effect<void, never, Scope.Scope> {
    return Effect.acquireRelease(
      Effect.sync(() => void this.#followers.set(who, newFollower())),
      () =>
        Effect.sync(() => {
          this.#followers.delete(who)
          this.#tidy()
        })
    )
  }

  /** Waits for events after an offset, and gives the next ones, to one who has joined. */
  next(after: number, who: object): Effect.Effect<Events, JournalError> {
    return Effect.callback((resume) => {
      const follower = this.#followers.get(who)!
      const window = this.#windowAt(after)
      this.#move(follower, after, window)
      const page = window.pages.find((page) => after < page.through)
      if (page === undefined) {
        window.waiting.set(follower, resume)
        this.#read(window)
        return Effect.sync(() => window.waiting.delete(follower))
      }
      follower.since = performance.now()
      resume(Effect.succeed(page.after === after ? page.events : page.events.slice(after - page.after)))
      if (page === window.pages.at(-1)) this.#readAhead(window)
    })
  }

  /** The window that has what follows an offset, or will have it next. */
  #windowAt(after: number): Window {
    for (const window of this.#windows) {
      if ((window.pages[0]?.after ?? window.end) <= after && after <= window.end) return window
    }
    const window: Window = { pages: [], end: after, open: undefined, waiting: new Map(), fiber: undefined }
    this.#windows.add(window)
    return window
  }

  #move(follower: Follower, after: number, window: Window): void {
    if (follower.window !== window) follower.idleMillis = 0
    if (follower.since !== undefined && follower.after !== undefined) {
      follower.millis = follower.millis / 2 + performance.now() - follower.since
      follower.events = follower.events / 2 + Math.max(0, after - follower.after)
    }
    follower.since = undefined
    follower.after = after
    follower.window = window
    this.#tidy()
  }

  /** Forgets what nobody needs any more. */
  #tidy(): void {
    this.#moved.openUnsafe()
    for (const window of this.#windows) {
      const slowest = this.#slowest(window)
      if (slowest === undefined) {
        this.#windows.delete(window)
        if (window.fiber !== undefined) this.#fork(Fiber.interrupt(window.fiber))
        else if (window.open !== undefined) this.#fork(Scope.close(window.open.scope, Exit.void))
      } else if (slowest.after !== undefined) {
        while (window.pages.length > 0 && window.pages[0]!.through <= slowest.after) window.pages.shift()
      }
    }
  }

  /** Who holds a window back: one who does not know its place yet may turn out to be in any. */
  #slowest(window: Window): Follower | undefined {
    let slowest: Follower | undefined
    let used = false
    for (const follower of this.#followers.values()) {
      if (follower.window === window) used = true
      else if (follower.after !== undefined || follower.idleMillis >= maxIdleMillis) continue
      if (slowest === undefined || (follower.after ?? -1) < (slowest.after ?? -1)) slowest = follower
    }
    return used ? slowest : undefined
  }

  /** Reads on before somebody asks, where there is more. */
  #readAhead(window: Window): void {
    const { events } = window.pages.at(-1)!
    if (events.length >= backlog && !isYoung(events) && sizeOf(window) < keptEvents) this.#read(window)
  }

  #read(window: Window): void {
    if (window.fiber !== undefined) return
    window.fiber = this.#fork(
      // It must not end before it is known as the window's.
      Effect.yieldNow.pipe(
        Effect.andThen(this.#room(window)),
        Effect.andThen(this.#opened(window)),
        Effect.flatMap(({ pull }) => pull),
        Effect.withTracerEnabled(false),
        Effect.onExit((exit) => {
          window.fiber = undefined
          const waiting = [...window.waiting]
          window.waiting.clear()
          const { open } = window
          if (Exit.isSuccess(exit)) {
            const page = { after: window.end, through: exit.value.at(-1)!.offset, events: exit.value }
            window.pages.push(page)
            window.end = page.through
            if (window.end > this.head) this.head = window.end
            if (waiting.length > 0) this.#readAhead(window)
          } else window.open = undefined
          for (const [follower, resume] of waiting) {
            follower.since = performance.now()
            resume(exit as Exit.Exit<Events, JournalError>)
          }
          return Exit.isSuccess(exit) || open === undefined ? Effect.void : Scope.close(open.scope, Exit.void)
        }),
        Effect.ignoreCause
      )
    )
  }

  #fork(effect: Effect.Effect<unknown>) {
    return Effect.runForkWith(this.#services)(effect)
  }

  /** The stream behind a window: it goes on where it stopped, without looking for the place anew. */
  #opened(window: Window): Effect.Effect<Open> {
    return Effect.suspend(() => {
      if (window.open !== undefined) return Effect.succeed(window.open)
      const scope = Scope.makeUnsafe()
      return Stream.toPull(this.#journal.events(this.#entityType, this.#shard, window.end)).pipe(
        Scope.provide(scope),
        Effect.map((pull) => {
          window.open = { pull, scope }
          return window.open
        })
      )
    })
  }

  /** Waits until a window has room for more: for those who are behind in it, or until they are left behind. */
  #room(window: Window): Effect.Effect<void> {
    return Effect.suspend(() => {
      const slowest = this.#slowest(window)
      if (slowest === undefined || sizeOf(window) < keptEvents) return Effect.void
      if (window.pages.at(-1)!.events.length < backlog || this.#holdsUp(window, slowest)) {
        slowest.window = undefined
        slowest.idleMillis = maxIdleMillis
        this.#tidy()
        return this.#room(window)
      }
      const idle = idleMillis()
      this.#moved.closeUnsafe()
      return Effect.andThen(
        Effect.raceFirst(this.#moved.await, Effect.sleep(50)),
        Effect.suspend(() => {
          slowest.idleMillis += idleMillis() - idle
          return this.#room(window)
        })
      )
    })
  }

  #holdsUp({ waiting }: Window, slowest: Follower): boolean {
    if (slowest.idleMillis < maxIdleMillis) return false
    const fastest = Math.min(...[...waiting.keys()].map(pace))
    return slowest.after === undefined || pace(slowest) > slower * fastest
  }
}
