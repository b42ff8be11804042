import {
  type Append,
  type Appended,
  type Appender,
  CurrentMetadata,
  type Metadata,
  type Queued
} from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { Context, type Effect, type Exit, type Fiber, type Tracer } from "effect"
import type { CommandIds, Place } from "./command.ts"
import type { Instance, Loaded } from "./instance.ts"
import type { Command } from "./model.ts"

/** What follows from a decision: the state and the answer after it. */
export interface Next<State> {
  readonly state: State
  /** How many events. */
  readonly count: number
  /** Whether an event asks for a snapshot. */
  readonly snapshotDue: boolean
  readonly answer: Exit.Exit<unknown, unknown>
}

/** What carries commands out. */
export interface Turns<State> {
  readonly entityType: string
  /** Decides a command when there is room for its events; undefined where it has none, or is not wanted any more. */
  decide(ask: Ask<State>, own: Queued): Append | undefined
  /** Goes on when the events are stored, or are not. */
  appended(ask: Ask<State>, exit: Exit.Exit<Appended, JournalError>): void
}

/** A command on its way: from the caller to its entity, and back. Small until it is decided, for many may wait. */
export class Ask<State> implements Appender {
  /** `"waiting"` until it is decided, `"storing"` from when its events are with the journal, which takes nothing back. */
  phase: "waiting" | "deciding" | "storing" = "waiting"
  /** The caller has its answer, or wants none any more. */
  answered = false
  /** Runs the handler and what follows. */
  fiber: Fiber.Fiber<unknown, unknown> | undefined
  /** The state that caused a defect, and is the newest as far as can be known. */
  confirmed: Loaded<State> | undefined
  /** How often it was decided anew. */
  conflicts = 0
  /** The state that it was decided from, and what follows, while its events are with the journal. */
  from: Loaded<State> | undefined
  next: Next<State> | undefined
  /** It stands for its append, for those behind it. */
  append: Queued | undefined
  /** It was decided from the state after one that was not stored yet. */
  isBehind = false
  /** Events that it stored. */
  stored = 0
  span: Tracer.Span | undefined
  ids: CommandIds | undefined
  place: Place | undefined
  /** Neighbours among those under way. */
  earlier: Ask<State> | undefined
  later: Ask<State> | undefined
  readonly begin = performance.now()
  /** Counts the commands. */
  readonly order: number
  /** Milliseconds of the clock. */
  readonly since: number
  readonly instance: Instance<State>
  readonly command: Command<State>
  readonly payload: unknown
  /** What the caller's effects see. */
  readonly context: Context.Context<never>
  readonly #resume: (answer: Effect.Effect<unknown, unknown>) => void

  constructor(
    instance: Instance<State>,
    command: Command<State>,
    payload: unknown,
    context: Context.Context<never>,
    since: number,
    order: number,
    resume: (answer: Effect.Effect<unknown, unknown>) => void
  ) {
    this.instance = instance
    this.command = command
    this.payload = payload
    this.context = context
    this.since = since
    this.order = order
    this.#resume = resume
  }

  get entityType(): string {
    return this.instance.turns.entityType
  }

  get entityId(): string {
    return this.instance.entityId
  }

  get metadata(): Metadata {
    return Context.get(this.context, CurrentMetadata)
  }

  decide(own: Queued): Append | undefined {
    return this.instance.turns.decide(this, own)
  }

  onExit(exit: Exit.Exit<Appended, JournalError>): void {
    this.instance.turns.appended(this, exit)
  }

  /** Tells the caller, once. */
  answer(exit: Exit.Exit<unknown, unknown>): void {
    if (this.answered) return
    this.answered = true
    this.#resume(exit)
  }
}

/**
 * Commands under way, the oldest first. Not a Set: when it makes its table anew, the old one points to the new one, so that a
 * table that has lived long keeps all later ones alive, with what was in them, until the next full garbage collection.
 */
export class Asks<State> {
  #first: Ask<State> | undefined
  #last: Ask<State> | undefined
  size = 0

  add(ask: Ask<State>): void {
    ask.earlier = this.#last
    if (this.#last === undefined) this.#first = ask
    else this.#last.later = ask
    this.#last = ask
    this.size++
  }

  /** Those that are not in it are none of its business. */
  delete(ask: Ask<State>): void {
    const { earlier, later } = ask
    if (earlier === undefined && later === undefined && this.#first !== ask) return
    if (earlier === undefined) this.#first = later
    else earlier.later = later
    if (later === undefined) this.#last = earlier
    else later.earlier = earlier
    ask.earlier = undefined
    ask.later = undefined
    this.size--
  }

  /** The one that was given last may be deleted meanwhile. */
  *all(): Generator<Ask<State>> {
    for (let ask = this.#first; ask !== undefined; ) {
      const { later } = ask
      yield ask
      ask = later
    }
  }
}
