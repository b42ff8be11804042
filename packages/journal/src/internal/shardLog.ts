/**
 * One shard's log as this process sees it: it follows every block from a known offset on, and appends blocks of its own.
 * The protocol is described in PROTOCOL.md.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import driver from "cassandra-driver"
import { type Clock, Effect, Exit, Latch, Random, Schedule } from "effect"
import {
  ClockSkew,
  DataCorrupt,
  DataLost,
  JournalClosed,
  JournalError,
  OutcomeUnknown,
  type Reason,
  SequenceConflict,
  StoreFailure
} from "../JournalError.ts"
import { BlockBuilder, decodeBlock, type Entry, encodeIndexEvent, stampStep } from "./block.ts"
import type { BlockAppend, IndexRow, LogId, Store, StoredBlock, TypeRecord } from "./store.ts"

/** Bounds of a shard's log; all have good defaults in `Journal`. */
export interface Limits {
  readonly maxBlockEvents: number
  /** Characters of JSON. */
  readonly maxBlockSize: number
  /** How long callers wait for an append before they hear that its outcome is unknown. */
  readonly appendTimeoutMillis: number
  /** Entities whose last sequence number is remembered, twice at the most. */
  readonly rememberedEntities: number
}

/** Events to append for one entity, each `body` being an encoded type and payload. */
export interface AppendRequest {
  readonly entityId: string
  /** The entity's last sequence number as the writer knows it. */
  readonly expected: number
  /** The offset up to where the writer has seen all events of the entity. */
  readonly validThrough: number
  readonly events: ReadonlyArray<{ readonly type: string; readonly body: string }>
  readonly size: number
}

/** Where the last event of an append stands: its sequence number and its offset. */
export interface Placed {
  readonly sequence: number
  readonly validThrough: number
}

/** Consecutive events of the log, `from` excluded, `to` included. */
export interface Block {
  readonly from: number
  readonly to: number
  readonly entries: ReadonlyArray<Entry>
}

/** Who waits for a look at the head. */
type Waiting = (effect: Effect.Effect<void, JournalError>) => void

interface Pending {
  readonly since: number
  readonly request: AppendRequest
  readonly resume: (effect: Effect.Effect<Placed, JournalError>) => void
}

/** An index row's events are cut where the sequence number passes a multiple of this, so that a reader knows where to begin. */
const rowEvents = 100
const rowSize = 64 * 1024
/** Events of an entity per partition of the index; a multiple of `rowEvents`. */
const partitionEvents = 10_000
/** Blocks kept in memory for the readers of this process, by events. */
const tailEvents = 2000
const unindexedEvents = 100_000
const maxSkewMicros = 60_000_000
const readBlockLimit = 32

const backOff = Schedule.exponential("20 millis").pipe(Schedule.jittered)

export const partitionOf = (sequence: number): number => Math.floor((sequence - 1) / partitionEvents)
const rowOf = (sequence: number): number => Math.floor((sequence - 1) / rowEvents)
/** The lowest sequence number at which the index row that holds `sequence` can begin. */
export const rowStart = (sequence: number): number => rowOf(sequence) * rowEvents + 1
export const isPartitionEnd = (sequence: number): boolean => sequence % partitionEvents === 0

export const storeFailure = (cause: CassandraError): JournalError =>
  new JournalError({ reason: new StoreFailure({ message: cause.message, cause }) })

export const closed = (): JournalError =>
  new JournalError({ reason: new JournalClosed({ message: "the journal is closing" }) })

/** Groups the events of one entity into index rows. */
const indexRows = (entityType: string, entityId: string, entries: ReadonlyArray<Entry>): Array<IndexRow> => {
  const rows: Array<IndexRow> = []
  let texts: Array<string> = []
  let size = 0
  let first: Entry | undefined
  let last: Entry | undefined
  const cut = () => {
    if (first === undefined || last === undefined) return
    rows.push({
      entityType,
      entityId,
      partition: partitionOf(first.sequence),
      sequence: first.sequence,
      lastSequence: last.sequence,
      events: `[${texts.join(",")}]`
    })
    texts = []
    size = 0
    first = undefined
  }
  for (const entry of entries) {
    const text = encodeIndexEvent(entry)
    if (first !== undefined && (rowOf(first.sequence) !== rowOf(entry.sequence) || size + text.length > rowSize)) cut()
    first ??= entry
    last = entry
    texts.push(text)
    size += text.length
  }
  cut()
  return rows
}

/**
 * A shard's log. The loop runs in one fiber, which alone changes the state; everything else reads it or queues a request.
 */
export class ShardLog {
  readonly log: LogId
  /** Offset of the last event that this process has seen. */
  head = 0
  readonly #store: Store
  readonly #record: TypeRecord
  readonly #limits: Limits
  readonly #clock: Clock.Clock

  /** Whether the bucket of the next append already holds a block. */
  #bucketStarted = false
  #lastStamp = 0
  /** Every block after this offset has been seen; before it, nothing is known of an entity that `#last` does not name. */
  #followedFrom = 0
  /** Last sequence number by entity, of the entities with events after `#followedFrom`: two generations. */
  #last = new Map<string, number>()
  #lastOlder = new Map<string, number>()
  #olderThrough = 0

  #tail: Array<Block> = []
  #tailCount = 0

  /** The index is complete up to here. */
  #indexedThrough = 0
  #unindexed = new Map<string, Array<Entry>>()
  #indexing = new Map<string, Array<Entry>>()
  #unindexedCount = 0

  #pending: Array<Pending> = []
  #syncs: Array<Waiting> = []
  /** Those that the block under way will answer. */
  #held: Array<Waiting> = []
  #fatal: JournalError | undefined
  #closing = false
  readonly #wake = Latch.makeUnsafe(false)
  readonly #indexed = Latch.makeUnsafe(true)
  readonly #listeners = new Set<() => void>()

  constructor(store: Store, log: LogId, record: TypeRecord, limits: Limits, clock: Clock.Clock) {
    this.#store = store
    this.#clock = clock
    this.log = log
    this.#record = record
    this.#limits = limits
  }

  // ------------------------------------------------------------------------------------------------ requests

  /** Appends events; answered when they are stored. */
  append(request: AppendRequest): Effect.Effect<Placed, JournalError> {
    return Effect.callback<Placed, JournalError>((resume) => {
      const refused = this.#refusal()
      if (refused !== undefined) return resume(Effect.fail(refused))
      this.#pending.push({ since: this.#clock.currentTimeMillisUnsafe(), request, resume })
      this.#wake.openUnsafe()
    })
  }

  /** After it, everything that was acknowledged anywhere before the call has been seen. Many callers share one look. */
  readonly sync: Effect.Effect<void, JournalError> = Effect.callback((resume) => {
    const refused = this.#refusal()
    if (refused !== undefined) return resume(Effect.fail(refused))
    this.#syncs.push(resume)
    this.#wake.openUnsafe()
  })

  /** Whether a state that includes the entity's events up to `validThrough`, the last being `sequence`, is still the newest. */
  isCurrent(entityId: string, sequence: number, validThrough: number): boolean {
    const last = this.#last.get(entityId) ?? this.#lastOlder.get(entityId)
    return validThrough >= this.#followedFrom && validThrough <= this.head && (last === undefined || last === sequence)
  }

  /** The events of an entity that are not surely in the index yet, and the offset up to where they are complete. */
  unindexed(entityId: string): { readonly entries: ReadonlyArray<Entry>; readonly through: number } {
    const first = this.#indexing.get(entityId)
    const second = this.#unindexed.get(entityId)
    const entries =
      first === undefined ? [...(second ?? [])] : second === undefined ? [...first] : [...first, ...second]
    return { entries, through: this.head }
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
      const now = this.#clock.currentTimeMillisUnsafe()
      if (now - this.#polled < millis) return Effect.void
      this.#polled = now
      return Effect.flatMap(
        this.#store.readHead(this.log, this.bucketOf(this.head), false).pipe(Effect.mapError(storeFailure)),
        (head) => (head === null || head <= this.head ? Effect.void : this.sync)
      )
    })
  #polled = 0

  /** Calls `listener` whenever the head has moved, until the returned function is called. */
  onHead(listener: () => void): () => void {
    this.#listeners.add(listener)
    return () => this.#listeners.delete(listener)
  }

  /** Why the shard serves no more, if so. */
  get failure(): JournalError | undefined {
    return this.#fatal
  }

  bucketOf(offset: number): number {
    return Math.floor(offset / this.#record.bucketSize)
  }

  #refusal(): JournalError | undefined {
    return this.#closing ? closed() : this.#fatal
  }

  // ------------------------------------------------------------------------------------------------ the loop

  /** Finds the head and follows the log from the index's watermark on; then serves requests until interrupted. */
  readonly start: Effect.Effect<void, JournalError> = Effect.suspend(() =>
    this.#store.readWatermark(this.log, this.#record.epoch).pipe(
      Effect.mapError(storeFailure),
      Effect.flatMap((watermark) => {
        this.head = watermark
        this.#followedFrom = watermark
        this.#olderThrough = watermark
        this.#indexedThrough = watermark
        return this.#findHead(watermark)
      })
    )
  )

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

  /** Answers everything that waits; after a loss or damage of data the shard serves no more. */
  #stop(error: JournalError) {
    if (error.reason._tag === "DataLost" || error.reason._tag === "DataCorrupt") this.#fatal = error
    this.#inBlock = 0
    const pending = this.#pending
    this.#pending = []
    for (const { resume } of pending) resume(Effect.fail(error))
    this.#failSyncs(error)
  }

  #failSyncs(error: JournalError) {
    for (const resume of [...this.#held.splice(0), ...this.#syncs.splice(0)]) resume(Effect.fail(error))
  }

  #tellUnknown(taken: ReadonlyArray<Pending>, message: string) {
    const { entityType } = this.log
    for (const { request, resume } of taken) {
      const reason = new OutcomeUnknown({ entityType, entityId: request.entityId, message })
      resume(Effect.fail(new JournalError({ reason })))
    }
  }

  #round(): Effect.Effect<void, JournalError> {
    const self = this
    return Effect.gen(function* () {
      yield* self.#wake.await
      self.#wake.closeUnsafe()
      while (self.#pending.length + self.#syncs.length > 0) {
        if (self.#unindexedCount > unindexedEvents) {
          self.#indexed.closeUnsafe()
          yield* self.#indexed.await
        }
        const taken = self.#take()
        const syncs = self.#syncs
        self.#syncs = []
        if (taken.length === 0) {
          if (syncs.length > 0) yield* self.#look(syncs)
          continue
        }
        self.#inBlock = taken.length
        self.#held = syncs
        const applied = yield* self.#commit(taken).pipe(
          // What was waiting for this block hears of a failure in #stop, with all the others.
          Effect.tapError(() => Effect.sync(() => self.#pending.unshift(...taken))),
          Effect.onInterrupt(() =>
            Effect.sync(() => self.#tellUnknown(taken, "the journal was closed before an answer came"))
          )
        )
        self.#inBlock = 0
        // A block that was applied proves that nobody else had appended: whoever waited for a look has it.
        const held = self.#held.splice(0)
        if (applied) for (const resume of held) resume(Effect.void)
        else self.#syncs.unshift(...held)
      }
    })
  }

  /** Takes from the queue what fits into one block and is still current; tells the others to load again. */
  #take(): Array<Pending> {
    const taken: Array<Pending> = []
    const left: Array<Pending> = []
    const outdated: Array<Pending> = []
    const inBlock = new Map<string, number>()
    let count = 0
    let size = 0
    let full = false
    for (const pending of this.#pending) {
      const { entityId, events, expected, validThrough } = pending.request
      const ahead = inBlock.get(entityId)
      if (ahead === undefined && !this.isCurrent(entityId, expected, validThrough)) {
        outdated.push(pending)
        continue
      }
      full ||=
        count > 0 &&
        (count + events.length > this.#limits.maxBlockEvents || size + pending.request.size > this.#limits.maxBlockSize)
      // What contradicts an append of this block is decided when the block has been stored, or has not.
      if (full || (ahead !== undefined && ahead !== expected)) {
        left.push(pending)
        continue
      }
      inBlock.set(entityId, expected + events.length)
      count += events.length
      size += pending.request.size
      taken.push(pending)
    }
    // Before anybody is answered, for who is answered may ask again at once.
    this.#pending = left
    for (const { request, resume } of outdated) resume(Effect.fail(this.conflict(request.entityId, request.expected)))
    return taken
  }

  /** Says that the entity has events that a writer does not know. */
  conflict(entityId: string, expected: number): JournalError {
    return new JournalError({
      reason: new SequenceConflict({
        entityType: this.log.entityType,
        entityId,
        expected,
        message: `${this.log.entityType} "${entityId}" has events after ${expected} that the writer has not seen`
      })
    })
  }

  // ------------------------------------------------------------------------------------------------ appending

  /** The head that the next append expects in its bucket. */
  get #expectedHead(): number | null {
    return this.#bucketStarted ? this.head : null
  }

  /**
   * Stores the requests as one block. False when it was not stored: another writer was first, whose events have then been
   * followed and the requests queued again, or the requests have heard why.
   */
  #commit(taken: ReadonlyArray<Pending>): Effect.Effect<boolean, JournalError> {
    const self = this
    return Effect.gen(function* () {
      const now = self.#clock.currentTimeMillisUnsafe() * 1000
      let stamp = Math.max(now, self.#lastStamp + stampStep) - stampStep
      const builder = new BlockBuilder()
      const placed: Array<Placed> = []
      let offset = self.head
      for (const { request } of taken) {
        let sequence = request.expected
        for (const { body, type } of request.events) {
          stamp += stampStep
          builder.add(request.entityId, ++sequence, ++offset, stamp, type, body)
        }
        placed.push({ sequence, validThrough: offset })
      }
      if (stamp - now > maxSkewMicros) {
        const message = `the newest event of ${self.#name} is stamped ${Math.round((self.#lastStamp - now) / 1e6)} s ahead of this process's clock: set the clocks right`
        for (const { resume } of taken) {
          resume(Effect.fail(new JournalError({ reason: new ClockSkew({ message }) })))
        }
        return false
      }
      const { entries, text } = builder.build()
      const block: BlockAppend = {
        bucket: self.bucketOf(self.head),
        head: self.#expectedHead,
        offset,
        stamp,
        blockId: driver.types.TimeUuid.now().toString(),
        events: text
      }
      const outcome = yield* self.#settle(block, taken)
      switch (outcome._tag) {
        case "Applied": {
          self.#apply({ from: self.head, to: offset, entries }, stamp)
          for (let i = 0; i < taken.length; i++) taken[i]!.resume(Effect.succeed(placed[i]!))
          return true
        }
        case "Refused": {
          yield* self.#follow(outcome.head)
          self.#pending.unshift(...taken)
          // The winner goes on at once, so that the loser is the one to wait.
          yield* Effect.sleep((yield* Random.next) * 10)
          return false
        }
        case "NotExecuted": {
          for (const { resume } of taken) resume(Effect.fail(storeFailure(outcome.error)))
          return false
        }
      }
    })
  }

  /**
   * Sends a block until the server says what became of it. As long as that is not known the identical block is sent, for
   * an earlier one may still be under way.
   */
  #settle(
    block: BlockAppend,
    taken: ReadonlyArray<Pending>
  ): Effect.Effect<
    | { readonly _tag: "Applied" }
    | { readonly _tag: "Refused"; readonly head: number }
    | { readonly _tag: "NotExecuted"; readonly error: CassandraError },
    JournalError
  > {
    const self = this
    return Effect.gen(function* () {
      const begin = self.#clock.currentTimeMillisUnsafe()
      let unknown = false
      let told = false
      for (let attempt = 0; ; attempt++) {
        const exit = yield* Effect.exit(self.#store.appendBlock(self.log, block))
        if (Exit.isSuccess(exit)) {
          const outcome = exit.value
          if (outcome.applied || outcome.blockId === block.blockId) return { _tag: "Applied" } as const
          if (outcome.head === null || outcome.head < self.head) {
            return yield* self.#lost(`its head went back from ${self.head} to ${outcome.head ?? "nothing"}`)
          }
          if (outcome.head === self.head) {
            return yield* self.#corrupt(
              `block ${outcome.blockId} stands at ${block.offset}, after the head ${self.head}`
            )
          }
          return { _tag: "Refused", head: outcome.head } as const
        }
        const error = yield* errorOf(exit)
        if (error.reason._tag === "OutcomeUnknown") unknown = true
        else if (!unknown) return { _tag: "NotExecuted", error } as const
        if (!told && self.#clock.currentTimeMillisUnsafe() - begin > self.#limits.appendTimeoutMillis) {
          told = true
          const { appendTimeoutMillis } = self.#limits
          self.#tellUnknown(
            taken,
            `no answer within ${appendTimeoutMillis} ms whether the events were stored: ${error.message}`
          )
        }
        if (told) self.#failSyncs(storeFailure(error))
        self.#expire(error)
        yield* Effect.logWarning(`${self.#name}: an append is not answered, sending the same again: ${error.message}`)
        yield* Effect.sleep(Math.min(2000, 50 * 2 ** attempt) * (0.5 + (yield* Random.next)))
      }
    })
  }

  /** Tells those who have waited too long behind an unanswered block that theirs was not stored. */
  #expire(error: CassandraError): void {
    const oldest = this.#clock.currentTimeMillisUnsafe() - this.#limits.appendTimeoutMillis
    const expired = this.#pending.filter(({ since }) => since < oldest)
    if (expired.length === 0) return
    this.#pending = this.#pending.filter(({ since }) => since >= oldest)
    for (const { resume } of expired) resume(Effect.fail(storeFailure(error)))
  }

  // ------------------------------------------------------------------------------------------------ following

  get #name() {
    return `${this.log.entityType} shard ${this.log.shard}`
  }

  #fail(reason: Reason) {
    return Effect.fail(new JournalError({ reason }))
  }

  #lost(what: string) {
    const message = `data of ${this.#name} was lost, or an older copy restored: ${what}`
    return this.#fail(new DataLost({ ...this.log, message }))
  }

  #corrupt(what: string) {
    return this.#fail(new DataCorrupt({ ...this.log, message: `the log of ${this.#name} is damaged: ${what}` }))
  }

  /** Takes the events of a block into the state. */
  #apply(block: Block, stamp: number): void {
    for (const entry of block.entries) {
      this.#last.set(entry.entityId, entry.sequence)
      const waiting = this.#unindexed.get(entry.entityId)
      if (waiting === undefined) this.#unindexed.set(entry.entityId, [entry])
      else waiting.push(entry)
    }
    this.#unindexedCount += block.entries.length
    this.#bucketStarted = this.bucketOf(block.from) === this.bucketOf(block.to)
    this.head = block.to
    this.#lastStamp = stamp
    if (this.#last.size > this.#limits.rememberedEntities) {
      this.#followedFrom = this.#olderThrough
      this.#lastOlder = this.#last
      this.#olderThrough = this.head
      this.#last = new Map()
    }
    this.#tail.push(block)
    this.#tailCount += block.entries.length
    while (this.#tail.length > 1 && this.#tailCount > tailEvents) this.#tailCount -= this.#tail.shift()!.entries.length
    // A copy, for who is woken may listen again at once.
    for (const listener of [...this.#listeners]) listener()
  }

  /** Looks whether somebody else has appended, and follows. */
  #look(waiting: ReadonlyArray<Waiting>): Effect.Effect<void, JournalError> {
    const self = this
    return Effect.gen(function* () {
      const exit = yield* Effect.exit(self.#store.readHead(self.log, self.bucketOf(self.head), true))
      if (Exit.isFailure(exit)) {
        const error = yield* errorOf(exit)
        for (const resume of waiting) resume(Effect.fail(storeFailure(error)))
        return
      }
      yield* self.#reach(exit.value).pipe(
        Effect.tapError((error) =>
          Effect.sync(() => {
            for (const resume of waiting) resume(Effect.fail(error))
          })
        )
      )
      for (const resume of waiting) resume(Effect.void)
    }).pipe(
      Effect.onInterrupt(() =>
        Effect.sync(() => {
          for (const resume of waiting) resume(Effect.fail(closed()))
        })
      )
    )
  }

  /** Follows up to the head of the current bucket, given as it was read at a serial consistency. */
  #reach(head: number | null): Effect.Effect<void, JournalError> {
    if (head === this.#expectedHead) return Effect.void
    if (head === null || head < this.head) {
      return this.#lost(`its head went back from ${this.head} to ${head ?? "nothing"}`)
    }
    return this.#follow(head)
  }

  /** Finds the true head, from an offset that is known to have been reached once. */
  #findHead(known: number): Effect.Effect<void, JournalError> {
    const self = this
    return Effect.gen(function* () {
      const bucket = self.bucketOf(known)
      const head = yield* self.#readHead(bucket)
      if (head === null && known > 0) {
        const before = bucket === 0 ? null : yield* self.#readHead(bucket - 1)
        if (before !== known) {
          return yield* self.#lost(`the index is complete up to ${known}, the log ends at ${before ?? "nothing"}`)
        }
      }
      self.#bucketStarted = head !== null
      if (head !== null && head < known) {
        return yield* self.#lost(`the index is complete up to ${known}, the log ends at ${head}`)
      }
      if (known > 0) {
        const last = yield* self.#readBlocks(head === null ? bucket - 1 : bucket, known - 1, false)
        const before =
          last[0]?.offset === known || bucket === 0 ? last : yield* self.#readBlocks(bucket - 1, known - 1, false)
        if (before[0]?.offset !== known) return yield* self.#corrupt(`no block ends at ${known}, where the index ends`)
        self.#lastStamp = before[0].stamp
      }
      if (head !== null) yield* self.#follow(head)
    })
  }

  #readHead(bucket: number) {
    return this.#store.readHead(this.log, bucket, true).pipe(Effect.mapError(storeFailure))
  }

  #readBlocks(bucket: number, after: number, serial: boolean) {
    return this.#store.readBlocks(this.log, bucket, after, readBlockLimit, serial).pipe(Effect.mapError(storeFailure))
  }

  /** Reads on from the head until `target` and everything after it that can be seen. */
  #follow(target: number): Effect.Effect<void, JournalError> {
    const self = this
    return Effect.gen(function* () {
      let retries = 0
      for (;;) {
        const bucket = self.bucketOf(self.head)
        const blocks = yield* self.#readBlocks(bucket, self.head, retries > 0)
        const before = self.head
        for (const block of blocks) {
          const decoded = yield* self.decode(block)
          if (decoded.from !== self.head) break
          yield* self.#check(decoded)
          self.#apply(decoded, block.stamp)
        }
        if (self.head > before) {
          retries = 0
          if (self.bucketOf(self.head) > bucket) {
            const next = yield* self.#readHead(self.bucketOf(self.head))
            if (next === null) return
            target = next
          }
          continue
        }
        if (self.head >= target) return
        // A quorum read may see a block and not yet the one before it; one at a serial consistency sees all.
        if (retries++ > 5) return yield* self.#corrupt(`events ${self.head + 1} to ${target} are missing`)
        yield* Effect.sleep(20 * 2 ** retries)
      }
    }).pipe(Effect.retry({ schedule: backOff, times: 5, while: (error) => error.reason._tag === "StoreFailure" }))
  }

  /** Each event must follow the last one of its entity, where that is known. */
  #check(block: Block): Effect.Effect<void, JournalError> {
    const seen = new Map<string, number>()
    for (const { entityId, offset, sequence } of block.entries) {
      const last = seen.get(entityId) ?? this.#last.get(entityId) ?? this.#lastOlder.get(entityId)
      if (last !== undefined && sequence !== last + 1) {
        return this.#corrupt(`event ${sequence} of "${entityId}" at offset ${offset} follows its event ${last}`)
      }
      seen.set(entityId, sequence)
    }
    return Effect.void
  }

  /** Reads the events of a stored block. */
  decode(block: StoredBlock): Effect.Effect<Block, JournalError> {
    return Effect.suspend(() => {
      try {
        const entries = decodeBlock(block.events, block.offset, block.stamp)
        return Effect.succeed({ from: block.offset - entries.length, to: block.offset, entries })
      } catch (cause) {
        return this.#corrupt(`block ${block.blockId} at ${block.offset} is not readable: ${cause}`)
      }
    })
  }

  // ------------------------------------------------------------------------------------------------ the index

  /** Writes the events since the last time into the index, then the watermark. */
  readonly index: Effect.Effect<void, CassandraError> = Effect.suspend(() => {
    if (this.#unindexed.size === 0 || this.#indexing.size > 0) return Effect.void
    const entries = this.#unindexed
    const through = this.head
    this.#indexing = entries
    this.#unindexed = new Map()
    const count = this.#unindexedCount
    this.#unindexedCount = 0
    const rows = [...entries].flatMap(([entityId, list]) => indexRows(this.log.entityType, entityId, list))
    return Effect.forEach(rows, this.#store.writeIndexRow, { concurrency: 16, discard: true }).pipe(
      Effect.onExit((exit) =>
        Effect.sync(() => {
          if (Exit.isSuccess(exit)) this.#indexedThrough = through
          else {
            for (const [entityId, list] of this.#unindexed)
              entries.set(entityId, [...(entries.get(entityId) ?? []), ...list])
            this.#unindexed = entries
            this.#unindexedCount += count
          }
          this.#indexing = new Map()
          this.#indexed.openUnsafe()
        })
      ),
      Effect.andThen(
        Effect.suspend(() => this.#store.writeWatermark(this.log, this.#record.epoch, this.#indexedThrough))
      )
    )
  })
}

/** The error of a failed request; a defect or an interruption goes on as such. */
const errorOf = (exit: Exit.Failure<unknown, CassandraError>): Effect.Effect<CassandraError> =>
  Effect.flip(exit as Exit.Exit<never, CassandraError>)
