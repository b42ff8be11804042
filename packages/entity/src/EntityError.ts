/**
 * What can go wrong between a caller and an entity, beside the errors that its commands declare.
 */
import { JournalError } from "@effect-cassandra/journal/JournalError"
import { Schema } from "effect"

const Entity = { entityType: Schema.String, entityId: Schema.String, message: Schema.String }
const Command = { ...Entity, command: Schema.String }
/** Whether the command's events are stored: `"no"`, or `"unknown"` when the journal had them already. */
const Stored = Schema.Literals(["no", "unknown"])

/** The payload of a command does not fit its schema. */
export class MalformedCommand extends Schema.TaggedError<MalformedCommand>()("MalformedCommand", Command) {}

/** A stored event is of an unknown type or does not fit its schema, so the entity's state cannot be known. */
export class UndecodableEvent extends Schema.TaggedError<UndecodableEvent>()("UndecodableEvent", {
  ...Entity,
  eventType: Schema.String,
  sequence: Schema.Number
}) {}

/** Another process kept storing events of the entity; the command was decided anew several times and not stored. */
export class TooManyConflicts extends Schema.TaggedError<TooManyConflicts>()("TooManyConflicts", Entity) {}

/** So many commands of the entity wait already that this one was not accepted: try later, or raise `mailboxSize`. */
export class MailboxFull extends Schema.TaggedError<MailboxFull>()("MailboxFull", {
  ...Command,
  /** Commands that wait. */
  size: Schema.Number
}) {}

/** The command was not answered in time (`askTimeout`). */
export class CommandTimeout extends Schema.TaggedError<CommandTimeout>()("CommandTimeout", {
  ...Command,
  /** How long the caller waited. */
  millis: Schema.Number,
  stored: Stored
}) {}

/** The entity could not be loaded in time (`recoveryTimeout`). */
export class RecoveryTimeout extends Schema.TaggedError<RecoveryTimeout>()("RecoveryTimeout", {
  ...Entity,
  millis: Schema.Number
}) {}

/** The entities of this process are closing; commands that they had accepted before are finished, if time allows. */
export class EntitiesClosed extends Schema.TaggedError<EntitiesClosed>()("EntitiesClosed", {
  ...Command,
  stored: Stored
}) {}

/** The connection to the process that has the entity was lost before it answered (`CommandRouting`). */
export class ConnectionLost extends Schema.TaggedError<ConnectionLost>()("ConnectionLost", {
  ...Command,
  stored: Stored
}) {}

/** The id of the command was given to another command of the entity before, or to the same one with another payload. */
export class CommandIdReused extends Schema.TaggedError<CommandIdReused>()("CommandIdReused", {
  ...Command,
  commandId: Schema.String
}) {}

/**
 * The command may have been carried out before, and the entity has had so many events since that it does not know: the
 * journal's `commandWindow` is too small. It is not carried out.
 */
export class CommandTooOld extends Schema.TaggedError<CommandTooOld>()("CommandTooOld", {
  ...Command,
  commandId: Schema.String
}) {}

/** The command was carried out before, and its first answer no longer fits the schemas of the command. */
export class UndecodableAnswer extends Schema.TaggedError<UndecodableAnswer>()("UndecodableAnswer", {
  ...Command,
  commandId: Schema.String
}) {}

/** The journal could not do its part; its reason says whether the events may have been stored. */
export class JournalFailure extends Schema.TaggedError<JournalFailure>()("JournalFailure", {
  ...Entity,
  cause: JournalError
}) {}

/** Why a command got no answer from the entity. */
export const Reason = Schema.Union([
  MalformedCommand,
  UndecodableEvent,
  TooManyConflicts,
  MailboxFull,
  CommandTimeout,
  RecoveryTimeout,
  EntitiesClosed,
  ConnectionLost,
  CommandIdReused,
  CommandTooOld,
  UndecodableAnswer,
  JournalFailure
])

/** Why a command got no answer from the entity. */
export type Reason = typeof Reason.Type

/** The error of every command, beside those that the command declares. */
export class EntityError extends Schema.TaggedError<EntityError>()("EntityError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }

  /** The events of the command may have been stored all the same; otherwise they surely were not. */
  get maybeStored(): boolean {
    const { reason } = this
    return reason._tag === "CommandTimeout" || reason._tag === "EntitiesClosed" || reason._tag === "ConnectionLost"
      ? reason.stored === "unknown"
      : reason._tag === "JournalFailure" && reason.cause.reason._tag === "OutcomeUnknown"
  }
}
