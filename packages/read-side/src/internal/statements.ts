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
import type { Collector, Open, Outcome } from "./sink.ts"
import { atOnce, Batch, refusalOf, type Write, Writer } from "./writer.ts"

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

/**
 * Adds what the handlers of a processor write for an event, checked as far as the texts show; or says why that cannot be. Of
 * one that cannot, nothing is left.
 */
type AddWrites = (envelope: EventEnvelope, into: Array<Write>) => ReadSideError | undefined

const addWritesOf = (
  name: string,
  { events, handlers }: Pick<Definition, "events" | "handlers">,
  refusal: (statement: Statement<unknown>) => string | undefined,
  generation: number
): AddWrites => {
  const decode: Decode<{ readonly _tag: string }> = makeDecode(name, events, Object.keys(handlers))
  const byTag = handlers as Record<string, (event: unknown, envelope: EventEnvelope) => Statements>
  const start = generationStart(generation)

  const failed = ({ entityId }: EventEnvelope, eventType: string, what: string, cause: unknown) => {
    const message = `the handler for ${eventType} of processor "${name}" ${what}`
    return new ReadSideError({
      reason: new HandlerFailure({ processor: name, entityId, eventType, message, cause })
    })
  }

  const add = (envelope: EventEnvelope, into: Array<Write>, begin: number): ReadSideError | undefined => {
    const decoded = decode(envelope)
    if (Result.isFailure(decoded)) return decoded.failure
    for (const event of decoded.success) {
      const { _tag } = event
      let given: Statements | undefined
      try {
        given = byTag[_tag]?.(event, envelope)
      } catch (cause) {
        return failed(envelope, _tag, `threw at "${envelope.entityId}": ${cause}`, cause)
      }
      if (given === undefined) continue
      const all = Array.isArray(given) ? (given as ReadonlyArray<Statement<unknown>>) : [given as Statement<unknown>]
      for (const statement of all) {
        if (typeof statement?.text !== "string") {
          const what = statement instanceof Promise ? "a promise" : JSON.stringify(statement)
          const way = "it must be a plain function; what needs an Effect is a processor by Processor.effect"
          return failed(
            envelope,
            _tag,
            `gave ${what} at "${envelope.entityId}" instead of statements: ${way}`,
            statement
          )
        }
        const stamp = start + BigInt(envelope.stamp + into.length - begin)
        into.push({ statement, stamp, event: envelope })
      }
    }
    const count = into.length - begin
    if (count > maxStatements) {
      const why = `it gave ${count} statements for one event, ${maxStatements} is the most`
      return refused(name, envelope.type, into[begin]!.statement.text, why)
    }
    for (let i = begin; i < into.length; i++) {
      const { statement } = into[i]!
      const why = refusal(statement)
      if (why !== undefined) return refused(name, envelope.type, statement.text, why)
    }
  }

  return (envelope, into) => {
    const begin = into.length
    const failure = add(envelope, into, begin)
    if (failure !== undefined) into.length = begin
    return failure
  }
}

/** A processor's statements for an event, and its work in a shard. */
export const statements = (name: string, definition: Definition) => {
  // One for all shards, which sees when two of them write one row.
  const writers = new WeakMap<CassandraSession["Service"], Writer>()
  const open: Open = ({ concurrency, generation, session, shards }) => {
    const single = shards === 1 && (typeof definition.entityType === "string" || definition.entityType.length === 1)
    const writer = writers.get(session) ?? new Writer(session, !single && definition.keys !== "own")
    writers.set(session, writer)
    const addWrites = addWritesOf(name, definition, (statement) => writer.refusal(statement), generation)

    const collect = (): Collector => {
      const batch = new Batch(writer)
      return {
        get size() {
          return batch.size
        },
        write: Effect.suspend(() => batch.write(concurrency)),
        add: Effect.fnUntraced(function* (events) {
          let done = events[0]!.offset - 1
          const writes: Array<Write> = []
          for (const [i, event] of events.entries()) {
            if (i % atOnce === atOnce - 1) yield* Effect.yieldNow
            writes.length = 0
            const error = addWrites(event, writes)
            if (error !== undefined) return { done, failure: { error, event } }
            for (const write of writes) {
              if (batch.knows(write)) continue
              const learnt = yield* Effect.result(batch.learn(write))
              if (Result.isFailure(learnt)) {
                return { done, failure: { error: storeFailure(learnt.failure), event: undefined } }
              }
            }
            const found = batch.add(writes)
            if (found !== undefined) {
              return {
                done,
                failure: { error: refused(name, event.type, found.write.statement.text, found.why), event }
              }
            }
            done = event.offset
          }
          return { done, failure: undefined }
        })
      }
    }

    const handle = Effect.fnUntraced(function* (events: ReadonlyArray<EventEnvelope>): Effect.fn.Return<Outcome> {
      const collector = collect()
      const { done, failure } = yield* collector.add(events)
      const before = events[0]!.offset - 1
      const written = yield* Effect.result(collector.write)
      if (Result.isSuccess(written)) return { done, written: written.success, failure }
      const error = written.failure
      // What may pass is nobody's fault.
      const taken = error.isRetryable ? [] : events.filter(({ offset }) => offset <= done)
      return taken.length > 1
        ? yield* oneByOne(events)
        : { done: before, written: 0, failure: { error: storeFailure(error), event: taken[0] } }
    })

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

    return Effect.succeed({ handle, collect, coalesces: true })
  }
  const addWrites = addWritesOf(name, definition, refusalOf, 0)
  const writes = (envelope: EventEnvelope): Result.Result<ReadonlyArray<Write>, ReadSideError> => {
    const all: Array<Write> = []
    const failure = addWrites(envelope, all)
    return failure === undefined ? Result.succeed(all) : Result.fail(failure)
  }
  return { open, writes }
}
