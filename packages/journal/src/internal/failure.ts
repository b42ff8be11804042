/** The failures that several parts of the journal can have. */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Effect } from "effect"
import { DataCorrupt, DataLost, JournalClosed, JournalError, StoreFailure } from "../JournalError.ts"
import type { LogId } from "./store.ts"

export const nameOf = ({ entityType, shard }: LogId) => `${entityType} shard ${shard}`

export const storeFailure = (cause: CassandraError): JournalError =>
  new JournalError({ reason: new StoreFailure({ message: cause.message, cause }) })

export const closed = (): JournalError =>
  new JournalError({ reason: new JournalClosed({ message: "the journal is closing" }) })

export const lost = (log: LogId, what: string) => {
  const message = `data of ${nameOf(log)} was lost, or an older copy restored: ${what}`
  return Effect.fail(new JournalError({ reason: new DataLost({ ...log, message }) }))
}

export const corrupt = (log: LogId, what: string) => {
  const message = `the log of ${nameOf(log)} is damaged: ${what}`
  return Effect.fail(new JournalError({ reason: new DataCorrupt({ ...log, message }) }))
}
