/**
 * What can go wrong on the read side: one error with a `reason`, each reason a class of its own.
 */
import { JournalError } from "@effect-cassandra/journal/JournalError"
import { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Schema } from "effect"

const Event = { processor: Schema.String, entityId: Schema.String, eventType: Schema.String }

/** A handler gave a statement that cannot be executed twice with the same result, so it is not executed at all. */
export class StatementRefused extends Schema.TaggedError<StatementRefused>()("StatementRefused", {
  processor: Schema.String,
  statement: Schema.String,
  message: Schema.String
}) {}

/** A stored event does not fit the schema that the processor has for its type. */
export class UndecodableEvent extends Schema.TaggedError<UndecodableEvent>()("UndecodableEvent", {
  ...Event,
  shard: Schema.Number,
  offset: Schema.Number,
  message: Schema.String
}) {}

/** A stored state of a `Processor.fold` does not fit the schema of its states. */
export class UndecodableState extends Schema.TaggedError<UndecodableState>()("UndecodableState", {
  processor: Schema.String,
  message: Schema.String
}) {}

/** A handler threw, or its Effect failed. */
export class HandlerFailure extends Schema.TaggedError<HandlerFailure>()("HandlerFailure", {
  ...Event,
  message: Schema.String,
  cause: Schema.Defect()
}) {}

/** The stored offset is past the end of the log: the log was lost, or an older copy of it restored. */
export class DataLost extends Schema.TaggedError<DataLost>()("DataLost", {
  processor: Schema.String,
  entityType: Schema.String,
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

/** The SQL database of a processor refused, or could not be reached. */
export class SqlFailure extends Schema.TaggedError<SqlFailure>()("SqlFailure", {
  message: Schema.String,
  cause: Schema.Defect()
}) {}

/** There is no such processor, version or shard. */
export class Unknown extends Schema.TaggedError<Unknown>()("Unknown", { message: Schema.String }) {}

/** A view did not come as far in time as `awaitProjected` was to wait for. */
export class NotProjected extends Schema.TaggedError<NotProjected>()("NotProjected", {
  processor: Schema.String,
  message: Schema.String
}) {}

/** A request that cannot be carried out now; the message says why, and what to do first. */
export class RequestRefused extends Schema.TaggedError<RequestRefused>()("RequestRefused", {
  message: Schema.String
}) {}

/** Why a processor stands still, or a request could not be carried out. */
export const Reason = Schema.Union([
  StatementRefused,
  UndecodableEvent,
  UndecodableState,
  HandlerFailure,
  DataLost,
  StoreFailure,
  JournalFailure,
  SqlFailure,
  Unknown,
  NotProjected,
  RequestRefused
])

/** Why a processor stands still, or a request could not be carried out. */
export type Reason = typeof Reason.Type

/** The error of the read side. */
export class ReadSideError extends Schema.TaggedError<ReadSideError>()("ReadSideError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }
}
