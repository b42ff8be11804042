/**
 * The operations of a journal over whatever stores its blocks: Cassandra, the memory of the process, or a simulation.
 */
import { Clock, Duration, Effect, Option, Schedule, Scope, Semaphore, Stream } from "effect"
import type { Append, EntityKey, EventEnvelope, Journal, Loaded, Options, Position, Snapshot } from "../Journal.ts"
import { AppendTooLarge, DataCorrupt, DataLost, JournalError, SettingsMismatch } from "../JournalError.ts"
import { decodeIndexRow, type Entry, encodeBody, payloadOf } from "./block.ts"
import { closed, isPartitionEnd, type Limits, partitionOf, rowStart, ShardLog, storeFailure } from "./shardLog.ts"
import type { Store, TypeRecord } from "./store.ts"

const maxEventSize = 1024 * 1024
const maxAppendSize = 4 * 1024 * 1024
const maxBlockEvents = 2000
const maxBlockSize = 192 * 1024
const minPollMillis = 20

/** FNV-1a over UTF-16 code units (http://www.isthe.com/chongo/tech/comp/fnv/), with a final mix as in MurmurHash3. */
const hash = (text: string): number => {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

export const makeJournal = Effect.fnUntraced(function* (store: Store, options: Options, changed: Partial<Limits> = {}) {
  const shards = options.shards ?? 10
  const wanted: TypeRecord = {
    shards,
    serialConsistency: options.serialConsistency ?? "SERIAL",
    bucketSize: options.bucketSize ?? 10_000,
    epoch: 1
  }
  for (const [setting, value, max] of [
    ["shards", shards, 1000],
    ["bucketSize", wanted.bucketSize, 1_000_000]
  ] as const) {
    if (!Number.isInteger(value) || value < 1 || value > max) {
      return yield* Effect.die(new RangeError(`${setting} is ${value}, it must be a whole number from 1 to ${max}`))
    }
  }
  const clock = yield* Clock.Clock
  const limits: Limits = {
    maxBlockEvents: Math.min(maxBlockEvents, wanted.bucketSize),
    maxBlockSize,
    appendTimeoutMillis: Duration.toMillis(options.appendTimeout ?? "10 seconds"),
    rememberedEntities: 50_000,
    ...changed
  }
  const maxPollMillis = Duration.toMillis(options.maxPollInterval ?? "1 second")
  // Closed after the finalizer below, which lets the logs finish what they have accepted.
  const running = yield* Effect.flatMap(Effect.scope, Scope.fork)

  // ---------------------------------------------------------------------------------------------- shards

  const logs = new Map<string, Array<ShardLog | undefined>>()
  const records = new Map<string, TypeRecord>()
  const starting = Semaphore.makeUnsafe(1)
  let closing = false

  const recordOf = Effect.fnUntraced(function* (entityType: string) {
    const known = records.get(entityType)
    if (known !== undefined) return known
    const record = yield* store.recordType(entityType, wanted).pipe(Effect.mapError(storeFailure))
    for (const setting of ["shards", "serialConsistency", "bucketSize"] as const) {
      if (record[setting] !== wanted[setting]) {
        const message =
          `entity type "${entityType}" was first used with ${setting} ${record[setting]}, now ${wanted[setting]} is given: ` +
          `set ${setting} to ${record[setting]}, or use another entity type`
        return yield* new JournalError({
          reason: new SettingsMismatch({
            entityType,
            setting,
            recorded: String(record[setting]),
            given: String(wanted[setting]),
            message
          })
        })
      }
    }
    records.set(entityType, record)
    return record
  })

  const startLog = (entityType: string, shard: number) =>
    Effect.gen(function* () {
      const record = yield* recordOf(entityType)
      const ofType = logs.get(entityType) ?? new Array<ShardLog | undefined>(shards).fill(undefined)
      logs.set(entityType, ofType)
      const present = ofType[shard]
      if (present !== undefined) return present
      const log = new ShardLog(store, { entityType, shard }, record, limits, clock)
      yield* log.start
      if (closing) return yield* closed()
      yield* Effect.forkIn(log.run, running)
      ofType[shard] = log
      return log
    }).pipe(starting.withPermits(1), Effect.uninterruptible)

  const logOf = (entityType: string, shard: number): Effect.Effect<ShardLog, JournalError> => {
    const log = logs.get(entityType)?.[shard]
    return log === undefined ? startLog(entityType, shard) : Effect.succeed(log)
  }

  const allLogs = () => [...logs.values()].flatMap((ofType) => ofType.filter((log) => log !== undefined))

  yield* Effect.suspend(() => Effect.forEach(allLogs(), (log) => log.index, { discard: true })).pipe(
    Effect.catch((error) =>
      Effect.logWarning(`the index of entities could not be written, trying again: ${error.message}`)
    ),
    Effect.repeat(Schedule.spaced(options.indexInterval ?? "1 second")),
    Effect.withTracerEnabled(false),
    Effect.forkIn(running)
  )
  yield* Effect.addFinalizer(() => {
    closing = true
    return Effect.forEach(allLogs(), (log) => log.close, { concurrency: "unbounded", discard: true })
  })

  // ---------------------------------------------------------------------------------------------- entities

  const shardOf = (entityId: string) => hash(entityId) % shards

  const tooLarge = ({ entityId, entityType }: EntityKey, what: string) =>
    Effect.fail(
      new JournalError({
        reason: new AppendTooLarge({ entityType, entityId, message: `${what}, and nothing was stored` })
      })
    )

  const append = (self: Append): Effect.Effect<Position, JournalError> => {
    const { entityId, entityType, events, sequence, validThrough } = self
    if (events.length === 0) return Effect.succeed({ sequence, validThrough })
    let size = 0
    const encoded: Array<{ readonly type: string; readonly body: string }> = []
    for (const { payload, type } of events) {
      const body = encodeBody(type, payload)
      if (body.length > maxEventSize) {
        return tooLarge(self, `an event ${type} has ${body.length} characters of JSON, the limit is ${maxEventSize}`)
      }
      size += body.length
      encoded.push({ type, body })
    }
    if (size > maxAppendSize || events.length > limits.maxBlockEvents) {
      return tooLarge(
        self,
        `${events.length} events of ${size} characters at once, the limits are ${limits.maxBlockEvents} and ${maxAppendSize}`
      )
    }
    const request = { entityId, expected: sequence, validThrough, events: encoded, size }
    const shard = shardOf(entityId)
    const log = logs.get(entityType)?.[shard]
    return log === undefined
      ? Effect.flatMap(startLog(entityType, shard), (started) => started.append(request))
      : log.append(request)
  }

  const confirm = ({ entityId, entityType }: EntityKey, position: Position) =>
    Effect.flatMap(logOf(entityType, shardOf(entityId)), (log) =>
      Effect.flatMap(log.sync, () =>
        log.isCurrent(entityId, position.sequence, position.validThrough)
          ? Effect.succeed({ sequence: position.sequence, validThrough: log.head })
          : Effect.fail(log.conflict(entityId, position.sequence))
      )
    )

  const isCurrent = ({ entityId, entityType }: EntityKey, { sequence, validThrough }: Position) =>
    logs.get(entityType)?.[shardOf(entityId)]?.isCurrent(entityId, sequence, validThrough) ?? false

  const envelope = (log: ShardLog, entry: Entry): EventEnvelope => ({
    entityType: log.log.entityType,
    entityId: entry.entityId,
    sequence: entry.sequence,
    shard: log.log.shard,
    offset: entry.offset,
    stamp: entry.stamp,
    type: entry.type,
    payload: payloadOf(entry)
  })

  const indexed = Effect.fnUntraced(function* (log: ShardLog, entityId: string, after: number, through: number) {
    const entries: Array<Entry> = []
    let next = after + 1
    for (let more = true; more; ) {
      const partition = partitionOf(next)
      const rows = yield* store
        .readIndexRows(log.log.entityType, entityId, partition, rowStart(next))
        .pipe(Effect.mapError(storeFailure))
      let last = 0
      for (const row of rows) {
        try {
          for (const entry of decodeIndexRow(entityId, row)) {
            if (entry.sequence > after && entry.offset <= through) entries.push(entry)
            if (entry.sequence > last) last = entry.sequence
          }
        } catch (cause) {
          const message = `the index of ${log.log.entityType} "${entityId}" holds a row that is not readable: ${cause}`
          return yield* new JournalError({ reason: new DataCorrupt({ ...log.log, message }) })
        }
      }
      more = last >= next && isPartitionEnd(last)
      next = last + 1
    }
    return entries
  })

  const load = Effect.fnUntraced(function* (
    { entityId, entityType }: EntityKey,
    { snapshotsUpTo = Number.MAX_SAFE_INTEGER }: { readonly snapshotsUpTo?: number } = {}
  ) {
    const log = yield* logOf(entityType, shardOf(entityId))
    const corrupt = (what: string) =>
      new JournalError({
        reason: new DataCorrupt({
          ...log.log,
          message: `the history of ${entityType} "${entityId}" is damaged: ${what}`
        })
      })
    const saved = yield* store.readSnapshot(entityType, entityId, snapshotsUpTo).pipe(Effect.mapError(storeFailure))
    const usable = saved?.epoch === wanted.epoch ? saved : undefined
    if (usable !== undefined && usable.offset > log.head) {
      yield* log.sync
      if (usable.offset > log.head) {
        const message = `${entityType} "${entityId}" has a snapshot at offset ${usable.offset}, its log ends at ${log.head}`
        return yield* new JournalError({ reason: new DataLost({ ...log.log, message }) })
      }
    }
    // Memory first: what leaves it while the index is read is in the index by then.
    const recent = log.unindexed(entityId)
    const start = usable?.sequence ?? 0
    const older = yield* indexed(log, entityId, start, recent.through)
    for (const entry of recent.entries) if (entry.sequence > start) older.push(entry)
    older.sort((a, b) => a.sequence - b.sequence)
    const events: Array<EventEnvelope> = []
    let last: Entry | undefined
    for (const entry of older) {
      if (entry.sequence === last?.sequence) {
        if (entry.offset !== last.offset) {
          return yield* corrupt(`event ${entry.sequence} stands at offsets ${last.offset} and ${entry.offset}`)
        }
        continue
      }
      const expected = (last?.sequence ?? start) + 1
      if (entry.sequence !== expected) return yield* corrupt(`event ${expected} is missing, ${entry.sequence} is there`)
      last = entry
      events.push(envelope(log, entry))
    }
    let snapshot = Option.none<Snapshot>()
    if (usable !== undefined) {
      try {
        const state: unknown = JSON.parse(usable.state)
        snapshot = Option.some({ sequence: usable.sequence, validThrough: usable.offset, state })
      } catch {
        yield* Effect.logWarning(
          `a snapshot of ${entityType} "${entityId}" at ${usable.sequence} is not JSON: passed over`
        )
        return yield* load({ entityType, entityId }, { snapshotsUpTo: usable.sequence - 1 })
      }
    }
    return { snapshot, events, sequence: last?.sequence ?? start, validThrough: recent.through } satisfies Loaded
  }) as (entity: EntityKey, options?: { readonly snapshotsUpTo?: number }) => Effect.Effect<Loaded, JournalError>

  const saveSnapshot = (entity: EntityKey, { sequence, state, validThrough }: Snapshot, removeThrough: number) =>
    store
      .writeSnapshot(
        entity.entityType,
        entity.entityId,
        { sequence, offset: validThrough, epoch: wanted.epoch, state: JSON.stringify(state) },
        removeThrough
      )
      .pipe(Effect.mapError(storeFailure))

  // ---------------------------------------------------------------------------------------------- reading logs

  /** Waits until the head is past an offset; looks for events of other processes, seldom while nothing happens. */
  const moved = Effect.fnUntraced(function* (log: ShardLog, after: number) {
    for (let millis = minPollMillis; log.head <= after; millis = Math.min(maxPollMillis, millis * 1.5)) {
      if (log.failure !== undefined) return yield* log.failure
      const woken = yield* Effect.callback<void>((resume) => {
        const off = log.onHead(() => {
          off()
          resume(Effect.void)
        })
        return Effect.sync(off)
      }).pipe(Effect.timeoutOption(millis))
      if (Option.isNone(woken)) yield* log.poll(millis * 0.9)
    }
  })

  /** The next events after an offset, `through` at the most; empty at the head. */
  const readOn = Effect.fnUntraced(function* (log: ShardLog, after: number, through: number) {
    const blocks = log.tail(after) ?? (yield* readStored(log, after))
    const events: Array<EventEnvelope> = []
    for (const block of blocks) {
      if (events.length >= 2000) break
      for (const entry of block.entries) {
        if (entry.offset > after && entry.offset <= through) events.push(envelope(log, entry))
      }
    }
    return events
  })

  const readStored = Effect.fnUntraced(function* (log: ShardLog, after: number) {
    const read = (bucket: number, serial: boolean) =>
      store.readBlocks(log.log, bucket, after, 32, serial).pipe(Effect.mapError(storeFailure))
    for (let attempt = 0; ; attempt++) {
      const bucket = log.bucketOf(after)
      let stored = yield* read(bucket, attempt > 0)
      // A block that begins in the bucket before may reach into this one.
      const first = stored[0] === undefined ? undefined : yield* log.decode(stored[0])
      if ((first === undefined || first.from > after) && bucket > 0)
        stored = [...(yield* read(bucket - 1, attempt > 0)), ...stored]
      const blocks = []
      let position = after
      for (const one of stored) {
        const block = yield* log.decode(one)
        if (block.from > position) break
        blocks.push(block)
        position = block.to
      }
      if (blocks.length > 0) return blocks
      if (attempt >= 5) {
        const message = `the log of ${log.log.entityType} shard ${log.log.shard} has no event ${after + 1}, its head is ${log.head}`
        return yield* new JournalError({ reason: new DataCorrupt({ ...log.log, message }) })
      }
      yield* Effect.sleep(20 * 2 ** attempt)
    }
  })

  const checkedLog = (entityType: string, shard: number) =>
    Number.isInteger(shard) && shard >= 0 && shard < shards
      ? logOf(entityType, shard)
      : Effect.die(new RangeError(`shard ${shard} of "${entityType}": there are shards 0 to ${shards - 1}`))

  const events = (entityType: string, shard: number, after: number) =>
    Stream.unwrap(
      Effect.map(checkedLog(entityType, shard), (log) =>
        Stream.paginate(after, (position) =>
          Effect.gen(function* () {
            yield* moved(log, position)
            const page = yield* readOn(log, position, Number.MAX_SAFE_INTEGER)
            return [page, Option.some(page.at(-1)?.offset ?? position)] as const
          })
        )
      )
    )

  const currentEvents = (entityType: string, shard: number, after: number) =>
    Stream.unwrap(
      Effect.gen(function* () {
        const log = yield* checkedLog(entityType, shard)
        yield* log.sync
        const through = log.head
        return Stream.paginate(after, (position) =>
          position >= through
            ? Effect.succeed([[] as Array<EventEnvelope>, Option.none<number>()] as const)
            : Effect.map(
                readOn(log, position, through),
                (page) => [page, Option.some(page.at(-1)?.offset ?? position)] as const
              )
        )
      })
    )

  const head = (entityType: string, shard: number) =>
    Effect.flatMap(checkedLog(entityType, shard), (log) => Effect.map(log.sync, () => log.head))

  const journal: Journal["Service"] = {
    shards,
    shardOf,
    append,
    load,
    confirm,
    isCurrent,
    saveSnapshot,
    events,
    currentEvents,
    head
  }
  return journal
})
