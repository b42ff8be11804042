import { Context, Metric } from "effect"

/** Upper bounds of the buckets, in seconds: those that OpenTelemetry recommends for database clients. */
const boundaries = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10]

/** What can be counted at any moment by looking. */
export interface Gauges {
  readonly inFlight: number
  readonly queued: number
  readonly connections: number
  /** Tries on another node that the driver made by itself. */
  readonly driverRetries: number
}

/** Of the open sessions, by which their metrics differ: two of one keyspace would overwrite each other's. */
const names = new Set<string>()

const nameOf = (keyspace: string) => {
  let name = keyspace
  for (let i = 2; names.has(name); i++) name = `${keyspace}-${i}`
  names.add(name)
  return name
}

/**
 * Counts of a session. They are plain numbers, read when the metrics are: an update of Effect's registry for each request
 * would cost more than the session itself.
 */
export class SessionMetrics {
  requests = 0
  retries = 0
  speculative = 0
  readonly #buckets = boundaries.map(() => 0)
  #count = 0
  #sum = 0
  #min = 0
  #max = 0
  readonly #errors = new Map<string, number>()
  readonly #context: Context.Context<never>
  readonly #registrations: Array<Metric.Registration> = []
  readonly #name: string

  constructor(context: Context.Context<never>, keyspace: string, gauges: () => Gauges) {
    this.#name = nameOf(keyspace)
    this.#context = Context.add(context, Metric.CurrentMetricAttributes, {
      ...Context.get(context, Metric.CurrentMetricAttributes),
      "db.system.name": "cassandra",
      "db.namespace": keyspace,
      "db.client.connection.pool.name": this.#name
    })
    const counter = (name: string, description: string, get: () => number) =>
      this.#register(Metric.counter(name, { description }), () => ({ count: get(), incremental: true }))
    const gauge = (name: string, description: string, get: () => number) =>
      this.#register(Metric.gauge(name, { description }), () => ({ value: get() }))
    counter("cassandra.requests", "Requests that ended", () => this.requests)
    counter("cassandra.retries", "Tries after the first one", () => this.retries + gauges().driverRetries)
    counter("cassandra.speculative_executions", "Reads sent to a second node before the first", () => this.speculative)
    gauge("cassandra.requests.in_flight", "Requests under way", () => gauges().inFlight)
    gauge("cassandra.requests.queued", "Requests that wait for their turn", () => gauges().queued)
    gauge("cassandra.connections", "Open connections", () => gauges().connections)
    this.#register(
      Metric.histogram("db.client.operation.duration", { description: "Duration of requests in seconds", boundaries }),
      () => ({
        // Cumulative, as Effect's own histograms.
        buckets: boundaries.map((bound, i): [number, number] => [
          bound,
          this.#buckets.slice(0, i + 1).reduce((sum, count) => sum + count, 0)
        ]),
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

  /** A request that ended well or badly after some seconds. */
  ended(seconds: number, error: string | undefined): void {
    this.requests++
    let i = 0
    while (i < boundaries.length && seconds > boundaries[i]!) i++
    if (i < boundaries.length) this.#buckets[i]!++
    if (this.#count === 0 || seconds < this.#min) this.#min = seconds
    if (seconds > this.#max) this.#max = seconds
    this.#count++
    this.#sum += seconds
    if (error !== undefined) this.failed(error)
  }

  /** Counts an error by its reason. */
  failed(reason: string): void {
    const count = this.#errors.get(reason)
    this.#errors.set(reason, (count ?? 0) + 1)
    if (count === undefined) {
      this.#register(
        Metric.counter("cassandra.errors", { description: "Requests that failed, by reason" }),
        () => ({ count: this.#errors.get(reason)!, incremental: true }),
        Context.add(this.#context, Metric.CurrentMetricAttributes, {
          ...Context.get(this.#context, Metric.CurrentMetricAttributes),
          "error.type": reason
        })
      )
    }
  }

  close(): void {
    names.delete(this.#name)
    for (const registration of this.#registrations) registration.remove()
  }
}
