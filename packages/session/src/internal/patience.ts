/** How a session waits for a cluster that is not wholly up. */
import { Duration, Effect, Schedule } from "effect"
import type { CassandraError } from "../CassandraError.ts"
import { millisOf, type Settings } from "./options.ts"

export const pauses = Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("2 seconds")])

/** For how long to try, as the log tells it. */
export const untilOf = ({ connectTimeout }: Settings) =>
  Duration.isFinite(Duration.fromInputUnsafe(connectTimeout))
    ? `for ${millisOf(connectTimeout) / 1000} s`
    : "until it does"

/**
 * Tries steps of a start, which may all be done twice, again while the cluster is not wholly up, for as long as the session
 * waits for one.
 */
export const patiently = <A>(options: Settings, step: Effect.Effect<A, CassandraError>) =>
  Effect.suspend(() => {
    const within = millisOf(options.connectTimeout)
    if (within === 0) return step
    let told = false
    return step.pipe(
      Effect.tapError((error) => {
        if (told || !error.isRetryable) return Effect.void
        told = true
        return Effect.logWarning(`the cluster does not answer as it must: ${error.message}. Trying ${untilOf(options)}`)
      }),
      Effect.retry({ schedule: pauses.pipe(Schedule.upTo({ duration: within })), while: (error) => error.isRetryable })
    )
  })
