/**
 * Event-sourced entities: a command reaches an entity by its id, its events are stored, its state is their fold.
 */
import { type EventSchema, make as makeEventCodec } from "@effect-cassandra/journal/EventCodec"
import { Journal, type LogPosition } from "@effect-cassandra/journal/Journal"
import {
  Clock,
  Config,
  Context,
  type Duration,
  Effect,
  Layer,
  Option,
  Schedule,
  type Schema,
  type Scope,
  Tracer
} from "effect"
import type { Rpc } from "effect/rpc"
import { CommandRouting } from "./CommandRouting.ts"
import type * as Decision from "./Decision.ts"
import type { EntityError } from "./EntityError.ts"
import { CurrentCommandIds, CurrentPlace, type Place } from "./internal/command.ts"
import { Entities as Running } from "./internal/entities.ts"
import { EntityMetrics } from "./internal/metrics.ts"
import { checkDefinition, makeModel } from "./internal/model.ts"
import { config as optionsConfig, settings as settingsOf } from "./internal/options.ts"
import { type Environment as ReactionsEnvironment, react } from "./internal/reactions.ts"
import { Router } from "./internal/router.ts"
import type { ReadOnly } from "./ReadOnly.ts"

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
  /** The commands: payload, success and error of each by Schema. Those that only read are marked by `ReadOnly`. */
  readonly commands: ReadonlyArray<Command>
}

/** What the handler of a command gives: a decision; of a read-only command, an answer that stores nothing. */
export type DecisionOf<State, Event extends EventSchema, Command extends Rpc.Any> = Command extends ReadOnly
  ? Decision.Reply<Rpc.Success<Command>> | Decision.Reject<Rpc.Error<Command>>
  : Decision.Decision<Event["Type"], State, Rpc.Success<Command>, Rpc.Error<Command>>

/** One function for each command; it sees the state and the payload. */
export type Handlers<State, Event extends EventSchema, Command extends Rpc.Any, R = never> = {
  readonly [C in Command as C["_tag"]]: (
    state: State,
    payload: Rpc.Payload<C>
  ) => DecisionOf<State, Event, C> | Effect.Effect<DecisionOf<State, Event, C>, Rpc.Error<C>, R>
}

/** Where an event comes from that leads to something. */
export interface ReactionSource<Command extends Rpc.Any> {
  readonly entityId: string
  readonly sequence: number
  /** When the event was stored. */
  readonly at: Date
  /** The commands of the entity that stored it. */
  readonly self: Client<Command>
}

/**
 * What an event leads to. It is done at least once: after a crash, or an `EntityError`, it begins again. Commands in it
 * have ids made of the event and the command's name, so that each is carried out once by the entity that gets it; a second
 * command of the same name to the same entity needs `withCommandId`.
 */
export type Reaction<Event, Command extends Rpc.Any, R> = (
  event: Event,
  source: ReactionSource<Command>
) => Effect.Effect<unknown, EntityError, R>

/** What is to happen some time after an event was stored, also when the process ends meanwhile. */
export interface Timer<Event, Command extends Rpc.Any, R> {
  readonly after: Duration.Input | ((event: Event) => Duration.Input)
  readonly run: Reaction<Event, Command, R>
}

/** What an entity does: how an event changes the state, and what a command leads to. */
export interface Behavior<State, Event extends EventSchema, Command extends Rpc.Any, R = never> {
  /** The state after an event. A pure function: it is run again whenever the entity is loaded. */
  readonly apply: (state: State, event: Event["Type"]) => State
  readonly commands: Handlers<State, Event, Command, R>
  /** Whether a snapshot is saved after an event, beside those that `snapshotEvery` asks for: a month was closed, say. */
  readonly snapshotWhen?: ((state: State, event: Event["Type"]) => boolean) | undefined
  /** Runs when an entity has come into memory, before its first command. */
  readonly recovered?: ((state: State, entityId: string) => Effect.Effect<void, never, R>) | undefined
  /** What events lead to: commands to other entities, or to the same one. Those of one entity are done in their order. */
  readonly reactions?:
    | {
        readonly [E in Event["Type"] as E["_tag"]]?: Reaction<E, Command, R>
      }
    | undefined
  /** What is to happen some time after events. */
  readonly timers?:
    | {
        readonly [E in Event["Type"] as E["_tag"]]?: Timer<E, Command, R>
      }
    | undefined
}

/** The commands of one entity as functions. */
export type Client<Command extends Rpc.Any> = {
  readonly [C in Command as C["_tag"]]: (
    ...args: Rpc.Payload<C> extends void ? [] : [payload: Rpc.Payload<C>]
  ) => Effect.Effect<Rpc.Success<C>, Rpc.Error<C> | EntityError>
}

/** The entities of a type, by id. */
export interface Clients<Command extends Rpc.Any> {
  (entityId: string): Client<Command>
  /** Lets an entity leave the memory of this process as soon as it has nothing to do; its next command brings it back. */
  readonly passivate: (entityId: string) => Effect.Effect<void>
}

/** Settings of an entity type. */
export interface Options {
  /** A snapshot of the state is saved after this many events, or never by their number. Default: 100. */
  readonly snapshotEvery?: number | "never" | undefined
  /** Snapshots kept per entity; more stay until a process has saved as many. Default: 3. */
  readonly snapshotsKept?: number | undefined
  /** An entity without commands for this long leaves memory. Default: 2 minutes. */
  readonly passivateAfter?: Duration.Input | undefined
  /**
   * Entities in memory; beyond it those leave that have been without commands for longest. Busy ones stay, so it may be
   * passed by as many as are busy. Default: 100 000.
   */
  readonly maxEntities?: number | undefined
  /** How often a command is decided anew when other processes store events of the entity meanwhile. Default: 50. */
  readonly maxConflicts?: number | undefined
  /** Commands of one entity that wait; what comes then fails at once with `MailboxFull`. Default: 1000. */
  readonly mailboxSize?: number | undefined
  /** A command that is not answered after this long fails with `CommandTimeout`. Default: 30 seconds. */
  readonly askTimeout?: Duration.Input | undefined
  /** Entities loaded from the journal at once; more wait. Default: 100. */
  readonly maxRecoveries?: number | undefined
  /** An entity that is not loaded after this long fails its commands with `RecoveryTimeout`. Default: 20 seconds. */
  readonly recoveryTimeout?: Duration.Input | undefined
  /** How long an entity rests after a defect; twice as long after each further one in a row. Default: 100 ms. */
  readonly restartBackOff?: Duration.Input | undefined
  /** The longest such rest. Default: 10 seconds. */
  readonly maxRestartBackOff?: Duration.Input | undefined
  /** How long commands may take to finish when the layer closes. Default: 20 seconds. */
  readonly shutdownTimeout?: Duration.Input | undefined
  /**
   * Whether this process does what events lead to: `reactions` and `timers`. One that does must run for them to be done; of
   * several, one does those of a shard, and another takes over when it ends. Default: true.
   */
  readonly react?: boolean | undefined
  /** Whether spans carry the entity's id. Default: false. */
  readonly spanEntityId?: boolean | undefined
}

/**
 * The options by their names. In environment variables, with `ConfigProvider.constantCase`: `SNAPSHOT_EVERY=50`,
 * `ASK_TIMEOUT=5 seconds`; those of one entity type with `ConfigProvider.nested`.
 */
export const config: Config.Config<Options> = optionsConfig

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
> extends Context.Service<Entities<Type>, Clients<Command>> {
  readonly type: Type
  readonly definition: Definition<State, Event, Command>
  /** Gives a behavior its types, where it does not stand in `layer` at once. */
  readonly behavior: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>
  ) => Behavior<State["Type"], Event, Command, R>
  /** Runs the entities of this type in this process. When it closes, commands that were accepted are finished. */
  readonly layer: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>,
    options?: Options
  ) => Layer.Layer<Entities<Type>, never, Journal | R>
  /** As `layer`, with options from Effect's Config; without an argument all of them, by their names. */
  readonly layerConfig: <R = never>(
    behavior: Behavior<State["Type"], Event, Command, R>,
    options?: Config.Wrap<Options>
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
  checkDefinition(type, definition)
  const tag = Context.Service<Entities<Type>, Clients<Command>>(`@effect-cassandra/entity/${type}`)
  const start = <R>(behavior: Behavior<State["Type"], Event, Command, R>, options: Options) =>
    run(type, definition, behavior, options) as Effect.Effect<Clients<Command>, never, Journal | R | Scope.Scope>
  return Object.assign(tag, {
    type,
    definition,
    behavior: <R>(behavior: Behavior<State["Type"], Event, Command, R>) => behavior,
    layer: <R>(behavior: Behavior<State["Type"], Event, Command, R>, options: Options = {}) =>
      Layer.effect(tag, start(behavior, options)),
    layerConfig: <R>(
      behavior: Behavior<State["Type"], Event, Command, R>,
      options: Config.Wrap<Options> = optionsConfig
    ) =>
      Layer.effect(
        tag,
        Effect.flatMap(Config.unwrap(options), (settings) => start(behavior, settings))
      )
  }) as PersistentEntity<Type, State, Event, Command>
}

/**
 * Gives the commands in an effect an id. A command whose id the entity has seen, within the journal's `commandWindow`, is
 * not carried out again: it stores nothing and gets the first answer, be it a reply or a rejection. For one command: a
 * second one of the same entity, or another payload, fails with `CommandIdReused`.
 *
 * **Example**
 *
 * ```ts
 * account.Deposit({ cents: 100 }).pipe(PersistentEntity.withCommandId(request.id), Effect.retry({ times: 3 }))
 * ```
 */
export const withCommandId =
  (id: string) =>
  <A, E, R>(effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.provideService(effect, CurrentCommandIds, { of: () => id, strict: true })

/**
 * Gives, beside the result of a command, the place in the log up to where everything is that the answer rests on, its own
 * events included: what a view must have reached to show it.
 */
export const withPosition = <A, E, R>(command: Effect.Effect<A, E, R>): Effect.Effect<[A, LogPosition], E, R> =>
  Effect.suspend(() => {
    const place: Place = { last: undefined }
    return Effect.flatMap(Effect.provideService(command, CurrentPlace, place), (value) =>
      place.last === undefined
        ? Effect.die(new Error("withPosition was given an effect without a command"))
        : Effect.succeed([value, place.last] as [A, LogPosition])
    )
  })

/** Runs entities until the scope ends. */
const run = Effect.fnUntraced(function* <State, Event extends EventSchema, Command extends Rpc.AnyWithProps, R>(
  entityType: string,
  definition: Definition<Schema.Codec<State, any>, Event, Command>,
  behavior: Behavior<State, Event, Command, R>,
  options: Options
) {
  const journal = yield* Journal
  const scope = yield* Effect.scope
  const settings = yield* settingsOf(entityType, options)
  const model = makeModel(entityType, definition, behavior)
  const context = yield* Effect.context<never>()
  // Not under the span in which the layer was built; and the commands that a handler gives have no ids of his command.
  const services = Context.omit(Tracer.ParentSpan)(context).pipe(
    Context.add(CurrentCommandIds, undefined),
    Context.add(CurrentPlace, undefined)
  ) as Context.Context<never>
  const clock = yield* Clock.Clock
  const metrics = new EntityMetrics(context, entityType, () => entities.active)
  const entities: Running<State> = new Running<State>({
    model,
    settings,
    journal,
    metrics,
    clock,
    services,
    scope,
    recovered: behavior.recovered
  })
  yield* Effect.addFinalizer(() =>
    Effect.andThen(
      entities.close,
      Effect.sync(() => metrics.close())
    )
  )
  const routing = yield* Effect.serviceOption(CommandRouting)
  const router = Option.map(
    routing,
    (routing) => new Router<State>(routing, { entities, model, settings, journal, metrics, clock, services })
  )
  if (Option.isSome(router)) yield* Effect.acquireRelease(router.value.open, () => router.value.close)
  const every = (effect: Effect.Effect<void>, millis: number) =>
    effect.pipe(Effect.repeat(Schedule.spaced(millis)), Effect.withTracerEnabled(false), Effect.forkIn(scope))
  yield* every(entities.passivateIdle, Math.min(30_000, Math.max(10, settings.passivateAfter / 4)))
  const expireMillis = Math.min(1000, Math.max(10, settings.askTimeout / 20))
  yield* every(entities.expire, expireMillis)
  if (Option.isSome(router)) yield* every(router.value.expire, expireMillis)

  const asked: Pick<Running<State>, "ask"> = Option.getOrElse(router, () => entities)
  class EntityClient {
    readonly entityId: string
    constructor(entityId: string) {
      if (typeof entityId !== "string") throw new TypeError(`the id of a ${entityType} must be text, not ${entityId}`)
      this.entityId = entityId
    }
  }
  for (const [tag, command] of model.commands) {
    Object.defineProperty(EntityClient.prototype, tag, {
      value(this: EntityClient, payload: unknown) {
        return asked.ask(this.entityId, command, payload)
      }
    })
  }
  const clients = Object.assign((entityId: string) => new EntityClient(entityId) as unknown as Client<Command>, {
    passivate: entities.stop
  })

  const reactions = (behavior.reactions ?? {}) as ReactionsEnvironment["reactions"]
  const timers = (behavior.timers ?? {}) as ReactionsEnvironment["timers"]
  const only = Object.keys({ ...reactions, ...timers })
  if (settings.react && only.length > 0) {
    const events = makeEventCodec(definition.events as ReadonlyArray<EventSchema>, { only })
    const environment = { entityType, events, journal, metrics, clock, services, reactions, timers, clients }
    for (let shard = 0; shard < journal.shards; shard++) {
      yield* Effect.forkIn(react(environment, shard), scope)
    }
  }
  return clients
})
