/** Between what callers give and see, and what stands in a log. */
import { Effect, Result } from "effect"
import type { Encoding } from "../Encoding.ts"
import type { Append, EntityKey, EventEnvelope, Metadata, NewEvent } from "../Journal.ts"
import { AppendTooLarge, EncodingFailure, JournalError, MalformedAppend } from "../JournalError.ts"
import { type Body, type Entry, encodeBody, type Item, itemOf } from "./block.ts"

/** The type of an event that remembers a command without events. */
const commandType = "$command"

const maxIdLength = 1024
const maxAppendSize = 4 * 1024 * 1024
const noMetadata: Metadata = Object.freeze({})

const malformed = ({ entityId, entityType }: Append, what: string) => {
  const message = `${what}, and nothing was stored`
  return Result.fail(new JournalError({ reason: new MalformedAppend({ entityType, entityId, message }) }))
}

const tooLarge = ({ entityId, entityType }: Append, what: string) => {
  const message = `${what}, and nothing was stored`
  return Result.fail(new JournalError({ reason: new AppendTooLarge({ entityType, entityId, message }) }))
}

/** What is wrong with a name, if so. */
const refusedName = (what: string, name: unknown): string | undefined =>
  typeof name !== "string" || name.length === 0 || name.length > maxIdLength
    ? `${what} must be text of 1 to ${maxIdLength} characters`
    : undefined

export class EventFormat {
  readonly #encoding: Encoding | undefined
  readonly #encodings: ReadonlyMap<string, Encoding>
  readonly #maxEventSize: number
  readonly #maxEvents: number

  constructor(
    encoding: Encoding | undefined,
    others: ReadonlyArray<Encoding>,
    maxEventSize: number,
    /** Events of one append. */
    maxEvents: number
  ) {
    this.#encoding = encoding
    this.#encodings = new Map([...others, ...(encoding === undefined ? [] : [encoding])].map((one) => [one.name, one]))
    this.#maxEventSize = maxEventSize
    this.#maxEvents = maxEvents
  }

  /** The events of an append as they are to be stored, or why they cannot be. */
  encode(append: Append, current: Metadata): Result.Result<ReadonlyArray<Body>, JournalError> {
    const { command, entityId, entityType, events, expected } = append
    const name = refusedName("entityType", entityType) ?? refusedName("entityId", entityId)
    if (name !== undefined) return malformed(append, name)
    const sequence = typeof expected === "object" ? expected?.sequence : expected
    if (
      !(
        (Number.isSafeInteger(sequence) && Number(sequence) >= 0) ||
        ["none", "exists", "any"].includes(sequence as string)
      )
    ) {
      return malformed(
        append,
        `expected is ${sequence}, it must be a position, a sequence number, "none", "exists" or "any"`
      )
    }
    const id = command === undefined ? undefined : refusedName("the id of a command", command.id)
    if (id !== undefined) return malformed(append, id)
    if (events.length > this.#maxEvents) {
      return tooLarge(append, `${events.length} events at once, the limit is ${this.#maxEvents}`)
    }
    const bodies: Array<Body> = []
    let size = 0
    const last = events.length - 1
    for (let i = 0; i <= last; i++) {
      const event = events[i]!
      const { type, version } = event
      if (typeof type !== "string" || type === "" || type.startsWith("$")) {
        return malformed(append, `"${type}" cannot be the type of an event: it must be text that does not begin with $`)
      }
      if (version !== undefined && (!Number.isSafeInteger(version) || version < 1)) {
        return malformed(append, `the event ${type} has version ${version}, it must be a whole number from 1 on`)
      }
      const body = this.#body(append, event, current, i === last)
      if (body instanceof JournalError) return Result.fail(body)
      const { length } = body.text
      if (length > this.#maxEventSize) {
        const limit = `the limit is ${this.#maxEventSize} (maxEventSize)`
        return tooLarge(append, `an event ${type} has ${length} characters of JSON, ${limit}`)
      }
      size += length
      bodies.push(body)
    }
    if (size > maxAppendSize) {
      return tooLarge(append, `${events.length} events of ${size} characters at once, the limit is ${maxAppendSize}`)
    }
    if (last < 0 && command !== undefined) {
      const m = metadataOf(append, undefined, current)
      bodies.push(encodeBody({ t: commandType, m, a: command.answer }))
    }
    return Result.succeed(bodies)
  }

  #body(append: Append, event: NewEvent, current: Metadata, isLast: boolean): Body | JournalError {
    const { command, entityId, entityType } = append
    try {
      const encoded = this.#encode(event.payload, append)
      return encodeBody({
        t: event.type,
        v: event.version,
        m: metadataOf(append, event.metadata, current),
        a: isLast ? command?.answer : undefined,
        x: encoded?.encoding,
        p: encoded === undefined ? event.payload : encoded.text
      })
    } catch (cause) {
      const encoding = this.#encoding?.name
      const message = `an event ${event.type} of ${entityType} "${entityId}" cannot be written as ${encoding ?? "JSON"}, and nothing was stored: ${cause}`
      return new JournalError({
        reason:
          encoding === undefined
            ? new MalformedAppend({ entityType, entityId, message })
            : new EncodingFailure({ entityType, entityId, encoding, message })
      })
    }
  }

  /** The value as text by the encoding; undefined where it is to be JSON. */
  #encode(value: unknown, { entityId, entityType }: EntityKey) {
    const bytes = this.#encoding?.encode(value, { entityType, entityId })
    if (bytes === undefined) return undefined
    const text = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString("base64")
    return { encoding: this.#encoding!.name, text }
  }

  /** A state as it is to be stored; throws what the encoding throws. */
  encodeState(state: unknown, entity: EntityKey): { readonly state: string; readonly encoding: string | null } {
    const encoded = this.#encode(state, entity)
    if (encoded !== undefined) return { state: encoded.text, encoding: encoded.encoding }
    const text = JSON.stringify(state) as string | undefined
    if (text === undefined) throw new TypeError(`${typeof state} is nothing that JSON can hold`)
    return { state: text, encoding: null }
  }

  /** A state as it was given, or why it cannot be. */
  decodeState(
    { encoding, state }: { readonly state: string; readonly encoding: string | null },
    entity: EntityKey
  ): Result.Result<unknown, string> {
    try {
      if (encoding === null) return Result.succeed(JSON.parse(state))
      const found = this.#encodings.get(encoding)
      if (found === undefined) return Result.fail(`its encoding "${encoding}" is not among those of the journal`)
      const decoded = found.decode(Buffer.from(state, "base64"), entity)
      return decoded === undefined ? Result.fail("its key was thrown away") : Result.succeed(decoded)
    } catch (cause) {
      return Result.fail(`it is not readable: ${cause}`)
    }
  }

  /** An event as others see it; throws a `JournalError` where its payload cannot be read. */
  envelope(entityType: string, shard: number, entry: Entry, deleted = false): EventEnvelope {
    const { entityId, offset, sequence, stamp, type } = entry
    const item = itemOf(entry)
    let gone = deleted || item.d === 1
    let payload = gone ? undefined : item.p
    if (!gone && item.x !== undefined) {
      payload = this.#decode({ entityType, entityId }, item.x, item)
      gone = payload === undefined
    }
    return {
      entityType,
      entityId,
      sequence,
      shard,
      offset,
      stamp,
      type,
      version: item.v ?? 1,
      metadata: item.m ?? noMetadata,
      payload,
      deleted: gone
    }
  }

  #decode({ entityId, entityType }: EntityKey, name: string, { n, p, t }: Item): unknown {
    const encoding = this.#encodings.get(name)
    const refused = (why: string) =>
      new JournalError({
        reason: new EncodingFailure({
          entityType,
          entityId,
          encoding: name,
          message: `event ${n} (${t}) of ${entityType} "${entityId}" is stored as "${name}": ${why}`
        })
      })
    if (encoding === undefined) throw refused("give this encoding to the journal among `encodings`")
    try {
      return encoding.decode(Buffer.from(p as string, "base64"), { entityType, entityId })
    } catch (cause) {
      throw refused(`it cannot be read: ${cause}`)
    }
  }
}

/** Metadata of one event, from the general to the particular; undefined where there are none. */
const metadataOf = (
  { command, metadata }: Append,
  own: Metadata | undefined,
  current: Metadata
): Metadata | undefined => {
  if (command === undefined && metadata === undefined && own === undefined) {
    for (const _ in current) return current
    return undefined
  }
  const all = { ...current, ...metadata, ...own }
  return command === undefined ? all : { ...all, commandId: command.id }
}

/** Runs what may throw a `JournalError`; whatever else it throws is a defect. */
export const attempt = <A>(f: () => A): Effect.Effect<A, JournalError> =>
  Effect.suspend(() => {
    try {
      return Effect.succeed(f())
    } catch (error) {
      return error instanceof JournalError ? Effect.fail(error) : Effect.die(error)
    }
  })
