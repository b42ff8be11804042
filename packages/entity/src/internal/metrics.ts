import { PlainMetrics } from "@effect-cassandra/session/PlainMetrics"
import type { Context } from "effect"

/** Upper bounds of the buckets, in seconds. */
const boundaries = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10]

/** Counts of an entity type. */
export class EntityMetrics {
  recoveries = 0
  conflicts = 0
  passivations = 0
  restarts = 0
  snapshots = 0
  waiting = 0
  localReads = 0
  forwarded = 0
  reactions = 0
  reactionFailures = 0
  reactingShards = 0
  /** A command was answered after some seconds. */
  readonly answered: (seconds: number) => void
  /** Counts an error, or a defect, by its reason; rejections are answers. */
  readonly failed: (reason: string) => void
  readonly close: () => void

  constructor(context: Context.Context<never>, entityType: string, active: () => number) {
    const metrics = new PlainMetrics(context, { "entity.type": entityType })
    metrics.gauge("entity.active", "Entities in memory", active)
    metrics.gauge("entity.mailbox", "Commands that wait for their turn", () => this.waiting)
    metrics.counter("entity.recoveries", "Entities loaded from the journal", () => this.recoveries)
    metrics.counter("entity.conflicts", "Commands decided anew as another process was first", () => this.conflicts)
    metrics.counter("entity.passivations", "Entities that left memory", () => this.passivations)
    metrics.counter("entity.restarts", "Entities restarted after a defect", () => this.restarts)
    metrics.counter("entity.local_reads", "Read-only commands answered from memory at once", () => this.localReads)
    metrics.counter("entity.forwarded", "Commands sent to the process that has the entity", () => this.forwarded)
    metrics.counter("entity.reactions", "Events whose reactions or timers are done", () => this.reactions)
    metrics.counter("entity.reaction_failures", "Attempts that failed, to be made again", () => this.reactionFailures)
    metrics.gauge("entity.reacting_shards", "Shards whose reactions this process does", () => this.reactingShards)
    metrics.counter("entity.snapshots", "Snapshots saved", () => this.snapshots)
    const durations = metrics.histogram("entity.command.duration", "Time to answer a command in seconds", boundaries)
    this.answered = (seconds) => durations.record(seconds)
    this.failed = metrics.errors("entity.errors", "Commands without an answer, by reason")
    this.close = () => metrics.close()
  }
}
