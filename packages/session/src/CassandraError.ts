/**
 * What can go wrong between this process and Cassandra: one error with a `reason`, each reason a class of its own.
 */
import { Schema } from "effect"

const Fields = {
  message: Schema.String,
  cause: Schema.Defect()
}

const Answered = {
  ...Fields,
  consistency: Schema.optional(Schema.String),
  /** Replicas that had to answer. */
  required: Schema.optional(Schema.Number),
  /** Replicas that did. */
  received: Schema.optional(Schema.Number)
}

const Written = {
  ...Answered,
  writeType: Schema.optional(Schema.String)
}

/** The options do not fit together, or not the cluster. */
export class InvalidOptions extends Schema.TaggedError<InvalidOptions>()("InvalidOptions", Fields) {
  readonly isRetryable = false
}

/** No node could be reached, so the statement was not executed; an idempotent one may have been, by an earlier try. */
export class NoHostAvailable extends Schema.TaggedError<NoHostAvailable>()("NoHostAvailable", Fields) {
  readonly isRetryable = true
}

/** User or password were refused, or are missing. */
export class AuthenticationFailed extends Schema.TaggedError<AuthenticationFailed>()("AuthenticationFailed", Fields) {
  readonly isRetryable = false
}

/** The user may not do this. */
export class Unauthorized extends Schema.TaggedError<Unauthorized>()("Unauthorized", Fields) {
  readonly isRetryable = false
}

/** The keyspace of the session does not exist. */
export class KeyspaceMissing extends Schema.TaggedError<KeyspaceMissing>()("KeyspaceMissing", {
  ...Fields,
  keyspace: Schema.String
}) {
  readonly isRetryable = false
}

/** The server cannot make sense of the statement or its values. */
export class InvalidStatement extends Schema.TaggedError<InvalidStatement>()("InvalidStatement", Fields) {
  readonly isRetryable = false
}

/** The session was closed, and the statement was not executed. */
export class SessionClosed extends Schema.TaggedError<SessionClosed>()("SessionClosed", Fields) {
  readonly isRetryable = false
}

/** The table, type or keyspace to create exists. */
export class AlreadyExists extends Schema.TaggedError<AlreadyExists>()("AlreadyExists", {
  ...Fields,
  keyspace: Schema.String,
  /** Empty for a keyspace. */
  table: Schema.String
}) {
  readonly isRetryable = false
}

/** Not all nodes agreed on a change of the schema in time: it was made, and those nodes do not know it yet. */
export class SchemaDisagreement extends Schema.TaggedError<SchemaDisagreement>()("SchemaDisagreement", Fields) {
  readonly isRetryable = true
}

/** The keyspace belongs to another service, which alone may write into it. */
export class KeyspaceOwned extends Schema.TaggedError<KeyspaceOwned>()("KeyspaceOwned", {
  ...Fields,
  keyspace: Schema.String,
  owner: Schema.String
}) {
  readonly isRetryable = false
}

/** The session was opened for reading only. */
export class ReadOnly extends Schema.TaggedError<ReadOnly>()("ReadOnly", Fields) {
  readonly isRetryable = false
}

/** The batch spans several partitions and is larger than the server accepts; it was not sent. */
export class BatchTooLarge extends Schema.TaggedError<BatchTooLarge>()("BatchTooLarge", {
  ...Fields,
  /** Size of its values, in bytes. */
  bytes: Schema.Number,
  /** In bytes. */
  limit: Schema.Number
}) {
  readonly isRetryable = false
}

/** There was not exactly one row. */
export class UnexpectedRows extends Schema.TaggedError<UnexpectedRows>()("UnexpectedRows", {
  ...Fields,
  /** How many there were, counted up to 2. */
  rows: Schema.Number
}) {
  readonly isRetryable = false
}

/** A row does not fit the schema of its statement. */
export class RowMismatch extends Schema.TaggedError<RowMismatch>()("RowMismatch", Fields) {
  readonly isRetryable = false
}

/** Too many requests are under way and waiting, in this session or on the nodes; this one was not executed. */
export class Overloaded extends Schema.TaggedError<Overloaded>()("Overloaded", Fields) {
  readonly isRetryable = true
}

/** Too few replicas are alive for the consistency. */
export class Unavailable extends Schema.TaggedError<Unavailable>()("Unavailable", Answered) {
  readonly isRetryable = true
}

/** Too few replicas answered a read in time. */
export class ReadTimeout extends Schema.TaggedError<ReadTimeout>()("ReadTimeout", Answered) {
  readonly isRetryable = true
}

/** Too few replicas confirmed a write in time; it may still have happened. */
export class WriteTimeout extends Schema.TaggedError<WriteTimeout>()("WriteTimeout", Written) {
  readonly isRetryable = true
}

/** No answer came within the time-out of the request; a write may still happen. */
export class RequestTimeout extends Schema.TaggedError<RequestTimeout>()("RequestTimeout", Fields) {
  readonly isRetryable = true
}

/** The connection broke while the request was under way; a write may still happen. */
export class ConnectionLost extends Schema.TaggedError<ConnectionLost>()("ConnectionLost", Fields) {
  readonly isRetryable = true
}

/** The server reported an error of its own: bootstrapping, a failure on a replica. */
export class ServerFailure extends Schema.TaggedError<ServerFailure>()("ServerFailure", {
  ...Written,
  code: Schema.optional(Schema.Number),
  /** Replicas that failed. */
  failures: Schema.optional(Schema.Number)
}) {
  readonly isRetryable = true
}

/**
 * A conditional write got no answer that says whether it was applied: it may have been, and may still be later.
 * Only sending the identical statement again, or reading at a serial consistency after it can no longer be under way,
 * tells.
 */
export class OutcomeUnknown extends Schema.TaggedError<OutcomeUnknown>()("OutcomeUnknown", Written) {
  readonly isRetryable = false
}

/** Anything else, as what a function given to `use` threw. */
export class UnknownError extends Schema.TaggedError<UnknownError>()("UnknownError", Fields) {
  readonly isRetryable = false
}

/** Why a request failed. */
export const Reason = Schema.Union([
  InvalidOptions,
  NoHostAvailable,
  AuthenticationFailed,
  Unauthorized,
  KeyspaceMissing,
  InvalidStatement,
  AlreadyExists,
  SchemaDisagreement,
  KeyspaceOwned,
  ReadOnly,
  BatchTooLarge,
  UnexpectedRows,
  RowMismatch,
  SessionClosed,
  Overloaded,
  Unavailable,
  ReadTimeout,
  WriteTimeout,
  RequestTimeout,
  ConnectionLost,
  ServerFailure,
  OutcomeUnknown,
  UnknownError
])

/** Why a request failed. */
export type Reason = typeof Reason.Type

/**
 * The error of every operation of a `CassandraSession`; `Effect.catchReason("CassandraError", "WriteTimeout", ...)`
 * handles one reason.
 */
export class CassandraError extends Schema.TaggedError<CassandraError>()("CassandraError", { reason: Reason }) {
  override get message(): string {
    return `${this.reason._tag}: ${this.reason.message}`
  }

  /** Whether the same request may succeed later. A write that is not idempotent may then be executed twice. */
  get isRetryable(): boolean {
    return this.reason.isRetryable
  }
}
