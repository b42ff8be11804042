/**
 * An entity type without its life: how payloads are checked, commands decided, events applied, written and read. Pure, and
 * the same in production and in tests.
 */
import {
  compiled,
  describeIssue,
  type EventCodec,
  type EventSchema,
  json,
  make as makeEventCodec
} from "@effect-cassandra/journal/EventCodec"
import { Context, type Effect, Result, Schema, SchemaParser } from "effect"
import { type Rpc, RpcSchema } from "effect/rpc"
import type * as Decision from "../Decision.ts"
import type { Behavior, Definition } from "../PersistentEntity.ts"
import { Annotation, type Freshness } from "../ReadOnly.ts"
import { type Answers, type Codecs, makeAnswers, makeCodecs } from "./answers.ts"

/** An event of any entity type. */
export interface AnyEvent {
  readonly _tag: string
}

export type AnyDecision<State> = Decision.Decision<AnyEvent, State, unknown, unknown>

/** A command with its handler. */
export interface Command<State> {
  readonly tag: string
  readonly readOnly: Freshness | undefined
  /** Why a payload does not fit the schema, in words. */
  readonly problem: (payload: unknown) => string | undefined
  readonly codecs: () => Codecs
  /** Writes and reads the answers that are stored with the ids of commands. */
  readonly answers: Answers
  readonly decide: (
    state: State,
    payload: unknown
  ) => AnyDecision<State> | Effect.Effect<AnyDecision<State>, unknown, any>
}

/** An entity type. */
export interface Model<State> {
  readonly entityType: string
  readonly initialState: State
  readonly commands: ReadonlyMap<string, Command<State>>
  readonly events: EventCodec<AnyEvent>
  readonly apply: (state: State, event: AnyEvent) => State
  readonly snapshotWhen: ((state: State, event: AnyEvent) => boolean) | undefined
  readonly encodeState: (state: State) => unknown
  /** The state, or in words why it cannot be one. */
  readonly decodeState: (encoded: unknown) => Result.Result<State, string>
}

/** A definition and a behavior put together; throws where they do not fit, for those who do without types. */
export const makeModel = <State, Event extends EventSchema, Commands extends Rpc.AnyWithProps>(
  entityType: string,
  definition: Definition<Schema.Codec<State, any>, Event, Commands>,
  behavior: Behavior<State, Event, Commands, any>
): Model<State> => {
  const problem = problemOf(definition.state)(definition.initialState)
  if (problem !== undefined) throw new Error(`${entityType}: the initial state does not fit its schema: ${problem}`)
  if (typeof behavior.apply !== "function") throw new Error(`${entityType} has no function apply`)
  const stateSchema = json(definition.state)
  const decodeState = SchemaParser.decodeUnknownResult(stateSchema)
  const commands = new Map<string, Command<State>>()
  for (const command of definition.commands) {
    const { _tag: tag } = command
    const decide = (behavior.commands as Record<string, Command<State>["decide"]>)[tag]
    if (decide === undefined) throw new Error(`${entityType} has no handler for its command ${tag}`)
    const codecs = makeCodecs(command)
    commands.set(tag, {
      tag,
      readOnly: Context.get(command.annotations, Annotation),
      problem: problemOf(command.payloadSchema),
      codecs,
      answers: makeAnswers(tag, codecs),
      decide
    })
  }
  for (const tag of Object.keys(behavior.commands)) {
    if (!commands.has(tag)) throw new Error(`${entityType} has a handler for ${tag}, which is not among its commands`)
  }
  const events = makeEventCodec(definition.events as ReadonlyArray<EventSchema>)
  for (const tag of Object.keys({ ...behavior.reactions, ...behavior.timers })) {
    if (events.types.includes(tag)) continue
    throw new Error(`${entityType} has a reaction or timer for ${tag}, which is not among its events`)
  }
  return {
    entityType,
    initialState: definition.initialState,
    commands,
    events,
    apply: behavior.apply as Model<State>["apply"],
    snapshotWhen: behavior.snapshotWhen as Model<State>["snapshotWhen"],
    encodeState: SchemaParser.encodeSync(stateSchema),
    decodeState: (encoded) => Result.mapError(decodeState(encoded), describeIssue)
  }
}

/** Says in words why a value is not of a schema's type. */
export const problemOf = (schema: Schema.Top) => {
  const type = compiled(Schema.toType(schema)) as Schema.Codec<unknown>
  const isValid = SchemaParser.is(type)
  const decode = SchemaParser.decodeUnknownResult(type)
  return (payload: unknown): string | undefined => {
    if (isValid(payload)) return undefined
    const decoded = decode(payload)
    return Result.isSuccess(decoded) ? undefined : describeIssue(decoded.failure)
  }
}

/** Refuses a definition that cannot work. */
export const checkDefinition = (
  entityType: string,
  definition: Definition<any, EventSchema, Rpc.AnyWithProps>
): void => {
  const tags = new Set<string>()
  for (const { _tag: tag, successSchema } of definition.commands) {
    if (tags.has(tag)) throw new Error(`${entityType} has two commands ${tag}`)
    if (tag === "then" || tag === "constructor") throw new Error(`${entityType}: a command cannot be named ${tag}`)
    if (RpcSchema.isStreamSchema(successSchema)) {
      throw new Error(`${entityType}: the command ${tag} answers with a stream, which an entity cannot`)
    }
    tags.add(tag)
  }
}
