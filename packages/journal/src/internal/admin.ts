/** The operations of `JournalAdmin` on the tables of a session's keyspace. */
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make as statement } from "@effect-cassandra/session/Statement"
import { Clock, Duration, Effect, Option, Stream } from "effect"
import { gzip } from "../Encoding.ts"
import { type EntityKey, Journal } from "../Journal.ts"
import type {
  Deleted,
  Finding,
  FinishedDeletion,
  JournalAdmin,
  Options,
  Progress,
  Restore,
  ShardState,
  TypeState
} from "../JournalAdmin.ts"
import { JournalError, OperationRefused } from "../JournalError.ts"
import { cassandraStore, dataCenterOf } from "./cassandraStore.ts"
import { goOn } from "./deletion.ts"
import { EventFormat } from "./events.ts"
import { storeFailure } from "./failure.ts"
import { load } from "./history.ts"
import { makeJournal } from "./journal.ts"
import { type Cursor, firstPlace, LogReader } from "./logReader.ts"
import { endOf, indexLog } from "./rebuild.ts"
import { makeScans, numberOf } from "./scans.ts"
import { ShardLog } from "./shardLog.ts"
import { shardOf } from "./shardOf.ts"
import type { Store, TypeRecord } from "./store.ts"
import { writerName } from "./turns.ts"
import { verifyShard } from "./verify.ts"

const refused = (message: string) => new JournalError({ reason: new OperationRefused({ message }) })

const noProgress = () => Effect.void

const start: Cursor = { after: 0, place: firstPlace }

/** A row of entity_types as a record, or what is wrong with it. */
const recordOf = (row: Readonly<Record<string, unknown>>): TypeRecord | string => {
  const record: TypeRecord = {
    shards: numberOf(row.shards),
    serialConsistency: String(row.serial_consistency),
    dataCenter: (row.data_center as string | null | undefined) ?? null,
    bucketSize: numberOf(row.bucket_size),
    partSize: numberOf(row.part_size),
    epoch: numberOf(row.epoch),
    indexGeneration: numberOf(row.index_generation)
  }
  const { dataCenter: _, serialConsistency, ...numbers } = record
  const wrong = Object.entries(numbers).find(([, value]) => !Number.isSafeInteger(value) || value < 1)
  if (wrong !== undefined) return `the record has no ${wrong[0]}, or an impossible one: ${wrong[1]}`
  return serialConsistency === "SERIAL" || serialConsistency === "LOCAL_SERIAL"
    ? record
    : `the record has no serialConsistency, or an impossible one: ${serialConsistency}`
}

/** An entity type that an operation works on. */
interface TypeInUse {
  readonly entityType: string
  readonly record: TypeRecord
  readonly store: Store
  readonly scans: ReturnType<typeof makeScans>
}

const shardsOf = ({ shards }: TypeRecord) => Array.from({ length: shards }, (_, shard) => shard)

export const makeAdmin = (session: CassandraSession["Service"], options: Options): JournalAdmin["Service"] => {
  const encodings = [...(options.encodings ?? []), gzip()]

  // --------------------------------------------------------------------------------------------- entity types

  const all = makeScans(session, "QUORUM")

  const inUse = (entityType: string, record: TypeRecord): TypeInUse => {
    const local = record.serialConsistency === "LOCAL_SERIAL"
    return {
      entityType,
      record,
      store: cassandraStore(session, local ? "LOCAL_SERIAL" : "SERIAL"),
      scans: makeScans(session, local ? "LOCAL_QUORUM" : "QUORUM")
    }
  }

  const rows = Effect.map(Stream.runCollect(all.types), (found) =>
    found.toSorted((a, b) => (a.entity_type < b.entity_type ? -1 : 1))
  )

  const typeOf = Effect.fnUntraced(function* (entityType: string) {
    const found = yield* rows
    const row = found.find((one) => one.entity_type === entityType)
    if (row === undefined) {
      const names = found.map((one) => `"${one.entity_type}"`).join(", ")
      return yield* refused(
        `there is no entity type "${entityType}" in keyspace "${session.keyspace}", there is ${names || "none"}`
      )
    }
    const record = recordOf(row)
    if (typeof record === "string") return yield* refused(`entity type "${entityType}" cannot be used: ${record}`)
    if (record.dataCenter !== null) {
      const here = yield* dataCenterOf(session).pipe(Effect.mapError(storeFailure))
      if (here !== record.dataCenter) {
        return yield* refused(
          `entity type "${entityType}" belongs to data centre "${record.dataCenter}" (LOCAL_SERIAL), this session uses "${here}"`
        )
      }
    }
    return inUse(entityType, record)
  })

  /** A journal with the settings of an entity type. */
  const journalOf = ({ record, store }: TypeInUse) =>
    makeJournal(
      store,
      {
        shards: record.shards,
        serialConsistency: record.serialConsistency as "SERIAL",
        bucketSize: record.bucketSize,
        partitionSize: record.partSize,
        encodings
      },
      {},
      record.dataCenter
    )

  const shardState = ({ entityType, record, scans, store }: TypeInUse, shard: number) =>
    Effect.gen(function* () {
      const log = { entityType, shard }
      const pendingDeletions = (yield* scans.deletions(entityType, shard)).length
      const watermark = yield* store.readWatermark(log, record.indexGeneration).pipe(Effect.mapError(storeFailure))
      const none: ShardState = {
        shard,
        head: 0,
        lastEvent: undefined,
        watermark,
        pendingDeletions,
        problem: undefined
      }
      return yield* Effect.gen(function* () {
        const cursor = yield* new LogReader(store, log, record).locate(watermark, true)
        const end = yield* endOf(store, log, record, cursor ?? start)
        const { head, stamp } = end.stamp > 0 || end.head === 0 ? end : yield* endOf(store, log, record, start)
        const problem =
          watermark > head
            ? `DataLost: the index is complete up to ${watermark}, the log ends at ${head}: restore event_log, or accept what there is`
            : undefined
        return { ...none, head, lastEvent: stamp === 0 ? undefined : new Date(stamp / 1000), problem }
      }).pipe(Effect.catch((error) => Effect.succeed({ ...none, problem: error.message })))
    })

  const types = Effect.gen(function* () {
    const states: Array<TypeState> = []
    for (const row of yield* rows) {
      const entityType = row.entity_type as string
      const record = recordOf(row)
      if (typeof record === "string") {
        const none = Number.NaN
        const unknown = { bucketSize: none, partitionSize: none, epoch: none, indexGeneration: none }
        const empty = { serialConsistency: "", otherIndexGenerations: [], shards: [] }
        states.push({ entityType, ...unknown, ...empty, problem: record })
        continue
      }
      const type = inUse(entityType, record)
      const watermarks = yield* Stream.runCollect(type.scans.watermarks(entityType))
      const others = new Set(watermarks.map(({ generation }) => generation))
      others.delete(record.indexGeneration)
      const { bucketSize, epoch, indexGeneration, partSize, serialConsistency } = record
      states.push({
        entityType,
        serialConsistency,
        bucketSize,
        partitionSize: partSize,
        epoch,
        indexGeneration,
        otherIndexGenerations: [...others].sort((a, b) => a - b),
        shards: yield* Effect.forEach(shardsOf(record), (shard) => shardState(type, shard), { concurrency: 4 }),
        problem: undefined
      })
    }
    return states
  })

  // ------------------------------------------------------------------------------------------------- looking

  const history: JournalAdmin["Service"]["history"] = (entity, { after = 0, follow = false } = {}) =>
    Stream.unwrap(
      Effect.gen(function* () {
        const journal = yield* journalOf(yield* typeOf(entity.entityType))
        const { events, validThrough } = yield* journal.load(entity, { snapshotsUpTo: 0 })
        const stored = Stream.fromIterable(events.filter(({ sequence }) => sequence > after))
        if (!follow) return stored
        const shard = journal.shardOf(entity.entityId)
        return Stream.concat(
          stored,
          Stream.filter(
            journal.events(entity.entityType, shard, validThrough),
            ({ entityId, sequence }) => entityId === entity.entityId && sequence > after
          )
        )
      })
    )

  const verify: JournalAdmin["Service"]["verify"] = Effect.fnUntraced(function* (entityType, options = {}) {
    const { maxEntities = 250_000, maxFindings = 1000, onProgress = noProgress } = options
    const findings: Array<Finding> = []
    const known = new Set<string>()
    let count = 0
    const report = (finding: Finding) => {
      const name = `${finding.shard} ${finding.message}`
      if (known.has(name)) return
      count++
      if (findings.length >= maxFindings) return
      known.add(name)
      findings.push(finding)
    }
    const row = (yield* rows).find((one) => one.entity_type === entityType)
    const record = row === undefined ? "there is no record of it" : recordOf(row)
    const table = "entity_types"
    if (typeof record === "string") {
      const hasLog = yield* Stream.runHead(Stream.filter(all.typesOfLogs, (name) => name === entityType))
      // A name that nothing is stored under is a mistake of the caller.
      if (row === undefined && Option.isNone(hasLog)) yield* typeOf(entityType)
      const remedy = "restore entity_types from a backup, or write the settings again that the services give"
      report({ kind: "record", table, entityType, message: `entity type "${entityType}": ${record}`, remedy })
      return { entityType, shards: [], findings, count }
    }
    const { scans, store } = inUse(entityType, record)
    const { shard } = options
    if (shard !== undefined && !(Number.isInteger(shard) && shard >= 0 && shard < record.shards)) {
      return yield* refused(`entity type "${entityType}" has no shard ${shard}: there are 0 to ${record.shards - 1}`)
    }
    yield* checkKeys(entityType, record, scans, report)
    const now = (yield* Clock.currentTimeMillis) * 1000
    const shards = yield* Effect.forEach(shard === undefined ? shardsOf(record) : [shard], (one) =>
      Effect.map(
        verifyShard(store, scans, { entityType, shard: one }, record, maxEntities, now, report, onProgress),
        (walked) => ({ shard: one, ...walked })
      )
    )
    return { entityType, shards, findings, count }
  })

  // -------------------------------------------------------------------------------------------------- the index

  /** Replaces a record that no other operator may have replaced meanwhile. */
  const change = Effect.fnUntraced(function* (type: TypeInUse, to: Pick<TypeRecord, "epoch" | "indexGeneration">) {
    const { entityType, record, store } = type
    const changed = yield* store.changeRecord(entityType, record, to).pipe(
      Effect.catchReason("CassandraError", "OutcomeUnknown", () => Effect.succeed(false)),
      Effect.mapError(storeFailure)
    )
    if (changed) return
    const { epoch, indexGeneration } = yield* store.recordType(entityType, record).pipe(Effect.mapError(storeFailure))
    if (epoch === to.epoch && indexGeneration === to.indexGeneration) return
    return yield* refused(
      `the record of "${entityType}" was changed meanwhile, to epoch ${epoch} and index generation ${indexGeneration}: look at it again`
    )
  })

  const index = ({ entityType, record, store }: TypeInUse, generation: number, onProgress = noProgress as OnProgress) =>
    Effect.map(
      Effect.forEach(shardsOf(record), (shard) =>
        indexLog(store, { entityType, shard }, record, generation, onProgress)
      ),
      (counts) => counts.reduce((sum, count) => sum + count, 0)
    )

  const rebuildIndex: JournalAdmin["Service"]["rebuildIndex"] = Effect.fnUntraced(function* (entityType, options = {}) {
    const type = yield* typeOf(entityType)
    const { epoch, indexGeneration } = type.record
    const generation = indexGeneration + 1
    const events = yield* index(type, generation, options.onProgress)
    yield* change(type, { epoch, indexGeneration: generation })
    return { generation, events }
  })

  const removeOldIndexes: JournalAdmin["Service"]["removeOldIndexes"] = Effect.fnUntraced(function* (
    entityType,
    { dryRun = false, minAge = "10 minutes" } = {}
  ) {
    const { record, scans } = yield* typeOf(entityType)
    const [row] = yield* session
      .execute<{ since: bigint }>(
        statement("SELECT WRITETIME(index_generation) AS since FROM entity_types WHERE entity_type = ?", [entityType], {
          consistency: record.serialConsistency as "SERIAL"
        })
      )
      .pipe(Effect.mapError(storeFailure))
    const age = (yield* Clock.currentTimeMillis) - Number(row?.since ?? 0) / 1000
    const left = Duration.toMillis(minAge) - age
    if (!dryRun && record.indexGeneration > 1 && left > 0) {
      return yield* refused(
        `index generation ${record.indexGeneration} of "${entityType}" is in use since ${Math.round(age / 1000)} s, and processes may still read the one before: try again in ${Math.ceil(left / 60_000)} min`
      )
    }
    const removed = new Map<number, number>()
    yield* Stream.runForEach(
      Stream.filter(scans.indexPartitions(entityType), ({ generation }) => generation < record.indexGeneration),
      (partition) =>
        Effect.suspend(() => {
          removed.set(partition.generation, (removed.get(partition.generation) ?? 0) + 1)
          return dryRun ? Effect.void : Effect.asVoid(scans.removeIndexPartition(entityType, partition))
        })
    )
    yield* Stream.runForEach(
      Stream.filter(scans.watermarks(entityType), ({ generation }) => generation < record.indexGeneration),
      ({ generation, shard }) => {
        if (!removed.has(generation)) removed.set(generation, 0)
        return dryRun ? Effect.void : Effect.asVoid(scans.removeWatermark(entityType, shard, generation))
      }
    )
    return removed
  })

  // -------------------------------------------------------------------------------------------------- restores

  const acceptRestore: JournalAdmin["Service"]["acceptRestore"] = Effect.fnUntraced(function* (
    entityType,
    { dryRun = false, force = false, onProgress } = {}
  ) {
    const type = yield* typeOf(entityType)
    const { record, scans, store } = type
    const shards: Array<Restore["shards"][number]> = []
    for (const shard of shardsOf(record)) {
      const log = { entityType, shard }
      const { head } = yield* endOf(store, log, record, start)
      const watermark = yield* store.readWatermark(log, record.indexGeneration).pipe(Effect.mapError(storeFailure))
      shards.push({ shard, head, watermark })
    }
    const said = yield* scans.heads(entityType)
    const lossInSnapshots = Stream.runHead(
      scans.snapshotEntities(entityType).pipe(
        Stream.mapEffect((entityId) =>
          Effect.map(scans.snapshots(entityType, entityId), (found) =>
            found.some(
              ({ epoch, offset }) => epoch === record.epoch && offset > shards[shardOf(entityId, record.shards)]!.head
            )
          )
        ),
        Stream.filter((beyond) => beyond)
      )
    )
    const lost =
      force ||
      shards.some(({ head, watermark }) => watermark > head) ||
      said.some(({ offset, shard }) => offset > (shards[shard]?.head ?? offset)) ||
      Option.isSome(yield* lossInSnapshots)
    if (!lost) {
      return yield* refused(
        `nothing of "${entityType}" is lost: no index and no snapshot goes beyond its logs. If it is known from somewhere else that events are missing, force it`
      )
    }
    let newest = record.indexGeneration
    // One that was begun and broken off may have events that are no more.
    yield* Stream.runForEach(
      Stream.merge(scans.watermarks(entityType), scans.indexPartitions(entityType)),
      ({ generation }) =>
        Effect.sync(() => {
          newest = Math.max(newest, generation)
        })
    )
    const to = { epoch: record.epoch + 1, indexGeneration: newest + 1 }
    if (!dryRun) {
      yield* index(type, to.indexGeneration, onProgress)
      yield* change(type, to)
      const heads = shards.map(({ head, shard }) => [shard, head] as const)
      yield* store.writeHeads(entityType, to.epoch, heads).pipe(Effect.mapError(storeFailure))
    }
    return { ...to, shards }
  })

  // -------------------------------------------------------------------------------------------------- deletions

  const finishDeletions: JournalAdmin["Service"]["finishDeletions"] = (entityType) =>
    Effect.scoped(
      Effect.gen(function* () {
        const { record, scans, store } = yield* typeOf(entityType)
        const clock = yield* Clock.Clock
        const done: Array<FinishedDeletion> = []
        const found = yield* Stream.runCollect(scans.deletionShards(entityType))
        for (const shard of new Set(found)) {
          if (!(shard >= 0 && shard < record.shards)) continue
          const limits = {
            maxBlockEvents: 1,
            maxBlockSize: 1,
            appendTimeoutMillis: 10_000,
            rememberedEntities: 50_000,
            recordMillis: 20_000
          }
          const log = new ShardLog(store, { entityType, shard }, record, limits, clock, yield* writerName)
          yield* log.start
          yield* Effect.forkScoped(log.run)
          const format = new EventFormat(undefined, encodings, 1, 1)
          for (const deletion of yield* scans.deletions(entityType, shard)) {
            const { entityId, marker, through } = deletion
            if (!(marker >= 2) || !(through >= 1)) {
              yield* store.removeDeletion(log.log, deletion).pipe(Effect.mapError(storeFailure))
              done.push({ entityId, through, outcome: "void" })
              continue
            }
            const outcome = yield* goOn(
              store,
              log,
              (entity, options) => load(store, record, log, format, { events: 1, millis: 0 }, clock, entity, options),
              deletion
            )
            done.push({ entityId, through, outcome })
          }
        }
        return done
      })
    )

  const deleteEvents: JournalAdmin["Service"]["deleteEvents"] = (entity, { dryRun = false, through: upTo } = {}) =>
    Effect.scoped(
      Effect.gen(function* () {
        const type = yield* typeOf(entity.entityType)
        const journal = yield* journalOf(type)
        const { events, sequence } = yield* journal.load(entity, { snapshotsUpTo: 0 })
        const through = upTo ?? sequence
        const { entityId, entityType } = entity
        const described = `events of ${entityType} "${entityId}" up to ${through} cannot be deleted`
        if (!Number.isSafeInteger(through) || through < 1 || through > sequence) {
          return yield* refused(`${described}: it has ${sequence} events`)
        }
        const snapshots = (yield* type.scans.snapshots(entityType, entityId)).map((snapshot) => snapshot.sequence)
        if (through < sequence && !snapshots.some((after) => after >= through)) {
          return yield* refused(
            `${described}: the events after them need a snapshot of the state before, save one first`
          )
        }
        const gone = events.filter((event) => event.sequence <= through && !event.deleted && event.type !== "$deleted")
        const timeOf = (stamp: number | undefined) => (stamp === undefined ? undefined : new Date(stamp / 1000))
        return {
          events: gone.length,
          firstEvent: timeOf(gone[0]?.stamp),
          lastEvent: timeOf(gone.at(-1)?.stamp),
          snapshots: snapshots.filter((after) => (through === sequence ? after <= through : after < through)).length,
          position: dryRun ? undefined : yield* Journal.of(journal).delete(entity, through)
        } satisfies Deleted
      })
    )

  return {
    types,
    history,
    verify,
    rebuildIndex,
    removeOldIndexes,
    acceptRestore,
    finishDeletions,
    deleteEvents
  }
}

type OnProgress = (progress: Progress) => Effect.Effect<void>

/** Names partitions that no shard and no generation accounts for. */
const checkKeys = Effect.fnUntraced(function* (
  entityType: string,
  record: TypeRecord,
  scans: TypeInUse["scans"],
  report: (finding: Finding) => void
) {
  const remedy = "it belongs to nothing that services read: find out who wrote it, then remove it"
  const misplaced = (table: Finding["table"], place: Partial<EntityKey & { shard: number }>, message: string) =>
    report({ kind: "misplaced", table, entityType, ...place, message, remedy })
  const isShard = (shard: number) => shard >= 0 && shard < record.shards
  yield* Stream.runForEach(scans.logPartitions(entityType), ({ bucket, generation, part, shard }) =>
    Effect.sync(() => {
      const name = `bucket ${bucket}, part ${part}`
      if (!isShard(shard)) {
        misplaced(
          "event_log",
          { shard },
          `a log of shard ${shard} (${name}), there are shards 0 to ${record.shards - 1}`
        )
      } else if (generation !== 1 || bucket < 0 || part < 0) {
        misplaced("event_log", { shard }, `a log of generation ${generation} (${name}), which nobody writes`)
      }
    })
  )
  yield* Stream.runForEach(scans.watermarks(entityType), ({ generation, shard }) =>
    Effect.sync(() => {
      if (!isShard(shard)) {
        misplaced(
          "index_watermarks",
          { shard },
          `a watermark of shard ${shard}, there are shards 0 to ${record.shards - 1}`
        )
      }
      if (generation < 1) misplaced("index_watermarks", { shard }, `a watermark of index generation ${generation}`)
    })
  )
  for (const { offset, shard } of yield* scans.heads(entityType)) {
    if (isShard(shard) && offset >= 0) continue
    misplaced(
      "log_heads",
      { shard },
      `shard ${shard} is said to end at ${offset}, there are shards 0 to ${record.shards - 1}`
    )
  }
  yield* Stream.runForEach(scans.deletionShards(entityType), (shard) =>
    Effect.sync(() => {
      if (!isShard(shard)) {
        misplaced("deletions", { shard }, `a deletion of shard ${shard}, there are shards 0 to ${record.shards - 1}`)
      }
    })
  )
})
