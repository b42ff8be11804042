import type { Journal, LoadOptions } from "@effect-cassandra/journal/Journal"
import { Effect, Option, Result } from "effect"
import { EntityError, JournalFailure, UndecodableEvent } from "../EntityError.ts"
import type { Loaded } from "./instance.ts"
import type { Model } from "./model.ts"

/**
 * Brings an entity's state out of the journal: the newest snapshot that still fits the schema, and the events after it. To an
 * outdated state only the events after it are added, which the journal has in memory if others stored them just now; the
 * commands are those of these events then.
 */
export const recover = Effect.fnUntraced(function* <State>(
  model: Model<State>,
  journal: Journal["Service"],
  entityId: string,
  withCommands: boolean,
  outdated: Loaded<State> | undefined
): Effect.fn.Return<Loaded<State>, EntityError> {
  const { entityType } = model
  const load = (options?: LoadOptions) =>
    Effect.mapError(
      journal.load({ entityType, entityId }, { ...options, commands: withCommands }),
      (cause) =>
        new EntityError({ reason: new JournalFailure({ entityType, entityId, message: cause.message, cause }) })
    )
  let stored = yield* load({ after: outdated })
  let { state } = outdated ?? { state: model.initialState }
  if (outdated !== undefined && stored.deletedThrough > 0) {
    // Events that this state is made of were deleted.
    stored = yield* load()
    state = model.initialState
  }
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
    stored = yield* load({ snapshotsUpTo: sequence - 1 })
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
        answers: new Map([...stored.commands].map(([id, { answer }]) => [id, JSON.stringify(answer)] as const)),
        from: stored.commandsFrom
      }
    : undefined
  return { state, sequence: stored.sequence, validThrough: stored.validThrough, commands }
})
