/**
 * What stands between the engine, which reads logs and keeps offsets, and a kind of processor, which does something with
 * the events of one shard.
 */
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Effect, Scope } from "effect"
import type { ReadSideError } from "../ReadSideError.ts"

/** One shard of an entity type, as a processor follows it. */
export interface Place {
  /** The processor's name with its version. */
  readonly processor: string
  readonly entityType: string
  readonly shard: number
}

/** How far a processor has come in a shard. A higher epoch stands before any offset of a lower one. */
export interface Reached {
  readonly epoch: number
  readonly offset: number
}

/** What a kind of processor gets. */
interface Opening {
  readonly place: Place
  /** How many shards each entity type has. */
  readonly shards: number
  readonly session: CassandraSession["Service"]
  /** Requests in flight for the shard. */
  readonly concurrency: number
  /** How many times the tables were emptied; the write timestamps of each time stand before all of those before. */
  readonly generation: number
  /** Of this run: it is raised when the processor is sent elsewhere in the log. */
  readonly epoch: number
}

/** What became of some events. */
export interface Outcome {
  /** The offset up to where the events are in the view; less than the last one's only with a failure. */
  readonly done: number
  /** How many rows were written, or Effects run. */
  readonly written: number
  readonly failure?: Failure | undefined
}

/** What stopped a processor, and at which event where it is a single one's fault. */
export interface Failure {
  readonly error: ReadSideError
  readonly event: EventEnvelope | undefined
}

/** What a processor writes for some events, of which later ones replace earlier ones: it grows with the rows. */
export interface Collector {
  /** Writes that wait. */
  readonly size: number
  /** Takes in consecutive events up to the first that fails, and gives the offset of the last one that it has. */
  readonly add: (events: ReadonlyArray<EventEnvelope>) => Effect.Effect<Pick<Outcome, "done" | "failure">>
  /** Executes them, and says how many there were. If it fails, all events are to be handled again. */
  readonly write: Effect.Effect<number, CassandraError>
}

/** A processor at work in one shard. */
export interface Sink {
  /** Brings consecutive events into the view; `retried` are events that were put aside, and do not move the offset. */
  readonly handle: (events: ReadonlyArray<EventEnvelope>, retried: boolean) => Effect.Effect<Outcome>
  /** The same for as many events as there are, where that saves writes. */
  readonly collect?: (() => Collector) | undefined
  /** How far it has come, for those that store that by themselves. */
  readonly reached?: Effect.Effect<Reached | undefined, ReadSideError> | undefined
  /** Whether an event that failed must not be handled again by itself. */
  readonly neverAgain?: boolean | undefined
  /** How many events it takes at once, and how long it waits for as many; by itself it takes what there is. */
  readonly group?: { readonly size: number; readonly withinMillis: number } | undefined
  /** Whether later writes of a row replace earlier ones, so that collecting events saves writes. */
  readonly coalesces?: boolean | undefined
}

/** Begins work in a shard. */
export type Open<R = never> = (opening: Opening) => Effect.Effect<Sink, ReadSideError, R | Scope.Scope>

/** Whether a processor could be controlled by this name, if there was one. */
export const isId = (id: string): boolean => /^[\w.-]{1,100}(@[1-9]\d*)?$/.test(id)

/** Names stand in keys, and `@` before the version. */
export const validName = (name: string): void => {
  if (!/^[\w.-]{1,100}$/.test(name)) {
    throw new Error(`a processor cannot be called "${name}": use letters, digits, "_", "-" and ".", 100 at the most`)
  }
}
