/**
 * An entity's decisions tested without a database: given some events, when a command comes, then this is what follows.
 */
import { AssertionError } from "node:assert"
import { isDeepStrictEqual } from "node:util"
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import { Effect, Effectable, Result } from "effect"
import type { Rpc } from "effect/rpc"
import { type AnyDecision, type AnyEvent, type Model, makeModel, problemOf } from "./internal/model.ts"
import type { Behavior, PersistentEntity, StateSchema } from "./PersistentEntity.ts"

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
    const { type, payload, version } = this.#model.events.encode(event)
    const read = this.#model.events.decode(type, JSON.parse(JSON.stringify(payload)), version)
    if (Result.isFailure(read)) throw fault(`a ${type} cannot be read from the journal: ${read.failure}`)
    if (!isDeepStrictEqual(read.success, [event])) {
      throw fault(`a ${type} comes out of the journal as another`, { actual: read.success, expected: [event] })
    }
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
