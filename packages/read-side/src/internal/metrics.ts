import { Clock, Context, Metric } from "effect"
import type { Progress } from "./runner.ts"

/**
 * Metrics of one shard of a processor. They are plain numbers that are kept anyway, read when the metrics are. Gives a
 * function that takes them back.
 */
export const registerMetrics = (progress: Progress, services: Context.Context<never>): (() => void) => {
  const { entityType, processor, shard } = progress.place
  const context = Context.add(services, Metric.CurrentMetricAttributes, {
    ...Context.get(services, Metric.CurrentMetricAttributes),
    processor,
    entity_type: entityType,
    shard: String(shard)
  })
  const clock = Context.get(services, Clock.Clock)
  const registrations: Array<Metric.Registration> = []
  const counter = (name: string, description: string, get: () => number) =>
    registrations.push(
      Metric.registerUnsafe(Metric.counter(name, { description }), context, {
        get: () => ({ count: get(), incremental: true }),
        update: () => {},
        modify: () => {}
      })
    )
  const gauge = (name: string, description: string, get: () => number) =>
    registrations.push(
      Metric.registerUnsafe(Metric.gauge(name, { description }), context, {
        get: () => ({ value: get() }),
        update: () => {},
        modify: () => {}
      })
    )
  const behind = () => Math.max(0, progress.reader.head - Math.max(0, progress.offset))
  counter("read_side.events", "Events that came into the view", () => progress.events)
  counter("read_side.batches", "Batches of events", () => progress.batches.count)
  counter("read_side.retries", "Tries after a failure", () => progress.retries)
  gauge("read_side.batch_size.max", "Events of the largest batch", () => progress.batches.max)
  gauge("read_side.offset", "Offset of the last event in the view", () => Math.max(0, progress.offset))
  gauge("read_side.lag.events", "Events that were read and are not in the view yet", behind)
  gauge("read_side.lag.seconds", "Age of the last event in the view, while there are later ones", () =>
    behind() === 0 || progress.stamp === 0
      ? 0
      : Math.max(0, clock.currentTimeMillisUnsafe() / 1000 - progress.stamp / 1e6)
  )
  gauge("read_side.parked", "Events that are put aside", () => progress.parked)
  gauge("read_side.failing", "1 while the shard stands still", () => (progress.failure === undefined ? 0 : 1))
  return () => {
    for (const registration of registrations) registration.remove()
  }
}
