/**
 * The operations of a journal over whatever stores its blocks: Cassandra, the memory of the process, or a simulation.
 */
import { Clock, Duration, Effect, Exit, Result, Schedule, Scope, Semaphore, Stream } from "effect"
import {
  type Append,
  type Appended,
  type Appender,
  CurrentMetadata,
  type EntityKey,
  type Journal,
  type LoadOptions,
  type Metadata,
  type Options,
  type Position,
  type Snapshot
} from "../Journal.ts"
import {
  DataLost,
  EncodingFailure,
  JournalError,
  MalformedAppend,
  SequenceConflict,
  SettingsMismatch
} from "../JournalError.ts"
import { deletedType, encodeBody } from "./block.ts"
import { carryOut, goOn } from "./deletion.ts"
import { EventFormat } from "./events.ts"
import { closed, storeFailure } from "./failure.ts"
import { Heads } from "./heads.ts"
import { load as loadEntity, type Window } from "./history.ts"
import { type AppendRequest, type Limits, type Pending, ShardLog } from "./shardLog.ts"
import { shardOf as shardOfEntity } from "./shardOf.ts"
import type { Deletion, Store, StoredSnapshot, TypeRecord } from "./store.ts"
import { makeStreams } from "./streams.ts"
import { writerName } from "./turns.ts"

const maxBlockEvents = 2000
const maxBlockSize = 192 * 1024
/** How often an append looks anew when others store events of the entity meanwhile. */
const maxLooks = 50

/** Characters of JSON. */
const sizeOf = (events: AppendRequest["events"]) => {
  let size = 0
  for (const { text } of events) size += text.length
  return size
}

/** An entity type in use: its record, and the logs of its shards that were started. */
interface TypeInUse {
  record: TypeRecord
  /** When the record was looked at last, in milliseconds. */
  looked: number
  readonly logs: Array<ShardLog | undefined>
  readonly heads: Heads
}

/** `dataCenter`: that of this process, where no other one may append. */
export const makeJournal = Effect.fnUntraced(function* (
  store: Store,
  options: Options,
  changed: Partial<Limits> = {},
  dataCenter: string | null = null
) {
  const services = yield* Effect.context<never>()
  const shards = options.shards ?? 3
  const wanted: TypeRecord = {
    shards,
    serialConsistency: options.serialConsistency ?? "SERIAL",
    dataCenter,
    bucketSize: options.bucketSize ?? 10_000,
    partSize: options.partitionSize ?? 32 * 1024 * 1024,
    epoch: 1,
    indexGeneration: 1
  }
  const maxEventSize = options.maxEventSize ?? 1024 * 1024
  for (const [setting, value, max] of [
    ["shards", shards, 1000],
    ["bucketSize", wanted.bucketSize, 1_000_000],
    ["partitionSize", wanted.partSize, 1024 ** 3],
    ["maxEventSize", maxEventSize, 4 * 1024 * 1024],
    ["commandWindow.events", options.commandWindow?.events ?? 100, 10_000]
  ] as const) {
    if (!Number.isInteger(value) || value < 1 || value > max) {
      return yield* Effect.die(new RangeError(`${setting} is ${value}, it must be a whole number from 1 to ${max}`))
    }
  }
  const { compression } = options
  if (compression !== undefined && compression !== "zstd" && compression !== "none") {
    return yield* Effect.die(
      new RangeError(`compression is ${JSON.stringify(compression)}, it must be "zstd" or "none"`)
    )
  }
  const clock = yield* Clock.Clock
  const limits: Limits = {
    maxBlockEvents: Math.min(maxBlockEvents, wanted.bucketSize),
    maxBlockSize,
    appendTimeoutMillis: Duration.toMillis(options.appendTimeout ?? "10 seconds"),
    rememberedEntities: 50_000,
    recordMillis: 20_000,
    ...changed
  }
  const window: Window = {
    events: options.commandWindow?.events ?? 100,
    millis: Duration.toMillis(options.commandWindow?.age ?? "1 day")
  }
  const writer = yield* writerName
  const format = new EventFormat(options.encoding, options.encodings ?? [], maxEventSize, limits.maxBlockEvents)
  const streams = makeStreams(format)
  const maxPollMillis = Duration.toMillis(options.maxPollInterval ?? "700 millis")
  // Closed after the finalizer below, which lets the logs finish what they have accepted.
  const running = yield* Effect.flatMap(Effect.scope, Scope.fork)

  // ---------------------------------------------------------------------------------------------- shards

  const types = new Map<string, TypeInUse>()
  const starting = Semaphore.makeUnsafe(1)
  const beginning = Semaphore.makeUnsafe(1)
  let closing = false

  const typeOf = (entityType: string): Effect.Effect<TypeInUse, JournalError> =>
    Effect.suspend(() => {
      const known = types.get(entityType)
      return known === undefined ? beginning.withPermits(1)(begin(entityType)) : Effect.succeed(known)
    })

  const begin = Effect.fnUntraced(function* (entityType: string) {
    // Who waited may find it: a second one would have logs of its own.
    const known = types.get(entityType)
    if (known !== undefined) return known
    const looked = clock.currentTimeMillisUnsafe()
    const record = yield* store.recordType(entityType, wanted).pipe(Effect.mapError(storeFailure))
    for (const [setting, field] of [
      ["shards", "shards"],
      ["serialConsistency", "serialConsistency"],
      ["bucketSize", "bucketSize"],
      ["partitionSize", "partSize"]
    ] as const) {
      const [recorded, given] = [record[field], wanted[field]]
      if (recorded !== given) {
        const message =
          `entity type "${entityType}" was first used with ${setting} ${recorded}, now ${given} is given: ` +
          `set ${setting} to ${recorded}, or use another entity type`
        return yield* new JournalError({
          reason: new SettingsMismatch({
            entityType,
            setting,
            recorded: String(recorded),
            given: String(given),
            message
          })
        })
      }
    }
    if (record.dataCenter !== dataCenter) {
      const message =
        `entity type "${entityType}" is appended to in data centre "${record.dataCenter}" only (LOCAL_SERIAL), and this ` +
        `process uses "${dataCenter}": run it there, or use another entity type with serialConsistency SERIAL`
      return yield* new JournalError({
        reason: new SettingsMismatch({
          entityType,
          setting: "localDataCenter",
          recorded: String(record.dataCenter),
          given: String(dataCenter),
          message
        })
      })
    }
    const heads = new Heads(store, entityType, record.epoch, maxPollMillis)
    yield* Effect.forkIn(Effect.withTracerEnabled(heads.saying, false), running)
    yield* Effect.forkIn(Effect.withTracerEnabled(heads.hearing, false), running)
    const inUse: TypeInUse = { record, looked, logs: new Array<ShardLog | undefined>(shards).fill(undefined), heads }
    types.set(entityType, inUse)
    return inUse
  })

  /** Looks whether an operator has rebuilt the index, or accepted a restore. */
  const look = Effect.fnUntraced(function* (entityType: string, inUse: TypeInUse) {
    const begin = clock.currentTimeMillisUnsafe()
    const record = yield* store.recordType(entityType, wanted).pipe(Effect.mapError(storeFailure))
    const logs = inUse.logs.filter((log) => log !== undefined)
    if (record.epoch !== inUse.record.epoch) {
      const message = `a restore of ${entityType} was accepted, and what this process knows is older than that: start it again`
      const error = new JournalError({ reason: new DataLost({ entityType, shard: logs[0]?.log.shard ?? 0, message }) })
      for (const log of logs) log.halt(error)
      return yield* error
    }
    for (const log of logs) {
      if (log.generation !== record.indexGeneration) yield* log.adopt(record.indexGeneration)
    }
    inUse.record = record
    inUse.looked = begin
  })

  /** After it, the record is known as it was a short while ago: an index that is out of use is removed much later. */
  const current = (entityType: string, inUse: TypeInUse): Effect.Effect<void, JournalError> =>
    Effect.suspend(() =>
      Math.abs(clock.currentTimeMillisUnsafe() - inUse.looked) < 3 * limits.recordMillis
        ? Effect.void
        : Effect.asVoid(look(entityType, inUse))
    )

  const startLog = (entityType: string, shard: number) =>
    Effect.gen(function* () {
      const inUse = yield* typeOf(entityType)
      const { heads, logs } = inUse
      const present = logs[shard]
      if (present !== undefined) return present
      yield* current(entityType, inUse)
      const { record } = inUse
      const log = new ShardLog(store, { entityType, shard }, record, limits, clock, writer, (head) =>
        heads.say(shard, head)
      )
      yield* log.start
      if (closing) return yield* closed()
      yield* Effect.forkIn(log.run, running)
      yield* Effect.forkIn(resumeDeletions(log), running)
      logs[shard] = log
      return log
    }).pipe(starting.withPermits(1), Effect.uninterruptible)

  const startedLog = (entityType: string, shard: number) => types.get(entityType)?.logs[shard]

  const logOf = (entityType: string, shard: number): Effect.Effect<ShardLog, JournalError> => {
    const log = startedLog(entityType, shard)
    return log === undefined ? startLog(entityType, shard) : Effect.succeed(log)
  }

  const allLogs = () => [...types.values()].flatMap(({ logs }) => logs.filter((log) => log !== undefined))

  yield* Effect.suspend(() => Effect.forEach(allLogs(), (log) => log.indexWhenDue, { discard: true })).pipe(
    Effect.catch((error) =>
      Effect.logWarning(`the index of entities could not be written, trying again: ${error.message}`)
    ),
    Effect.repeat(Schedule.spaced(options.indexInterval ?? "1 second")),
    Effect.withTracerEnabled(false),
    Effect.forkIn(running)
  )
  yield* Effect.sync(() => {
    for (const log of allLogs()) log.expire()
  }).pipe(
    Effect.delay(Math.max(5, limits.appendTimeoutMillis / 20)),
    Effect.forever,
    Effect.withTracerEnabled(false),
    Effect.forkIn(running)
  )
  yield* Effect.suspend(() =>
    Effect.forEach(types, ([entityType, inUse]) => look(entityType, inUse), { discard: true })
  ).pipe(
    Effect.catch((error) => Effect.logWarning(`the record of an entity type was not read: ${error.message}`)),
    Effect.delay(limits.recordMillis),
    Effect.forever,
    Effect.withTracerEnabled(false),
    Effect.forkIn(running)
  )
  yield* Effect.addFinalizer(() => {
    closing = true
    return Effect.forEach(allLogs(), (log) => log.close, { concurrency: "unbounded", discard: true }).pipe(
      Effect.andThen(Effect.forEach([...types.values()], ({ heads }) => heads.flush, { discard: true }))
    )
  })

  // ---------------------------------------------------------------------------------------------- entities

  const shardOf = (entityId: string) => shardOfEntity(entityId, shards)

  const load = Effect.fnUntraced(function* (entity: EntityKey, options: LoadOptions = {}) {
    const log = yield* logOf(entity.entityType, shardOf(entity.entityId))
    const inUse = types.get(entity.entityType)!
    for (;;) {
      const { generation } = log
      const loaded = yield* loadEntity(store, inUse.record, log, format, window, clock, entity, options)
      // A process that was stopped for long may have read an index that is no more.
      yield* current(entity.entityType, inUse)
      if (generation === log.generation) return loaded
    }
  })

  const unlike = ({ entityId, entityType }: EntityKey, expected: number | string, sequence: number) => {
    const is = sequence === 0 ? "has no events" : `has ${sequence} events`
    const message = `${entityType} "${entityId}" ${is}, expected was: ${expected}`
    return new JournalError({ reason: new SequenceConflict({ entityType, entityId, expected, message }) })
  }

  /** Finds out where the entity stands, and whether the command is known, then appends; again when others were first. */
  const place = Effect.fnUntraced(function* (
    self: Append,
    bodies: AppendRequest["events"],
    size: number
  ): Effect.fn.Return<Appended, JournalError> {
    const { command, entityId, entityType } = self
    const expected = self.expected as Exclude<Append["expected"], Position>
    const log = yield* logOf(entityType, shardOf(entityId))
    // A command must not be stored beside its twin: it is looked for again when others were first.
    const floating = command === undefined && (expected === "any" || expected === "exists")
    for (let looks = 1; ; looks++) {
      const remembered = command === undefined ? log.lastSequence(entityId) : undefined
      const loaded = remembered === undefined ? yield* load(self, { commands: command !== undefined }) : undefined
      const { sequence, validThrough } = loaded ?? { sequence: remembered!, validThrough: log.head }
      const known = command === undefined ? undefined : loaded?.commands.get(command.id)
      if (known !== undefined) return { sequence: known.sequence, validThrough, repeated: true, answer: known.answer }
      const fits =
        expected === "any" ||
        (expected === "none" ? sequence === 0 : expected === "exists" ? sequence > 0 : sequence === expected)
      if (!fits) {
        yield* log.sync
        if (log.isCurrent(entityId, sequence, validThrough)) return yield* unlike(self, expected, sequence)
        continue
      }
      if (bodies.length === 0) return { sequence, validThrough, repeated: false, answer: undefined }
      const placed = yield* Effect.result(
        log.append({
          entityId,
          expected: sequence,
          floating,
          validThrough,
          behind: undefined,
          events: bodies,
          size,
          answer: command?.answer
        })
      )
      if (Result.isSuccess(placed)) return placed.success
      if (placed.failure.reason._tag !== "SequenceConflict" || looks >= maxLooks) return yield* placed.failure
    }
  })

  /** The events as they are to be stored after a position; or what becomes of the append where there is nothing to store. */
  const requestAt = (self: Append, metadata: Metadata): AppendRequest | Exit.Exit<Appended, JournalError> => {
    const encoded = format.encode(self, metadata)
    if (Result.isFailure(encoded)) return Exit.fail(encoded.failure)
    const events = encoded.success
    const { sequence, validThrough } = self.expected as Position
    if (events.length === 0) return Exit.succeed({ sequence, validThrough, repeated: false, answer: undefined })
    const { command, entityId } = self
    return {
      entityId,
      expected: sequence,
      floating: false,
      validThrough,
      behind: self.behind as Pending | undefined,
      events,
      size: sizeOf(events),
      answer: command?.answer
    }
  }

  const requestOf = (appender: Appender, own: Pending): AppendRequest | undefined => {
    let request: AppendRequest | Exit.Exit<Appended, JournalError>
    try {
      const append = appender.decide(own)
      if (append === undefined) return undefined
      request = requestAt(append, appender.metadata)
    } catch (defect) {
      // The log goes on for all others.
      request = Exit.die(defect)
    }
    if (!Exit.isExit(request)) return request
    appender.onExit(request)
    return undefined
  }

  const appendUnsafe = (appender: Appender): void => {
    const { entityId, entityType } = appender
    const shard = shardOf(entityId)
    const log = startedLog(entityType, shard)
    if (log !== undefined) {
      log.appendLater(appender, requestOf)
      return
    }
    Effect.runForkWith(services)(startLog(entityType, shard)).addObserver((exit) => {
      if (Exit.isSuccess(exit)) exit.value.appendLater(appender, requestOf)
      else appender.onExit(Exit.failCause(exit.cause))
    })
  }

  const append = Object.assign(
    (self: Append): Effect.Effect<Appended, JournalError> =>
      Effect.withFiber((fiber) => {
        const metadata = fiber.getRef(CurrentMetadata)
        const { entityId, entityType } = self
        if (typeof self.expected === "object") {
          const request = requestAt(self, metadata)
          return Exit.isExit(request)
            ? request
            : Effect.flatMap(logOf(entityType, shardOf(entityId)), (log) => log.append(request))
        }
        const encoded = format.encode(self, metadata)
        return Result.isFailure(encoded)
          ? Effect.fail(encoded.failure)
          : place(self, encoded.success, sizeOf(encoded.success))
      }),
    { unsafe: appendUnsafe }
  )

  const confirm = ({ entityId, entityType }: EntityKey, position: Position) =>
    Effect.flatMap(logOf(entityType, shardOf(entityId)), (log) =>
      Effect.flatMap(log.sync, () =>
        log.isCurrent(entityId, position.sequence, position.validThrough)
          ? Effect.succeed({ sequence: position.sequence, validThrough: log.head })
          : Effect.fail(log.conflict(entityId, position.sequence))
      )
    )

  const isCurrent = ({ entityId, entityType }: EntityKey, { sequence, validThrough }: Position) =>
    startedLog(entityType, shardOf(entityId))?.isCurrent(entityId, sequence, validThrough) ?? false

  const saveSnapshot = Effect.fnUntraced(function* (entity: EntityKey, snapshot: Snapshot, removeThrough: number) {
    const { entityId, entityType } = entity
    const { record } = yield* typeOf(entityType)
    const stored = yield* Effect.try({
      try: (): StoredSnapshot => ({
        sequence: snapshot.sequence,
        offset: snapshot.validThrough,
        epoch: record.epoch,
        version: snapshot.version ?? 1,
        ...format.encodeState(snapshot.state, entity)
      }),
      catch: (cause) => {
        const message = `a snapshot of ${entityType} "${entityId}" cannot be written: ${cause}`
        const encoding = options.encoding?.name ?? "JSON"
        return new JournalError({ reason: new EncodingFailure({ entityType, entityId, encoding, message }) })
      }
    })
    yield* store.writeSnapshot(entityType, entityId, stored, removeThrough).pipe(Effect.mapError(storeFailure))
  })

  // ---------------------------------------------------------------------------------------------- deleting

  /** Goes on with what processes began that are no more. */
  const resumeDeletions = (log: ShardLog) =>
    Effect.gen(function* () {
      for (const deletion of yield* store.readDeletions(log.log).pipe(Effect.mapError(storeFailure))) {
        yield* goOn(store, log, load, deletion)
      }
    }).pipe(
      Effect.catch((error) =>
        Effect.logWarning(`deletions are not complete, and go on with the next start: ${error.message}`)
      ),
      Effect.withTracerEnabled(false)
    )

  const deleteEvents = Effect.fnUntraced(function* (
    entity: EntityKey,
    upTo?: number
  ): Effect.fn.Return<Position, JournalError> {
    const { entityId, entityType } = entity
    const log = yield* logOf(entityType, shardOf(entityId))
    yield* log.sync
    for (let looks = 1; ; looks++) {
      const { sequence, snapshot, validThrough } = yield* load(entity)
      const through = upTo ?? sequence
      const malformed = (what: string) =>
        new JournalError({
          reason: new MalformedAppend({
            entityType,
            entityId,
            message: `events of ${entityType} "${entityId}" up to ${through} cannot be deleted: ${what}`
          })
        })
      if (!Number.isSafeInteger(through) || through < 0 || through > sequence) {
        return yield* malformed(`it has ${sequence} events`)
      }
      if (through === 0) return { sequence, validThrough }
      if (through < sequence && (snapshot._tag === "None" || snapshot.value.sequence < through)) {
        return yield* malformed("the events after them need a snapshot of the state before: save one first")
      }
      const deletion: Deletion = { entityId, through, marker: sequence + 1 }
      yield* store.writeDeletion(log.log, deletion).pipe(Effect.mapError(storeFailure))
      const fact = encodeBody({ t: deletedType, p: { through } })
      const placed = yield* Effect.result(
        log.append({
          entityId,
          expected: sequence,
          floating: false,
          validThrough,
          behind: undefined,
          events: [fact],
          size: fact.text.length,
          answer: undefined
        })
      )
      if (Result.isSuccess(placed)) {
        yield* carryOut(store, log, deletion)
        return placed.success
      }
      if (placed.failure.reason._tag !== "SequenceConflict" || looks >= maxLooks) return yield* placed.failure
      yield* store.removeDeletion(log.log, deletion).pipe(Effect.mapError(storeFailure))
    }
  })

  // ---------------------------------------------------------------------------------------------- reading logs

  const checkedLog = (entityType: string, shard: number) =>
    Number.isInteger(shard) && shard >= 0 && shard < shards
      ? logOf(entityType, shard)
      : Effect.die(new RangeError(`shard ${shard} of "${entityType}": there are shards 0 to ${shards - 1}`))

  const journal: Journal["Service"] = {
    shards,
    shardOf,
    epoch: (entityType) => Effect.map(typeOf(entityType), ({ record }) => record.epoch),
    append,
    load,
    confirm,
    isCurrent,
    seen: (entityType, shard) => startedLog(entityType, shard)?.head ?? 0,
    saveSnapshot,
    delete: deleteEvents,
    events: (entityType, shard, after) =>
      Stream.unwrap(
        Effect.map(checkedLog(entityType, shard), (log) => streams.live(log, types.get(entityType)!.heads, after))
      ),
    currentEvents: (entityType, shard, after) =>
      Stream.unwrap(Effect.map(checkedLog(entityType, shard), (log) => streams.current(log, after))),
    head: (entityType, shard) =>
      Effect.flatMap(checkedLog(entityType, shard), (log) => Effect.map(log.sync, () => log.head))
  }
  return journal
})
