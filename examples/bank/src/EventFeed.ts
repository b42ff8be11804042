import * as EventStream from "@effect-cassandra/journal/EventStream"
import { Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { Array as Arr, Context, type DateTime, Deferred, type Duration, Effect, Layer, Schema, Stream } from "effect"
import * as Sse from "effect/encoding/Sse"
import { HttpServerResponse } from "effect/http"
import { HttpApiBuilder } from "effect/http-api"
import { Account } from "./Account.ts"
import { BankApi, BankUnavailable, FeedEvent, MalformedRequest } from "./Api.ts"

/** The open responses of the feed; they would hold up the end of the server, for they have none of their own. */
export class OpenFeeds extends Context.Service<OpenFeeds, { readonly closed: Deferred.Deferred<void> }>()(
  "bank/OpenFeeds"
) {
  static readonly layer = Layer.effect(
    OpenFeeds,
    Effect.map(Deferred.make<void>(), (closed) => ({ closed }))
  )

  /** Ends them before what lies below is closed. */
  static readonly closing = Layer.effectDiscard(
    Effect.flatMap(OpenFeeds, ({ closed }) => Effect.addFinalizer(() => Deferred.succeed(closed, undefined)))
  )
}

const encode = Schema.encodeSync(Schema.fromJsonString(FeedEvent))

const toFeedEvent = (event: EventStream.TypeEvent): typeof FeedEvent.Type => ({
  position: event.position,
  account: event.entityId,
  sequence: event.sequence,
  time: new Date(event.stamp / 1000).toISOString(),
  type: event.type,
  version: event.version,
  metadata: event.metadata as (typeof FeedEvent.Type)["metadata"],
  payload: event.payload as Schema.Json
})

interface Format {
  readonly contentType: string
  readonly event: (event: EventStream.TypeEvent) => string
  /** What tells a client, and all that stand between, that the connection lives; readers pass over it. */
  readonly alive: string
}

const sse: Format = {
  contentType: "text/event-stream",
  event: (event) =>
    Sse.encoder.write({
      _tag: "Event",
      id: EventStream.formatOffset(event.position),
      event: event.type,
      data: encode(toFeedEvent(event))
    }),
  alive: ":\n\n"
}

const ndjson: Format = {
  contentType: "application/x-ndjson",
  event: (event) => `${encode(toFeedEvent(event))}\n`,
  alive: "\n"
}

interface Request {
  readonly query: {
    readonly after?: EventStream.Offset | undefined
    readonly since?: DateTime.Utc | undefined
    readonly live?: "true" | "false" | undefined
  }
  readonly headers: { readonly "last-event-id"?: EventStream.Offset | undefined }
}

/** Not what the journal keeps for itself, nor events without payload; but that they were deleted. */
const shown = ({ deleted, type }: EventStream.TypeEvent) => !deleted && (!type.startsWith("$") || type === "$deleted")

/** The feed's part of the API; a sign of life is sent this often. */
export const EventFeed = (alive: Duration.Input = "15 seconds") =>
  HttpApiBuilder.group(
    BankApi,
    "feed",
    Effect.fn(function* (handlers) {
      const journal = yield* Journal
      const { closed } = yield* OpenFeeds
      const unavailable = (error: JournalError) =>
        Effect.andThen(
          Effect.logError(error),
          Effect.fail(new BankUnavailable({ message: "the bank cannot read its events now: try again later" }))
        )

      const respond = (format: Format) =>
        Effect.fnUntraced(
          function* ({ headers, query }: Request) {
            // A client that reconnects sends both, its first request and how far it has come.
            const after = headers["last-event-id"] ?? query.after
            if (query.after !== undefined && query.since !== undefined) {
              return yield* new MalformedRequest({ message: "give one of `after` and `since`" })
            }
            if (after !== undefined) yield* EventStream.checkOffset(Account.type, after)
            const from = after === undefined && query.since !== undefined ? { since: query.since } : { after }
            const live = query.live !== "false"
            const events = (live ? EventStream.eventsByType : EventStream.currentEventsByType)(Account.type, from).pipe(
              Stream.tapError((error) => Effect.logError("an event feed broke off", error)),
              Stream.filter(shown),
              Stream.mapArray((events) => Arr.of(events.map(format.event).join(""))),
              Stream.provideService(Journal, journal)
            )
            const text = live
              ? Stream.merge(
                  events,
                  Stream.map(Stream.tick(alive), () => format.alive),
                  { haltStrategy: "left" }
                ).pipe(Stream.interruptWhen(Deferred.await(closed)))
              : events
            return HttpServerResponse.stream(Stream.encodeText(text), {
              contentType: format.contentType,
              headers: { "cache-control": "no-store", "x-accel-buffering": "no" }
            })
          },
          Effect.catchTags({
            InvalidOffset: ({ message }) => Effect.fail(new MalformedRequest({ message })),
            JournalError: unavailable
          }),
          Effect.provideService(Journal, journal)
        )

      return handlers.handleRaw("sse", respond(sse)).handleRaw("ndjson", respond(ndjson))
    })
  )
