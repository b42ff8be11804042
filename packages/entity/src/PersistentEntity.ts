/**
 * Event-sourced entities: a command reaches an entity by its id, its events are stored, its state is their fold.
 */
import {
  compiled,
  describeIssue,
  type EventSchema,
  json,
  make as makeEventCodec
} from "@effect-cassandra/journal/EventCodec"
import { Journal, type Snapshot } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import {
  Config,
  Context,
  Duration,
  Effect,
  Exit,
  Layer,
  Option,
  Result,
  Schedule,
  Schema,
  SchemaParser,
  type Scope,
  Semaphore
} from "effect"
import type { Rpc } from "effect/rpc"
import type * as Decision from "./Decision.ts"
import {
  EntityError,
  JournalFailure,
  MalformedCommand,
  type Reason,
  TooManyConflicts,
  UndecodableEvent
} from "./EntityError.ts"

/** A schema of an entity's state; no services are needed to encode it. */
export type StateSchema = Schema.Codec<any, any>

/** What an entity is, as others see it: its events, its state, the commands that it takes. */
export interface Definition<State extends StateSchema, Event extends EventSchema, Command extends Rpc.AnyWithProps> {
  /** The state, as it is saved in snapshots. */
  readonly state: State
  /** The state before the first event. */
  readonly initialState: State["Type"]
  /** The events that the entity stores, told apart by `_tag`. */
  readonly events: ReadonlyArray<Event>
  /** The commands: payload, success and error of each by Schema. */
  readonly commands: ReadonlyArray<Command>
}

/** One function for each command; it sees the state and the payload. */
export type Handlers<State, Event extends EventSchema, Command extends Rpc.Any, R = never> = {
  readonly [C in Command as C["_tag"]]: (
    state: State,
    payload: Rpc.Payload<C>
  ) =>
    | Decision.Decision<Event["Type"], State, Rpc.Success<C>, Rpc.Error<C>>
    | Effect.Effect<Decision.Decision<Event["Type"], State, Rpc.Success<C>, Rpc.Error<C>>, Rpc.Error<C>, R>
}

/** What an entity does: how an event changes the state, and what a command leads to. */
export interface Behavior<State, Event extends EventSchema, Command extends Rpc.Any, R = never> {
  /** The state after an event. A pure function: it is run again whenever the entity is loaded. */
  readonly apply: (state: State, event: Event["Type"]) => State
  readonly commands: Handlers<State, Event, Command, R>
}

/** The commands of one entity as functions. */
export type Client<Command extends Rpc.Any> = {
  readonly [C in Command as C["_tag"]]: (
    ...args: Rpc.Payload<C> extends void ? [] : [payload: Rpc.Payload<C>]
  ) => Effect.Effect<Rpc.Success<C>, Rpc.Error<C> | EntityError>
}

/** Settings of an entity type. */
export interface Options {
  /** A snapshot of the state is saved after this many events. Default: 100. */
  readonly snapshotEvery?: number | undefined
  /** Snapshots kept per entity. Default: 2. */
  readonly snapshotsKept?: number | undefined
  /** An entity without commands for this long leaves memory. Default: 2 minutes. */
  readonly passivateAfter?: Duration.Input | undefined
  /** How often a command is decided anew when other processes store events of the entity meanwhile. Default: 50. */
  readonly maxConflicts?: number | undefined
}

/** The service of an entity type: the entities of this type, by id. */
export interface Entities<Type extends string> {
  readonly _: unique symbol
  readonly type: Type
}

/**
 * An entity type. Yielding it gives the entities by id; `layer` runs them.
 */
export interface PersistentEntity<
  Type extends string,
  State extends StateSchema,
  Event extends EventSchema,
  Command extends Rpc.AnyWithProps
> extends Context.Service<Entities<Type>, (entityId: string) => Client<Command>> {
  readonly type: Type
  readonly definition: Definition<State, Event, Command>
  /** Gives a behavior its types, where it does not stand in `layer` at once. */
  readonly behavior: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>
  ) => Behavior<State["Type"], Event, Command, R>
  /** Runs the entities of this type in this process. */
  readonly layer: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>,
    options?: Options
  ) => Layer.Layer<Entities<Type>, never, Journal | R>
  /** As `layer`, with options from Effect's Config. */
  readonly layerConfig: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>,
    options: Config.Wrap<Options>
  ) => Layer.Layer<Entities<Type>, Config.ConfigError, Journal | R>
}

/**
 * Defines an entity type.
 *
 * **Example**
 *
 * ```ts
 * const Counter = PersistentEntity.make("Counter", {
 *   state: Schema.Number,
 *   initialState: 0,
 *   events: [Schema.TaggedStruct("Added", { amount: Schema.Int })],
 *   commands: [Rpc.make("Add", { payload: { amount: Schema.Int }, success: Schema.Number })]
 * })
 *
 * const CounterLive = Counter.layer({
 *   apply: (total, event) => total + event.amount,
 *   commands: {
 *     Add: (_total, { amount }) => Decision.persist({ _tag: "Added", amount }, (total) => total)
 *   }
 * })
 * ```
 */
export const make = <
  const Type extends string,
  State extends StateSchema,
  const Event extends EventSchema,
  const Command extends Rpc.AnyWithProps
>(
  type: Type,
  definition: Definition<State, Event, Command>
): PersistentEntity<Type, State, Event, Command> => {
  const tag = Context.Service<Entities<Type>, (entityId: string) => Client<Command>>(`@effect-cassandra/entity/${type}`)
  const start = <R>(behavior: Behavior<State["Type"], Event, Command, R>, options: Options) =>
    run(type, definition as any, behavior as any, options) as Effect.Effect<
      (entityId: string) => Client<Command>,
      never,
      Journal | R | Scope.Scope
    >
  return Object.assign(tag, {
    type,
    definition,
    behavior: <R>(behavior: Behavior<State["Type"], Event, Command, R>) => behavior,
    layer: <R>(behavior: Behavior<State["Type"], Event, Command, R>, options: Options = {}) =>
      Layer.effect(tag, start(behavior, options)),
    layerConfig: <R>(behavior: Behavior<State["Type"], Event, Command, R>, options: Config.Wrap<Options>) =>
      Layer.effect(
        tag,
        Effect.flatMap(Config.unwrap(options), (settings) => start(behavior, settings))
      )
  }) as PersistentEntity<Type, State, Event, Command>
}

// ---------------------------------------------------------------------------------------------------- running

/** A command that has its turn, or waits for it. */
interface Ticket {
  granted: boolean
  readonly resume: () => void
}

/** An entity in memory. Its commands take turns; the one that has the turn changes the state. */
interface Instance<State> {
  /** The command that has the turn comes first. */
  readonly tickets: Array<Ticket>
  lastUsed: number
  /** Absent until loaded, and after a failure that leaves open what is stored. */
  loaded: { state: State; sequence: number; validThrough: number } | undefined
}

type AnyDecision<State> = Decision.Decision<{ readonly _tag: string }, State, unknown, unknown>
type AnyHandler<State> = (
  state: State,
  payload: unknown
) => AnyDecision<State> | Effect.Effect<AnyDecision<State>, unknown>

const snapshotWrites = 4

const run = Effect.fnUntraced(function* <State, Event extends EventSchema, R>(
  entityType: string,
  definition: Definition<Schema.Codec<State, any>, Event, Rpc.AnyWithProps>,
  behavior: Behavior<State, Event, Rpc.Any, R>,
  options: Options
) {
  const journal = yield* Journal
  const context = yield* Effect.context<R>()
  const scope = yield* Effect.scope
  const events = makeEventCodec(definition.events)
  const stateSchema = json(definition.state)
  const encodeState = SchemaParser.encodeSync(stateSchema)
  const decodeState = SchemaParser.decodeUnknownResult(stateSchema)
  const snapshotEvery = options.snapshotEvery ?? 100
  const snapshotsKept = options.snapshotsKept ?? 2
  const passivateAfter = Duration.toMillis(options.passivateAfter ?? "2 minutes")
  const maxConflicts = options.maxConflicts ?? 50
  const saving = Semaphore.makeUnsafe(snapshotWrites)
  const instances = new Map<string, Instance<State>>()

  const fail = (reason: Reason) => Effect.fail(new EntityError({ reason }))
  const journalFailure = (entityId: string) => (cause: JournalError) =>
    new EntityError({ reason: new JournalFailure({ entityType, entityId, message: cause.message, cause }) })

  const decodeSnapshot = Effect.fnUntraced(function* (entityId: string, snapshot: Snapshot) {
    const state = decodeState(snapshot.state)
    if (Result.isSuccess(state)) return Option.some(state.success as State)
    yield* Effect.logWarning(
      `the snapshot of ${entityType} "${entityId}" at ${snapshot.sequence} does not fit the state's schema, so it is passed over: ${describeIssue(state.failure)}`
    )
    return Option.none<State>()
  })

  /** Snapshot and events, folded. */
  const load = Effect.fnUntraced(function* (entityId: string) {
    const key = { entityType, entityId }
    let stored = yield* journal.load(key).pipe(Effect.mapError(journalFailure(entityId)))
    let state = definition.initialState
    while (Option.isSome(stored.snapshot)) {
      const saved = yield* decodeSnapshot(entityId, stored.snapshot.value)
      if (Option.isSome(saved)) {
        state = saved.value
        break
      }
      stored = yield* journal
        .load(key, { snapshotsUpTo: stored.snapshot.value.sequence - 1 })
        .pipe(Effect.mapError(journalFailure(entityId)))
    }
    for (const envelope of stored.events) {
      const event = events.decode(envelope.type, envelope.payload)
      if (Result.isFailure(event)) {
        const { sequence, type } = envelope
        const message = `event ${sequence} of ${entityType} "${entityId}" is a ${type}: ${event.failure}`
        return yield* fail(new UndecodableEvent({ entityType, entityId, eventType: type, sequence, message }))
      }
      for (const one of event.success) state = behavior.apply(state, one as Event["Type"])
    }
    return { state, sequence: stored.sequence, validThrough: stored.validThrough }
  })

  const saveSnapshot = (entityId: string, loaded: NonNullable<Instance<State>["loaded"]>) =>
    Effect.suspend(() =>
      journal.saveSnapshot(
        { entityType, entityId },
        { sequence: loaded.sequence, validThrough: loaded.validThrough, state: encodeState(loaded.state) },
        loaded.sequence - snapshotEvery * snapshotsKept
      )
    ).pipe(
      saving.withPermits(1),
      Effect.catchCause((cause) =>
        Effect.logWarning(`a snapshot of ${entityType} "${entityId}" could not be saved, its events are safe`, cause)
      ),
      Effect.forkIn(scope)
    )

  /** One turn of a command: decides, stores, replies; decides anew when another process was first. */
  const turn = (
    entityId: string,
    instance: Instance<State>,
    handler: AnyHandler<State>,
    payload: unknown,
    conflicts: number
  ): Effect.Effect<unknown, unknown> => {
    const { loaded } = instance
    if (loaded === undefined) {
      return Effect.flatMap(load(entityId), (fresh) => {
        instance.loaded = fresh
        return turn(entityId, instance, handler, payload, conflicts)
      })
    }
    /** After a failure of the journal the state may no longer be the newest. */
    const onFailure = (error: JournalError): Effect.Effect<unknown, unknown> => {
      const { _tag } = error.reason
      if (_tag !== "StoreFailure" && _tag !== "AppendTooLarge") instance.loaded = undefined
      if (_tag !== "SequenceConflict") return Effect.fail(journalFailure(entityId)(error))
      if (conflicts < maxConflicts) return turn(entityId, instance, handler, payload, conflicts + 1)
      const message = `${entityType} "${entityId}": other processes stored events ${conflicts} times while the command was decided, nothing of it was stored`
      return fail(new TooManyConflicts({ entityType, entityId, message }))
    }
    const carryOut = (decision: AnyDecision<State>): Effect.Effect<unknown, unknown> => {
      if (decision._tag !== "Persist" || decision.events.length === 0) {
        // A reply without events, and a rejection, must not rest on a state that another process has outdated.
        return Effect.matchEffect(journal.confirm({ entityType, entityId }, loaded), {
          onFailure,
          onSuccess: ({ validThrough }): Effect.Effect<unknown, unknown> => {
            loaded.validThrough = validThrough
            return decision._tag === "Reject"
              ? Effect.fail(decision.error)
              : Effect.succeed(decision._tag === "Reply" ? decision.value : decision.reply(loaded.state))
          }
        })
      }
      let state = loaded.state
      const encoded: Array<{ readonly type: string; readonly payload: unknown }> = []
      for (const event of decision.events) {
        state = behavior.apply(state, event as Event["Type"])
        encoded.push(events.encode(event))
      }
      const { sequence, validThrough } = loaded
      return Effect.matchEffect(journal.append({ entityType, entityId, sequence, validThrough, events: encoded }), {
        onFailure,
        onSuccess: (position) => {
          const next = { state, sequence: position.sequence, validThrough: position.validThrough }
          instance.loaded = next
          const reply = decision.reply(state)
          return Math.floor(next.sequence / snapshotEvery) > Math.floor(sequence / snapshotEvery)
            ? Effect.as(saveSnapshot(entityId, next), reply)
            : Effect.succeed(reply)
        }
      })
    }
    const decided = handler(loaded.state, payload)
    return Effect.isEffect(decided) ? Effect.flatMap(decided, carryOut) : carryOut(decided)
  }

  /** Gives a command to its entity, which is brought into memory if it is not there. */
  const ask = (entityId: string, handler: AnyHandler<State>, payload: unknown): Effect.Effect<unknown, unknown> =>
    Effect.suspend(() => {
      let entity = instances.get(entityId)
      if (entity === undefined) {
        entity = { tickets: [], lastUsed: 0, loaded: undefined }
        instances.set(entityId, entity)
      }
      entity.lastUsed = Date.now()
      return takeTurn(entityId, entity, handler, payload)
    })

  /** Waits until the commands before are done. */
  const takeTurn = (
    entityId: string,
    entity: Instance<State>,
    handler: AnyHandler<State>,
    payload: unknown
  ): Effect.Effect<unknown, unknown> => {
    let ticket: Ticket | undefined
    return Effect.onExit(
      Effect.suspend(() => {
        if (entity.tickets.length === 0) {
          ticket = { granted: true, resume: () => {} }
          entity.tickets.push(ticket)
          return turn(entityId, entity, handler, payload, 0)
        }
        const granted = Effect.callback<void>((resume) => {
          ticket = { granted: entity.tickets.length === 0, resume: () => resume(Effect.void) }
          entity.tickets.push(ticket)
          if (ticket.granted) ticket.resume()
        })
        return Effect.flatMap(granted, () => turn(entityId, entity, handler, payload, 0))
      }),
      (exit) => {
        // Also for who is interrupted between being granted the turn and taking it.
        if (ticket !== undefined) entity.tickets.splice(entity.tickets.indexOf(ticket), 1)
        if (ticket?.granted) {
          // After a defect, or an interruption that leaves an append behind, the next command loads the entity again.
          if (Exit.isFailure(exit) && (Exit.hasDies(exit) || Exit.hasInterrupts(exit))) entity.loaded = undefined
          const next = entity.tickets[0]
          if (next !== undefined) {
            next.granted = true
            queueMicrotask(next.resume)
          }
        }
        return Effect.void
      }
    )
  }

  yield* Effect.sync(() => {
    const before = Date.now() - passivateAfter
    for (const [entityId, instance] of instances) {
      if (instance.tickets.length === 0 && instance.lastUsed < before) instances.delete(entityId)
    }
  }).pipe(Effect.repeat(Schedule.spaced(Math.max(50, passivateAfter / 4))), Effect.forkIn(scope))

  const commands = definition.commands.map((command) => {
    const handler = (behavior.commands as Record<string, (state: State, payload: unknown) => unknown>)[command._tag]
    if (handler === undefined) throw new Error(`${entityType} has no handler for its command ${command._tag}`)
    const payloadSchema = compiled(Schema.toType(command.payloadSchema)) as Schema.Codec<unknown>
    const isValid = SchemaParser.is(payloadSchema)
    const decode = SchemaParser.decodeUnknownResult(payloadSchema)
    const problem = (payload: unknown) => {
      const decoded = decode(payload)
      return Result.isSuccess(decoded) ? "" : describeIssue(decoded.failure)
    }
    const provided = ((state, payload) => {
      const decided = handler(state, payload)
      return Effect.isEffect(decided)
        ? Effect.provideContext(decided as Effect.Effect<AnyDecision<State>, unknown, R>, context)
        : decided
    }) as AnyHandler<State>
    return { tag: command._tag, handler: provided, isValid, problem }
  })

  class EntityClient {
    readonly entityId: string
    constructor(entityId: string) {
      this.entityId = entityId
    }
  }
  for (const { handler, isValid, problem, tag } of commands) {
    Object.defineProperty(EntityClient.prototype, tag, {
      value(this: EntityClient, payload: unknown) {
        return isValid(payload)
          ? ask(this.entityId, handler, payload)
          : fail(
              new MalformedCommand({
                entityType,
                entityId: this.entityId,
                command: tag,
                message: `${tag} for ${entityType} "${this.entityId}": ${problem(payload)}`
              })
            )
      }
    })
  }
  return (entityId: string) => new EntityClient(entityId) as unknown as Client<Rpc.Any>
})
