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
