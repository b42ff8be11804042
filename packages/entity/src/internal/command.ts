import { isDeepStrictEqual } from "node:util"
import type { LogPosition } from "@effect-cassandra/journal/Journal"
import { Context } from "effect"

/** How the commands of an effect are told apart from others, so that each is carried out once. */
export interface CommandIds {
  /** The id of a command; its scope is the entity that gets it. */
  readonly of: (tag: string) => string
  /** Whether an id that comes again must come with the same payload. */
  readonly strict: boolean
  /** Microseconds since the epoch, before which nobody can have given the command. */
  readonly since?: number
  /** The payloads of the commands given so far, by entity and id, where two of one id are known to be a mistake. */
  readonly given?: Map<string, unknown>
}

/** Whether a command with this id can be meant: false for a second one of an effect with another payload. */
export const isOwn = (
  { given }: CommandIds,
  entityType: string,
  entityId: string,
  id: string,
  payload: unknown
): boolean => {
  if (given === undefined) return true
  const name = JSON.stringify([entityType, entityId, id])
  if (given.has(name)) return isDeepStrictEqual(given.get(name), payload)
  given.set(name, payload)
  return true
}

/** The ids of the commands in an effect; without it they have none. */
export const CurrentCommandIds = Context.Reference<CommandIds | undefined>(
  "@effect-cassandra/entity/CurrentCommandIds",
  { defaultValue: () => undefined }
)

/** Where the place of the last command in an effect is noted. */
export interface Place {
  last: LogPosition | undefined
}

export const CurrentPlace = Context.Reference<Place | undefined>("@effect-cassandra/entity/CurrentPlace", {
  defaultValue: () => undefined
})
