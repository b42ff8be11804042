/**
 * Why there is no Cassandra to work with.
 */
import { Schema } from "effect"

/** No Cassandra could be found or started; the message says what was looked for, and what to install or set. */
export class CassandraServerError extends Schema.TaggedError<CassandraServerError>()("CassandraServerError", {
  message: Schema.String
}) {}
