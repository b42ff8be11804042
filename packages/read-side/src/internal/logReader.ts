/**
 * One reader for all processors of this process that follow a shard: what one has read, or waits for, serves the others.
 */
import type { EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { type Array as Arr, type Context, Effect, Exit, Fiber, type Pull, Scope, Stream } from "effect"

type Events = ReadonlyArray<EventEnvelope>

/** Consecutive events. */
interface Page {
  readonly after: number
  readonly through: number
  readonly events: Events
}

interface Waiting {
  readonly resumes: Set<(effect: Effect.Effect<Events, JournalError>) => void>
  fiber: Fiber.Fiber<unknown> | undefined
}

/** A stream of the log that is open, and how far it has come. */
interface Open {
  readonly after: number
  readonly pull: Pull.Pull<Arr.NonEmptyReadonlyArray<EventEnvelope>, JournalError>
  readonly scope: Scope.Closeable
}

/** Events kept for processors that come a little later. */
const keptEvents = 10_000
/** As many events at once are a backlog. */
const backlog = 1000
/** How long the first of several waits for the others, in steps, and after which time one of them counts no more. */
const maxWaitMillis = 2000
const waitMillis = 5
const idleMillis = 5000

export class LogReader {
  /** Offset of the last event that was read. */
  head = 0
  readonly #journal: Journal["Service"]
  readonly #services: Context.Context<never>
  readonly #entityType: string
  readonly #shard: number
  readonly #pages: Array<Page> = []
  #kept = 0
  #open: Open | undefined
  readonly #followers = new Map<object, { readonly after: number; readonly since: number }>()
  readonly #waiting = new Map<number, Waiting>()

  constructor(journal: Journal["Service"], entityType: string, shard: number, services: Context.Context<never>) {
    this.#journal = journal
    this.#services = services
    this.#entityType = entityType
    this.#shard = shard
  }

  /** Waits for events after an offset, and gives the next ones, to one of several who follow the log. */
  next(after: number, who: object): Effect.Effect<Events, JournalError> {
    return Effect.callback((resume) => {
      if (this.#followers.get(who)?.after !== after) this.#followers.set(who, { after, since: performance.now() })
      for (const page of this.#pages) {
        if (page.after <= after && after < page.through) {
          return resume(Effect.succeed(page.after === after ? page.events : page.events.slice(after - page.after)))
        }
      }
      const present = this.#waiting.get(after)
      const waiting: Waiting = present ?? { resumes: new Set(), fiber: undefined }
      waiting.resumes.add(resume)
      if (present === undefined) {
        this.#waiting.set(after, waiting)
        // It may end before this returns.
        waiting.fiber = Effect.runForkWith(this.#services)(this.#read(after, waiting))
      }
      return Effect.suspend(() => {
        waiting.resumes.delete(resume)
        if (waiting.resumes.size > 0 || this.#waiting.get(after) !== waiting) return Effect.void
        this.#waiting.delete(after)
        return waiting.fiber === undefined ? Effect.void : Fiber.interrupt(waiting.fiber)
      })
    })
  }

  #read(after: number, waiting: Waiting) {
    return Effect.andThen(this.#together(after), () => {
      const open = this.#open?.after === after ? this.#open : undefined
      this.#open = undefined
      return open === undefined ? this.#begin(after) : Effect.succeed(open)
    }).pipe(
      Effect.flatMap((open) =>
        open.pull.pipe(
          Effect.tap((events) => {
            const left = this.#open
            this.#open = { ...open, after: events.at(-1)!.offset }
            return left === undefined ? Effect.void : Scope.close(left.scope, Exit.void)
          }),
          Effect.onError(() => Scope.close(open.scope, Exit.void))
        )
      ),
      Effect.withTracerEnabled(false),
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (this.#waiting.get(after) === waiting) this.#waiting.delete(after)
          if (Exit.isSuccess(exit)) this.#keep(after, exit.value)
          for (const resume of waiting.resumes) resume(exit as Exit.Exit<Events, JournalError>)
        })
      ),
      Effect.ignoreCause
    )
  }

  /** Opens the log after an offset; the next page begins where the last one ended, without looking for the place anew. */
  #begin(after: number) {
    const scope = Scope.makeUnsafe()
    return Stream.toPull(this.#journal.events(this.#entityType, this.#shard, after)).pipe(
      Scope.provide(scope),
      Effect.map((pull): Open => ({ after, pull, scope }))
    )
  }

  /**
   * While there is a backlog, lets those catch up who are a little behind and would otherwise have to read once more what is
   * forgotten. Who does not move is not waited for.
   */
  #together(after: number): Effect.Effect<void> {
    const self = this
    return Effect.gen(function* () {
      if ((self.#pages.at(-1)?.events.length ?? 0) < backlog) return
      for (let waited = 0; waited < maxWaitMillis; waited += waitMillis) {
        const now = performance.now()
        let slowest = after
        for (const [who, follower] of self.#followers) {
          if (now - follower.since > idleMillis) self.#followers.delete(who)
          else if (after - follower.after < 4 * keptEvents) slowest = Math.min(slowest, follower.after)
        }
        if (after - slowest < keptEvents / 2) return
        yield* Effect.sleep(waitMillis)
      }
    })
  }

  #keep(after: number, events: Events): void {
    const through = events.at(-1)!.offset
    if (through > this.head) this.head = through
    this.#pages.push({ after, through, events })
    this.#kept += events.length
    while (this.#pages.length > 1 && this.#kept > keptEvents) this.#kept -= this.#pages.shift()!.events.length
  }
}
