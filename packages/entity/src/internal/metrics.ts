import { Context, Metric } from "effect"

/** Upper bounds of the buckets, in seconds. */
const boundaries = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 10]

/**
 * Counts of an entity type. They are plain numbers, read when the metrics are: an update of Effect's registry for each
 * command would cost more than the command.
 */
export class EntityMetrics {
  recoveries = 0
  conflicts = 0
  passivations = 0
  restarts = 0
  snapshots = 0
  waiting = 0
  localReads = 0
  reactions = 0
  reactionFailures = 0
  reactingShards = 0
  readonly #buckets = boundaries.map(() => 0)
  #count = 0
  #sum = 0
  #min = 0
  #max = 0
  readonly #errors = new Map<string, number>()
  readonly #context: Context.Context<never>
  readonly #registrations: Array<Metric.Registration> = []

  constructor(context: Context.Context<never>, entityType: string, active: () => number) {
    this.#context = Context.add(context, Metric.CurrentMetricAttributes, {
      ...Context.get(context, Metric.CurrentMetricAttributes),
      "entity.type": entityType
    })
    const counter = (name: string, description: string, get: () => number) =>
      this.#register(Metric.counter(name, { description }), () => ({ count: get(), incremental: true }))
    const gauge = (name: string, description: string, get: () => number) =>
      this.#register(Metric.gauge(name, { description }), () => ({ value: get() }))
    gauge("entity.active", "Entities in memory", active)
    gauge("entity.mailbox", "Commands that wait for their turn", () => this.waiting)
    counter("entity.recoveries", "Entities loaded from the journal", () => this.recoveries)
    counter("entity.conflicts", "Commands decided anew as another process was first", () => this.conflicts)
    counter("entity.passivations", "Entities that left memory", () => this.passivations)
    counter("entity.restarts", "Entities restarted after a defect", () => this.restarts)
    counter("entity.local_reads", "Read-only commands answered from memory at once", () => this.localReads)
    counter("entity.reactions", "Events whose reactions or timers are done", () => this.reactions)
    counter("entity.reaction_failures", "Attempts that failed, to be made again", () => this.reactionFailures)
    gauge("entity.reacting_shards", "Shards whose reactions this process does", () => this.reactingShards)
    counter("entity.snapshots", "Snapshots saved", () => this.snapshots)
    this.#register(
      Metric.histogram("entity.command.duration", { description: "Time to answer a command in seconds", boundaries }),
      () => ({
        buckets: boundaries.map((bound, i) => [bound, this.#buckets[i]!] as [number, number]),
        count: this.#count,
        min: this.#min,
        max: this.#max,
        sum: this.#sum
      })
    )
  }

  #register<Input, State>(metric: Metric.Metric<Input, State>, get: () => State, context = this.#context): void {
    this.#registrations.push(Metric.registerUnsafe(metric, context, { get, update: () => {}, modify: () => {} }))
  }

  /** A command was answered after some seconds. */
  answered(seconds: number): void {
    // Cumulative, as Effect's own histograms.
    for (let i = boundaries.length - 1; i >= 0 && seconds <= boundaries[i]!; i--) this.#buckets[i]!++
    if (this.#count === 0 || seconds < this.#min) this.#min = seconds
    if (seconds > this.#max) this.#max = seconds
    this.#count++
    this.#sum += seconds
  }

  /** Counts an error, or a defect, by its reason; rejections are answers. */
  failed(reason: string): void {
    const count = this.#errors.get(reason)
    this.#errors.set(reason, (count ?? 0) + 1)
    if (count !== undefined) return
    this.#register(
      Metric.counter("entity.errors", { description: "Commands without an answer, by reason" }),
      () => ({ count: this.#errors.get(reason)!, incremental: true }),
      Context.add(this.#context, Metric.CurrentMetricAttributes, {
        ...Context.get(this.#context, Metric.CurrentMetricAttributes),
        "error.type": reason
      })
    )
  }

  close(): void {
    for (const registration of this.#registrations) registration.remove()
  }
}
