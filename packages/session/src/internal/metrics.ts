import type { Context } from "effect"
import { type Histogram, PlainMetrics } from "../PlainMetrics.ts"

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

/** Counts of a session. */
export class SessionMetrics {
  requests = 0
  retries = 0
  speculative = 0
  /** Counts an error by its reason. */
  readonly failed: (reason: string) => void
  readonly #durations: Histogram
  readonly #metrics: PlainMetrics
  readonly #name: string

  constructor(context: Context.Context<never>, keyspace: string, gauges: () => Gauges) {
    this.#name = nameOf(keyspace)
    const metrics = new PlainMetrics(context, {
      "db.system.name": "cassandra",
      "db.namespace": keyspace,
      "db.client.connection.pool.name": this.#name
    })
    this.#metrics = metrics
    metrics.counter("cassandra.requests", "Requests that ended", () => this.requests)
    metrics.counter("cassandra.retries", "Tries after the first one", () => this.retries + gauges().driverRetries)
    metrics.counter(
      "cassandra.speculative_executions",
      "Reads sent to a second node before the first",
      () => this.speculative
    )
    metrics.gauge("cassandra.requests.in_flight", "Requests under way", () => gauges().inFlight)
    metrics.gauge("cassandra.requests.queued", "Requests that wait for their turn", () => gauges().queued)
    metrics.gauge("cassandra.connections", "Open connections", () => gauges().connections)
    this.#durations = metrics.histogram("db.client.operation.duration", "Duration of requests in seconds", boundaries)
    this.failed = metrics.errors("cassandra.errors", "Requests that failed, by reason")
  }

  /** A request that ended well or badly after some seconds. */
  ended(seconds: number, error: string | undefined): void {
    this.requests++
    this.#durations.record(seconds)
    if (error !== undefined) this.failed(error)
  }

  close(): void {
    names.delete(this.#name)
    this.#metrics.close()
  }
}
