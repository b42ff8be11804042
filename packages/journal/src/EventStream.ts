/**
 * Events as streams: of an entity, of a shard, of a whole entity type; those stored now (`current...`), or with those to
 * come. They are pulled: a slow consumer holds back the reading, and never the writers.
 *
 * Events come as they are stored. Those of the journal itself, whose types begin with "$", are among them, and so are
 * deleted ones, without payload.
 */
import {
  Array as Arr,
  DateTime,
  Effect,
  Option,
  Result,
  Schema,
  SchemaIssue,
  SchemaTransformation,
  Stream
} from "effect"
import { type EntityKey, type EventEnvelope, Journal } from "./Journal.ts"
import type { JournalError } from "./JournalError.ts"

/** Where a stream begins: after what was read already, or with the first event of a time or later; else at the first. */
export type From<After> =
  | { readonly after?: After | undefined; readonly since?: undefined }
  | { readonly after?: undefined; readonly since: DateTime.DateTime.Input }

/** How far an entity type was read. */
export interface Offset {
  /** The offsets are those of this epoch; a restore of the journal begins a new one. */
  readonly epoch: number
  /** For each shard the offset of the last event that was read, 0 before the first. */
  readonly shards: ReadonlyArray<number>
}

/** An event, and how far its entity type was read with it. */
export interface TypeEvent extends EventEnvelope {
  readonly position: Offset
}

/** An offset is not one of this journal, so it cannot be resumed from. */
export class InvalidOffset extends Schema.TaggedError<InvalidOffset>()("InvalidOffset", { message: Schema.String }) {}

// ---------------------------------------------------------------------------------------------------- offsets

/** An offset as text, as short as it can be and without characters that a URL or a header would escape: `1.0.2s.7`. */
export const formatOffset = ({ epoch, shards }: Offset): string =>
  shards.reduce((text, offset) => `${text}.${offset.toString(36)}`, epoch.toString(36))

/** The offset that `formatOffset` wrote; all other texts are refused. */
export const parseOffset = (text: string): Result.Result<Offset, InvalidOffset> => {
  const [epoch, ...shards] = text.split(".").map((part) => Number.parseInt(part, 36))
  const offset = { epoch: epoch!, shards }
  const numbers = [epoch!, ...shards]
  return shards.length > 0 && numbers.every((n) => Number.isSafeInteger(n) && n >= 0) && formatOffset(offset) === text
    ? Result.succeed(offset)
    : Result.fail(
        new InvalidOffset({
          message: `${JSON.stringify(text.slice(0, 100))} is not an offset: give one as it was received, or none to begin at the first event`
        })
      )
}

/** For the requests and responses of an API. */
export const OffsetFromString: Schema.Codec<Offset, string> = Schema.String.pipe(
  Schema.decodeTo(
    Schema.Struct({ epoch: Schema.Int, shards: Schema.Array(Schema.Int) }),
    SchemaTransformation.transformEffect({
      decode: (text, options) =>
        Effect.mapError(
          Effect.fromResult(parseOffset(text)),
          ({ message }) => new SchemaIssue.InvalidValue({ message }, text, options)
        ),
      encode: (offset) => Effect.succeed(formatOffset(offset))
    })
  )
)

const invalid = (message: string) => Effect.fail(new InvalidOffset({ message }))

/** The stamp from which on events are of that time or later. */
const stampOf = (time: DateTime.DateTime.Input): number => DateTime.toEpochMillis(DateTime.makeUnsafe(time)) * 1000

const ofAllShards = (entityType: string, offsetOf: (shard: number) => Effect.Effect<number, JournalError>) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    const epoch = yield* ((journal as any).epoch?.(entityType) ?? Effect.succeed(1)) as Effect.Effect<
      number,
      JournalError
    >
    const shards = yield* Effect.forEach(
      Array.from({ length: journal.shards }, (_, shard) => shard),
      offsetOf,
      {
        concurrency: 10
      }
    )
    return { epoch, shards } satisfies Offset
  })

/** The offset behind everything that is stored now: to follow only what is to come. */
export const currentOffset = (entityType: string): Effect.Effect<Offset, JournalError, Journal> =>
  Effect.flatMap(Journal, (journal) => ofAllShards(entityType, (shard) => journal.head(entityType, shard)))

/** The offset before the first event of a time or later: stamps increase in each shard, so it is found by bisection. */
export const offsetSince = (
  entityType: string,
  time: DateTime.DateTime.Input
): Effect.Effect<Offset, JournalError, Journal> =>
  Effect.flatMap(Journal, (journal) =>
    ofAllShards(entityType, (shard) => lastBefore(journal, entityType, shard, stampOf(time)))
  )

/** The offset of the last event of a shard with a smaller stamp. */
const lastBefore = Effect.fnUntraced(function* (
  journal: Journal["Service"],
  entityType: string,
  shard: number,
  stamp: number
) {
  // The last one with a smaller stamp is at `low` or later, and at `high` or before.
  let low = 0
  let high = yield* journal.head(entityType, shard)
  while (low < high) {
    const middle = Math.floor((low + high) / 2)
    const page = yield* journal.events(entityType, shard, middle).pipe(Stream.mapArray(Arr.of), Stream.runHead)
    const events = Option.getOrThrow(page)
    const smaller = events.findIndex((event) => event.stamp >= stamp)
    if (smaller === 0) high = middle
    else if (smaller > 0) return middle + smaller
    else low = events.at(-1)!.offset
  }
  return low
})

/**
 * The offset itself if it can be resumed from; else the reason why not. The streams check it too, with their first event:
 * this is for who must answer before.
 */
export const checkOffset = Effect.fnUntraced(function* (entityType: string, offset: Offset) {
  const { epoch, shards } = yield* currentOffset(entityType)
  const described = `the offset ${formatOffset(offset)} of ${entityType}`
  if (offset.epoch !== epoch) {
    return yield* invalid(
      `${described} is of epoch ${offset.epoch}, and the journal is in epoch ${epoch}, it was restored: begin at the first event, or since a time`
    )
  }
  if (offset.shards.length !== shards.length) {
    return yield* invalid(`${described} has ${offset.shards.length} shards, and this journal ${shards.length}`)
  }
  const beyond = offset.shards.findIndex((after, shard) => after < 0 || after > shards[shard]!)
  if (beyond >= 0) {
    return yield* invalid(
      `${described} says ${offset.shards[beyond]} for shard ${beyond}, whose last event has ${shards[beyond]}: it is not of this journal`
    )
  }
  return offset
})

// ------------------------------------------------------------------------------------------------------ types

type Read = "events" | "currentEvents"

/** An entity type's shards, each from where it begins. */
const shardsOf = Effect.fnUntraced(function* (read: Read, entityType: string, from: From<Offset>) {
  const journal = yield* Journal
  if (from.since !== undefined) {
    const start = yield* offsetSince(entityType, from.since)
    const stamp = stampOf(from.since)
    const streams = start.shards.map((after, shard) =>
      // What is appended before a time to come is still too early.
      Stream.dropWhile(journal[read](entityType, shard, after), (event) => event.stamp < stamp)
    )
    return { start, streams }
  }
  const start =
    from.after === undefined
      ? yield* ofAllShards(entityType, () => Effect.succeed(0))
      : yield* checkOffset(entityType, from.after)
  return { start, streams: start.shards.map((after, shard) => journal[read](entityType, shard, after)) }
})

/** Of every shard one page is read ahead at the most. */
const merged = <A, E, R>(streams: ReadonlyArray<Stream.Stream<A, E, R>>) =>
  Stream.mergeAll(streams, { concurrency: "unbounded", bufferSize: 1 })

const byType = (read: Read, entityType: string, from: From<Offset> = {}) =>
  Stream.unwrap(
    Effect.map(shardsOf(read, entityType, from), ({ start, streams }) => {
      const at = [...start.shards]
      return Stream.mapArray(merged(streams), (events) =>
        Arr.map(events, (event): TypeEvent => {
          at[event.shard] = event.offset
          return { ...event, position: { epoch: start.epoch, shards: at.slice() } }
        })
      )
    })
  )

/**
 * The events of all entities of a type, and those to come. The events of an entity, and all others of its shard, come in
 * their order; between shards there is none. Each has the position to resume after it.
 */
export const eventsByType = (
  entityType: string,
  from?: From<Offset>
): Stream.Stream<TypeEvent, JournalError | InvalidOffset, Journal> => byType("events", entityType, from)

/** The events of all entities of a type that are stored now, as `eventsByType` gives them. */
export const currentEventsByType = (
  entityType: string,
  from?: From<Offset>
): Stream.Stream<TypeEvent, JournalError | InvalidOffset, Journal> => byType("currentEvents", entityType, from)

const idsOf = (read: Read, entityType: string) =>
  Stream.unwrap(
    Effect.map(shardsOf(read, entityType, {}), ({ streams }) =>
      merged(streams.map(Stream.filter(({ sequence }) => sequence === 1)))
    )
  ).pipe(
    Stream.map(({ entityId }) => entityId),
    Stream.catchTag("InvalidOffset", Stream.die)
  )

/**
 * The ids of the entities of a type, each once, and those of entities to come; also of entities whose events were deleted.
 * It reads the whole log, for the first event of an entity is what tells of it.
 */
export const entityIds = (entityType: string): Stream.Stream<string, JournalError, Journal> =>
  idsOf("events", entityType)

/** The ids of the entities of a type that are there now, as `entityIds` gives them. */
export const currentEntityIds = (entityType: string): Stream.Stream<string, JournalError, Journal> =>
  idsOf("currentEvents", entityType)

// ------------------------------------------------------------------------------------------ shards and entities

const byShard = (read: Read, entityType: string, shard: number, from: From<number> = {}) =>
  Stream.unwrap(
    Effect.gen(function* () {
      const journal = yield* Journal
      if (from.since !== undefined) {
        const stamp = stampOf(from.since)
        const after = yield* lastBefore(journal, entityType, shard, stamp)
        return Stream.dropWhile(journal[read](entityType, shard, after), (event) => event.stamp < stamp)
      }
      const { after = 0 } = from
      const head = yield* journal.head(entityType, shard)
      if (!Number.isSafeInteger(after) || after < 0 || after > head) {
        return yield* invalid(`shard ${shard} of ${entityType} has no offset ${after}: its last event has ${head}`)
      }
      return journal[read](entityType, shard, after)
    })
  )

/** The events of a shard in their order, and those to come. */
export const eventsByShard = (
  entityType: string,
  shard: number,
  from?: From<number>
): Stream.Stream<EventEnvelope, JournalError | InvalidOffset, Journal> => byShard("events", entityType, shard, from)

/** The events of a shard that are stored now, in their order. */
export const currentEventsByShard = (
  entityType: string,
  shard: number,
  from?: From<number>
): Stream.Stream<EventEnvelope, JournalError | InvalidOffset, Journal> =>
  byShard("currentEvents", entityType, shard, from)

const byEntity = (read: Read, entity: EntityKey, from: From<number> = {}) =>
  Stream.unwrap(
    Effect.gen(function* () {
      const { entityId, entityType } = entity
      const journal = yield* Journal
      const loaded = yield* journal.load(entity, { snapshotsUpTo: 0 })
      const { after = 0 } = from
      if (!Number.isSafeInteger(after) || after < 0 || after > loaded.sequence) {
        return yield* invalid(`${entityType} "${entityId}" has no event ${after}: its last one is ${loaded.sequence}`)
      }
      const stamp = from.since === undefined ? 0 : stampOf(from.since)
      const stored = Stream.fromIterable(loaded.events)
      const all =
        read === "currentEvents"
          ? stored
          : Stream.concat(
              stored,
              Stream.filter(
                journal.events(entityType, journal.shardOf(entityId), loaded.validThrough),
                (event) => event.entityId === entityId
              )
            )
      return Stream.filter(all, (event) => event.sequence > after && event.stamp >= stamp)
    })
  )

/** The events of an entity, and those to come; `after` is a sequence number. */
export const eventsByEntity = (
  entity: EntityKey,
  from?: From<number>
): Stream.Stream<EventEnvelope, JournalError | InvalidOffset, Journal> => byEntity("events", entity, from)

/** The events of an entity that are stored now; `after` is a sequence number. */
export const currentEventsByEntity = (
  entity: EntityKey,
  from?: From<number>
): Stream.Stream<EventEnvelope, JournalError | InvalidOffset, Journal> => byEntity("currentEvents", entity, from)
