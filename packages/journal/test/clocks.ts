import { type Clock, Effect } from "effect"

/** A clock whose time of day is off by so much, at once; elapsed time stays what it is. */
export const setOff = (clock: Clock.Clock, millis: () => number): Clock.Clock => ({
  currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe() + millis(),
  currentTimeMillis: Effect.map(clock.currentTimeMillis, (now) => now + millis()),
  currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe() + BigInt(millis()) * 1_000_000n,
  currentTimeNanos: Effect.map(clock.currentTimeNanos, (now) => now + BigInt(millis()) * 1_000_000n),
  monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe(),
  monotonicTimeNanos: clock.monotonicTimeNanos,
  sleep: (duration) => clock.sleep(duration)
})
