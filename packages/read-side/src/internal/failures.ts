import type { JournalError } from "@effect-cassandra/journal/JournalError"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { JournalFailure, ReadSideError, StoreFailure } from "../ReadSideError.ts"

export const storeFailure = (cause: CassandraError): ReadSideError =>
  new ReadSideError({ reason: new StoreFailure({ message: cause.message, cause }) })

export const journalFailure = (cause: JournalError): ReadSideError =>
  new ReadSideError({ reason: new JournalFailure({ message: cause.message, cause }) })

/** Whether trying again may help without anybody's doing; such a failure is no event's fault. */
export const mayPass = ({ reason }: ReadSideError): boolean =>
  reason._tag === "JournalFailure" || (reason._tag === "StoreFailure" && reason.cause.isRetryable)
