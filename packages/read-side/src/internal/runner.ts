/**
 * One processor at work in one shard: reads on from its offset, hands events to its kind, and deals with what fails.
 */
import type { EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Clock, Effect, Option, Random, Result, type Semaphore, Stream, type Tracer } from "effect"
import { HttpTraceContext } from "effect/http"
import type { Processor } from "../Processor.ts"
import { DataLost, ReadSideError, RequestRefused } from "../ReadSideError.ts"
import { type Control, later, startOf, type Target } from "./control.ts"
import { journalFailure, mayPass, storeFailure } from "./failures.ts"
import { isYoung, type LogReader } from "./logReader.ts"
import type { Offsets } from "./offsets.ts"
import type { Parked, Parking } from "./parking.ts"
import type { Collector, Failure, Outcome, Place, Sink } from "./sink.ts"

/** Settings, as `ReadSide` has them. */
export interface Limits {
  readonly concurrency: number
  readonly offsetCount: number
  readonly maxLingerMillis: number
  readonly maxBackOffMillis: number
}

/** What a runner needs of the engine. */
export interface Surroundings {
  readonly journal: Journal["Service"]
  readonly session: CassandraSession["Service"]
  readonly offsets: Offsets
  readonly parking: Parking
  readonly limits: Limits
  /** Bounds how many batches are handled at once. */
  readonly batches: Semaphore.Semaphore
  /** Whether batches are traced. */
  readonly traced: boolean
  /** Waits while the lease on the shards has run out. */
  readonly leased: Effect.Effect<void>
  /** Called when something that others look at has changed. */
  readonly changed: (progress: Progress) => void
}

/** How far a runner has come; read by everyone, changed by the runner only. */
export interface Progress {
  readonly place: Place
  readonly reader: LogReader
  epoch: number
  logEpoch: number
  /** -1 until it is known. */
  offset: number
  /** Of the last event, in microseconds. */
  stamp: number
  storedOffset: number
  /** Tries of what fails now. */
  attempts: number
  failure: ReadSideError | undefined
  /** Counts since the start. */
  events: number
  retries: number
  parked: number
  readonly batches: { count: number; max: number }
}

export const makeProgress = (place: Place, reader: LogReader): Progress => ({
  place,
  reader,
  epoch: 0,
  logEpoch: 1,
  offset: -1,
  stamp: 0,
  storedOffset: -1,
  attempts: 0,
  failure: undefined,
  events: 0,
  retries: 0,
  parked: 0,
  batches: { count: 0, max: 0 }
})

/** As many events at once are enough for a batch: nobody waits for more. */
const fullBatch = 4000
/** Where more are there already, so many are taken together: the larger the batch, the more writes of a row become one. */
const largestBatch = 20_000
/** The same for those who collect writes, and how many writes are enough. */
const mostCollected = 100_000
const mostWrites = 20_000
/** How long the next ones may take to be read; they are there, unless the last page was full by chance. */
const moreMillis = 200
/** A batch's span names the traces of as many commands. */
const maxLinks = 32

const fail = (reason: ReadSideError["reason"]) => Effect.fail(new ReadSideError({ reason }))

/** The offset before the first event at a time or later: by bisection, for stamps grow with the offsets. */
const offsetAt = Effect.fnUntraced(function* (
  journal: Journal["Service"],
  entityType: string,
  shard: number,
  millis: number
) {
  let low = 0
  let high = yield* journal.head(entityType, shard)
  while (low < high) {
    const middle = Math.floor((low + high) / 2)
    const event = yield* eventAt(journal, entityType, shard, middle + 1)
    if (Option.isSome(event) && event.value.stamp < millis * 1000) low = middle + 1
    else high = middle
  }
  return low
})

const eventAt = (journal: Journal["Service"], entityType: string, shard: number, offset: number) =>
  Stream.runHead(journal.currentEvents(entityType, shard, offset - 1))

/** The offset that a request means. */
const resolveTarget = (journal: Journal["Service"], entityType: string, shard: number, to: Target) =>
  ("offset" in to ? Effect.succeed(to.offset) : offsetAt(journal, entityType, shard, to.time)).pipe(
    Effect.mapError(journalFailure)
  )

/** Where a processor begins in a shard: after what it has stored, unless a later request wants it elsewhere. */
export const startAt = Effect.fnUntraced(function* (
  { journal, offsets }: Pick<Surroundings, "journal" | "offsets">,
  place: Place,
  sink: Sink,
  control: Control
) {
  const { entityType, processor, shard } = place
  const start = startOf(control, entityType, shard)
  const stored = yield* Effect.mapError(offsets.load(place), storeFailure)
  const logEpoch = yield* Effect.mapError(journal.epoch(entityType), journalFailure)
  const reached = later(sink.reached === undefined ? undefined : yield* sink.reached, stored)
  if (reached !== undefined && reached.epoch > start.epoch) {
    return yield* fail(new RequestRefused({ message: `a request for processor "${processor}" is not known here yet` }))
  }
  const head = yield* Effect.mapError(journal.head(entityType, shard), journalFailure)
  const resumed = reached !== undefined && reached.epoch === start.epoch
  if (resumed && stored !== undefined && stored.logEpoch !== logEpoch) {
    const message = `the log of ${entityType} was restored from an older copy since processor "${processor}" stored offset ${stored.offset} of shard ${shard}: rewind the processor with truncate, or give it a new version`
    return yield* fail(new DataLost({ processor, entityType, shard, message }))
  }
  const offset = resumed ? reached.offset : yield* resolveTarget(journal, entityType, shard, start.to)
  if (offset > head) {
    const message = resumed
      ? `processor "${processor}" has stored offset ${offset} of ${entityType} shard ${shard}, whose log ends at ${head}: the log was lost, or an older copy restored. Rewind the processor when the log is as it should be`
      : `processor "${processor}" was to begin after offset ${offset} of ${entityType} shard ${shard}, whose log ends at ${head}: rewind it to an offset that is there`
    return yield* fail(new DataLost({ processor, entityType, shard, message }))
  }
  return {
    epoch: start.epoch,
    logEpoch,
    offset,
    resumed,
    stamp: resumed ? (stored?.stamp ?? 0) : 0,
    stored: resumed ? (stored?.offset ?? -1) : -1
  }
})

/** The traces of the commands that stored some events. */
const linksOf = (events: ReadonlyArray<EventEnvelope>): ReadonlyArray<Tracer.SpanLink> => {
  const seen = new Set<string>()
  for (const event of events) {
    const { traceparent } = event.metadata
    if (traceparent !== undefined) seen.add(traceparent)
    if (seen.size >= maxLinks) break
  }
  return [...seen].flatMap((traceparent) =>
    Option.match(HttpTraceContext.w3c({ traceparent } as never), {
      onNone: () => [],
      onSome: (span) => [{ span, attributes: {} }]
    })
  )
}

/** Saves how far a runner has come, if it came further. */
export const saveOffset = (offsets: Offsets, progress: Progress) =>
  Effect.suspend(() => {
    const { epoch, logEpoch, offset, place, stamp, storedOffset } = progress
    return offset <= storedOffset || offset < 0
      ? Effect.void
      : Effect.tap(offsets.save(place, { epoch, logEpoch, offset, stamp }), () =>
          Effect.sync(() => {
            if (progress.epoch === epoch) progress.storedOffset = offset
          })
        )
  })

/** Works in a shard until interrupted. */
export const run = <R>(
  surroundings: Surroundings,
  processor: Processor<R>,
  progress: Progress,
  control: Control
): Effect.Effect<never, never, R> => {
  const { batches, changed, journal, leased, limits, offsets, parking, session } = surroundings
  const { place, reader } = progress
  const { entityType, shard } = place
  const name = `processor "${place.processor}", ${entityType} shard ${shard}`
  const park = typeof processor.onFailure === "object" ? processor.onFailure.park : undefined
  /** Entities whose events are put aside, with the last one that is. */
  const aside = new Map<string, number>()

  const stand = Effect.fnUntraced(function* (error: ReadSideError) {
    progress.failure = error
    const attempts = ++progress.attempts
    changed(progress)
    // Not every time, for it may go on for days.
    if (attempts <= 3 || Number.isInteger(Math.log2(attempts))) {
      yield* Effect.logError(
        `${name} stands still after offset ${progress.offset}, try ${attempts}, trying again: ${error.message}`
      )
    }
    const pause = Math.min(limits.maxBackOffMillis, 100 * 2 ** Math.min(attempts - 1, 20))
    yield* Effect.sleep(pause * (0.5 + (yield* Random.next) / 2))
    progress.retries++
  })

  const putAside = Effect.fnUntraced(function* (event: EventEnvelope, error: string | null, attempts: number) {
    yield* Effect.mapError(parking.park(place, event, error, attempts), storeFailure)
    aside.set(event.entityId, event.sequence)
    progress.parked++
    if (error !== null) {
      yield* Effect.logError(
        `${name} has put event ${event.sequence} of "${event.entityId}" aside after ${attempts} tries, later ones of the entity follow: ${error}`
      )
    }
  })

  /** Tries again, or forgets, what operators asked for; in the order of each entity's events. */
  const attend = Effect.fnUntraced(function* (
    sink: Sink,
    { offset, resumed }: Effect.Success<ReturnType<typeof startAt>>
  ) {
    const all = yield* Effect.mapError(parking.list(place), storeFailure)
    // What the log is read for anew comes again by itself.
    const isComing = (one: Parked) => !resumed && one.offset > offset
    const rows = all.filter((one) => !isComing(one))
    const coming = all.filter(isComing)
    yield* Effect.forEach(coming, (one) => parking.remove(place, one.entityId, one.sequence), { discard: true }).pipe(
      Effect.mapError(storeFailure)
    )
    aside.clear()
    progress.parked = rows.length
    for (const [entityId, parked] of Map.groupBy(rows, ({ entityId }) => entityId)) {
      aside.set(entityId, parked.at(-1)!.sequence)
      let left = parked.length
      for (const one of parked) {
        if (one.request === undefined || !(yield* settle(sink, one))) break
        left--
        progress.parked--
      }
      if (left === 0) aside.delete(entityId)
    }
  })

  const settle = Effect.fnUntraced(function* (sink: Sink, one: Parked) {
    if (one.request === "retry") {
      const event = yield* Effect.mapError(eventAt(journal, entityType, shard, one.offset), journalFailure)
      if (Option.isSome(event)) {
        const { failure }: Outcome = yield* sink.handle([event.value], true)
        if (failure !== undefined) {
          yield* Effect.mapError(
            parking.park(place, event.value, failure.error.message, one.attempts + 1),
            storeFailure
          )
          yield* Effect.mapError(parking.setRequest(place, one.entityId, one.sequence, null), storeFailure)
          return false
        }
      }
    }
    yield* Effect.mapError(parking.remove(place, one.entityId, one.sequence), storeFailure)
    return true
  })

  /** What follows some events, if it comes in time. What cannot be read is an error when these have been handled. */
  const after = (events: ReadonlyArray<EventEnvelope>, millis: number) =>
    reader
      .next(events.at(-1)!.offset, progress)
      .pipe(Effect.timeoutOption(millis), Effect.orElseSucceed(Option.none<ReadonlyArray<EventEnvelope>>))

  /** The next events: what there is, or for a kind that takes groups as many as come in its time. */
  const next = Effect.fnUntraced(function* (sink: Sink) {
    const first = yield* Effect.mapError(reader.next(progress.offset, progress), journalFailure)
    const { coalesces, collect, group } = sink
    const enough = collect !== undefined || coalesces !== true || first.length < fullBatch
    if (group === undefined && enough) return first
    const events = [...first]
    const add = Effect.fnUntraced(function* (millis: number) {
      const more = yield* after(events, millis)
      if (Option.isNone(more)) return 0
      for (const event of more.value) events.push(event)
      return more.value.length
    })
    if (group === undefined) {
      while (events.length < largestBatch && (yield* add(moreMillis)) >= fullBatch);
      return events
    }
    const elapsedMillis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)
    const until = (yield* elapsedMillis) + group.withinMillis
    while (events.length < group.size) {
      const left = until - (yield* elapsedMillis)
      if (left <= 0 || (yield* add(left)) === 0) break
    }
    return events
  })

  /** How far the view is after some events of which the last ones are given. */
  const reachedBy = (events: ReadonlyArray<EventEnvelope>, { done, failure }: Pick<Outcome, "done" | "failure">) => {
    const through = failure === undefined ? events.at(-1)!.offset : (failure.event?.offset ?? done + 1) - 1
    return { through, stamp: events.findLast(({ offset }) => offset <= through)?.stamp }
  }

  /** Notes how far the view is. */
  const note = ({ stamp, through }: ReturnType<typeof reachedBy>) => {
    const before = progress.offset
    if (through <= before) return
    progress.offset = through
    progress.stamp = stamp ?? progress.stamp
    progress.attempts = 0
    progress.events += through - before
    progress.batches.count++
    if (through - before > progress.batches.max) progress.batches.max = through - before
  }

  /** A span around a batch, which begins with these events. */
  const traced = <A, E>(
    batch: Effect.Effect<A, E>,
    events: ReadonlyArray<EventEnvelope>,
    count: number,
    offset: number
  ): Effect.Effect<A, E> =>
    surroundings.traced
      ? Effect.withSpan(batch, "read-side.batch", {
          root: true,
          kind: "consumer",
          links: linksOf(events),
          attributes: {
            "read_side.processor": place.processor,
            "read_side.entity_type": entityType,
            "read_side.shard": shard,
            "read_side.events": count,
            "read_side.offset": offset
          }
        }).pipe(Effect.withTracerEnabled(true))
      : batch

  /** Brings events into the view; of those that were read, `live` are not put aside. */
  const handle = (
    sink: Sink,
    events: ReadonlyArray<EventEnvelope>,
    live: ReadonlyArray<EventEnvelope>
  ): Effect.Effect<Outcome> => {
    if (live.length === 0) {
      const outcome = { done: events.at(-1)!.offset, written: 0 }
      note(reachedBy(events, outcome))
      return Effect.succeed(outcome)
    }
    const batch = Effect.tap(traced(sink.handle(live, false), live, live.length, live.at(-1)!.offset), (outcome) =>
      Effect.sync(() => note(reachedBy(events, outcome)))
    )
    // Writes that are under way are worth waiting for when the process ends: they need not be done again.
    return batches.withPermits(1)(sink.coalesces ? Effect.uninterruptible(batch) : batch)
  }

  /** True when the event that failed is dealt with, and need not be tried again. */
  const dealtWith = Effect.fnUntraced(function* ({ error, event }: Failure, sink: Sink) {
    if (event === undefined || mayPass(error)) return false
    if (park !== undefined && (sink.neverAgain || progress.attempts + 1 >= park.attempts)) {
      yield* putAside(event, error.message, progress.attempts + 1)
      return true
    }
    if (sink.neverAgain) {
      yield* Effect.logError(`${name} passes over event ${event.sequence} of "${event.entityId}": ${error.message}`)
    }
    return sink.neverAgain === true
  })

  /** Puts the events aside whose entities are, and gives the others. */
  const liveOf = Effect.fnUntraced(function* (events: ReadonlyArray<EventEnvelope>) {
    if (aside.size === 0) return events
    // What comes again after a crash is there already, with its error.
    const behind = events.filter(({ entityId, sequence }) => sequence > (aside.get(entityId) ?? Infinity))
    yield* Effect.forEach(behind, (event) => putAside(event, null, 0), { discard: true })
    return events.filter(({ entityId }) => !aside.has(entityId))
  })

  /** Up to here events are handled without collecting, to find the one whose writes Cassandra refuses. */
  let carefulThrough = 0

  /** Collects the writes for what there is, page by page, and executes them. Undefined when Cassandra refuses one of them. */
  const gather = Effect.fnUntraced(function* (collector: Collector, first: ReadonlyArray<EventEnvelope>) {
    const begin = progress.offset
    let events = first
    let failure: Outcome["failure"]
    let reached: ReturnType<typeof reachedBy>
    for (;;) {
      const live = yield* liveOf(events)
      const taken = live.length === 0 ? { done: events.at(-1)!.offset } : yield* collector.add(live)
      failure = taken.failure
      reached = reachedBy(events, taken)
      const isFull = reached.through - begin >= mostCollected || collector.size >= mostWrites
      if (failure !== undefined || events.length < fullBatch || isFull) break
      const more = yield* after(events, moreMillis)
      if (Option.isNone(more)) break
      events = more.value
    }
    yield* leased
    // Writes that are under way are worth waiting for when the process ends: they need not be done again.
    const written = yield* Effect.tap(traced(collector.write, first, reached.through - begin, reached.through), () =>
      Effect.sync(() => note(reached))
    ).pipe(Effect.uninterruptible, Effect.result)
    if (Result.isSuccess(written)) return { events, failure, written: written.success }
    if (!written.failure.isRetryable) {
      carefulThrough = reached.through
      return undefined
    }
    return { events, failure: { error: storeFailure(written.failure), event: undefined }, written: 0 }
  })

  const step = Effect.fnUntraced(function* (sink: Sink) {
    const first = yield* next(sink)
    yield* leased
    const collector = progress.offset < carefulThrough ? undefined : sink.collect?.()
    const handled =
      collector === undefined
        ? { events: first, ...(yield* handle(sink, first, yield* liveOf(first))) }
        : yield* batches.withPermits(1)(gather(collector, first))
    if (handled === undefined) return
    const { events, failure, written } = handled
    if (failure === undefined) progress.failure = undefined
    else if (yield* dealtWith(failure, sink)) {
      progress.offset = failure.event!.offset
      progress.stamp = failure.event!.stamp
      progress.attempts = 0
      progress.failure = undefined
    } else {
      changed(progress)
      return yield* stand(failure.error)
    }
    changed(progress)
    if (progress.offset - progress.storedOffset >= limits.offsetCount) {
      yield* Effect.mapError(saveOffset(offsets, progress), storeFailure)
    }
    // As long as it is worth while, and not when there is something to catch up with.
    if (sink.coalesces && written > 1 && events.length < fullBatch && isYoung(events)) {
      yield* Effect.sleep(Math.min(2 * written, limits.maxLingerMillis))
    }
  })

  const work = Effect.gen(function* () {
    yield* reader.join(progress)
    const sink = yield* processor.open({
      place,
      shards: journal.shards,
      session,
      concurrency: limits.concurrency,
      generation: control.generation,
      epoch: startOf(control, entityType, shard).epoch
    })
    const start = yield* startAt(surroundings, place, sink, control)
    progress.epoch = start.epoch
    progress.logEpoch = start.logEpoch
    progress.offset = start.offset
    progress.stamp = start.stamp
    progress.storedOffset = start.stored
    yield* leased
    yield* attend(sink, start)
    progress.failure = undefined
    progress.attempts = 0
    changed(progress)
    return yield* Effect.forever(step(sink))
  }).pipe(Effect.scoped)

  return work.pipe(
    Effect.catch((error: ReadSideError) => stand(error)),
    // A mistake of a handler, or of ours: it must not end the processor unseen.
    Effect.catchDefect((defect) =>
      stand(
        new ReadSideError({
          reason: new RequestRefused({
            message: `${name} met a defect: ${defect instanceof Error ? defect.stack : defect}`
          })
        })
      )
    ),
    Effect.forever,
    Effect.withTracerEnabled(false)
  )
}
