/**
 * What can go wrong between a caller and an entity, beside the errors that its commands declare.
 */
import { JournalError } from "@effect-cassandra/journal/JournalError"
import { Schema } from "effect"

const Entity = { entityType: Schema.String, entityId: Schema.String, message: Schema.String }

/** The command is not one of the entity's, or its payload does not fit the schema. */
export class MalformedCommand extends Schema.TaggedError<MalformedCommand>()("MalformedCommand", {
  ...Entity,
  command: Schema.String
}) {}

/** A stored event is of an unknown type or does not fit its schema, so the entity's state cannot be known. */
export class UndecodableEvent extends Schema.TaggedError<UndecodableEvent>()("UndecodableEvent", {
  ...Entity,
  eventType: Schema.String,
  sequence: Schema.Number
}) {}

/** Another process kept storing events of the entity; the command was decided anew several times and not stored. */
export class TooManyConflicts extends Schema.TaggedError<TooManyConflicts>()("TooManyConflicts", Entity) {}

/** The journal could not do its part; its reason says whether the events may have been stored. */
export class JournalFailure extends Schema.TaggedError<JournalFailure>()("JournalFailure", {
  ...Entity,
  cause: JournalError
}) {}

/** Why a command got no answer from the entity. */
export const Reason = Schema.Union([MalformedCommand, UndecodableEvent, TooManyConflicts, JournalFailure])

/** Why a command got no answer from the entity. */
export type Reason = typeof Reason.Type

/** The error of every command, beside those that the command declares. */
export class EntityError extends Schema.TaggedError<EntityError>()("EntityError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }
}
