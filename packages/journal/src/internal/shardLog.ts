/**
 * One shard's log as this process sees it: it follows every block from a known offset on, and appends blocks of its own.
 * The protocol is described in PROTOCOL.md.
 */
import { CassandraError, RequestTimeout } from "@effect-cassandra/session/CassandraError"
import { type Clock, Effect, Exit, Latch, Option, Random, Schedule, Semaphore } from "effect"
import type { Appended, Json, Queued } from "../Journal.ts"
import { ClockSkew, JournalError, OutcomeUnknown, SequenceConflict } from "../JournalError.ts"
import { afterDeletion, BlockBuilder, type Body, deletedType, type Entry, itemOf, stampStep } from "./block.ts"
import { EntityIndex } from "./entityIndex.ts"
import { closed, corrupt, lost, nameOf, storeFailure } from "./failure.ts"
import { type Block, type Cursor, firstPlace, LogReader, placeAfter } from "./logReader.ts"
import type { BlockAppend, LogId, Place, Store, TypeRecord } from "./store.ts"
import { type Claim, Turns } from "./turns.ts"

/** Bounds of a shard's log; all have good defaults in `Journal`. */
export interface Limits {
  readonly maxBlockEvents: number
  /** Characters of JSON. */
  readonly maxBlockSize: number
  /** How long callers wait for an append before they hear that its outcome is unknown. */
  readonly appendTimeoutMillis: number
  /** Entities whose last sequence number is remembered, twice at the most. */
  readonly rememberedEntities: number
  /** How often a process looks whether an operator has rebuilt the index; it may not have for three times as long. */
  readonly recordMillis: number
}

/** Events to append for one entity, each `body` being an encoded type and payload. */
export interface AppendRequest {
  readonly entityId: string
  /** The entity's last sequence number as the writer knows it. */
  readonly expected: number
  /** Any other last sequence number will do, too. */
  readonly floating: boolean
  /** The offset up to where the writer has seen all events of the entity. */
  readonly validThrough: number
  /** The append that the writer builds on, which is not known to be stored yet. */
  readonly behind: Pending | undefined
  readonly events: ReadonlyArray<Body>
  /** Characters of the events' JSON. */
  readonly size: number
  /** Of the command whose events they are. */
  readonly answer: Json | undefined
}

/** Who waits for a look at the head. */
type Waiting = (effect: Effect.Effect<void, JournalError>) => void

/** Who hears what has become of an append. */
interface Writer {
  onExit(exit: Exit.Exit<Appended, JournalError>): void
}

/** An append that somebody waits for. */
export class Pending implements Queued {
  declare readonly "~@effect-cassandra/journal/Queued": true
  readonly since: number
  /** What to store, once that is known. */
  request: AppendRequest | undefined
  /** The sequence number before the first event, once it is in a block. */
  after = 0
  isStored = false
  isOutdated = false
  #writer: Writer | undefined

  constructor(since: number, writer: Writer, request: AppendRequest | undefined) {
    this.since = since
    this.#writer = writer
    this.request = request
  }

  get waits(): boolean {
    return this.#writer !== undefined
  }

  /** Whether there is something to store. */
  isReady(): this is Ready {
    return this.request !== undefined
  }

  /** It has been stored. What it built on is of no interest any more: else a busy entity would keep all there ever was. */
  store(appended: Appended): void {
    this.isStored = true
    this.request = undefined
    this.answer(Exit.succeed(appended))
  }

  /** There is nothing to store. */
  drop(): void {
    this.#writer = undefined
  }

  /** Once: who has heard that it takes too long hears nothing more. */
  answer(exit: Exit.Exit<Appended, JournalError>): void {
    const writer = this.#writer
    this.#writer = undefined
    writer?.onExit(exit)
  }
}

type RequestOf<W> = (writer: W, queued: Pending) => AppendRequest | undefined

/** One that is asked what is to be stored when there is room for it. */
class Later<W extends Writer> extends Pending {
  readonly #from: W
  readonly #requestOf: RequestOf<W>

  constructor(since: number, from: W, requestOf: RequestOf<W>) {
    super(since, from, undefined)
    this.#from = from
    this.#requestOf = requestOf
  }

  override isReady(): this is Ready {
    this.request ??= this.#requestOf(this.#from, this)
    return super.isReady()
  }
}

/** One that can be in a block. */
type Ready = Pending & { readonly request: AppendRequest }

/**
 * Blocks kept in memory for the readers of this process, by events: of those of the last seconds more, as read sides linger
 * and then have much to write. And at most so many characters of JSON.
 */
const tailEvents = 2000
const freshEvents = 50_000
const freshMicros = 2_000_000
const tailSize = 16 * 1024 * 1024
const unindexedEvents = 100_000
/** Of those that wait, so many are asked what they want stored before others have their turn: it takes some milliseconds. */
const maxAsked = 2000
const maxIndexedLate = 4
/**
 * After a refusal a block waits for up to so long, and twice as long after each further one: where several go on fighting,
 * Cassandra takes so long for each update that no turns come about.
 */
const refusedMillis = 10
const maxDoublings = 6
const maxSkewMicros = 60_000_000

const backOff = Schedule.exponential("20 millis").pipe(Schedule.jittered)

/** A read that is tried some times before it fails. */
const patiently = <A>(read: Effect.Effect<A, JournalError>) =>
  Effect.retry(read, { schedule: backOff, times: 5, while: (error) => error.reason._tag === "StoreFailure" })

/**
 * A shard's log. The loop runs in one fiber, which alone changes the state; everything else reads it or queues a request.
 */
export class ShardLog {
  readonly log: LogId
  readonly reader: LogReader
  /** Offset of the last event that this process has seen. */
  head = 0
  /** The generation of the index that is in use. */
  generation: number
  readonly #store: Store
  readonly #record: TypeRecord
  #index: EntityIndex
  readonly #limits: Limits
  readonly #clock: Clock.Clock
  readonly #turns: Turns

  /** The partition of the next block, whether it already holds one, and how much. */
  #place: Place = firstPlace
  #started = false
  #written = 0
  #lastStamp = 0
  /** Every block after this offset has been seen; before it, nothing is known of an entity that `#last` does not name. */
  #followedFrom = 0
  /** Last sequence number by entity, of the entities with events after `#followedFrom`: two generations. */
  #last = new Map<string, number>()
  #lastOlder = new Map<string, number>()
  #olderThrough = 0

  #tail: Array<Block & { readonly size: number }> = []
  #tailCount = 0
  #tailSize = 0

  #pending: Array<Pending> = []
  #syncs: Array<Waiting> = []
  /** Those that the block under way will answer. */
  #held: Array<Waiting> = []
  #fatal: JournalError | undefined
  #closing = false
  readonly #wake = Latch.makeUnsafe(false)
  /** Open while somebody waits for a look at the head. */
  readonly #asked = Latch.makeUnsafe(false)
  readonly #flushing = Semaphore.makeUnsafe(1)
  readonly #indexed = Latch.makeUnsafe(true)
  readonly #listeners = new Set<() => void>()

  readonly #onAppended: (head: number) => void

  constructor(
    store: Store,
    log: LogId,
    record: TypeRecord,
    limits: Limits,
    clock: Clock.Clock,
    /** Six bytes that name the process in the ids of its blocks. */
    writer: Buffer,
    /** Called when this process has appended. */
    onAppended: (head: number) => void = () => {}
  ) {
    this.#onAppended = onAppended
    this.#store = store
    this.#turns = new Turns(writer)
    this.#clock = clock
    this.log = log
    this.#record = record
    this.#limits = limits
    this.reader = new LogReader(store, log, record)
    this.generation = record.indexGeneration
    this.#index = new EntityIndex(store, log, record.indexGeneration)
  }

  /** Milliseconds that pass whatever the time of day is set to. */
  get #elapsed(): number {
    return Number(this.#clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  // ------------------------------------------------------------------------------------------------ requests

  /** Appends events; answered when they are stored. */
  append(request: AppendRequest): Effect.Effect<Appended, JournalError> {
    return Effect.callback((resume) => this.#queue(new Pending(this.#elapsed, { onExit: resume }, request)))
  }

  /** Appends, without a fiber, what `requestOf` gives when there is room for it in a block: nothing, if that is undefined. */
  appendLater<W extends Writer>(writer: W, requestOf: RequestOf<W>): void {
    this.#queue(new Later(this.#elapsed, writer, requestOf))
  }

  #queue(pending: Pending): void {
    const refused = this.#refusal()
    if (refused !== undefined) {
      pending.answer(Exit.fail(refused))
      return
    }
    this.#pending.push(pending)
    this.#wake.openUnsafe()
  }

  /** After it, everything that was acknowledged anywhere before the call has been seen. Many callers share one look. */
  readonly sync: Effect.Effect<void, JournalError> = Effect.callback((resume) => {
    const refused = this.#refusal()
    if (refused !== undefined) return resume(Effect.fail(refused))
    this.#syncs.push(resume)
    this.#wake.openUnsafe()
    this.#asked.openUnsafe()
  })

  /**
   * Another process has said that the log ends at `head`. It has been told so by a quorum, and a quorum is asked: a serial
   * read would be in the way of the appends that are going on.
   */
  hear(head: number): void {
    if (head <= this.head || this.#refusal() !== undefined) return
    this.#heard = true
    this.#wake.openUnsafe()
    this.#asked.openUnsafe()
  }
  #heard = false

  /** Whether a state that includes the entity's events up to `validThrough`, the last being `sequence`, is still the newest. */
  isCurrent(entityId: string, sequence: number, validThrough: number): boolean {
    const last = this.lastSequence(entityId)
    return validThrough >= this.#followedFrom && validThrough <= this.head && (last === undefined || last === sequence)
  }

  /** The entity's last sequence number, where it is known: up to the head. */
  lastSequence(entityId: string): number | undefined {
    return this.#last.get(entityId) ?? this.#lastOlder.get(entityId)
  }

  /** The events of an entity that are not surely in the index yet, and the offset up to where they are complete. */
  unindexed(entityId: string): {
    readonly entries: ReadonlyArray<Entry>
    readonly through: number
    readonly generation: number
  } {
    return { entries: this.#index.entriesOf(entityId), through: this.head, generation: this.generation }
  }

  /** The events of an entity after a sequence number up to the head, where they are in memory. */
  recent(entityId: string, after: number): ReadonlyArray<Entry> | undefined {
    return this.lastSequence(entityId) === after ? [] : this.#index.recentOf(entityId, after)
  }

  /** The blocks in memory after an offset, or undefined where memory does not reach back that far. */
  tail(after: number): ReadonlyArray<Block> | undefined {
    if (after >= this.head) return []
    const oldest = this.#tail[0]
    if (oldest === undefined || oldest.from > after) return undefined
    let low = 0
    let high = this.#tail.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (this.#tail[middle]!.to > after) high = middle
      else low = middle + 1
    }
    return this.#tail.slice(low)
  }

  /** Looks once whether another process has appended, and follows; somebody else's look within `millis` serves too. */
  readonly poll = (millis: number): Effect.Effect<void, JournalError> =>
    Effect.suspend(() => {
      const now = this.#elapsed
      if (now - this.#polled < millis) return Effect.void
      this.#polled = now
      return Effect.flatMap(
        this.#store.readHead(this.log, this.#place, false).pipe(Effect.mapError(storeFailure)),
        (head) => (head === null || head <= this.head ? Effect.void : this.sync)
      )
    })
  #polled = Number.NEGATIVE_INFINITY

  /** Calls `listener` whenever the head has moved, until the returned function is called. */
  onHead(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Lets the shard serve no more. */
  halt(error: JournalError): void {
    this.#stop(error)
    // Readers wait for the head.
    for (const listener of [...this.#listeners]) listener()
  }

  /** Why the shard serves no more, if so. */
  get failure(): JournalError | undefined {
    return this.#fatal
  }

  #refusal(): JournalError | undefined {
    return this.#closing ? closed() : this.#fatal
  }

  // ------------------------------------------------------------------------------------------------ the loop

  /** Follows the log from the index's watermark to its head; then `run` serves requests until interrupted. */
  readonly start: Effect.Effect<void, JournalError> = Effect.suspend(() => this.#start())

  readonly #start = Effect.fnUntraced(function* (this: ShardLog) {
    const watermark = yield* this.#store.readWatermark(this.log, this.generation).pipe(Effect.mapError(storeFailure))
    if (watermark > 0) {
      const found = yield* this.reader.find(watermark, true)
      if (found === undefined) {
        return yield* lost(this.log, `the index is complete up to ${watermark}, the log has no event there`)
      }
      const { block } = found
      if (block.to !== watermark) {
        return yield* corrupt(this.log, `no block ends at ${watermark}, where the index ends`)
      }
      this.#moveTo(block)
      this.#started = this.#place === block.place
    }
    this.#followedFrom = this.head
    this.#olderThrough = this.head
    const head = yield* this.#readHead
    this.#started = head !== null
    if (head !== null) yield* this.#follow(head)
  })

  readonly run: Effect.Effect<never> = Effect.suspend(() => this.#round()).pipe(
    Effect.catch((error: JournalError) => Effect.sync(() => this.#stop(error))),
    Effect.forever,
    Effect.withTracerEnabled(false)
  )

  /** Lets what was accepted finish, and refuses what comes after. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.#closing = true
    return Effect.sleep("5 millis").pipe(
      Effect.repeat({ while: () => this.#fatal === undefined && this.#pending.length + this.#inBlock > 0 }),
      Effect.timeoutOption(this.#limits.appendTimeoutMillis),
      Effect.andThen(Effect.sync(() => this.#stop(this.#refusal()!))),
      Effect.andThen(this.index),
      Effect.ignore
    )
  })

  #inBlock = 0
  /** Blocks refused since the last one that was applied. */
  #refusals = 0

  /** Answers everything that waits; after a loss or damage of data the shard serves no more. */
  #stop(error: JournalError) {
    if (error.reason._tag === "DataLost" || error.reason._tag === "DataCorrupt") this.#fatal = error
    this.#inBlock = 0
    if (this.#fatal !== undefined) for (const listener of [...this.#listeners]) listener()
    const pending = this.#pending
    this.#pending = []
    for (const one of pending) one.answer(Exit.fail(error))
    this.#failSyncs(error)
  }

  #failSyncs(error: JournalError) {
    for (const resume of [...this.#held.splice(0), ...this.#syncs.splice(0)]) resume(Effect.fail(error))
  }

  #tellUnknown(taken: ReadonlyArray<Ready>, message: string) {
    const { entityType } = this.log
    for (const one of taken) {
      const reason = new OutcomeUnknown({ entityType, entityId: one.request.entityId, message })
      one.answer(Exit.fail(new JournalError({ reason })))
    }
  }

  /**
   * Answers those who have waited too long: what becomes of the block under way is not known, what waits behind it was not
   * sent. To be called now and then, for Cassandra may say nothing for longer than anybody should wait.
   */
  expire(): void {
    const { appendTimeoutMillis } = this.#limits
    const oldest = this.#elapsed - appendTimeoutMillis
    const late = (one: Pending) => one.since < oldest
    const said = this.#unanswered?.failure
    if (this.#unanswered?.taken.some(late)) {
      const message = `no answer within ${appendTimeoutMillis} ms whether the events were stored${said === undefined ? "" : `: ${said.message}`}`
      this.#tellUnknown(this.#unanswered.taken.filter(late), message)
    }
    const expired = this.#pending.filter(late)
    if (expired.length > 0) this.#pending = this.#pending.filter((one) => !late(one))
    const isLate = this.#unanswered !== undefined && this.#unanswered.since < oldest
    if (expired.length === 0 && !isLate) return
    const message = `the log of ${nameOf(this.log)} has not been answered for ${appendTimeoutMillis} ms, nothing was stored`
    const failure = storeFailure(
      said ?? new CassandraError({ reason: new RequestTimeout({ message, cause: undefined }) })
    )
    for (const one of expired) one.answer(Exit.fail(failure))
    if (isLate) this.#failSyncs(failure)
  }
  /** The block under way: since when, whose it is, and what was said of it last. */
  #unanswered:
    | { readonly since: number; readonly taken: ReadonlyArray<Ready>; failure: CassandraError | undefined }
    | undefined

  readonly #round = Effect.fnUntraced(function* (this: ShardLog): Effect.fn.Return<void, JournalError> {
    yield* this.#wake.await
    this.#wake.closeUnsafe()
    while (this.#pending.length + this.#syncs.length > 0 || this.#heard) {
      if (this.#heard) {
        this.#heard = false
        yield* this.#glance
        continue
      }
      if (this.#index.count > unindexedEvents) {
        this.#indexed.closeUnsafe()
        yield* this.#indexed.await
      }
      let turn = 0
      if (this.#pending.length > 0) {
        const now = this.#elapsed
        turn = this.#turns.wait(now)
        if (this.#turns.toAsk(now)) yield* Effect.forkChild(this.#askForClaims)
      }
      if (turn > 0 && this.#syncs.length === 0) {
        yield* this.#leaveTurn(turn)
        continue
      }
      const taken = turn > 0 ? [] : this.#take()
      const syncs = this.#syncs
      this.#syncs = []
      this.#asked.closeUnsafe()
      if (taken.length === 0) {
        if (syncs.length > 0) yield* this.#look(syncs)
        else yield* Effect.yieldNow
        continue
      }
      this.#inBlock = taken.length
      this.#held = syncs
      const applied = yield* this.#commit(taken).pipe(
        // What was waiting for this block hears of a failure in #stop, with all the others.
        Effect.tapError(() => Effect.sync(() => this.#pending.unshift(...taken))),
        Effect.onInterrupt(() =>
          Effect.sync(() => this.#tellUnknown(taken, "the journal was closed before an answer came"))
        )
      )
      this.#inBlock = 0
      // A block that was applied proves that nobody else had appended: whoever waited for a look has it.
      const held = this.#held.splice(0)
      if (applied) for (const resume of held) resume(Effect.void)
      else this.#syncs.unshift(...held)
    }
  })

  /** Leaves the log to another process for some time, or until somebody asks for its head. */
  readonly #leaveTurn = Effect.fnUntraced(function* (
    this: ShardLog,
    millis: number
  ): Effect.fn.Return<void, JournalError> {
    const { head } = this
    if (this.#turns.toClaim(head, this.#elapsed)) yield* Effect.forkChild(this.#claimTurn(head))
    this.#asked.closeUnsafe()
    if (Option.isNone(yield* Effect.timeoutOption(this.#asked.await, millis))) yield* this.#glance
  })

  /** Says that this process waits for its turn. */
  #claimTurn(head: number): Effect.Effect<void> {
    return this.#store.claimTurn(this.log, this.#turns.name, head).pipe(
      Effect.andThen(Effect.sync(() => this.#turns.claimed(head))),
      // It is for speed only, and said again after some time.
      Effect.ignore
    )
  }

  readonly #askForClaims = Effect.suspend(() => this.#store.readClaims(this.log)).pipe(
    Effect.orElseSucceed((): ReadonlyArray<Claim> => []),
    Effect.map((claims) => this.#turns.told(claims))
  )

  /** Takes from the queue what fits into one block and is still current; tells the others to load again. */
  #take(): Array<Ready> {
    const taken: Array<Ready> = []
    const left: Array<Pending> = []
    const outdated: Array<Ready> = []
    const inBlock = new Map<string, Ready>()
    let count = 0
    let blockSize = 0
    let i = 0
    for (; i < this.#pending.length && i < maxAsked; i++) {
      const pending = this.#pending[i]!
      if (!pending.isReady()) {
        pending.drop()
        continue
      }
      const { behind, entityId, events, expected, floating, size, validThrough } = pending.request
      const before = inBlock.get(entityId)
      if (behind !== undefined && !behind.isStored && behind !== before) {
        // It waits as long as the one that it builds on, and is as outdated.
        if (behind.waits && !behind.isOutdated) {
          left.push(pending)
          continue
        }
        pending.isOutdated = true
        outdated.push(pending)
        continue
      }
      const ahead = before === undefined ? undefined : before.after + before.request.events.length
      const after = ahead ?? (this.isCurrent(entityId, expected, validThrough) ? expected : this.lastSequence(entityId))
      if (ahead === undefined && (after === undefined || (after !== expected && !floating))) {
        pending.isOutdated = true
        outdated.push(pending)
        continue
      }
      if (
        count > 0 &&
        (count + events.length > this.#limits.maxBlockEvents || blockSize + size > this.#limits.maxBlockSize)
      ) {
        break
      }
      // What contradicts an append of this block is decided when the block has been stored, or has not.
      if (ahead !== undefined && ahead !== expected && !floating) {
        left.push(pending)
        continue
      }
      pending.after = after!
      inBlock.set(entityId, pending)
      count += events.length
      blockSize += size
      taken.push(pending)
    }
    // Before anybody is answered, for who is answered may ask again at once.
    this.#pending = left.concat(this.#pending.slice(i))
    for (const one of outdated) one.answer(Exit.fail(this.conflict(one.request.entityId, one.request.expected)))
    return taken
  }

  /** Says that the entity has events that a writer does not know. */
  conflict(entityId: string, expected: number): JournalError {
    const { entityType } = this.log
    const message = `${entityType} "${entityId}" has events after ${expected} that the writer has not seen`
    // Processes that share entities hear this thousands of times a second, and no code of theirs is on this loop's stack.
    const { stackTraceLimit } = Error
    Error.stackTraceLimit = 0
    try {
      return new JournalError({ reason: new SequenceConflict({ entityType, entityId, expected, message }) })
    } finally {
      Error.stackTraceLimit = stackTraceLimit
    }
  }

  // ------------------------------------------------------------------------------------------------ appending

  /** The head that the next append expects in its partition. */
  get #expectedHead(): number | null {
    return this.#started ? this.head : null
  }

  /**
   * Stores the requests as one block. False when it was not stored: another writer was first, whose events have then been
   * followed and the requests queued again, or the requests have heard why.
   */
  readonly #commit = Effect.fnUntraced(function* (
    this: ShardLog,
    taken: ReadonlyArray<Ready>
  ): Effect.fn.Return<boolean, JournalError> {
    const now = this.#clock.currentTimeMillisUnsafe() * 1000
    let stamp = Math.max(now, this.#lastStamp + stampStep) - stampStep
    const builder = new BlockBuilder()
    let offset = this.head
    for (const { after, request } of taken) {
      let sequence = after
      for (const body of request.events) {
        stamp += stampStep
        builder.add(request.entityId, ++sequence, ++offset, stamp, body)
      }
    }
    if (stamp - now > maxSkewMicros) {
      const message = `the newest event of ${nameOf(this.log)} is stamped ${Math.round((this.#lastStamp - now) / 1e6)} s ahead of this process's clock: set the clocks right`
      for (const one of taken) one.answer(Exit.fail(new JournalError({ reason: new ClockSkew({ message }) })))
      return false
    }
    const { entries, text } = builder.build()
    const block: BlockAppend = {
      place: this.#place,
      head: this.#expectedHead,
      offset,
      stamp,
      blockId: this.#turns.blockId(now / 1000),
      written: this.#written + text.length,
      events: text,
      revision: 0
    }
    const outcome = yield* this.#settle(block, taken)
    switch (outcome._tag) {
      case "Applied": {
        const { blockId, place, written } = block
        let validThrough = this.head
        this.#apply({ from: this.head, to: offset, blockId, stamp, place, written, entries })
        this.#hasAppended = true
        this.#refusals = 0
        this.#onAppended(offset)
        for (const one of taken) {
          const { answer, events } = one.request
          validThrough += events.length
          const sequence = one.after + events.length
          one.store({ sequence, validThrough, repeated: false, answer })
        }
        return true
      }
      case "Refused": {
        this.#turns.lost()
        yield* this.#follow(outcome.head)
        // Nobody waits any more for what has been said to be unknown, and now surely is not stored.
        this.#pending.unshift(...taken.filter((one) => one.waits))
        // The winner goes on at once, so that the loser is the one to wait.
        if (this.#turns.wait(this.#elapsed) === 0) {
          yield* Effect.sleep((yield* Random.next) * refusedMillis * 2 ** Math.min(this.#refusals++, maxDoublings))
        }
        return false
      }
      case "NotExecuted": {
        for (const one of taken) one.answer(Exit.fail(storeFailure(outcome.error)))
        return false
      }
    }
  })

  /**
   * Sends a block until the server says what became of it. As long as that is not known the identical block is sent, for
   * an earlier one may still be under way.
   */
  readonly #settle = Effect.fnUntraced(
    function* (
      this: ShardLog,
      block: BlockAppend,
      taken: ReadonlyArray<Ready>
    ): Effect.fn.Return<
      | { readonly _tag: "Applied" }
      | { readonly _tag: "Refused"; readonly head: number }
      | { readonly _tag: "NotExecuted"; readonly error: CassandraError },
      JournalError
    > {
      let unknown = false
      this.#unanswered = { since: this.#elapsed, taken, failure: undefined }
      for (let attempt = 0; ; attempt++) {
        const exit = yield* Effect.exit(this.#store.appendBlock(this.log, block))
        if (Exit.isSuccess(exit)) {
          const outcome = exit.value
          if (outcome.applied || outcome.blockId === block.blockId) return { _tag: "Applied" } as const
          if (outcome.head === null || outcome.head < this.head) {
            return yield* lost(this.log, `its head went back from ${this.head} to ${outcome.head ?? "nothing"}`)
          }
          if (outcome.head === this.head) {
            return yield* corrupt(
              this.log,
              `block ${outcome.blockId} stands at ${block.offset}, after the head ${this.head}`
            )
          }
          return { _tag: "Refused", head: outcome.head } as const
        }
        const error = yield* errorOf(exit)
        if (error.reason._tag === "OutcomeUnknown") unknown = true
        else if (!unknown) return { _tag: "NotExecuted", error } as const
        this.#unanswered.failure = error
        yield* Effect.logWarning(
          `${nameOf(this.log)}: an append is not answered, sending the same again: ${error.message}`
        )
        yield* Effect.sleep(Math.min(2000, 50 * 2 ** attempt) * (0.5 + (yield* Random.next)))
      }
    },
    Effect.ensuring(
      Effect.sync(() => {
        this.#unanswered = undefined
      })
    )
  )

  // ------------------------------------------------------------------------------------------------ following

  /** Goes on after a block. */
  #moveTo(block: Block): void {
    const place = placeAfter(this.#record, block)
    this.#started = place === block.place
    this.#written = this.#started ? block.written : 0
    this.#place = place
    this.head = block.to
    this.#lastStamp = block.stamp
  }

  /** Takes the events of a block into the state. */
  #apply(block: Block): void {
    for (const { entityId, sequence } of block.entries) this.#last.set(entityId, sequence)
    this.#index.add(block.entries)
    const size = block.written - this.#written
    this.#moveTo(block)
    this.#turns.seen(block.blockId, block.to, this.#elapsed)
    if (this.#last.size > this.#limits.rememberedEntities) {
      this.#followedFrom = this.#olderThrough
      this.#lastOlder = this.#last
      this.#olderThrough = this.head
      this.#last = new Map()
    }
    this.#tail.push({ ...block, size })
    for (const entry of block.entries) if (entry.type === deletedType) this.#forget(entry)
    this.#tailCount += block.entries.length
    this.#tailSize += size
    this.#trim()
    // A copy, for who is woken may listen again at once.
    for (const listener of [...this.#listeners]) listener()
  }

  #trim(): void {
    const fresh = this.#clock.currentTimeMillisUnsafe() * 1000 - freshMicros
    while (this.#tail.length > 1) {
      const { entries, size, stamp } = this.#tail[0]!
      if (this.#tailCount <= (stamp < fresh ? tailEvents : freshEvents) && this.#tailSize <= tailSize) return
      this.#tail.shift()
      this.#tailCount -= entries.length
      this.#tailSize -= size
      this.#index.forget(this.#tail[0]!.from)
    }
  }

  /** Takes what was deleted out of the blocks in memory. */
  #forget(marker: Entry): void {
    const { entityId } = marker
    const { through } = itemOf(marker).p as { readonly through: number }
    this.#tail = this.#tail.map((block) =>
      block.entries.some((entry) => entry.entityId === entityId)
        ? {
            ...block,
            entries: block.entries.map((entry) => (entry.entityId === entityId ? afterDeletion(entry, through) : entry))
          }
        : block
    )
  }

  /** Looks whether somebody else has appended, and follows. */
  readonly #look = Effect.fnUntraced(
    function* (this: ShardLog, waiting: ReadonlyArray<Waiting>): Effect.fn.Return<void, JournalError> {
      const exit = yield* Effect.exit(this.#store.readHead(this.log, this.#place, true))
      if (Exit.isFailure(exit)) {
        const error = yield* errorOf(exit)
        for (const resume of waiting) resume(Effect.fail(storeFailure(error)))
        return
      }
      yield* this.#reach(exit.value).pipe(
        Effect.tapError((error) =>
          Effect.sync(() => {
            for (const resume of waiting) resume(Effect.fail(error))
          })
        )
      )
      for (const resume of waiting) resume(Effect.void)
    },
    (effect, waiting) =>
      Effect.onInterrupt(effect, () =>
        Effect.sync(() => {
          for (const resume of waiting) resume(Effect.fail(closed()))
        })
      )
  )

  /** Follows up to the head of the current partition, given as it was read at a serial consistency. */
  #reach(head: number | null): Effect.Effect<void, JournalError> {
    if (head === this.#expectedHead) return Effect.void
    if (head === null || head < this.head) {
      return lost(this.log, `its head went back from ${this.head} to ${head ?? "nothing"}`)
    }
    return this.#follow(head)
  }

  get #readHead() {
    return this.#store.readHead(this.log, this.#place, true).pipe(Effect.mapError(storeFailure))
  }

  /** Reads on from the head until `target`, the head of the current partition, and through the partitions after it. */
  readonly #follow = Effect.fnUntraced(function* (this: ShardLog, target: number) {
    for (let known = target; this.head < known; ) {
      const place = this.#place
      const { blocks } = yield* patiently(this.reader.demand({ after: this.head, place }, known))
      yield* this.#takeIn(blocks)
      if (this.#place !== place) {
        const head = yield* patiently(this.#readHead)
        this.#started = head !== null
        known = head ?? this.head
      }
    }
  })

  /** Takes in what is to be seen after the head, without asking all replicas what that is. */
  readonly #glance = Effect.suspend(() => this.#glanceAt(this.#place))
  readonly #glanceAt = Effect.fnUntraced(
    function* (this: ShardLog, place: Place) {
      for (let more = true; more; ) {
        const { blocks } = yield* this.reader.next({ after: this.head, place }, false)
        yield* this.#takeIn(blocks)
        more = blocks.length > 0 && this.#place === place
      }
      if (this.#place === place) return
      const head = yield* patiently(this.#readHead)
      this.#started = head !== null
      if (head !== null) yield* this.#follow(head)
    },
    // What cannot be read now is read when the next append is refused.
    Effect.catchIf(
      ({ reason }) => reason._tag === "StoreFailure",
      () => Effect.void
    )
  )

  /** Takes in blocks of others. */
  readonly #takeIn = Effect.fnUntraced(function* (
    this: ShardLog,
    blocks: ReadonlyArray<Block>
  ): Effect.fn.Return<void, JournalError> {
    for (const block of blocks) {
      yield* this.#check(block)
      this.#apply(block)
      this.#foreign = true
    }
  })

  /** Each event must follow the last one of its entity, where that is known. */
  #check(block: Block): Effect.Effect<void, JournalError> {
    const seen = new Map<string, number>()
    for (const { entityId, offset, sequence } of block.entries) {
      const last = seen.get(entityId) ?? this.#last.get(entityId) ?? this.#lastOlder.get(entityId)
      if (last !== undefined && sequence !== last + 1) {
        return corrupt(this.log, `event ${sequence} of "${entityId}" at offset ${offset} follows its event ${last}`)
      }
      seen.set(entityId, sequence)
    }
    return Effect.void
  }

  // ------------------------------------------------------------------------------------------------ the index

  /**
   * Goes over to another generation of the index, which was computed from the log: what the log has after its watermark
   * waits for it from then on.
   */
  readonly adopt = Effect.fnUntraced(function* (this: ShardLog, generation: number) {
    const index = new EntityIndex(this.#store, this.log, generation)
    let position = yield* this.#store.readWatermark(this.log, generation).pipe(Effect.mapError(storeFailure))
    let cursor: Cursor | undefined = yield* this.reader.locate(position, true)
    while (position < this.head) {
      if (cursor === undefined) {
        return yield* lost(this.log, `the index is complete up to ${position}, the log has no event there`)
      }
      const { blocks, cursor: next } = yield* this.reader.demand(cursor, this.head)
      for (const block of blocks) {
        // What is not followed yet comes by itself.
        if (block.to > this.head) break
        index.add(block.entries)
        position = block.to
      }
      cursor = next
    }
    this.#index = index
    this.generation = generation
  })

  /** Whether there are events of others that the index may hold already. */
  #foreign = false
  #indexedLate = 0
  /** The head when the index was last due, and the time before. */
  #due = { last: 0, before: 0 }
  /** Whether this process has appended since then. */
  #hasAppended = false
  /** Up to where this process has written the index. */
  #indexedThrough: number | undefined

  /**
   * As `index`, or not at all: a few times in a row where the rows would hold few events, and as long as another process
   * writes the index in time, which one that only follows leaves to those that append.
   */
  readonly indexWhenDue: Effect.Effect<void, CassandraError> = Effect.suspend(() => {
    if (this.#index.isPatient && this.#indexedLate++ < maxIndexedLate) return Effect.void
    this.#indexedLate = 0
    const inTime = this.#hasAppended ? this.#due.last : this.#due.before
    this.#due = { last: this.head, before: this.#due.last }
    this.#hasAppended = false
    return this.#writeIndex(
      (index, through) =>
        through >= inTime && through !== this.#indexedThrough && index.count <= unindexedEvents && !index.hasDeletions
    )
  })

  /** Writes the events since the last time into the index, then the watermark; after what is being written now. */
  readonly index: Effect.Effect<void, CassandraError> = Effect.suspend(() => this.#writeIndex(() => false))

  #writeIndex(isLeftToOthers: (index: EntityIndex, through: number) => boolean): Effect.Effect<void, CassandraError> {
    return Effect.suspend(() => {
      this.#trim()
      const index = this.#index
      if (!this.#foreign) return this.#flush(index)
      // What another process has written by now, its own events and these, is not written again.
      return Effect.flatMap(this.#store.readWatermark(this.log, this.generation), (through) => {
        // What came since then waits for the index of another generation.
        if (index !== this.#index) return Effect.void
        index.drop(through)
        if (isLeftToOthers(index, through)) return Effect.void
        this.#foreign = false
        return this.#flush(index)
      })
    }).pipe(this.#flushing.withPermits(1), Effect.ensuring(Effect.sync(() => this.#indexed.openUnsafe())))
  }

  #flush(index: EntityIndex): Effect.Effect<void, CassandraError> {
    const { head } = this
    return Effect.tap(index.flush(head), () =>
      Effect.sync(() => {
        this.#indexedThrough = head
      })
    )
  }
}

/** The error of a failed request; a defect or an interruption goes on as such. */
const errorOf = (exit: Exit.Failure<unknown, CassandraError>): Effect.Effect<CassandraError> =>
  Effect.flip(exit as Exit.Exit<never, CassandraError>)
