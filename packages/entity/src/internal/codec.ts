import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import { Result, Schema, SchemaAST, SchemaIssue, SchemaParser } from "effect"
import type { Rpc } from "effect/rpc"
import { SchemaJITCompiler } from "effect/schema"
import { EntityError, UndecodableEvent } from "../EntityError.ts"
import type { Definition, EventSchema } from "../PersistentEntity.ts"

/** How an entity's values are written and read. */
export interface Codec<State> {
  readonly encodeState: (state: State) => unknown
  readonly decodeState: (json: unknown) => Result.Result<State, string>
  readonly encodeEvent: (event: { readonly _tag: string }) => { readonly type: string; readonly payload: unknown }
  readonly decodeEvent: (envelope: EventEnvelope) => Result.Result<{ readonly _tag: string }, EntityError>
  /** Says what is wrong with a payload, if anything. */
  readonly validator: (command: Rpc.AnyWithProps) => (payload: unknown) => string | undefined
}

const describe = SchemaIssue.makeFormatterDefault()

/** Lets Effect generate code for a schema: every command and event passes through it. */
const compiled = <S extends Schema.Top>(schema: S): S => {
  SchemaJITCompiler.enable(schema.ast)
  SchemaJITCompiler.enable(SchemaAST.toType(schema.ast))
  SchemaJITCompiler.enable(SchemaAST.flip(schema.ast))
  return schema
}

export const makeCodec = <State>(
  entityType: string,
  definition: Pick<Definition<Schema.Codec<State, any>, EventSchema, Rpc.AnyWithProps>, "state" | "events">
): Codec<State> => {
  const state = compiled(definition.state)
  const decodeState = SchemaParser.decodeUnknownResult(state)
  const byTag = new Map(
    definition.events.map((schema) => {
      const event = compiled(schema)
      return [
        tagOf(event),
        { encode: SchemaParser.encodeSync(event), decode: SchemaParser.decodeUnknownResult(event) }
      ] as const
    })
  )
  const known = [...byTag.keys()].join(", ")

  return {
    encodeState: SchemaParser.encodeSync(state),
    decodeState: (json) => Result.mapError(decodeState(json), describe),
    encodeEvent: (event) => {
      const schema = byTag.get(event._tag)
      if (schema === undefined) throw new Error(`${entityType} has no event "${event._tag}", its events are ${known}`)
      const { _tag, ...payload } = schema.encode(event) as { readonly _tag: string }
      return { type: _tag, payload }
    },
    decodeEvent: ({ entityId, payload, sequence, type }) => {
      const undecodable = (what: string) =>
        new EntityError({
          reason: new UndecodableEvent({
            entityType,
            entityId,
            eventType: type,
            sequence,
            message: `event ${sequence} of ${entityType} "${entityId}" is a ${type} and ${what}`
          })
        })
      const schema = byTag.get(type)
      if (schema === undefined) {
        return Result.fail(undecodable(`the entity's events are ${known}: add a schema for the stored type`))
      }
      return Result.mapError(schema.decode({ ...(payload as object), _tag: type }), (issue) =>
        undecodable(`does not fit its schema, make the schema accept what is stored: ${describe(issue)}`)
      )
    },
    validator: (command) => {
      const decode = SchemaParser.decodeUnknownResult(
        compiled(Schema.toType(command.payloadSchema)) as Schema.Codec<unknown>
      )
      return (payload) => {
        const result = decode(payload)
        return Result.isSuccess(result) ? undefined : describe(result.failure)
      }
    }
  }
}

/** The `_tag` of a tagged schema. */
const tagOf = (schema: EventSchema): string => {
  const ast = SchemaAST.toEncoded(schema.ast)
  const tag = SchemaAST.isObjects(ast) ? ast.propertySignatures.find(({ name }) => name === "_tag") : undefined
  if (tag === undefined || !SchemaAST.isLiteral(tag.type) || typeof tag.type.literal !== "string") {
    throw new Error("an event's schema needs a _tag: use Schema.TaggedStruct or Schema.TaggedClass")
  }
  return tag.type.literal
}
