import { PlainMetrics } from "@effect-cassandra/session/PlainMetrics"
import { Clock, Context } from "effect"
import type { Progress } from "./runner.ts"

/** Metrics of one shard of a processor, which are numbers that are kept anyway. Gives a function that takes them back. */
export const registerMetrics = (progress: Progress, services: Context.Context<never>): (() => void) => {
  const { entityType, processor, shard } = progress.place
  const clock = Context.get(services, Clock.Clock)
  const metrics = new PlainMetrics(services, { processor, entity_type: entityType, shard: String(shard) })
  const behind = () => Math.max(0, progress.reader.head - Math.max(0, progress.offset))
  metrics.counter("read_side.events", "Events that came into the view", () => progress.events)
  metrics.counter("read_side.batches", "Batches of events", () => progress.batches.count)
  metrics.counter("read_side.retries", "Tries after a failure", () => progress.retries)
  metrics.gauge("read_side.batch_size.max", "Events of the largest batch", () => progress.batches.max)
  metrics.gauge("read_side.offset", "Offset of the last event in the view", () => Math.max(0, progress.offset))
  metrics.gauge("read_side.lag.events", "Events that were read and are not in the view yet", behind)
  metrics.gauge("read_side.lag.seconds", "Age of the last event in the view, while there are later ones", () =>
    behind() === 0 || progress.stamp === 0
      ? 0
      : Math.max(0, clock.currentTimeMillisUnsafe() / 1000 - progress.stamp / 1e6)
  )
  metrics.gauge("read_side.parked", "Events that are put aside", () => progress.parked)
  metrics.gauge("read_side.failing", "1 while the shard stands still", () => (progress.failure === undefined ? 0 : 1))
  return () => metrics.close()
}
