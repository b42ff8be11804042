/**
 * Metrics whose values are plain numbers, read when the metrics are: an update of Effect's registry for each statement or
 * command would cost more than the work that is counted.
 */
import { Context, Metric } from "effect"

/** Counts durations by size. */
export class Histogram {
  readonly #boundaries: ReadonlyArray<number>
  readonly #buckets: Array<number>
  #count = 0
  #sum = 0
  #min = 0
  #max = 0

  /** `boundaries`: the upper bounds of the buckets, ascending. */
  constructor(boundaries: ReadonlyArray<number>) {
    this.#boundaries = boundaries
    this.#buckets = boundaries.map(() => 0)
  }

  record(value: number): void {
    let i = 0
    while (i < this.#boundaries.length && value > this.#boundaries[i]!) i++
    if (i < this.#boundaries.length) this.#buckets[i]!++
    if (this.#count === 0 || value < this.#min) this.#min = value
    if (value > this.#max) this.#max = value
    this.#count++
    this.#sum += value
  }

  get state(): Metric.HistogramState {
    let sum = 0
    // Cumulative, as Effect's own histograms.
    const buckets = this.#boundaries.map((bound, i): [number, number] => {
      sum += this.#buckets[i]!
      return [bound, sum]
    })
    return { buckets, count: this.#count, min: this.#min, max: this.#max, sum: this.#sum }
  }
}

/** Metrics with the same attributes, registered until they are closed. */
export class PlainMetrics {
  readonly #context: Context.Context<never>
  readonly #registrations: Array<Metric.Registration> = []

  constructor(context: Context.Context<never>, attributes: Readonly<Record<string, string>>) {
    this.#context = withAttributes(context, attributes)
  }

  counter(name: string, description: string, get: () => number): void {
    this.#count(name, description, get, this.#context)
  }

  gauge(name: string, description: string, get: () => number): void {
    this.#register(Metric.gauge(name, { description }), () => ({ value: get() }), this.#context)
  }

  histogram(name: string, description: string, boundaries: ReadonlyArray<number>): Histogram {
    const histogram = new Histogram(boundaries)
    this.#register(Metric.histogram(name, { description, boundaries }), () => histogram.state, this.#context)
    return histogram
  }

  /** Counts errors by the attribute `error.type`; gives the function that counts one. */
  errors(name: string, description: string): (type: string) => void {
    const counts = new Map<string, number>()
    return (type) => {
      const count = counts.get(type)
      counts.set(type, (count ?? 0) + 1)
      if (count !== undefined) return
      this.#count(name, description, () => counts.get(type)!, withAttributes(this.#context, { "error.type": type }))
    }
  }

  close(): void {
    for (const registration of this.#registrations) registration.remove()
  }

  #count(name: string, description: string, get: () => number, context: Context.Context<never>): void {
    this.#register(Metric.counter(name, { description }), () => ({ count: get(), incremental: true }), context)
  }

  #register<Input, State>(
    metric: Metric.Metric<Input, State>,
    get: () => State,
    context: Context.Context<never>
  ): void {
    this.#registrations.push(Metric.registerUnsafe(metric, context, { get, update: () => {}, modify: () => {} }))
  }
}

const withAttributes = (context: Context.Context<never>, attributes: Readonly<Record<string, string>>) =>
  Context.add(context, Metric.CurrentMetricAttributes, {
    ...Context.get(context, Metric.CurrentMetricAttributes),
    ...attributes
  })
