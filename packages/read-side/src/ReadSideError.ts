/**
 * What can go wrong on the read side.
 */

import { JournalError } from "@effect-cassandra/journal/JournalError"
import { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Schema } from "effect"

/** A handler gave a statement that cannot be executed twice with the same result, so it is not executed at all. */
export class StatementRefused extends Schema.TaggedError<StatementRefused>()("StatementRefused", {
  processor: Schema.String,
  statement: Schema.String,
  message: Schema.String
}) {}

/** A stored event does not fit the schema that the processor has for its type. */
export class UndecodableEvent extends Schema.TaggedError<UndecodableEvent>()("UndecodableEvent", {
  processor: Schema.String,
  entityId: Schema.String,
  eventType: Schema.String,
  shard: Schema.Number,
  offset: Schema.Number,
  message: Schema.String
}) {}

/** A handler threw. */
export class HandlerFailure extends Schema.TaggedError<HandlerFailure>()("HandlerFailure", {
  processor: Schema.String,
  entityId: Schema.String,
  eventType: Schema.String,
  message: Schema.String,
  cause: Schema.Defect()
}) {}

/** The stored offset is past the end of the log: the log was lost, or an older copy of it restored. */
export class DataLost extends Schema.TaggedError<DataLost>()("DataLost", {
  processor: Schema.String,
  shard: Schema.Number,
  message: Schema.String
}) {}

/** Cassandra refused, or could not be reached. */
export class StoreFailure extends Schema.TaggedError<StoreFailure>()("StoreFailure", {
  message: Schema.String,
  cause: CassandraError
}) {}

/** The journal could not be read. */
export class JournalFailure extends Schema.TaggedError<JournalFailure>()("JournalFailure", {
  message: Schema.String,
  cause: JournalError
}) {}

/** Why a processor stands still, or could not start. */
export const Reason = Schema.Union([
  StatementRefused,
  UndecodableEvent,
  HandlerFailure,
  DataLost,
  StoreFailure,
  JournalFailure
])

/** Why a processor stands still, or could not start. */
export type Reason = typeof Reason.Type

/** The error of the read side. */
export class ReadSideError extends Schema.TaggedError<ReadSideError>()("ReadSideError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }
}
