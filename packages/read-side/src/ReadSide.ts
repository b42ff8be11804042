/**
 * The read side: runs processors, which follow stored events and keep query views, each from where it stopped.
 *
 * A view is right whatever happens: statements carry the event's stamp as write timestamp, so executing them twice, or by
 * two processes at once, leaves the same rows, and the offset is stored only after them.
 */
import { make as makeEventCodec } from "@effect-cassandra/journal/EventCodec"
import { type EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { type Statement, make as statement } from "@effect-cassandra/session/Statement"
import { Context, Duration, Effect, Layer, Result, Schedule, Stream } from "effect"
import { type Write, Writer } from "./internal/writer.ts"
import type { Processor } from "./Processor.ts"
import {
  DataLost,
  HandlerFailure,
  JournalFailure,
  ReadSideError,
  type Reason,
  StatementRefused,
  StoreFailure,
  UndecodableEvent
} from "./ReadSideError.ts"

/** Settings of the read side. */
export interface Options {
  /** How often the offsets are stored. Default: 250 milliseconds. */
  readonly offsetInterval?: Duration.Input | undefined
  /** Requests in flight for each shard of a processor. Default: 16. */
  readonly concurrency?: number | undefined
  /**
   * Under load events are collected for up to this long, so that several writes of a row become one; an event that comes
   * alone does not wait. Default: 200 milliseconds.
   */
  readonly maxLinger?: Duration.Input | undefined
  /** The longest pause before an event that failed is tried again. Default: 30 seconds. */
  readonly maxBackOff?: Duration.Input | undefined
}

/** Where a processor stands in one shard. */
export interface Status {
  readonly processor: string
  readonly shard: number
  /** Events up to here are in the view. */
  readonly offset: number
  /** Why it stands still, while it tries again; other shards go on. */
  readonly failure: ReadSideError | undefined
}

/**
 * The processors that run in this process.
 */
export class ReadSide extends Context.Service<
  ReadSide,
  {
    readonly status: Effect.Effect<ReadonlyArray<Status>>
  }
>()("@effect-cassandra/read-side/ReadSide") {
  /** Creates the tables of the processors where they are missing, and runs the processors until the layer is closed. */
  static readonly layer = (
    processors: ReadonlyArray<Processor>,
    options: Options = {}
  ): Layer.Layer<ReadSide, ReadSideError, Journal | CassandraSession> =>
    Layer.effect(ReadSide, run(processors, options))
}

/** Stamps of neighbouring events are ten apart. */
const maxStatements = 10

/** As many events at once are a backlog. */
const catchUpEvents = 1000

const offsets = `CREATE TABLE IF NOT EXISTS read_side_offsets (
  processor text, entity_type text, shard int, offset bigint, PRIMARY KEY ((processor, entity_type, shard)))`

interface Runner {
  readonly processor: Processor
  readonly shard: number
  offset: number
  storedOffset: number
  /** Failures since the last event that came into the view. */
  failures: number
  failure: ReadSideError | undefined
}

const error = (reason: Reason) => new ReadSideError({ reason })
const storeFailure = (cause: CassandraError) => error(new StoreFailure({ message: cause.message, cause }))
const journalFailure = (cause: JournalError) => error(new JournalFailure({ message: cause.message, cause }))

/** The statements of a processor for an event. */
const makeHandle = ({ definition, name }: Processor, writer: Writer) => {
  const codec = makeEventCodec(definition.events, { only: Object.keys(definition.handlers) })
  for (const tag of Object.keys(definition.handlers)) {
    if (!codec.types.includes(tag))
      throw new Error(`processor "${name}" has a handler for ${tag}, which is not among its events`)
  }
  return (envelope: EventEnvelope): Result.Result<ReadonlyArray<Write>, ReadSideError> => {
    const { entityId, offset, payload, shard, type } = envelope
    const events = codec.decode(type, payload)
    if (Result.isFailure(events)) {
      const message = `event ${envelope.sequence} of ${envelope.entityType} "${entityId}" is a ${type}, for processor "${name}": ${events.failure}`
      return Result.fail(
        error(new UndecodableEvent({ processor: name, entityId, eventType: type, shard, offset, message }))
      )
    }
    const statements: Array<Statement<unknown>> = []
    for (const event of events.success) {
      try {
        const given = definition.handlers[event._tag]!(event, envelope)
        statements.push(...(Array.isArray(given) ? given : [given]))
      } catch (cause) {
        const message = `the handler for ${event._tag} of processor "${name}" threw at "${entityId}": ${cause}`
        return Result.fail(error(new HandlerFailure({ processor: name, entityId, eventType: type, message, cause })))
      }
    }
    const refused = (text: string, why: string) =>
      Result.fail(
        error(
          new StatementRefused({
            processor: name,
            statement: text,
            message: `the handler for ${type} of processor "${name}" gave a statement that may not be executed twice. ${why}. ${text}`
          })
        )
      )
    if (statements.length > maxStatements) {
      return refused(
        statements[0]!.text,
        `it gave ${statements.length} statements for one event, ${maxStatements} is the most`
      )
    }
    const writes: Array<Write> = []
    for (const one of statements) {
      const why = writer.refusal(one)
      if (why !== undefined) return refused(one.text, why)
      writes.push({ statement: one, stamp: envelope.stamp + writes.length })
    }
    return Result.succeed(writes)
  }
}

const run = Effect.fnUntraced(function* (processors: ReadonlyArray<Processor>, options: Options) {
  const journal = yield* Journal
  const session = yield* CassandraSession
  const scope = yield* Effect.scope
  const writer = new Writer(session, options.concurrency ?? 16)
  const maxBackOff = Duration.toMillis(options.maxBackOff ?? "30 seconds")

  const maxLinger = Duration.toMillis(options.maxLinger ?? "200 millis")

  const names = processors.map(({ name }) => name)
  const twice = names.find((name, i) => names.indexOf(name) !== i)
  if (twice !== undefined) return yield* Effect.die(new Error(`two processors have the name "${twice}"`))

  yield* session
    .createTables([offsets, ...processors.flatMap(({ definition }) => definition.tables ?? [])])
    .pipe(Effect.mapError(storeFailure))

  const loadOffset = Effect.fnUntraced(function* (processor: Processor, shard: number) {
    const { entityType } = processor.definition
    const rows = yield* session
      .execute<{ offset: bigint }>(
        statement("SELECT offset FROM read_side_offsets WHERE processor = ? AND entity_type = ? AND shard = ?", [
          processor.name,
          entityType,
          shard
        ])
      )
      .pipe(Effect.mapError(storeFailure))
    const offset = Number(rows[0]?.offset ?? 0)
    const head = yield* journal.head(entityType, shard).pipe(Effect.mapError(journalFailure))
    if (offset > head) {
      const message = `processor "${processor.name}" has stored offset ${offset} of ${entityType} shard ${shard}, whose log ends at ${head}: the log was lost, or an older copy restored`
      return yield* error(new DataLost({ processor: processor.name, shard, message }))
    }
    return offset
  })

  /** With the offset as write timestamp, a runner that lags behind another cannot set it back. */
  const saveOffset = (runner: Runner) =>
    Effect.suspend(() => {
      const { offset } = runner
      return Effect.tap(
        session.execute(
          statement(
            "INSERT INTO read_side_offsets (processor, entity_type, shard, offset) VALUES (?, ?, ?, ?)",
            [runner.processor.name, runner.processor.definition.entityType, runner.shard, BigInt(offset)],
            { idempotent: true, timestamp: offset }
          )
        ),
        () =>
          Effect.sync(() => {
            runner.storedOffset = offset
          })
      )
    })

  /** Follows one shard until interrupted; after a failure it goes on from the last event that is in the view. */
  const follow = (runner: Runner) => {
    const handle = makeHandle(runner.processor, writer)
    return Stream.suspend(() =>
      journal.events(runner.processor.definition.entityType, runner.shard, runner.offset)
    ).pipe(
      Stream.mapError(journalFailure),
      Stream.runForEachArray((events) =>
        Effect.suspend(() => {
          const writes: Array<Write> = []
          let done = runner.offset
          let failed: ReadSideError | undefined
          for (const event of events) {
            const handled = handle(event)
            if (Result.isFailure(handled)) {
              failed = handled.failure
              break
            }
            for (const write of handled.success) writes.push(write)
            done = event.offset
          }
          return writer.write(writes).pipe(
            Effect.mapError(storeFailure),
            Effect.flatMap((written) => {
              if (done > runner.offset) runner.failures = 0
              runner.offset = done
              runner.failure = failed
              if (failed !== undefined) return Effect.fail(failed)
              // As long as it is worth while, and not when there is more to catch up with than is collected anyway.
              return written > 1 && events.length < catchUpEvents
                ? Effect.sleep(Math.min(2 * written, maxLinger))
                : Effect.void
            })
          )
        })
      ),
      Effect.tapError((failure) => {
        runner.failure = failure
        return Effect.logError(
          `processor "${runner.processor.name}" stands still in shard ${runner.shard} after offset ${runner.offset}, trying again: ${failure.message}`
        )
      }),
      Effect.catch(() => Effect.sleep(Math.min(maxBackOff, 100 * 2 ** runner.failures++) * (0.5 + Math.random() / 2))),
      Effect.forever,
      Effect.withTracerEnabled(false)
    )
  }

  const runners: Array<Runner> = []
  for (const processor of processors) {
    const started = yield* Effect.forEach(
      Array.from({ length: journal.shards }, (_, shard) => shard),
      (shard) =>
        Effect.map(
          loadOffset(processor, shard),
          (offset): Runner => ({
            processor,
            shard,
            offset,
            storedOffset: offset,
            failures: 0,
            failure: undefined
          })
        ),
      { concurrency: 10 }
    )
    runners.push(...started)
  }
  const saveOffsets = Effect.suspend(() =>
    Effect.forEach(
      runners.filter((runner) => runner.offset > runner.storedOffset),
      saveOffset,
      { concurrency: 10, discard: true }
    )
  ).pipe(
    Effect.catch((cause: CassandraError) =>
      Effect.logWarning(
        `offsets could not be stored, events since the last ones will be handled again: ${cause.message}`
      )
    ),
    Effect.withTracerEnabled(false)
  )
  yield* Effect.addFinalizer(() => saveOffsets)
  yield* Effect.forEach(runners, (runner) => Effect.forkIn(follow(runner), scope), { discard: true })
  yield* saveOffsets.pipe(Effect.repeat(Schedule.spaced(options.offsetInterval ?? "250 millis")), Effect.forkIn(scope))

  return ReadSide.of({
    status: Effect.sync(() =>
      runners.map(({ failure, offset, processor, shard }) => ({ processor: processor.name, shard, offset, failure }))
    )
  })
})
