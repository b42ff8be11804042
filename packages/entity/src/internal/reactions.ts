/**
 * What events lead to, done at least once: the log of each shard is followed, and what is not done yet is remembered.
 */
import type { EventCodec } from "@effect-cassandra/journal/EventCodec"
import { CurrentMetadata, type EventEnvelope, type Journal } from "@effect-cassandra/journal/Journal"
import { DataLost, JournalError } from "@effect-cassandra/journal/JournalError"
import {
  Cause,
  type Clock,
  type Context,
  Duration,
  Effect,
  Latch,
  Option,
  Result,
  Schedule,
  Schema,
  type Scope,
  Stream,
  Tracer
} from "effect"
import type { Reaction, Timer } from "../PersistentEntity.ts"
import { CurrentCommandIds } from "./command.ts"
import { Lease } from "./lease.ts"
import type { EntityMetrics } from "./metrics.ts"
import type { AnyEvent } from "./model.ts"

/** Events of a shard that lead to something and are not done; at more of them the log is not followed further. */
const maxUnderWay = 1000
const saveMillis = 100

const again = Schedule.min([Schedule.exponential("100 millis"), Schedule.spaced("30 seconds")]).pipe(Schedule.jittered)

/** How far a shard's log has been followed, and which events before that are not done yet, by their offsets. */
const Progress = Schema.Struct({
  reactions: Schema.Array(Schema.Int),
  timers: Schema.Array(Schema.Int)
})

const readProgress = Schema.decodeUnknownOption(Progress)

/** What the reactions of an entity type work with. */
export interface Environment {
  readonly entityType: string
  /** Reads the events that lead to something, and passes over all others. */
  readonly events: EventCodec<AnyEvent>
  readonly journal: Journal["Service"]
  readonly metrics: EntityMetrics
  readonly clock: Clock.Clock
  readonly services: Context.Context<never>
  readonly reactions: { readonly [tag: string]: Reaction<any, any, any> | undefined }
  readonly timers: { readonly [tag: string]: Timer<any, any, any> | undefined }
  /** The entities of the type, as others see them. */
  readonly clients: (entityId: string) => any
}

type Job = Effect.Effect<unknown, unknown, any>

const nameOf = ({ entityType }: Environment, shard: number) => `reactions of ${entityType} shard ${shard}`

/** Where is noted what is done, and who does it. */
const noteOf = ({ entityType }: Environment, entityId: string) => ({ entityType: `${entityType}.reactions`, entityId })

/** Does it again until it succeeds. */
const persistently =
  (name: string, what: string) =>
  <A, E extends { readonly message: string }, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, never, R> =>
    effect.pipe(
      Effect.tapError((error) => Effect.logError(`${name}: ${what}, trying again: ${error.message}`)),
      Effect.retry(again),
      Effect.orDie
    )

/** Does what the events of one shard lead to, while no other process does. */
export const react = (env: Environment, shard: number): Effect.Effect<never> => {
  const name = nameOf(env, shard)
  const lease = new Lease(env.journal, noteOf(env, `shard-${shard}-process`), env.clock)
  const untilLost = Effect.suspend(() => {
    env.metrics.reactingShards++
    return Effect.raceFirst(
      new Reactions(env, shard, lease).run,
      persistently(name, "that this process does them cannot be noted")(Effect.withTracerEnabled(lease.keep, false))
    ).pipe(Effect.ensuring(Effect.sync(() => env.metrics.reactingShards--)))
  })
  return Effect.withTracerEnabled(lease.take, false).pipe(
    persistently(name, "it is not known whether another process does them"),
    Effect.tap((silent) =>
      silent ? Effect.logInfo(`${name} are taken over from a process that is silent`) : Effect.void
    ),
    Effect.andThen(untilLost),
    Effect.onExit(() => lease.release),
    Effect.forever
  )
}

class Reactions {
  readonly #env: Environment
  readonly #shard: number
  readonly #lease: Lease
  /** The log has been followed up to here. */
  #through = 0
  readonly #reactions = new Set<number>()
  readonly #timers = new Set<number>()
  /** What waits for its turn, by entity: the events of one lead to something in their order. */
  readonly #queues = new Map<string, Array<Effect.Effect<void>>>()
  readonly #room = Latch.makeUnsafe(true)
  #changed = false
  /** Of the log; what was noted of another is noted apart. */
  #epoch = 1

  constructor(env: Environment, shard: number, lease: Lease) {
    this.#env = env
    this.#shard = shard
    this.#lease = lease
  }

  get run(): Effect.Effect<never> {
    const follow = Stream.suspend(() =>
      this.#env.journal.events(this.#env.entityType, this.#shard, this.#through)
    ).pipe(
      Stream.runForEach((event) => Effect.andThen(this.#room.await, this.#begin(event, true, true))),
      persistently(this.#name, "the log could not be followed")
    )
    return this.#resume.pipe(
      persistently(this.#name, "it is not known how far the log was followed"),
      Effect.andThen(
        Effect.raceFirst(
          Effect.forever(Effect.suspend(() => Effect.delay(this.#save, this.#saveMillis))),
          Effect.andThen(follow, Effect.never)
        )
      ),
      Effect.scoped,
      Effect.onExit(() => this.#save)
    )
  }

  // ------------------------------------------------------------------------------------------------ progress

  #key(epoch: number) {
    return noteOf(this.#env, epoch === 1 ? `shard-${this.#shard}` : `shard-${this.#shard}-epoch-${epoch}`)
  }

  /** Takes up what was not done when the last process ended. */
  readonly #resume = Effect.suspend(() =>
    Effect.gen({ self: this }, function* () {
      const { entityType, journal } = this.#env
      const shard = this.#shard
      this.#epoch = yield* journal.epoch(entityType)
      let epoch = this.#epoch
      let { snapshot } = yield* journal.load(this.#key(epoch))
      // After a restore, what was noted before holds for the events that are left.
      while (Option.isNone(snapshot) && epoch > 1) snapshot = (yield* journal.load(this.#key(--epoch))).snapshot
      // Not before what was noted: another process may be at it, and both go on meanwhile.
      const head = yield* journal.head(entityType, shard)
      const saved = Option.flatMap(snapshot, ({ state }) => readProgress(state))
      if (Option.isNone(snapshot) || Option.isNone(saved)) return
      const through = snapshot.value.sequence
      if (through > head && epoch === this.#epoch) {
        const message = `the log of ${entityType} shard ${shard} ends at ${head}, and was followed up to ${through}: it was lost, or an older copy restored`
        return yield* new JournalError({ reason: new DataLost({ entityType, shard, message }) })
      }
      const { reactions, timers } = saved.value
      const offsets = [...new Set([...reactions, ...timers])].filter((offset) => offset <= head).sort((a, b) => a - b)
      for (const offset of offsets) {
        const event = yield* journal.currentEvents(entityType, shard, offset - 1).pipe(Stream.runHead)
        if (Option.isSome(event)) {
          yield* this.#begin(event.value, reactions.includes(offset), timers.includes(offset))
        }
      }
      this.#through = Math.min(through, head)
    })
  )

  /** The more there is to note, the less often. */
  get #saveMillis() {
    return Math.max(saveMillis, (this.#reactions.size + this.#timers.size) / 20)
  }

  /** Should two processes save at once, each says only of what is done that it is. */
  readonly #save = Effect.suspend(() => {
    if (!this.#changed || this.#through === 0 || !this.#lease.held) return Effect.void
    this.#changed = false
    const through = this.#through
    const state = { reactions: [...this.#reactions], timers: [...this.#timers] }
    return this.#env.journal
      .saveSnapshot(this.#key(this.#epoch), { sequence: through, validThrough: 0, state }, through - 1)
      .pipe(
        Effect.catch((error) => {
          this.#changed = true
          return Effect.logWarning(
            `${this.#name}: what is done could not be noted, it may be done again: ${error.message}`
          )
        })
      )
  }).pipe(Effect.withTracerEnabled(false))

  get #name() {
    return nameOf(this.#env, this.#shard)
  }

  // ------------------------------------------------------------------------------------------------ events

  /** Begins with what an event leads to. */
  #begin(event: EventEnvelope, withReactions: boolean, withTimers: boolean): Effect.Effect<void, never, Scope.Scope> {
    const { clients, clock, events, reactions, timers } = this.#env
    const { entityId, offset, sequence, stamp, type } = event
    if (offset > this.#through) this.#through = offset
    this.#changed = true
    if (event.deleted || type.startsWith("$")) return Effect.void
    const decoded = events.decode(type, event.payload, event.version)
    if (Result.isFailure(decoded)) {
      const job = Effect.die(new Error(`the event is a ${type}: ${decoded.failure}`))
      return Effect.andThen(
        withReactions ? this.#react(event, job) : Effect.void,
        withTimers ? this.#wait(event, 0, job) : Effect.void
      )
    }
    const source = { entityId, sequence, at: new Date(stamp / 1000), self: clients(entityId) }
    const reacting: Array<Job> = []
    const waiting: Array<Effect.Effect<void, never, Scope.Scope>> = []
    for (const one of decoded.success) {
      const reaction = reactions[one._tag]
      if (reaction !== undefined && withReactions) reacting.push(Effect.suspend(() => reaction(one, source)))
      const timer = timers[one._tag]
      if (timer !== undefined && withTimers) {
        const after = Result.try(() =>
          Duration.toMillis(typeof timer.after === "function" ? timer.after(one) : timer.after)
        )
        waiting.push(
          Result.isSuccess(after)
            ? this.#wait(
                event,
                Math.max(0, stamp / 1000 + after.success - clock.currentTimeMillisUnsafe()),
                Effect.suspend(() => timer.run(one, source))
              )
            : this.#wait(event, 0, Effect.die(after.failure))
        )
      }
    }
    return Effect.andThen(
      reacting.length === 0 ? Effect.void : this.#react(event, Effect.all(reacting, { discard: true })),
      Effect.all(waiting, { discard: true })
    )
  }

  /** Lets a reaction have its turn after those to the entity's earlier events. */
  #react(event: EventEnvelope, job: Job): Effect.Effect<void, never, Scope.Scope> {
    const { entityId, offset } = event
    this.#reactions.add(offset)
    if (this.#reactions.size >= maxUnderWay) this.#room.closeUnsafe()
    const done = Effect.sync(() => {
      this.#reactions.delete(offset)
      this.#changed = true
      if (this.#reactions.size < maxUnderWay) this.#room.openUnsafe()
    })
    const whole = Effect.andThen(this.#untilDone(event, "", job), done)
    const queue = this.#queues.get(entityId)
    if (queue !== undefined) {
      queue.push(whole)
      return Effect.void
    }
    const own = [whole]
    this.#queues.set(entityId, own)
    const next = Effect.sync(() => {
      own.shift()
      // In one go with the look, so that nothing is queued where nobody comes any more.
      if (own.length === 0) this.#queues.delete(entityId)
      return own.length > 0
    })
    const drain = Effect.andThen(
      Effect.suspend(() => own[0]!),
      next
    ).pipe(Effect.repeat({ while: (more) => more }))
    return Effect.asVoid(Effect.forkScoped(drain))
  }

  #wait(event: EventEnvelope, millis: number, job: Job): Effect.Effect<void, never, Scope.Scope> {
    const { offset } = event
    this.#timers.add(offset)
    const done = Effect.sync(() => {
      this.#timers.delete(offset)
      this.#changed = true
    })
    const whole = Effect.andThen(this.#untilDone(event, "/timer", job), done)
    return Effect.asVoid(Effect.forkScoped(Effect.delay(whole, millis)))
  }

  /** Tries again until it is done. The commands in it have ids that are the same each time. */
  #untilDone(event: EventEnvelope, part: string, job: Job): Effect.Effect<void> {
    const { entityType, metrics, services } = this.#env
    const { entityId, metadata, sequence, stamp, type } = event
    const id = `${entityType}/${entityId}/${sequence}${part}`
    const idOf = (command: string) => `${id}/${command}`
    const correlationId = metadata.correlationId ?? metadata.commandId
    return Effect.suspend(() =>
      Effect.provideService(job, CurrentCommandIds, {
        of: idOf,
        strict: false,
        since: stamp,
        given: new Map<string, unknown>()
      })
    ).pipe(
      Effect.withSpan(`${entityType} reacts to ${type}`, {
        attributes: { "entity.type": entityType, "entity.event": type },
        parent: parentOf(metadata.traceparent)
      }),
      Effect.provideService(CurrentMetadata, {
        causationId: id,
        ...(correlationId === undefined ? {} : { correlationId })
      }),
      Effect.provideContext(services as Context.Context<any>),
      Effect.catchCause((cause) => {
        if (Cause.hasInterruptsOnly(cause)) return Effect.failCause(cause as Cause.Cause<never>)
        metrics.reactionFailures++
        return Effect.andThen(
          Effect.logError(
            `what ${type}, event ${sequence} of ${entityType} "${entityId}", leads to is not done, trying again`,
            cause
          ),
          Effect.fail("again" as const)
        )
      }),
      Effect.retry(again),
      Effect.tap(() => {
        metrics.reactions++
        return Effect.void
      }),
      Effect.orDie,
      Effect.asVoid
    )
  }
}

const parentOf = (traceparent: string | undefined): Tracer.AnySpan | undefined => {
  const [, traceId, spanId, flags] = /^00-([\da-f]{32})-([\da-f]{16})-([\da-f]{2})$/.exec(traceparent ?? "") ?? []
  return traceId === undefined || spanId === undefined
    ? undefined
    : Tracer.externalSpan({ traceId, spanId, sampled: (Number.parseInt(flags!, 16) & 1) === 1 })
}
