/**
 * How events are written into the journal and read from it: by Schema, told apart by their `_tag`, which is the stored type.
 */
import { Result, Schema, SchemaAST, SchemaIssue, SchemaParser } from "effect"
import { SchemaJITCompiler } from "effect/schema"

/** A schema of events with a `_tag`: `Schema.TaggedStruct`, `Schema.TaggedClass`. No services are needed to encode it. */
export type EventSchema = Schema.Codec<{ readonly _tag: string }, any>

/** Writes and reads the events of some schemas. */
export interface EventCodec<Event> {
  /** The types of the events, as they are stored. */
  readonly types: ReadonlyArray<string>
  /** Throws for an event of no schema. */
  readonly encode: (event: { readonly _tag: string }) => { readonly type: string; readonly payload: unknown }
  /** The event, or in words why it cannot be one. */
  readonly decode: (type: string, payload: unknown) => Result.Result<Event, string>
}

/** Says in words what is wrong with a value. */
export const describeIssue: (issue: SchemaIssue.Issue) => string = SchemaIssue.makeFormatterDefault()

/** Lets Effect generate code for a schema that many values pass through. */
export const compiled = <S extends Schema.Top>(schema: S): S => {
  for (const ast of [schema.ast, SchemaAST.flip(schema.ast)]) SchemaJITCompiler.enable(ast)
  return schema
}

/** The schema with JSON on its encoded side, also for dates, bigints, maps. */
export const json = <A>(schema: Schema.Codec<A, any>): Schema.Codec<A, Schema.Json> =>
  compiled(Schema.toCodecJson(schema)) as Schema.Codec<A, any>

const tagOf = (schema: EventSchema): string => {
  const ast = SchemaAST.toEncoded(schema.ast)
  const tag = SchemaAST.isObjects(ast) ? ast.propertySignatures.find(({ name }) => name === "_tag") : undefined
  if (tag === undefined || !SchemaAST.isLiteral(tag.type) || typeof tag.type.literal !== "string") {
    throw new Error("the schema of an event needs a literal _tag: use Schema.TaggedStruct or Schema.TaggedClass")
  }
  return tag.type.literal
}

/**
 * A codec for events of the given schemas.
 */
export const make = <const Event extends EventSchema>(events: ReadonlyArray<Event>): EventCodec<Event["Type"]> => {
  const schemas = new Map(
    events.map((event) => {
      const schema = json(event as EventSchema)
      return [
        tagOf(event),
        { encode: SchemaParser.encodeSync(schema), decode: SchemaParser.decodeUnknownResult(schema) }
      ] as const
    })
  )
  const types = [...schemas.keys()]
  return {
    types,
    encode: (event) => {
      const schema = schemas.get(event._tag)
      if (schema === undefined) throw new Error(`there is no event "${event._tag}" among ${types.join(", ")}`)
      const { _tag, ...payload } = schema.encode(event) as { readonly _tag: string }
      return { type: _tag, payload }
    },
    decode: (type, payload) => {
      const schema = schemas.get(type)
      return schema === undefined
        ? Result.fail(`there is no schema for it among ${types.join(", ")}: add one for the stored type`)
        : Result.mapError(
            schema.decode({ ...(payload as object), _tag: type }),
            (issue) => `it does not fit its schema, make the schema accept what is stored: ${describeIssue(issue)}`
          )
    }
  }
}
