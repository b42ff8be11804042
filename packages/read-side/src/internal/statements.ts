/**
 * Processors that give statements: effectively once, because an event's statements carry its stamp as write timestamp.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Statement } from "@effect-cassandra/session/Statement"
import { Effect, Result } from "effect"
import type { Handlers, Statements } from "../Processor.ts"
import { HandlerFailure, ReadSideError, StatementRefused } from "../ReadSideError.ts"
import { type Decode, makeDecode } from "./events.ts"
import { storeFailure } from "./failures.ts"
import type { Open, Outcome } from "./sink.ts"
import { Refused, refusalOf, type Write, Writer } from "./writer.ts"

/** Stamps of neighbouring events are ten apart. */
const maxStatements = 10

/**
 * A century in microseconds: each time that tables are emptied to be filled anew, write timestamps move on by more than all
 * that a log spans, so that nothing written before can stand before what is written after.
 */
const generationStep = 3_155_760_000_000_000n

/** What write timestamps of a generation are counted from. */
export const generationStart = (generation: number): bigint => BigInt(generation) * generationStep

/** The write timestamps of a table stay within 64 bits. */
export const maxGeneration = 2000

interface Definition {
  readonly entityType: string | ReadonlyArray<string>
  readonly events: ReadonlyArray<EventSchema>
  readonly keys?: "entity" | "own" | undefined
  readonly handlers: Handlers<any, Statements>
}

const refused = (processor: string, type: string, text: string, why: string) =>
  new ReadSideError({
    reason: new StatementRefused({
      processor,
      statement: text,
      message: `the handler for ${type} of processor "${processor}" gave a statement that is refused: ${why}. ${text}`
    })
  })

/** The statements of a processor for an event, before they are checked against the tables. */
const statementsOf = (name: string, { events, handlers }: Pick<Definition, "events" | "handlers">) => {
  const decode: Decode<{ readonly _tag: string }> = makeDecode(name, events, Object.keys(handlers))
  return (envelope: EventEnvelope): Result.Result<ReadonlyArray<Statement<unknown>>, ReadSideError> => {
    const decoded = decode(envelope)
    if (Result.isFailure(decoded)) return Result.fail(decoded.failure)
    const statements: Array<Statement<unknown>> = []
    for (const event of decoded.success) {
      const { _tag } = event
      let given: Statements | undefined
      try {
        given = (handlers as Record<string, (event: unknown, envelope: EventEnvelope) => Statements>)[_tag]?.(
          event,
          envelope
        )
      } catch (cause) {
        const { entityId } = envelope
        const message = `the handler for ${_tag} of processor "${name}" threw at "${entityId}": ${cause}`
        const reason = new HandlerFailure({ processor: name, entityId, eventType: _tag, message, cause })
        return Result.fail(new ReadSideError({ reason }))
      }
      const all = Array.isArray(given) ? given : given === undefined ? [] : [given]
      const other = all.find((one) => typeof one?.text !== "string")
      if (other !== undefined || all.includes(null)) {
        const { entityId } = envelope
        const message = `the handler for ${_tag} of processor "${name}" gave ${other instanceof Promise ? "a promise" : JSON.stringify(other)} at "${entityId}" instead of statements: it must be a plain function; what needs an Effect is a processor by Processor.effect`
        const reason = new HandlerFailure({ processor: name, entityId, eventType: _tag, message, cause: other })
        return Result.fail(new ReadSideError({ reason }))
      }
      for (const one of all) statements.push(one)
    }
    if (statements.length > maxStatements) {
      const why = `it gave ${statements.length} statements for one event, ${maxStatements} is the most`
      return Result.fail(refused(name, envelope.type, statements[0]!.text, why))
    }
    return Result.succeed(statements)
  }
}

/** What the handlers write, checked as far as the texts show. */
const writesOf = (
  name: string,
  statements: ReturnType<typeof statementsOf>,
  refusal: (statement: Statement<unknown>) => string | undefined,
  generation: number
) => {
  const start = generationStart(generation)
  return (envelope: EventEnvelope): Result.Result<ReadonlyArray<Write>, ReadSideError> => {
    const given = statements(envelope)
    if (Result.isFailure(given)) return Result.fail(given.failure)
    const writes: Array<Write> = []
    for (const statement of given.success) {
      const why = refusal(statement)
      if (why !== undefined) return Result.fail(refused(name, envelope.type, statement.text, why))
      writes.push({ statement, stamp: start + BigInt(envelope.stamp + writes.length), event: envelope })
    }
    return Result.succeed(writes)
  }
}

/** A processor's statements for an event, and its work in a shard. */
export const statements = (name: string, definition: Definition) => {
  const given = statementsOf(name, definition)
  // One for all shards, which sees when two of them write one row.
  const writers = new WeakMap<CassandraSession["Service"], Writer>()
  const open: Open = ({ concurrency, generation, session, shards }) => {
    const single = shards === 1 && (typeof definition.entityType === "string" || definition.entityType.length === 1)
    const writer = writers.get(session) ?? new Writer(session, !single && definition.keys !== "own")
    writers.set(session, writer)
    const writes = writesOf(name, given, (statement) => writer.refusal(statement), generation)

    const handle = (events: ReadonlyArray<EventEnvelope>): Effect.Effect<Outcome> => {
      const all: Array<Write> = []
      const before = events[0]!.offset - 1
      let done = before
      let failure: Outcome["failure"]
      for (const event of events) {
        const given = writes(event)
        if (Result.isFailure(given)) {
          failure = { error: given.failure, event }
          break
        }
        for (const write of given.success) all.push(write)
        done = event.offset
      }
      if (all.length === 0) return Effect.succeed({ done, written: 0, failure })
      return writer.write(all, concurrency).pipe(
        Effect.map((written): Outcome => ({ done, written, failure })),
        Effect.catch((cause) => {
          const single = events.length === 1 ? events[0] : undefined
          if (cause instanceof Refused) {
            const { event, statement } = cause.write
            const error = refused(name, event.type, statement.text, cause.why)
            return single === undefined
              ? oneByOne(events)
              : Effect.succeed({ done: before, written: 0, failure: { error, event } })
          }
          // What may pass is nobody's fault.
          if (cause.isRetryable) {
            return Effect.succeed({
              done: before,
              written: 0,
              failure: { error: storeFailure(cause), event: undefined }
            })
          }
          return single === undefined
            ? oneByOne(events)
            : Effect.succeed({ done: before, written: 0, failure: { error: storeFailure(cause), event: single } })
        })
      )
    }

    /** Finds the event that the others must not wait for. */
    const oneByOne = Effect.fnUntraced(function* (events: ReadonlyArray<EventEnvelope>) {
      let done = events[0]!.offset - 1
      let written = 0
      for (const event of events) {
        const outcome: Outcome = yield* handle([event])
        written += outcome.written
        if (outcome.failure !== undefined) return { done, written, failure: outcome.failure }
        done = event.offset
      }
      return { done, written }
    })

    return Effect.succeed({ handle, coalesces: true })
  }
  return { open, writes: writesOf(name, given, refusalOf, 0) }
}
