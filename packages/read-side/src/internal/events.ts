/**
 * From stored events to those that a processor has schemas for.
 */
import { type EventSchema, make as makeEventCodec } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import { Result } from "effect"
import { ReadSideError, UndecodableEvent } from "../ReadSideError.ts"

/** The events that a stored one is today: mostly one, none where it is passed over. */
export type Decode<Event> = (envelope: EventEnvelope) => Result.Result<ReadonlyArray<Event>, ReadSideError>

/** Of the journal's own events, which are passed over, the one that a processor may have a handler for. */
const deletedType = "$deleted"

const none = Result.succeed([])

/** For events of the given types; all that the schemas have when left out. */
export const makeDecode = <const Event extends EventSchema>(
  processor: string,
  events: ReadonlyArray<Event>,
  types?: ReadonlyArray<string>
): Decode<Event["Type"]> => {
  const known = makeEventCodec(events).types
  const wanted = types ?? known
  for (const type of wanted) {
    if (type !== deletedType && !known.includes(type)) {
      throw new Error(
        `processor "${processor}" has a handler for ${type}, which is not among its events: ${known.join(", ")}`
      )
    }
  }
  const codec = makeEventCodec(events, { only: wanted.filter((type) => type !== deletedType) })
  return (envelope) => {
    const { deleted, entityId, entityType, offset, payload, sequence, shard, type, version } = envelope
    if (type.startsWith("$")) {
      return type === deletedType && wanted.includes(type)
        ? Result.succeed([{ _tag: type, ...(payload as object) }])
        : none
    }
    if (deleted) return none
    const decoded = codec.decode(type, payload, version)
    if (Result.isSuccess(decoded)) return Result.succeed(decoded.success)
    const message = `event ${sequence} of ${entityType} "${entityId}" is a ${type}, for processor "${processor}": ${decoded.failure}`
    return Result.fail(
      new ReadSideError({
        reason: new UndecodableEvent({ processor, entityId, eventType: type, shard, offset, message })
      })
    )
  }
}
