/**
 * Processors that run an Effect for each event, or for groups of events.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import { Cause, Context, Duration, Effect, Result } from "effect"
import type { Delivery, FailurePolicy, Handlers, Received } from "../Processor.ts"
import { makeClaims } from "./claims.ts"
import { makeDecode } from "./events.ts"
import { handlerFailure, storeFailure } from "./failures.ts"
import type { Failure, Open, Outcome } from "./sink.ts"

/** The Effect's failure or defect; an interruption goes on as such. */
const failureOf = <R>(
  effect: Effect.Effect<unknown, unknown, R>
): Effect.Effect<Cause.Cause<unknown> | undefined, never, R> =>
  Effect.matchCauseEffect(effect, {
    onSuccess: () => Effect.succeed(undefined),
    onFailure: (cause) =>
      Cause.hasInterrupts(cause) ? Effect.failCause(cause as Cause.Cause<never>) : Effect.succeed(cause)
  })

/** Gives an Effect the services of a layer, under those of who runs it: the span of the batch stays the parent. */
export const provideBelow =
  <R>(services: Context.Context<R>) =>
  <A, E>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E> =>
    Effect.updateContext(self, (current: Context.Context<never>) => Context.merge(services, current))

interface EffectsDefinition<R> {
  readonly events: ReadonlyArray<EventSchema>
  readonly handlers: Handlers<any, Effect.Effect<unknown, unknown, R>>
  readonly delivery?: Delivery | undefined
}

export const openEffects = <R>(name: string, definition: EffectsDefinition<R>): Open<R> => {
  const decode = makeDecode(name, definition.events, Object.keys(definition.handlers))
  const handlers = definition.handlers as Record<
    string,
    (event: unknown, envelope: EventEnvelope) => Effect.Effect<unknown, unknown, R>
  >

  return Effect.fnUntraced(function* ({ epoch, place, session }) {
    const context = yield* Effect.context<R>()
    const claims = definition.delivery === "at-most-once" ? makeClaims(session, place) : undefined

    /** Runs the handler for one event; undefined when there is none. */
    const run = (envelope: EventEnvelope) => {
      const decoded = decode(envelope)
      if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
      const events = decoded.success.filter((event) => handlers[event._tag] !== undefined)
      if (events.length === 0) return Result.succeed(undefined)
      return Result.succeed(
        Effect.forEach(events, (event) => Effect.suspend(() => handlers[event._tag]!(event, envelope)), {
          discard: true
        }).pipe(provideBelow(context), failureOf)
      )
    }

    const handle = Effect.fnUntraced(function* (events: ReadonlyArray<EventEnvelope>, retried: boolean) {
      let done = events[0]!.offset - 1
      let written = 0
      for (const event of events) {
        const effect = run(event)
        if (Result.isFailure(effect)) return { done, written, failure: { error: effect.failure, event } }
        if (effect.success !== undefined) {
          if (claims !== undefined && !retried) {
            const claimed = yield* Effect.result(claims.claim({ epoch, offset: event.offset }))
            if (Result.isFailure(claimed)) {
              return { done, written, failure: { error: storeFailure(claimed.failure), event: undefined } }
            }
            if (!claimed.success) {
              done = event.offset
              continue
            }
          }
          written++
          const cause = yield* effect.success
          if (cause !== undefined)
            return { done, written, failure: { error: handlerFailure(name, event, cause), event } }
        }
        done = event.offset
      }
      return { done, written } satisfies Outcome
    })

    return claims === undefined
      ? { handle }
      : {
          handle,
          reached: Effect.mapError(claims.reached, storeFailure),
          neverAgain: true
        }
  })
}

interface GroupsDefinition<R> {
  readonly events: ReadonlyArray<EventSchema>
  readonly handle: (events: ReadonlyArray<Received<any>>) => Effect.Effect<unknown, unknown, R>
  readonly size?: number | undefined
  readonly within?: Duration.Input | undefined
  readonly onFailure?: FailurePolicy | undefined
}

export const openGroups = <R>(name: string, definition: GroupsDefinition<R>): Open<R> => {
  const decode = makeDecode(name, definition.events)
  const size = definition.size ?? 100
  const withinMillis = Duration.toMillis(definition.within ?? "1 second")
  const parks = typeof definition.onFailure === "object"
  if (!Number.isInteger(size) || size < 1)
    throw new Error(`processor "${name}" has groups of ${size} events: give 1 or more`)
  if (!(withinMillis >= 0)) throw new Error(`processor "${name}" waits ${withinMillis} ms for a group: give 0 or more`)

  return Effect.fnUntraced(function* () {
    const context = yield* Effect.context<R>()
    const handle: (events: ReadonlyArray<EventEnvelope>, most: number) => Effect.Effect<Outcome> = Effect.fnUntraced(
      function* (events, most) {
        let done = events[0]!.offset - 1
        let written = 0
        for (let i = 0; i < events.length; i += most) {
          const group = events.slice(i, i + most)
          const received: Array<Received<unknown>> = []
          let through = group.at(-1)!.offset
          let failure: Failure | undefined
          for (const envelope of group) {
            const decoded = decode(envelope)
            if (Result.isFailure(decoded)) {
              // Those before it are a group of their own.
              failure = { error: decoded.failure, event: envelope }
              through = envelope.offset - 1
              break
            }
            for (const event of decoded.success) received.push({ event, envelope })
          }
          if (received.length > 0) {
            const cause = yield* Effect.suspend(() => definition.handle(received)).pipe(
              provideBelow(context),
              failureOf
            )
            if (cause !== undefined) {
              const first = received[0]!.envelope
              const single = first === received.at(-1)!.envelope
              if (single || !parks) {
                const error = handlerFailure(name, first, cause)
                return { done: first.offset - 1, written, failure: { error, event: single ? first : undefined } }
              }
              const good = group.filter(({ offset }) => offset <= through)
              const outcome = yield* handle(good, 1)
              written += outcome.written
              if (outcome.failure !== undefined) return { ...outcome, written }
            } else written++
          }
          done = through
          if (failure !== undefined) return { done, written, failure }
        }
        return { done, written }
      }
    )
    return { handle: (events) => handle(events, size), group: { size, withinMillis } }
  })
}
