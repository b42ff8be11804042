import type { Loaded as Stored } from "@effect-cassandra/journal/Journal"
import type { Effect, Fiber, Latch } from "effect"
import type { EntityError } from "../EntityError.ts"
import type { Ask, Turns } from "./ask.ts"
import type { Command } from "./model.ts"

/** A state with its place in the journal. */
export interface Loaded<State> {
  readonly state: State
  readonly sequence: number
  /** All events of the entity up to this offset of its shard are in the state. */
  validThrough: number
  /**
   * The answers to commands with an id, once they are asked for, and from which event on they are known. As JSON, which takes
   * a third of the memory: few are ever asked for again.
   */
  commands: { readonly answers: Map<string, string | undefined>; readonly from: Stored["commandsFrom"] } | undefined
}

/** An entity in memory. Small, for there may be many. */
export class Instance<State> {
  readonly turns: Turns<State>
  readonly entityId: string
  /** Absent until loaded, and after a failure that leaves open what is stored. */
  loaded: Loaded<State> | undefined
  loading: Fiber.Fiber<Loaded<State>, EntityError> | undefined
  /** The command that is carried out by itself; reads are not among these. */
  running: Ask<State> | undefined
  /** How many commands are with the journal, to be decided one after the other when there is room for their events. */
  queued = 0
  /** The last of them that has been decided: the next one is decided from the state after it. */
  newest: Ask<State> | undefined
  /** Some have come back from there, so that no more go until all others have. */
  returned = false
  /** The mailbox: those whose turn comes next. */
  waiting: Array<Ask<State>> | undefined
  /** How the last command was refused, until it is idle. */
  refusal:
    | { readonly command: Command<State>; readonly size: number; readonly answer: Effect.Effect<never, EntityError> }
    | undefined
  /** Reads under way. */
  reads = 0
  lastUsed = 0
  /** When it was put behind all others, to be looked at again when room is needed. */
  placed = 0
  /** Defects since the last command that ended without one. */
  defects = 0
  /** Milliseconds of the clock, before which it is not restarted after a defect. */
  restartAt = 0
  /** Sequence numbers of the snapshots that this process has saved and that are kept. */
  snapshots: Array<number> | undefined
  draining = false
  /** What follows its coming into memory has been done. */
  recovered = false
  /** Opened when it has left memory, where somebody wants that. */
  stopping: Latch.Latch | undefined

  constructor(turns: Turns<State>, entityId: string) {
    this.turns = turns
    this.entityId = entityId
  }

  /** Commands that wait behind another one. */
  get behind(): number {
    return (this.waiting?.length ?? 0) + Math.max(0, this.queued - 1)
  }

  get idle(): boolean {
    return (
      this.running === undefined &&
      this.queued === 0 &&
      this.waiting === undefined &&
      this.loading === undefined &&
      this.reads === 0
    )
  }
}
