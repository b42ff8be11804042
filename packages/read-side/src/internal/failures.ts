import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Cause } from "effect"
import { HandlerFailure, JournalFailure, ReadSideError, StoreFailure } from "../ReadSideError.ts"

export const storeFailure = (cause: CassandraError): ReadSideError =>
  new ReadSideError({ reason: new StoreFailure({ message: cause.message, cause }) })

export const journalFailure = (cause: JournalError): ReadSideError =>
  new ReadSideError({ reason: new JournalFailure({ message: cause.message, cause }) })

/** Whether trying again may help without anybody's doing; such a failure is no event's fault. */
export const mayPass = ({ reason }: ReadSideError): boolean =>
  reason._tag === "JournalFailure" || (reason._tag === "StoreFailure" && reason.cause.isRetryable)

/** A failure or defect of an Effect that was run for an event; one of the read side stays what it is. */
export const handlerFailure = (
  processor: string,
  { entityId, sequence, type }: EventEnvelope,
  cause: Cause.Cause<unknown>
): ReadSideError => {
  const failure = Cause.squash(cause)
  if (failure instanceof ReadSideError) return failure
  const said = failure instanceof Error ? failure.message : String(failure)
  const message = `the handler for ${type} of processor "${processor}" failed at event ${sequence} of "${entityId}": ${said}`
  return new ReadSideError({
    reason: new HandlerFailure({ processor, entityId, eventType: type, message, cause: failure })
  })
}
