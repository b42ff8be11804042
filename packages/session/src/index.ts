export * as CassandraError from "./CassandraError.ts"
export * as CassandraSession from "./CassandraSession.ts"
export * as Statement from "./Statement.ts"
