export * as CassandraServer from "./CassandraServer.ts"
export * as CassandraServerError from "./CassandraServerError.ts"
