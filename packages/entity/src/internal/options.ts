import { Config, Duration, Effect, Option } from "effect"
import type { Options } from "../PersistentEntity.ts"

const optional = <A>(config: Config.Config<A>) => Config.withDefault(config, undefined)

const fields = {
  snapshotEvery: optional(Config.orElse(Config.Literal("never", "snapshotEvery"), () => Config.Int("snapshotEvery"))),
  snapshotsKept: optional(Config.Int("snapshotsKept")),
  passivateAfter: optional(Config.Duration("passivateAfter")),
  maxEntities: optional(Config.Int("maxEntities")),
  maxConflicts: optional(Config.Int("maxConflicts")),
  mailboxSize: optional(Config.Int("mailboxSize")),
  askTimeout: optional(Config.Duration("askTimeout")),
  maxRecoveries: optional(Config.Int("maxRecoveries")),
  recoveryTimeout: optional(Config.Duration("recoveryTimeout")),
  restartBackOff: optional(Config.Duration("restartBackOff")),
  maxRestartBackOff: optional(Config.Duration("maxRestartBackOff")),
  shutdownTimeout: optional(Config.Duration("shutdownTimeout")),
  react: optional(Config.Boolean("react")),
  spanEntityId: optional(Config.Boolean("spanEntityId"))
} satisfies { readonly [K in keyof Required<Options>]: Config.Config<Options[K]> }

export const config: Config.Config<Options> = Config.all(fields)

/** Options with their defaults; durations in milliseconds. */
export const settings = Effect.fnUntraced(function* (entityType: string, options: Options) {
  const count = Effect.fnUntraced(function* (name: keyof Options, value: number, min: number) {
    if (Number.isInteger(value) && value >= min) return value
    return yield* Effect.die(
      new RangeError(`${entityType}: ${name} is ${value}, it must be a whole number from ${min} on`)
    )
  })
  const millis = Effect.fnUntraced(function* (name: keyof Options, input: Duration.Input) {
    const duration = Duration.fromInput(input)
    if (Option.isSome(duration) && !Duration.isNegative(duration.value)) return Duration.toMillis(duration.value)
    return yield* Effect.die(
      new RangeError(`${entityType}: ${name} is ${JSON.stringify(input)}, it must be a duration, as "5 seconds"`)
    )
  })
  return {
    snapshotEvery:
      options.snapshotEvery === "never"
        ? Number.POSITIVE_INFINITY
        : yield* count("snapshotEvery", options.snapshotEvery ?? 100, 1),
    snapshotsKept: yield* count("snapshotsKept", options.snapshotsKept ?? 3, 1),
    passivateAfter: yield* millis("passivateAfter", options.passivateAfter ?? "2 minutes"),
    maxEntities: yield* count("maxEntities", options.maxEntities ?? 100_000, 1),
    maxConflicts: yield* count("maxConflicts", options.maxConflicts ?? 50, 0),
    mailboxSize: yield* count("mailboxSize", options.mailboxSize ?? 1000, 1),
    askTimeout: yield* millis("askTimeout", options.askTimeout ?? "30 seconds"),
    maxRecoveries: yield* count("maxRecoveries", options.maxRecoveries ?? 100, 1),
    recoveryTimeout: yield* millis("recoveryTimeout", options.recoveryTimeout ?? "20 seconds"),
    restartBackOff: yield* millis("restartBackOff", options.restartBackOff ?? "100 millis"),
    maxRestartBackOff: yield* millis("maxRestartBackOff", options.maxRestartBackOff ?? "10 seconds"),
    shutdownTimeout: yield* millis("shutdownTimeout", options.shutdownTimeout ?? "20 seconds"),
    react: options.react ?? true,
    spanEntityId: options.spanEntityId ?? false
  }
})

export type Settings = Effect.Success<ReturnType<typeof settings>>
