/**
 * Views in the memory of a process: folded from all events when it starts, then kept up to date as events are stored. Every
 * process that has one keeps it whole, so it is for what fits, and is asked often.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import { type EventEnvelope, Journal, type LogPosition } from "@effect-cassandra/journal/Journal"
import { Cause, Context, Duration, Effect, Latch, Layer, PubSub, Result, Schedule, Stream } from "effect"
import { makeDecode } from "./internal/events.ts"
import { handlerFailure, journalFailure } from "./internal/failures.ts"
import { validName } from "./internal/sink.ts"
import { NotProjected, ReadSideError } from "./ReadSideError.ts"

/** What to follow, and how an event changes the view. */
export interface Definition<State, Event extends EventSchema> {
  readonly entityType: string | ReadonlyArray<string>
  readonly events: ReadonlyArray<Event>
  /** A new one for each view, so that it may be changed in place. */
  readonly initial: () => State
  /**
   * The events of an entity come in their order; between entities of different shards there is none. It may change the
   * state and give it back, or give another.
   */
  readonly apply: (state: State, event: Event["Type"], envelope: EventEnvelope) => State
}

/** The view as it is, and as it becomes. */
export interface View<State> {
  readonly get: Effect.Effect<State>
  /** The view now, then after each batch of events; who is slow gets the newest. */
  readonly changes: Stream.Stream<State>
  /** Waits until the view has the events up to a position; fails with `NotProjected` after 10 seconds, or the timeout. */
  readonly awaitProjected: (position: LogPosition, timeout?: Duration.Input) => Effect.Effect<void, ReadSideError>
}

/** A view in memory: a service, with the layer that keeps it. */
export interface MemoryView<Name extends string, State> extends Context.Service<MemoryViewOf<Name>, View<State>> {
  /** Ready when the view has all that was stored before; fails when one of those events cannot be handled. */
  readonly layer: Layer.Layer<MemoryViewOf<Name>, ReadSideError, Journal>
}

/** Identifies the view of a name. */
export interface MemoryViewOf<Name extends string> {
  readonly _: unique symbol
  readonly name: Name
}

/**
 * Defines a view in memory.
 *
 * **Example**
 *
 * ```ts
 * const Balances = MemoryView.make("balances", {
 *   entityType: "Account",
 *   events: [Deposited],
 *   initial: () => new Map<string, number>(),
 *   apply: (balances, { cents }, { entityId }) => balances.set(entityId, (balances.get(entityId) ?? 0) + cents)
 * })
 *
 * const program = Effect.gen(function* () {
 *   const balances = yield* (yield* Balances).get
 *   return balances.get("ada")
 * }).pipe(Effect.provide(Balances.layer))
 * ```
 */
export const make = <const Name extends string, State, const Event extends EventSchema>(
  name: Name,
  definition: Definition<State, Event>
): MemoryView<Name, State> => {
  validName(name)
  const tag = Context.Service<MemoryViewOf<Name>, View<State>>(`@effect-cassandra/read-side/MemoryView/${name}`)
  const decode = makeDecode(name, definition.events)
  const entityTypes = typeof definition.entityType === "string" ? [definition.entityType] : definition.entityType

  const start = Effect.gen(function* () {
    const journal = yield* Journal
    const scope = yield* Effect.scope
    const pubsub = yield* PubSub.sliding<State>({ capacity: 1, replay: 1 })
    const moved = Latch.makeUnsafe(false)
    const offsets = new Map<string, number>()
    let state = definition.initial()

    const take = (events: ReadonlyArray<EventEnvelope>): ReadSideError | undefined => {
      for (const envelope of events) {
        const key = `${envelope.entityType}/${envelope.shard}`
        const decoded = decode(envelope)
        if (Result.isFailure(decoded)) return decoded.failure
        try {
          for (const event of decoded.success) state = definition.apply(state, event, envelope)
        } catch (cause) {
          return handlerFailure(name, envelope, Cause.die(cause))
        }
        offsets.set(key, envelope.offset)
      }
    }

    const follow = (entityType: string, shard: number, stream: "events" | "currentEvents") =>
      Stream.suspend(() => journal[stream](entityType, shard, offsets.get(`${entityType}/${shard}`) ?? 0)).pipe(
        Stream.mapError(journalFailure),
        Stream.runForEachArray((events) =>
          Effect.suspend(() => {
            const failure = take(events)
            PubSub.publishUnsafe(pubsub, state)
            moved.openUnsafe()
            return failure === undefined ? Effect.void : Effect.fail(failure)
          })
        )
      )

    const shards = entityTypes.flatMap((entityType) =>
      Array.from({ length: journal.shards }, (_, shard) => [entityType, shard] as const)
    )
    yield* Effect.forEach(shards, ([entityType, shard]) => follow(entityType, shard, "currentEvents"), {
      concurrency: 10,
      discard: true
    }).pipe(Effect.withTracerEnabled(false))
    PubSub.publishUnsafe(pubsub, state)
    yield* Effect.forEach(
      shards,
      ([entityType, shard]) =>
        follow(entityType, shard, "events").pipe(
          Effect.tapError((error) =>
            Effect.logError(
              `view "${name}" stands still in ${entityType} shard ${shard}, trying again: ${error.message}`
            )
          ),
          Effect.retry(Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("10 seconds")])),
          Effect.withTracerEnabled(false),
          Effect.forkIn(scope)
        ),
      { discard: true }
    )

    const awaitProjected = ({ entityType, offset, shard }: LogPosition, timeout: Duration.Input = "10 seconds") =>
      Effect.gen(function* () {
        while ((offsets.get(`${entityType}/${shard}`) ?? 0) < offset) {
          moved.closeUnsafe()
          yield* moved.await
        }
      }).pipe(
        Effect.timeoutOrElse({
          duration: timeout,
          orElse: () =>
            Effect.fail(
              new ReadSideError({
                reason: new NotProjected({
                  processor: name,
                  message: `view "${name}" does not have event ${offset} of ${entityType} shard ${shard} after ${Duration.toMillis(timeout)} ms`
                })
              })
            )
        })
      )
    return { get: Effect.sync(() => state), changes: Stream.fromPubSub(pubsub), awaitProjected }
  })
  return Object.assign(tag, { layer: Layer.effect(tag, start) }) as MemoryView<Name, State>
}
