/**
 * How events are written into the journal and read from it: by Schema, told apart by their `_tag`, which is the stored type.
 *
 * Events are kept for ever, and their schemas change. What was stored before a change is brought up to date when it is
 * read: `history` says how the versions of an event follow one another, `retired` what has become of a type that is no
 * longer written.
 */
import { Result, Schema, SchemaAST, SchemaIssue, SchemaParser } from "effect"
import { SchemaJITCompiler } from "effect/schema"

/** A schema of events with a `_tag`: `Schema.TaggedStruct`, `Schema.TaggedClass`. No services are needed to encode it. */
export type EventSchema = Schema.Codec<{ readonly _tag: string }, any>

/** An event as it is stored: the payload is JSON, without `_tag`. */
export interface StoredEvent {
  readonly type: string
  /** The version of its schema; 1 when left out. */
  readonly version?: number | undefined
  readonly payload: unknown
}

/**
 * From the payload of one version, as JSON gives it, to that of the next: a pure function. A list instead of a payload
 * says which events it becomes, each brought up to date from its own version on: several, or none. What it throws is
 * reported as the reason why the event could not be read.
 */
export type Upcaster = (payload: any) => { readonly [name: string]: unknown } | ReadonlyArray<StoredEvent>

/** How the versions of an event follow one another. */
export interface History {
  /** The version of the schema, and of what is written from now on: 2 after the first change. */
  readonly version: number
  /** By the version that each begins with, from 1 on without a hole: `{ 1: from1to2, 2: from2to3 }`. */
  readonly upcasters?: { readonly [from: number]: Upcaster } | undefined
  /**
   * From a newer version than this code's to the one before, so that old and new code can run side by side:
   * `{ 4: from4to3 }`. Without one, an event of a newer version is an error.
   */
  readonly downcasters?: { readonly [from: number]: Upcaster } | undefined
  /** The types under which the event was stored before it was renamed; the versions count on over a change of name. */
  readonly formerly?: ReadonlyArray<string> | undefined
}

/** Writes and reads the events of some schemas. */
export interface EventCodec<Event> {
  /** The types of the events, as they are written; neither former nor retired ones. */
  readonly types: ReadonlyArray<string>
  /** The event as it is stored, in the newest version. Throws for an event of no schema. */
  readonly encode: (event: { readonly _tag: string }) => Required<StoredEvent>
  /** The events that a stored one is today, mostly one; or in words why it cannot be read. */
  readonly decode: (type: string, payload: unknown, version?: number) => Result.Result<ReadonlyArray<Event>, string>
}

/** Settings of a codec. */
export interface Options {
  /** Reads events of these types only; all others are passed over, also those that nothing is known of. */
  readonly only?: ReadonlyArray<string> | undefined
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

// ---------------------------------------------------------------------------------------------------- history

const historyKey = "@effect-cassandra/journal/history"
const retiredKey = "@effect-cassandra/journal/retired"

/**
 * The history of an event, as an annotation of its schema: whoever uses the schema, reads and writes the versions alike.
 *
 * **Example**
 *
 * ```ts
 * const Deposited = Schema.TaggedStruct("Deposited", { cents: Schema.Int, currency: Schema.String }).annotate(
 *   EventCodec.history({
 *     version: 3,
 *     upcasters: {
 *       1: ({ amount, ...rest }) => ({ ...rest, cents: Math.round(amount * 100) }),
 *       2: (deposited) => ({ ...deposited, currency: "EUR" })
 *     },
 *     formerly: ["MoneyPaidIn"]
 *   })
 * )
 * ```
 */
export const history = (history: History): { readonly [historyKey]: History } => ({ [historyKey]: history })

/**
 * A type of event that is no longer written, to stand among the schemas of the events. Stored ones become the events
 * that `upcast` gives, or none.
 *
 * **Example**
 *
 * ```ts
 * const Audited = EventCodec.retired("Audited")
 * const Exchanged = EventCodec.retired("Exchanged", ({ paid, received }) => [
 *   { type: "Withdrawn", version: 1, payload: { cents: paid } },
 *   { type: "Deposited", version: 3, payload: { cents: received, currency: "USD" } }
 * ])
 * ```
 */
export const retired = (
  type: string,
  upcast: (payload: any, version: number) => ReadonlyArray<StoredEvent> = () => []
): Schema.Codec<never, { readonly _tag: string }> =>
  Schema.TaggedStruct(type, {}).annotate({ [retiredKey]: upcast }) as Schema.Codec<unknown> as Schema.Codec<
    never,
    { readonly _tag: string }
  >

/** Also where checks or a transformation were added to the schema afterwards. */
const findAnnotation = (ast: SchemaAST.AST, key: string): unknown =>
  ast.checks?.findLast(({ annotations }) => annotations?.[key] !== undefined)?.annotations?.[key] ??
  ast.annotations?.[key] ??
  ast.encoding?.map(({ to }) => findAnnotation(to, key)).find((found) => found !== undefined)

const tagOf = (schema: EventSchema): string => {
  const ast = SchemaAST.toEncoded(schema.ast)
  const tag = SchemaAST.isObjects(ast) ? ast.propertySignatures.find(({ name }) => name === "_tag") : undefined
  if (tag === undefined || !SchemaAST.isLiteral(tag.type) || typeof tag.type.literal !== "string") {
    throw new Error("the schema of an event needs a literal _tag: use Schema.TaggedStruct or Schema.TaggedClass")
  }
  if (tag.type.literal.startsWith("$")) {
    throw new Error(`an event cannot be called "${tag.type.literal}": types that begin with $ belong to the journal`)
  }
  return tag.type.literal
}

/** Nothing that may be stored lacks a way to the schema. */
const checkHistory = (type: string, { downcasters = {}, upcasters = {}, version }: History): void => {
  if (!Number.isSafeInteger(version) || version < 1) {
    throw new Error(`the history of event "${type}" has version ${version}: versions are 1, 2, 3 ...`)
  }
  const expected = Array.from({ length: version - 1 }, (_, i) => String(i + 1))
  if (Object.keys(upcasters).join() !== expected.join()) {
    throw new Error(
      `the history of event "${type}" needs an upcaster from each version before ${version}: from ${expected.join(", ") || "none"}, and has them from ${Object.keys(upcasters).join(", ") || "none"}`
    )
  }
  if (Object.keys(downcasters).some((from, i) => Number(from) !== version + 1 + i)) {
    throw new Error(
      `the history of event "${type}" has downcasters from ${Object.keys(downcasters).join(", ")}: they begin at version ${version + 1} and leave none out`
    )
  }
}

// ------------------------------------------------------------------------------------------------------ codec

/** What is known of a stored type. */
type Known = {
  /** Its name today. */
  readonly type: string
} & (
  | { readonly retired: (payload: unknown, version: number) => ReadonlyArray<StoredEvent> }
  | {
      readonly retired?: never
      readonly version: number
      readonly casters: { readonly [from: number]: Upcaster }
      readonly encode: (event: { readonly _tag: string }) => Schema.Json
      readonly decode: (payload: unknown) => Result.Result<unknown, SchemaIssue.Issue>
    }
)

type Current = Exclude<Known, { readonly retired: object }>

/** The way that led to an event: it must not lead in a circle. */
interface Trail {
  readonly step: string
  readonly before: Trail | undefined
}

const isPayload = (value: unknown): value is object =>
  typeof value === "object" && value !== null && !Array.isArray(value)

const show = (value: unknown) => JSON.stringify(value)?.slice(0, 100) ?? String(value)

/**
 * A codec for events of the given schemas, with the histories that they carry.
 */
export const make = <const Event extends EventSchema>(
  events: ReadonlyArray<Event>,
  options: Options = {}
): EventCodec<Event["Type"]> => {
  const known = new Map<string, Known>()
  const know = (stored: string, value: Known) => {
    const other = known.get(stored)
    if (other !== undefined) {
      throw new Error(
        `two events claim what is stored as "${stored}": ${other.type}${other.retired ? ", which is retired," : ""} and ${value.type}`
      )
    }
    known.set(stored, value)
  }
  for (const event of events as ReadonlyArray<EventSchema>) {
    const type = tagOf(event)
    const upcast = findAnnotation(event.ast, retiredKey) as Parameters<typeof retired>[1]
    if (upcast !== undefined) {
      know(type, { type, retired: upcast })
      continue
    }
    const found = (findAnnotation(event.ast, historyKey) as History | undefined) ?? { version: 1 }
    checkHistory(type, found)
    const schema = json(event)
    const value: Known = {
      type,
      version: found.version,
      casters: { ...found.upcasters, ...found.downcasters },
      encode: SchemaParser.encodeSync(schema),
      decode: SchemaParser.decodeUnknownResult(schema)
    }
    for (const stored of [type, ...(found.formerly ?? [])]) know(stored, value)
  }
  const types = [...new Set([...known.values()].flatMap(({ retired, type }) => (retired ? [] : [type])))]
  const only = options.only === undefined ? undefined : new Set(options.only)

  /** Adds what a stored event is today, or says why it cannot be read. */
  const read = (
    into: Array<Event["Type"]>,
    stored: string,
    storedPayload: unknown,
    storedVersion: number,
    trail: Trail | undefined
  ): string | undefined => {
    const found = known.get(stored)
    if (found === undefined) {
      return only === undefined
        ? `there is no schema for it among ${types.join(", ")}: add one for the stored type, or EventCodec.retired`
        : undefined
    }
    if (!Number.isSafeInteger(storedVersion) || storedVersion < 1) {
      return `its version is ${show(storedVersion)}: versions are 1, 2, 3 ...`
    }
    if (!isPayload(storedPayload)) return `its payload is not an object, but ${show(storedPayload)}`
    return !found.retired && storedVersion === found.version
      ? accept(into, found, storedPayload)
      : change(into, found, storedPayload, storedVersion, trail)
  }

  const accept = (into: Array<Event["Type"]>, { decode, type }: Current, payload: object): string | undefined => {
    if (only !== undefined && !only.has(type)) return
    const event = decode({ ...payload, _tag: type })
    if (Result.isFailure(event)) {
      return `it does not fit its schema, make the schema accept what is stored or declare its history: ${describeIssue(event.failure)}`
    }
    into.push(event.success as Event["Type"])
  }

  /** As `read`, for one that is of another version, or of none any more. */
  const change = (
    into: Array<Event["Type"]>,
    found: Known,
    storedPayload: object,
    storedVersion: number,
    trail: Trail | undefined
  ): string | undefined => {
    let payload = storedPayload
    let version = storedVersion

    /** The events that it becomes, by name so that nothing of them is missed. */
    const become = (given: ReadonlyArray<StoredEvent>, by: string): string | undefined => {
      const step = found.retired ? found.type : `${found.type} ${version}`
      for (let at = trail; at !== undefined; at = at.before) {
        if (at.step === step) return `${by} leads in a circle, back to ${step}`
      }
      for (const event of given) {
        if (typeof event?.type !== "string") return `${by} gave ${show(event)} among its events, which has no type`
        const { payload, type, version = 1 } = event
        const failure = read(into, type, payload, version, { step, before: trail })
        if (failure !== undefined) return `${by} made it a ${type} of version ${version}: ${failure}`
      }
    }

    if (found.retired) {
      let given: unknown
      try {
        given = found.retired(payload, version)
      } catch (cause) {
        return `its upcaster threw: ${cause}`
      }
      return Array.isArray(given)
        ? become(given, "its upcaster")
        : `its upcaster gave ${show(given)} instead of a list of events`
    }

    while (version !== found.version) {
      const caster = found.casters[version]
      if (caster === undefined) {
        return only === undefined || only.has(found.type)
          ? `it was stored in version ${storedVersion}, and this code knows none after ${found.version}: deploy the newer code here, or declare a downcaster from version ${storedVersion}`
          : undefined
      }
      const by = `its ${version < found.version ? "upcaster" : "downcaster"} from version ${version}`
      let given: unknown
      try {
        given = caster(payload)
      } catch (cause) {
        return `${by} threw: ${cause}`
      }
      if (Array.isArray(given)) return become(given, by)
      if (!isPayload(given)) return `${by} gave ${show(given)} instead of a payload or a list of events`
      payload = given
      version += version < found.version ? 1 : -1
    }
    return accept(into, found, payload)
  }

  return {
    types,
    encode: (event) => {
      const found = known.get(event._tag)
      if (found === undefined || found.retired || found.type !== event._tag) {
        throw new Error(`there is no event "${event._tag}" among ${types.join(", ")}`)
      }
      let encoded: Schema.Json
      try {
        encoded = found.encode(event)
      } catch (error) {
        const issue = error instanceof Error ? error.cause : undefined
        if (!SchemaIssue.isIssue(issue)) throw error
        throw new Error(`an event "${event._tag}" does not fit its schema: ${describeIssue(issue)}`)
      }
      const { _tag, ...payload } = encoded as { readonly _tag: string }
      return { type: _tag, version: found.version, payload }
    },
    decode: (type, payload, version = 1) => {
      const into: Array<Event["Type"]> = []
      const failure = read(into, type, payload, version, undefined)
      return failure === undefined ? Result.succeed(into) : Result.fail(failure)
    }
  }
}
