/**
 * An entity tested without a database: given some events, when a command comes, then this is what it decides; when an event
 * has been stored, then these are the commands that its reactions and timers send.
 */
import { AssertionError } from "node:assert"
import { isDeepStrictEqual } from "node:util"
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import { Context, Duration, Effect, Effectable, Result } from "effect"
import type { Rpc } from "effect/rpc"
import type * as Decision from "./Decision.ts"
import { CurrentCommandIds } from "./internal/command.ts"
import { type AnyDecision, type AnyEvent, type Model, makeModel, problemOf } from "./internal/model.ts"
import type { Behavior, Entities, PersistentEntity, Reaction, StateSchema, Timer } from "./PersistentEntity.ts"

/** What a command led to. */
export interface Outcome<State, Event, Success, Error> {
  /** The events that it stored. */
  readonly events: ReadonlyArray<Event>
  /** Its reply; undefined when it was rejected. */
  readonly reply: Success | undefined
  /** The error by which it was rejected. */
  readonly rejection: Error | undefined
  /** The state after it. */
  readonly state: State
}

/** What is expected of a command; what is left out is not looked at. A rejection must be expected, or the test fails. */
export interface Expected<State, Event, Success, Error> {
  readonly events?: ReadonlyArray<Event>
  readonly reply?: Success
  readonly rejection?: Error
  readonly state?: State
}

type Payload<Command extends Rpc.Any> = Rpc.Payload<Command> extends void ? [] : [payload: Rpc.Payload<Command>]

/**
 * Steps of a test. It is itself the effect that runs them, from an empty entity, and gives the outcome of the last command;
 * a step that goes otherwise than expected dies with an `AssertionError`. Handlers that are effects find their services as
 * the effect's.
 */
export interface Scenario<
  State extends StateSchema,
  Event extends EventSchema,
  Command extends Rpc.AnyWithProps,
  R,
  Last extends Rpc.Any = never
> extends Effect.Effect<Outcome<State["Type"], Event["Type"], Rpc.Success<Last>, Rpc.Error<Last>>, never, R> {
  /** Events that the entity has stored. They are written and read as the journal does it. */
  readonly given: (...events: ReadonlyArray<Event["Type"]>) => Scenario<State, Event, Command, R, Last>
  /** A command, handled in the state that the steps before have left. */
  readonly when: <Tag extends Command["_tag"]>(
    command: Tag,
    ...payload: Payload<Rpc.ExtractTag<Command, Tag>>
  ) => Scenario<State, Event, Command, R, Rpc.ExtractTag<Command, Tag>>
  /** What the command before it leads to. */
  readonly expect: (
    expected: Expected<State["Type"], Event["Type"], Rpc.Success<Last>, Rpc.Error<Last>>
  ) => Scenario<State, Event, Command, R, Last>
}

/**
 * An empty entity, to begin tests with.
 *
 * **Example**
 *
 * ```ts
 * const account = TestEntity.make(Account, behavior)
 *
 * it.effect("is never overdrawn", () =>
 *   account
 *     .given(Deposited.make({ cents: 500 }))
 *     .when("Withdraw", { cents: 501 })
 *     .expect({ rejection: new Overdraft({ balance: 500 }) })
 * )
 * ```
 */
export const make = <
  Type extends string,
  State extends StateSchema,
  Event extends EventSchema,
  Command extends Rpc.AnyWithProps,
  R = never
>(
  entity: PersistentEntity<Type, State, Event, Command>,
  behavior: Behavior<State["Type"], Event, Command, R>
): Scenario<State, Event, Command, R> => {
  const { definition, type } = entity
  const answers = new Map(
    definition.commands.map((command) => [
      command._tag,
      { success: problemOf(command.successSchema), error: problemOf(command.errorSchema) }
    ])
  )
  return new Steps(makeModel(type, definition, behavior), answers, []) as any
}

type AnyOutcome = Outcome<unknown, AnyEvent, unknown, unknown>
type Step = (before: AnyOutcome) => AnyOutcome | Effect.Effect<AnyOutcome>

/** What is wrong with the replies and the errors of a command, by the command's schemas. */
type Answers = ReadonlyMap<string, Record<"success" | "error", (value: unknown) => string | undefined>>

const fault = (message: string, details: { readonly actual?: unknown; readonly expected?: unknown } = {}) =>
  new AssertionError({ message, operator: "deepStrictEqual", ...details })

/** Outcomes whose rejection, if any, was expected. */
const expectedRejections = new WeakSet<AnyOutcome>()

/** Sees that an event comes out of the journal as it went in. */
const storeAndRead = ({ events }: Model<unknown>, event: AnyEvent) => {
  const { type, payload, version } = events.encode(event)
  const read = events.decode(type, JSON.parse(JSON.stringify(payload)), version)
  if (Result.isFailure(read)) throw fault(`a ${type} cannot be read from the journal: ${read.failure}`)
  if (!isDeepStrictEqual(read.success, [event])) {
    throw fault(`a ${type} comes out of the journal as another`, { actual: read.success, expected: [event] })
  }
}

const refuseRejection = (outcome: AnyOutcome) => {
  if (outcome.rejection !== undefined && !expectedRejections.has(outcome)) {
    throw fault("the command was rejected, which was not expected", { actual: outcome.rejection, expected: undefined })
  }
}

class Steps extends Effectable.Class<AnyOutcome> {
  readonly #model: Model<unknown>
  readonly #answers: Answers
  readonly #steps: ReadonlyArray<Step>

  constructor(model: Model<unknown>, answers: Answers, steps: ReadonlyArray<Step>) {
    super()
    this.#model = model
    this.#answers = answers
    this.#steps = steps
  }

  override asEffect() {
    const before: AnyOutcome = { events: [], reply: undefined, rejection: undefined, state: this.#model.initialState }
    return Effect.reduce(
      this.#steps,
      () => before,
      (last, step) =>
        Effect.suspend(() => {
          const next = step(last)
          return Effect.isEffect(next) ? next : Effect.succeed(next)
        })
    )
  }

  given(...events: ReadonlyArray<AnyEvent>) {
    return this.#and((before) => {
      refuseRejection(before)
      return { ...before, state: events.reduce(this.#apply, before.state) }
    })
  }

  when(tag: string, payload?: unknown) {
    return this.#and((before) => {
      refuseRejection(before)
      const { state } = before
      const command = this.#model.commands.get(tag)
      if (command === undefined) {
        throw fault(
          `${this.#model.entityType} has no command ${tag} among ${[...this.#model.commands.keys()].join(", ")}`
        )
      }
      const problem = command.problem(payload)
      if (problem !== undefined) throw fault(`the payload of ${tag} does not fit its schema: ${problem}`)
      const decided = command.decide(state, payload)
      return Effect.isEffect(decided)
        ? Effect.match(decided as Effect.Effect<AnyDecision<unknown>, unknown>, {
            onFailure: (error) => this.#outcome(tag, state, { _tag: "Reject", error }),
            onSuccess: (decision) => this.#outcome(tag, state, decision)
          })
        : this.#outcome(tag, state, decided)
    })
  }

  expect(expected: Expected<unknown, AnyEvent, unknown, unknown>) {
    return this.#and((outcome) => {
      if (!("rejection" in expected)) refuseRejection(outcome)
      for (const key of ["rejection", "events", "reply", "state"] as const) {
        if (key in expected && !isDeepStrictEqual(outcome[key], expected[key])) {
          const message = `the ${key} ${key === "events" ? "are" : "is"} not as expected`
          throw fault(message, { actual: outcome[key], expected: expected[key] })
        }
      }
      expectedRejections.add(outcome)
      return outcome
    })
  }

  #and(step: Step): Steps {
    return new Steps(this.#model, this.#answers, [...this.#steps, step])
  }

  #apply = (state: unknown, event: AnyEvent): unknown => {
    storeAndRead(this.#model, event)
    return this.#model.apply(state, event)
  }

  #outcome(tag: string, before: unknown, decision: AnyDecision<unknown>): AnyOutcome {
    const answer = this.#answers.get(tag)!
    if (decision._tag === "Reject") {
      const problem = answer.error(decision.error)
      if (problem !== undefined) throw fault(`the error of ${tag} does not fit its schema: ${problem}`)
      return { events: [], reply: undefined, rejection: decision.error, state: before }
    }
    const events = decision._tag === "Persist" ? decision.events : []
    const state = events.reduce(this.#apply, before)
    const reply = decision._tag === "Persist" ? decision.reply(state) : decision.value
    const problem = answer.success(reply)
    if (problem !== undefined) throw fault(`the reply of ${tag} does not fit its schema: ${problem}`)
    const saved = this.#model.decodeState(JSON.parse(JSON.stringify(this.#model.encodeState(state))))
    if (Result.isFailure(saved)) throw fault(`the state after ${tag} cannot be read from a snapshot: ${saved.failure}`)
    if (!isDeepStrictEqual(saved.success, state)) {
      throw fault(`the state after ${tag} comes out of a snapshot as another`, {
        actual: saved.success,
        expected: state
      })
    }
    return { events, reply, rejection: undefined, state }
  }
}

// ---------------------------------------------------------------------------------------------------- reactions

/** A command that a reaction or a timer sends. */
export interface Sent {
  /** The type of the entity that it is sent to. */
  readonly to: string
  readonly id: string
  readonly command: string
  readonly payload?: unknown
  /** How long after the event a timer sends it; reactions send at once. */
  readonly after?: Duration.Input
}

/** How the entities of a type answer, by command. Those that reply with nothing do so, unless they are named here. */
export type AnswersOf<Command extends Rpc.Any> = {
  readonly [C in Command as C["_tag"]]?: Decision.Reply<Rpc.Success<C>> | Decision.Reject<Rpc.Error<C>>
}

/** The event whose reactions are run, as they see it. */
export interface EventSource {
  /** Default: `"test"`. */
  readonly entityId?: string
  /** Default: 1. */
  readonly sequence?: number
  /** Default: 1970. */
  readonly at?: Date
}

/**
 * Steps of a test of reactions and timers. It is itself the effect that runs them, and gives the commands sent after the last
 * event. What is not as expected dies with an `AssertionError`.
 */
export interface ReactionScenario<Event extends EventSchema, R> extends Effect.Effect<ReadonlyArray<Sent>, never, R> {
  /** How the entities of a type answer, those of the same type included. */
  readonly given: <
    Type extends string,
    State extends StateSchema,
    OtherEvent extends EventSchema,
    Command extends Rpc.AnyWithProps
  >(
    entity: PersistentEntity<Type, State, OtherEvent, Command>,
    answers: AnswersOf<Command>
  ) => ReactionScenario<Event, Exclude<R, Entities<Type>>>
  /** An event was stored: what it leads to is run, its timers without waiting. */
  readonly when: (event: Event["Type"], source?: EventSource) => ReactionScenario<Event, R>
  /** All commands that are sent: those of the reaction in their order, then those of the timer. */
  readonly expect: (sent: ReadonlyArray<Sent>) => ReactionScenario<Event, R>
}

/**
 * What the events of an entity lead to, tested without the other entities.
 *
 * **Example**
 *
 * ```ts
 * it.effect("a booking takes a seat", () =>
 *   TestEntity.reactions(Booking, behavior)
 *     .given(Flight, { TakeSeat: Decision.reject(new Full()) })
 *     .when(Booked.make({ flight: "EF-404" }), { entityId: "b-1" })
 *     .expect([
 *       { to: "Flight", id: "EF-404", command: "TakeSeat" },
 *       { to: "Booking", id: "b-1", command: "Cancel" }
 *     ])
 * )
 * ```
 */
export const reactions = <
  Type extends string,
  State extends StateSchema,
  Event extends EventSchema,
  Command extends Rpc.AnyWithProps,
  R = never
>(
  entity: PersistentEntity<Type, State, Event, Command>,
  behavior: Behavior<State["Type"], Event, Command, R>
): ReactionScenario<Event, Exclude<R, Entities<Type>>> =>
  new ReactionSteps(
    { entity, behavior, model: makeModel(entity.type, entity.definition, behavior) },
    new Map(),
    []
  ).given(entity, {}) as any

interface AnyEntity extends Context.Key<any, any> {
  readonly type: string
  readonly definition: { readonly commands: ReadonlyArray<Rpc.AnyWithProps> }
}

interface Subject {
  readonly entity: AnyEntity
  readonly behavior: Behavior<any, any, any, any>
  readonly model: Model<any>
}

/** Other entities, which note what they are asked and answer as they are told. */
class Others {
  readonly sent: Array<Sent> = []
  readonly #ids = new Set<string>()
  after: Duration.Duration | undefined

  clients({ definition, type }: AnyEntity, answers: Readonly<Record<string, AnyDecision<unknown> | undefined>>) {
    const client = (id: string) =>
      Object.fromEntries(
        definition.commands.map((command) => [
          command._tag,
          (payload: unknown) =>
            Effect.withFiber((fiber) => {
              const { _tag: tag } = command
              const problem = problemOf(command.payloadSchema)(payload)
              if (problem !== undefined) {
                throw fault(`the payload of ${tag} for ${type} "${id}" does not fit its schema: ${problem}`)
              }
              const commandId = fiber.getRef(CurrentCommandIds)!.of(tag)
              const name = JSON.stringify([type, id, commandId])
              if (this.#ids.has(name)) {
                throw fault(
                  `${tag} is sent to ${type} "${id}" again with the same id, so it would be carried out once: give it an id of its own by withCommandId`
                )
              }
              this.#ids.add(name)
              this.sent.push({
                to: type,
                id,
                command: tag,
                ...(payload === undefined ? {} : { payload }),
                ...(this.after === undefined ? {} : { after: this.after })
              })
              return this.#answer(type, command, answers[tag])
            })
        ])
      )
    return Object.assign(client, { passivate: () => Effect.void })
  }

  #answer(type: string, command: Rpc.AnyWithProps, decision: AnyDecision<unknown> | undefined) {
    const { _tag: tag } = command
    const rejected = decision?._tag === "Reject"
    const value = rejected ? decision.error : decision?._tag === "Reply" ? decision.value : undefined
    const problem = problemOf(rejected ? command.errorSchema : command.successSchema)(value)
    if (problem === undefined) return rejected ? Effect.fail(value) : Effect.succeed(value)
    throw fault(
      decision === undefined
        ? `what ${type} answers to ${tag} is not said: given(${type}, { ${tag}: Decision.reply(...) })`
        : `the answer of ${type} to ${tag} does not fit its schema: ${problem}`
    )
  }
}

type ReactionStep = (before: ReadonlyArray<Sent>) => Effect.Effect<ReadonlyArray<Sent>, unknown, any>

type AnswersByEntity = ReadonlyMap<AnyEntity, Readonly<Record<string, AnyDecision<unknown> | undefined>>>

class ReactionSteps extends Effectable.Class<ReadonlyArray<Sent>, never, any> {
  readonly #subject: Subject
  readonly #answers: AnswersByEntity
  readonly #steps: ReadonlyArray<ReactionStep>

  constructor(subject: Subject, answers: AnswersByEntity, steps: ReadonlyArray<ReactionStep>) {
    super()
    this.#subject = subject
    this.#answers = answers
    this.#steps = steps
  }

  override asEffect() {
    const none: ReadonlyArray<Sent> = []
    return Effect.orDie(
      Effect.reduce(
        this.#steps,
        () => none,
        (sent, step) => Effect.suspend(() => step(sent))
      )
    )
  }

  given(entity: AnyEntity, answers: AnswersOf<any>) {
    const all = new Map(this.#answers).set(entity, { ...this.#answers.get(entity), ...answers })
    return new ReactionSteps(this.#subject, all, this.#steps)
  }

  when(event: AnyEvent, { at = new Date(0), entityId = "test", sequence = 1 }: EventSource = {}) {
    const { behavior, entity, model } = this.#subject
    return this.#and(() => {
      storeAndRead(model, event)
      const others = new Others()
      let services = Context.empty()
      for (const [other, answers] of this.#answers) {
        services = Context.add(services, other, others.clients(other, answers) as any) as Context.Context<never>
      }
      const self = (Context.getUnsafe(services, entity) as (entityId: string) => any)(entityId)
      const run = (part: string, reaction: Reaction<any, any, any>) =>
        Effect.suspend(() => reaction(event, { at, entityId, self, sequence })).pipe(
          Effect.provideService(CurrentCommandIds, { of: (command) => `${part}/${command}`, strict: false }),
          Effect.provideContext(services)
        )
      const reaction: Reaction<any, any, any> | undefined = behavior.reactions?.[event._tag]
      const timer: Timer<any, any, any> | undefined = behavior.timers?.[event._tag]
      return Effect.gen(function* () {
        if (reaction !== undefined) yield* run("reaction", reaction)
        if (timer !== undefined) {
          others.after = Duration.fromInputUnsafe(typeof timer.after === "function" ? timer.after(event) : timer.after)
          yield* run("timer", timer.run)
        }
        return others.sent
      })
    })
  }

  expect(expected: ReadonlyArray<Sent>) {
    const inMillis = (sent: ReadonlyArray<Sent>) =>
      sent.map(({ after, ...command }) =>
        after === undefined ? command : { ...command, after: Duration.toMillis(after) }
      )
    return this.#and((sent) => {
      const [actual, wanted] = [inMillis(sent), inMillis(expected)]
      if (isDeepStrictEqual(actual, wanted)) return Effect.succeed(sent)
      throw fault("the commands sent are not as expected (after: in milliseconds)", { actual, expected: wanted })
    })
  }

  #and(step: ReactionStep) {
    return new ReactionSteps(this.#subject, this.#answers, [...this.#steps, step])
  }
}
