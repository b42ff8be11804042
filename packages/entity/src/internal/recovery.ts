import type { Journal } from "@effect-cassandra/journal/Journal"
import { Effect, Option, Result } from "effect"
import { EntityError, JournalFailure, UndecodableEvent } from "../EntityError.ts"
import type { Loaded } from "./instance.ts"
import type { Model } from "./model.ts"

/** Brings an entity's state out of the journal: the newest snapshot that still fits the schema, and the events after it. */
export const recover = <State>(
  model: Model<State>,
  journal: Journal["Service"],
  entityId: string,
  withCommands: boolean
): Effect.Effect<Loaded<State>, EntityError> => {
  const { entityType } = model
  const load = (snapshotsUpTo?: number) =>
    Effect.mapError(
      journal.load({ entityType, entityId }, { snapshotsUpTo, commands: withCommands }),
      (cause) =>
        new EntityError({ reason: new JournalFailure({ entityType, entityId, message: cause.message, cause }) })
    )
  return Effect.gen(function* () {
    let stored = yield* load()
    let state = model.initialState
    while (Option.isSome(stored.snapshot)) {
      const { sequence, state: encoded } = stored.snapshot.value
      const saved = model.decodeState(encoded)
      if (Result.isSuccess(saved)) {
        state = saved.success
        break
      }
      yield* Effect.logWarning(
        `the snapshot of ${entityType} "${entityId}" at ${sequence} does not fit the state's schema, so it is passed over: ${saved.failure}`
      )
      stored = yield* load(sequence - 1)
    }
    for (const { deleted, payload, sequence, type, version } of stored.events) {
      // Deleted events, and the journal's own, change no state.
      if (deleted || type.startsWith("$")) continue
      const event = model.events.decode(type, payload, version)
      if (Result.isFailure(event)) {
        const message = `event ${sequence} of ${entityType} "${entityId}" is a ${type}: ${event.failure}`
        return yield* new EntityError({
          reason: new UndecodableEvent({ entityType, entityId, eventType: type, sequence, message })
        })
      }
      for (const one of event.success) state = model.apply(state, one)
    }
    const commands = withCommands
      ? {
          answers: new Map([...stored.commands].map(([id, { answer }]) => [id, answer] as const)),
          from: stored.commandsFrom
        }
      : undefined
    return { state, sequence: stored.sequence, validThrough: stored.validThrough, commands }
  })
}
