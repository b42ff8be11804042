export * as CassandraProcess from "./CassandraProcess.ts"
export * as CassandraServer from "./CassandraServer.ts"
export * as CassandraServerError from "./CassandraServerError.ts"
export * as FaultProxy from "./FaultProxy.ts"
