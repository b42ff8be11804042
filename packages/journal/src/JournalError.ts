/**
 * What can go wrong between a service and its journal: one error with a `reason`, each reason a class of its own.
 */
import { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Schema } from "effect"

const Entity = { entityType: Schema.String, entityId: Schema.String }
const Shard = { entityType: Schema.String, shard: Schema.Number }

/** The entity is not as the writer expected, so nothing was stored: load it again and decide again. */
export class SequenceConflict extends Schema.TaggedError<SequenceConflict>()("SequenceConflict", {
  ...Entity,
  /** As in the append: the sequence number that the writer took for the last one, "none" or "exists". */
  expected: Schema.Union([Schema.Number, Schema.String]),
  message: Schema.String
}) {}

/**
 * The cluster did not say in time whether the events were stored. They may be, now or a little later, once at the most:
 * load the entity to see.
 */
export class OutcomeUnknown extends Schema.TaggedError<OutcomeUnknown>()("OutcomeUnknown", {
  ...Entity,
  message: Schema.String
}) {}

/** An append is larger than the journal takes; nothing was stored. */
export class AppendTooLarge extends Schema.TaggedError<AppendTooLarge>()("AppendTooLarge", {
  ...Entity,
  message: Schema.String
}) {}

/** An append is not of the right form; nothing was stored. */
export class MalformedAppend extends Schema.TaggedError<MalformedAppend>()("MalformedAppend", {
  ...Entity,
  message: Schema.String
}) {}

/** A payload cannot be encoded, or cannot be read: its encoding is not among those given, or refuses it. */
export class EncodingFailure extends Schema.TaggedError<EncodingFailure>()("EncodingFailure", {
  ...Entity,
  encoding: Schema.String,
  message: Schema.String
}) {}

/** A setting differs from what was recorded when the entity type was first used. */
export class SettingsMismatch extends Schema.TaggedError<SettingsMismatch>()("SettingsMismatch", {
  entityType: Schema.String,
  setting: Schema.String,
  recorded: Schema.String,
  given: Schema.String,
  message: Schema.String
}) {}

/** What is stored has become less than it was: a restore of old data, or a loss. The shard takes no more events. */
export class DataLost extends Schema.TaggedError<DataLost>()("DataLost", { ...Shard, message: Schema.String }) {}

/** What is stored breaks a rule of the journal: a gap, a sequence number twice, text that is not JSON. */
export class DataCorrupt extends Schema.TaggedError<DataCorrupt>()("DataCorrupt", {
  ...Shard,
  message: Schema.String
}) {}

/** A clock is more than a minute off; events stamped by it would spoil the order for everyone. */
export class ClockSkew extends Schema.TaggedError<ClockSkew>()("ClockSkew", { message: Schema.String }) {}

/** An operation of `JournalAdmin` does not fit what is stored; nothing was changed. */
export class OperationRefused extends Schema.TaggedError<OperationRefused>()("OperationRefused", {
  message: Schema.String
}) {}

/** The journal is closing. */
export class JournalClosed extends Schema.TaggedError<JournalClosed>()("JournalClosed", { message: Schema.String }) {}

/** Cassandra refused or could not be reached; nothing was stored. */
export class StoreFailure extends Schema.TaggedError<StoreFailure>()("StoreFailure", {
  message: Schema.String,
  cause: CassandraError
}) {}

/** Why a request to the journal failed. */
export const Reason = Schema.Union([
  SequenceConflict,
  OutcomeUnknown,
  AppendTooLarge,
  MalformedAppend,
  EncodingFailure,
  SettingsMismatch,
  DataLost,
  DataCorrupt,
  ClockSkew,
  JournalClosed,
  OperationRefused,
  StoreFailure
])

/** Why a request to the journal failed. */
export type Reason = typeof Reason.Type

/** The error of every operation of a `Journal`. */
export class JournalError extends Schema.TaggedError<JournalError>()("JournalError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }
}
