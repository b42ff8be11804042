/**
 * The journal: immutable events of entities, stored in order and for ever, with snapshots of the entities' states.
 *
 * Entities of one type are spread over a fixed number of shards; the events of a shard form one log, in which they count
 * 1, 2, 3 ... without a hole. PROTOCOL.md says how, and what is promised.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { type SerialConsistency, make as statement } from "@effect-cassandra/session/Statement"
import { Clock, Config, Context, Duration, Effect, Layer, Option, Schedule, Scope, Semaphore, Stream } from "effect"
import { decodeIndexRow, type Entry, encodeBody, payloadOf } from "./internal/block.ts"
import { cassandraStore, tables } from "./internal/cassandraStore.ts"
import { memoryStore } from "./internal/memoryStore.ts"
import { isPartitionEnd, partitionOf, rowStart, ShardLog } from "./internal/shardLog.ts"
import type { Store, TypeRecord } from "./internal/store.ts"
import {
  AppendTooLarge,
  ClockSkew,
  DataCorrupt,
  DataLost,
  JournalError,
  SettingsMismatch,
  StoreFailure
} from "./JournalError.ts"

/** Settings of a journal. Those marked "recorded" are fixed when an entity type is first used. */
export interface Options {
  /** Logs per entity type; recorded. Default: 10. */
  readonly shards?: number | undefined
  /**
   * Who agrees on an append: the replicas of all data centres, or those of the local one, in which case only this data
   * centre may append; recorded. Default: `"SERIAL"`.
   */
  readonly serialConsistency?: SerialConsistency | undefined
  /** Events per partition of a log; recorded. Default: 10 000. */
  readonly bucketSize?: number | undefined
  /** How long an append waits for an answer before it fails with `OutcomeUnknown`. Default: 10 seconds. */
  readonly appendTimeout?: Duration.Input | undefined
  /** How often the index of entities is brought up to date. Default: 1 second. */
  readonly indexInterval?: Duration.Input | undefined
  /** The longest pause between two looks for events of other processes, while nothing happens. Default: 1 second. */
  readonly maxPollInterval?: Duration.Input | undefined
}

/** An event of an entity, with its place in the journal. */
export interface EventEnvelope {
  readonly entityType: string
  readonly entityId: string
  /** Counts the events of the entity: 1, 2, 3 ... */
  readonly sequence: number
  readonly shard: number
  /** Counts the events of the shard: 1, 2, 3 ... */
  readonly offset: number
  /** Microseconds since the epoch; strictly increasing within the shard, in steps of 10 at least. */
  readonly stamp: number
  readonly type: string
  /** The event as JSON gives it. */
  readonly payload: unknown
}

/** Events to store for one entity, all of them or none. */
export interface Append {
  readonly entityType: string
  readonly entityId: string
  /** The entity's last sequence number as the writer knows it; 0 when it has no events. */
  readonly sequence: number
  /** As `load`, `append` or `confirm` gave it with that sequence number. */
  readonly validThrough: number
  /** Payloads are values that JSON can hold. */
  readonly events: ReadonlyArray<{ readonly type: string; readonly payload: unknown }>
}

/** Where an entity stands: its last sequence number, and the offset up to where all its events are included. */
export interface Position {
  readonly sequence: number
  readonly validThrough: number
}

/** A saved state of an entity. */
export interface Snapshot {
  readonly sequence: number
  /** The position of the state in the shard's log. */
  readonly validThrough: number
  /** As JSON gives it. */
  readonly state: unknown
}

/** What is stored of an entity: the newest snapshot, and the events after it. */
export interface Loaded extends Position {
  readonly snapshot: Option.Option<Snapshot>
  readonly events: ReadonlyArray<EventEnvelope>
}

/** What identifies an entity. */
export interface EntityKey {
  readonly entityType: string
  readonly entityId: string
}

/**
 * The events of a service's entities.
 */
export class Journal extends Context.Service<
  Journal,
  {
    /** Logs per entity type. */
    readonly shards: number
    readonly shardOf: (entityId: string) => number
    /**
     * Stores events if the entity has no others than the writer knows, else fails with `SequenceConflict`. Once
     * acknowledged they are there for ever, exactly once.
     */
    readonly append: (append: Append) => Effect.Effect<Position, JournalError>
    /** What is stored of an entity; with `snapshotsUpTo`, without snapshots after that sequence number. */
    readonly load: (
      entity: EntityKey,
      options?: { readonly snapshotsUpTo?: number }
    ) => Effect.Effect<Loaded, JournalError>
    /**
     * Asks the cluster whether a position is still the entity's newest, and gives it brought forward; fails with
     * `SequenceConflict` if it is not. Concurrent calls share one request.
     */
    readonly confirm: (entity: EntityKey, position: Position) => Effect.Effect<Position, JournalError>
    /** Saves a state and removes the snapshots at `removeThrough` or before. */
    readonly saveSnapshot: (
      entity: EntityKey,
      snapshot: Snapshot,
      removeThrough: number
    ) => Effect.Effect<void, JournalError>
    /** The events of a shard after an offset (0 for all), then those to come. */
    readonly events: (entityType: string, shard: number, after: number) => Stream.Stream<EventEnvelope, JournalError>
    /** The events of a shard after an offset, up to the last one stored now. */
    readonly currentEvents: (
      entityType: string,
      shard: number,
      after: number
    ) => Stream.Stream<EventEnvelope, JournalError>
    /** The offset of the last event stored in a shard; 0 when there is none. */
    readonly head: (entityType: string, shard: number) => Effect.Effect<number, JournalError>
  }
>()("@effect-cassandra/journal/Journal") {
  /** A journal in the session's keyspace; missing tables are created. */
  static readonly layer = (options: Options = {}): Layer.Layer<Journal, JournalError, CassandraSession> =>
    Layer.effect(Journal, makeCassandra(options))

  /** As `layer`, with options from Effect's Config. */
  static readonly layerConfig = (
    options: Config.Wrap<Options>
  ): Layer.Layer<Journal, JournalError | Config.ConfigError, CassandraSession> =>
    Layer.effect(Journal, Effect.flatMap(Config.unwrap(options), makeCassandra))

  /** A journal in the memory of this process, for tests: the same code, another store. */
  static readonly layerMemory = (options: Options = {}): Layer.Layer<Journal, JournalError> =>
    Layer.effect(
      Journal,
      Effect.suspend(() => make(memoryStore(), options))
    )
}

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

const storeFailure = (cause: CassandraError) =>
  new JournalError({ reason: new StoreFailure({ message: cause.message, cause }) })

const make = Effect.fnUntraced(function* (store: Store, options: Options) {
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
  const limits = {
    maxBlockEvents: Math.min(maxBlockEvents, wanted.bucketSize),
    maxBlockSize,
    appendTimeoutMillis: Duration.toMillis(options.appendTimeout ?? "10 seconds")
  }
  const maxPollMillis = Duration.toMillis(options.maxPollInterval ?? "1 second")
  // Closed after the finalizer below, which lets the logs finish what they have accepted.
  const running = yield* Effect.flatMap(Effect.scope, Scope.fork)

  // ---------------------------------------------------------------------------------------------- shards

  const logs = new Map<string, Array<ShardLog | undefined>>()
  const records = new Map<string, TypeRecord>()
  const starting = Semaphore.makeUnsafe(1)

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
      const log = new ShardLog(store, { entityType, shard }, record, limits)
      yield* log.start
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
  yield* Effect.addFinalizer(() =>
    Effect.forEach(allLogs(), (log) => log.close, { concurrency: "unbounded", discard: true })
  )

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

  return Journal.of({ shards, shardOf, append, load, confirm, saveSnapshot, events, currentEvents, head })
})

let warned = false

/** Says what of the server's settings does not fit the promises, once. */
const checkServer = Effect.fnUntraced(function* (session: CassandraSession["Service"]) {
  const before = yield* Clock.currentTimeMillis
  const [clock] = yield* session.execute<{ now: Date }>(statement("SELECT toTimestamp(now()) AS now FROM system.local"))
  const after = yield* Clock.currentTimeMillis
  const skew = clock === undefined ? 0 : Math.max(before - clock.now.getTime(), clock.now.getTime() - after)
  if (skew > 60_000) {
    const message = `the clocks of this process and of Cassandra are ${Math.round(skew / 1000)} s apart: set them right`
    return yield* new JournalError({ reason: new ClockSkew({ message }) })
  }
  const settings = yield* session
    .execute<{ name: string; value: string }>(
      statement("SELECT name, value FROM system_views.settings WHERE name IN ('commitlog_sync', 'paxos_variant')")
    )
    .pipe(Effect.orElseSucceed(() => []))
  const { commitlog_sync, paxos_variant } = Object.fromEntries(settings.map(({ name, value }) => [name, value]))
  if (/without_linearizable/i.test(paxos_variant ?? "")) {
    return yield* Effect.die(`paxos_variant is ${paxos_variant}: the journal needs linearizable reads, set v2 (or v1)`)
  }
  if (/periodic/i.test(commitlog_sync ?? "") && !warned) {
    warned = true
    yield* Effect.logWarning(
      "commitlog_sync is periodic: if all replicas lose power at once, the last acknowledged seconds are lost. Set group or batch."
    )
  }
})

const makeCassandra = Effect.fnUntraced(function* (options: Options) {
  const session = yield* CassandraSession
  yield* Effect.andThen(session.createTables(tables), checkServer(session)).pipe(
    Effect.catchTag("CassandraError", (error) => Effect.fail(storeFailure(error)))
  )
  return yield* make(cassandraStore(session, options.serialConsistency ?? "SERIAL"), options)
})
