/**
 * Runs processors: shares their shards with the other processes, follows what operators ask, and keeps the offsets.
 */
import { hostname } from "node:os"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraError } from "@effect-cassandra/session/CassandraError"
import * as CassandraMigrator from "@effect-cassandra/session/CassandraMigrator"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Duration, Effect, FiberMap, Latch, References, Schedule, Semaphore } from "effect"
import type { Processor } from "../Processor.ts"
import { ReadSideError, RequestRefused } from "../ReadSideError.ts"
import { decide, type Holder } from "./assignment.ts"
import { claimsTable } from "./claims.ts"
import { type Cluster, clusterTable, type Member, makeCluster, type View, type Work } from "./cluster.ts"
import { type Control, desiredOf, initial, startOf, withActive } from "./control.ts"
import { journalFailure, storeFailure } from "./failures.ts"
import { LogReader } from "./logReader.ts"
import { registerMetrics } from "./metrics.ts"
import { makeOffsets, offsetsTable } from "./offsets.ts"
import { makeParking, parkedTable } from "./parking.ts"
import { type Limits, makeProgress, type Progress, run, type Surroundings, saveOffset } from "./runner.ts"
import type { Place } from "./sink.ts"

/** Settings of an engine; their defaults are those of `ReadSide`. */
export interface EngineOptions {
  readonly offsetInterval?: Duration.Input | undefined
  readonly offsetCount?: number | undefined
  readonly concurrency?: number | undefined
  readonly maxBatches?: number | undefined
  readonly maxLinger?: Duration.Input | undefined
  readonly maxBackOff?: Duration.Input | undefined
  readonly lease?: Duration.Input | undefined
  readonly switching?: "automatic" | "manual" | undefined
}

export const tables = [clusterTable, offsetsTable, claimsTable, parkedTable]

/** One shard of a processor in this process. */
interface Unit {
  readonly processor: Processor<any>
  readonly place: Place
  /** Entity type and shard, as members name them. */
  readonly shardKey: string
  readonly progress: Progress
  /** By which request it runs, while it runs. */
  running: string | undefined
  removeMetrics: (() => void) | undefined
  /** For the rate. */
  readonly seen: { events: number; at: number; rate: number }
}

/** What requests of this process can see of its runners. */
export interface Engine {
  /** The runners of this process by processor and shard. */
  readonly progress: (place: Place) => Progress | undefined
  readonly ids: ReadonlyArray<string>
  /** The cluster as it was seen last. */
  readonly view: () => View
  /** Looks at the cluster at once. */
  readonly nudge: Effect.Effect<void>
  /** Calls `listener` whenever a runner has moved, until the returned function is called. */
  readonly onChange: (listener: (progress: Progress) => void) => () => void
}

/** What says that a runner must begin again: another place to start, other tables, something asked of parked events. */
const runKey = (control: Control, { entityType, shard }: Place) =>
  `${startOf(control, entityType, shard).epoch} ${control.generation} ${control.parked}`

const keyOf = ({ place: { entityType, processor, shard } }: Unit) => `${processor}/${entityType}/${shard}`

const refuse = (message: string) => Effect.fail(new ReadSideError({ reason: new RequestRefused({ message }) }))

const emptyView: View = { members: [], controls: new Map(), registrations: new Map() }

export const makeEngine = Effect.fnUntraced(function* <R>(
  processors: ReadonlyArray<Processor<R>>,
  options: EngineOptions,
  part?: string
) {
  const journal = yield* Journal
  const session = yield* CassandraSession
  const context = yield* Effect.context<R>()
  const cluster: Cluster = makeCluster(session, part)
  const offsets = makeOffsets(session)
  const parking = makeParking(session)
  const limits: Limits = {
    concurrency: options.concurrency ?? 16,
    offsetCount: options.offsetCount ?? 10_000,
    maxLingerMillis: Duration.toMillis(options.maxLinger ?? "200 millis"),
    maxBackOffMillis: Duration.toMillis(options.maxBackOff ?? "30 seconds")
  }
  for (const [option, value, least] of [
    ["concurrency", limits.concurrency, 1],
    ["offsetCount", limits.offsetCount, 1],
    ["maxBatches", options.maxBatches ?? 64, 1],
    ["maxLinger in ms", limits.maxLingerMillis, 0],
    ["maxBackOff in ms", limits.maxBackOffMillis, 1],
    ["offsetInterval in ms", Duration.toMillis(options.offsetInterval ?? "250 millis"), 1],
    ["lease in ms", Duration.toMillis(options.lease ?? "6 seconds"), 1000]
  ] as const) {
    if (!(value >= least)) return yield* refuse(`${option} is ${value}: give ${least} or more`)
  }
  const leaseSeconds = Math.ceil(Duration.toSeconds(options.lease ?? "6 seconds"))
  const leaseMillis = leaseSeconds * 1000
  const beatMillis = leaseMillis / 4
  const ids = processors.map(({ id }) => id)
  const twice = ids.find((id, i) => ids.indexOf(id) !== i)
  if (twice !== undefined) {
    return yield* refuse(`two processors have the name "${twice}": give one of them another name or version`)
  }

  yield* createTables(session, tables, "the read side")
  for (const processor of processors) yield* prepareTables(session, processor)

  // ------------------------------------------------------------------------------------------------ shards

  const readers = new Map<string, LogReader>()
  const units = new Map<string, ReadonlyArray<Unit>>()
  for (const processor of processors) {
    units.set(
      processor.id,
      processor.entityTypes.flatMap((entityType) =>
        Array.from({ length: journal.shards }, (_, shard): Unit => {
          const shardKey = `${entityType}/${shard}`
          const reader = readers.get(shardKey) ?? new LogReader(journal, entityType, shard, context)
          readers.set(shardKey, reader)
          const place = { processor: processor.id, entityType, shard }
          return {
            processor,
            place,
            shardKey,
            progress: makeProgress(place, reader),
            running: undefined,
            removeMetrics: undefined,
            seen: { events: 0, at: performance.now(), rate: 0 }
          }
        })
      )
    )
  }
  const allUnits = [...units.values()].flat()

  const registered = (yield* cluster.read.pipe(Effect.mapError(storeFailure))).registrations
  for (const { entityTypes, id, name, tables, truncates, version } of processors) {
    const registration = { name, version, entityTypes, tables, truncates }
    if (JSON.stringify(registered.get(id)) !== JSON.stringify(registration)) {
      yield* Effect.mapError(cluster.register(id, registration), storeFailure)
    }
  }

  // ------------------------------------------------------------------------------------------------ the lease

  const me = crypto.randomUUID()
  const label = `${hostname()}:${process.pid}`
  const owned = new Map<string, Set<string>>(ids.map((id) => [id, new Set()]))
  let view = emptyView
  let leaseUntil = 0
  const leaseLatch = Latch.makeUnsafe(false)
  const nudged = Latch.makeUnsafe(false)
  const listeners = new Set<(progress: Progress) => void>()

  const surroundings: Surroundings = {
    journal,
    session,
    offsets,
    parking,
    limits,
    traced: yield* References.TracerEnabled,
    batches: Semaphore.makeUnsafe(options.maxBatches ?? 64),
    leased: Effect.suspend(() => {
      if (performance.now() < leaseUntil) return Effect.void
      leaseLatch.closeUnsafe()
      return Effect.andThen(leaseLatch.await, surroundings.leased)
    }),
    changed: (progress) => {
      for (const listener of listeners) listener(progress)
    }
  }

  // In this order, so that a shard is let go of after its runner has stopped and its offset is stored.
  yield* Effect.addFinalizer(() =>
    cluster
      .removeMember(me)
      .pipe(
        Effect.catch((error: CassandraError) =>
          Effect.logWarning(`others take over the shards of this process only in ${leaseSeconds} s: ${error.message}`)
        )
      )
  )
  const saveOffsets = Effect.suspend(() =>
    Effect.forEach(
      allUnits.filter(({ progress }) => progress.offset > progress.storedOffset),
      ({ progress }) => saveOffset(offsets, progress),
      { concurrency: 10, discard: true }
    )
  ).pipe(
    Effect.catch((error: CassandraError) =>
      Effect.logWarning(
        `offsets could not be stored, events since the last ones will be handled again: ${error.message}`
      )
    ),
    Effect.withTracerEnabled(false)
  )
  yield* Effect.addFinalizer(() => {
    for (const { removeMetrics } of allUnits) removeMetrics?.()
    return saveOffsets
  })
  const fibers = yield* FiberMap.make<string>()
  const runFork = yield* FiberMap.runtime(fibers)<R>()

  const stop = Effect.fnUntraced(function* (unit: Unit) {
    if (unit.running === undefined) return
    unit.running = undefined
    unit.removeMetrics?.()
    yield* FiberMap.remove(fibers, keyOf(unit))
    yield* saveOffset(offsets, unit.progress).pipe(Effect.ignore)
    unit.progress.failure = undefined
    unit.progress.offset = -1
  })

  const start = (unit: Unit, control: Control) => {
    unit.running = runKey(control, unit.place)
    unit.removeMetrics = registerMetrics(unit.progress, context)
    runFork(keyOf(unit), run(surroundings, unit.processor, unit.progress, control))
  }

  const controlOf = (id: string) => view.controls.get(id) ?? initial

  /** The request that a unit should run by, undefined when it should not run. */
  const wanted = (unit: Unit) => {
    const { entityType, processor, shard } = unit.place
    const control = controlOf(processor)
    return owned.get(processor)!.has(unit.shardKey) && desiredOf(control, entityType, shard) === "running"
      ? runKey(control, unit.place)
      : undefined
  }

  const workOf = ({ progress, seen }: Unit): Work => {
    const now = performance.now()
    if (now - seen.at > 900) {
      seen.rate = (progress.events - seen.events) / ((now - seen.at) / 1000)
      seen.at = now
      seen.events = progress.events
    }
    const { attempts, failure, offset, reader } = progress
    return {
      offset,
      head: Math.max(offset, reader.head),
      rate: Math.round(seen.rate),
      ...(failure === undefined ? {} : { error: failure.reason.message, reason: failure.reason._tag, attempts })
    }
  }

  const member = (): Member => ({
    id: me,
    label,
    // Under its name a processor has the document that says which version readers use.
    seen: Object.fromEntries([...ids, ...processors.map(({ name }) => name)].map((id) => [id, controlOf(id).revision])),
    owns: Object.fromEntries(
      ids.map((id) => [
        id,
        Object.fromEntries(
          units
            .get(id)!
            .filter(({ shardKey }) => owned.get(id)!.has(shardKey))
            .map((unit) => [unit.shardKey, workOf(unit)])
        )
      ])
    )
  })

  const ownersOf = (others: ReadonlyArray<Member>, id: string): ReadonlyArray<Holder> =>
    others.flatMap((other) =>
      other.owns[id] === undefined ? [] : [{ id: other.id, owns: new Set(Object.keys(other.owns[id])) }]
    )

  /** One look at the cluster, and what follows from it. */
  const beat = Effect.gen(function* () {
    view = yield* cluster.read
    const others = view.members.filter(({ id }) => id !== me)
    // A row that has expired, while this process was away, holds nothing any more.
    const present = view.members.some(({ id }) => id === me)
    const claims = new Map<string, ReadonlyArray<string>>()
    for (const id of ids) {
      const mine = owned.get(id)!
      const holders = ownersOf(others, id)
      for (const { id: other, owns } of holders) {
        for (const shard of mine) if (owns.has(shard) && (!present || other < me)) mine.delete(shard)
      }
      const shards = units.get(id)!.map(({ shardKey }) => shardKey)
      const { claim, release } = decide(me, [...holders, { id: me, owns: mine }], id, shards)
      for (const shard of release) mine.delete(shard)
      claims.set(id, claim)
    }
    yield* Effect.forEach(
      allUnits.filter((unit) => unit.running !== undefined && unit.running !== wanted(unit)),
      stop,
      { concurrency: 20, discard: true }
    )
    for (const [id, claim] of claims) for (const shard of claim) owned.get(id)!.add(shard)
    const before = performance.now()
    yield* cluster.writeMember(member(), leaseSeconds)
    if ([...claims.values()].some((claim) => claim.length > 0)) {
      // Whoever claims the same has written before it reads, too: one of the two sees the other, and nobody starts who does.
      const again = yield* cluster.read
      let yielded = false
      for (const [id, claim] of claims) {
        for (const { owns } of ownersOf(
          again.members.filter((other) => other.id !== me),
          id
        )) {
          for (const shard of claim) if (owns.has(shard)) yielded = owned.get(id)!.delete(shard) || yielded
        }
      }
      if (yielded) yield* cluster.writeMember(member(), leaseSeconds)
    }
    leaseUntil = before + leaseMillis
    leaseLatch.openUnsafe()
    for (const unit of allUnits) {
      if (unit.running === undefined && wanted(unit) !== undefined) start(unit, controlOf(unit.place.processor))
    }
    if (options.switching !== "manual") yield* switchOver
  }).pipe(Effect.withTracerEnabled(false))

  // ------------------------------------------------------------------------------------------------ versions

  /** Lets readers use a new version when it has come as far as the one that they use. */
  const switchOver = Effect.suspend(() =>
    Effect.forEach(
      processors.filter(
        ({ id, name, version }) => version > controlOf(name).newest && owned.get(id)!.has(units.get(id)![0]!.shardKey)
      ),
      (processor) => switchWhenCaughtUp(processor),
      { discard: true }
    )
  )
  const switching = new Set<string>()
  const scope = yield* Effect.scope

  const switchWhenCaughtUp = Effect.fnUntraced(function* ({ entityTypes, id, name, version }: Processor<R>) {
    if (switching.has(id)) return
    switching.add(id)
    yield* caughtUp(journal, offsets, id, entityTypes).pipe(
      Effect.flatMap((there) =>
        there
          ? Effect.andThen(
              cluster.control(name, (control) => (control.newest < version ? withActive(control, version) : undefined)),
              Effect.andThen(Effect.logInfo(`readers of "${name}" use version ${version} now`), nudge)
            )
          : Effect.void
      ),
      Effect.catch((error) => Effect.logWarning(`version ${version} of "${name}" is not in use yet: ${error.message}`)),
      Effect.ensuring(Effect.sync(() => switching.delete(id))),
      Effect.forkIn(scope)
    )
  })

  // ------------------------------------------------------------------------------------------------ running

  const nudge = Effect.sync(() => nudged.openUnsafe())
  let failing = false
  const tryBeat = beat.pipe(
    Effect.andThen(
      Effect.sync(() => {
        failing = false
      })
    ),
    Effect.catch((error: CassandraError) => {
      if (failing) return Effect.void
      failing = true
      return Effect.logWarning(`the other processes of the read side cannot be seen, trying again: ${error.message}`)
    })
  )
  yield* tryBeat
  yield* Effect.gen(function* () {
    yield* nudged.await.pipe(Effect.timeoutOption(beatMillis * (0.9 + Math.random() * 0.2)))
    nudged.closeUnsafe()
    yield* tryBeat
  }).pipe(Effect.forever, Effect.withTracerEnabled(false), Effect.forkIn(scope))
  yield* saveOffsets.pipe(Effect.repeat(Schedule.spaced(options.offsetInterval ?? "250 millis")), Effect.forkIn(scope))

  const engine: Engine = {
    progress: ({ entityType, processor, shard }) =>
      units
        .get(processor)
        ?.find(
          ({ place, running }) => running !== undefined && place.entityType === entityType && place.shard === shard
        )?.progress,
    ids,
    view: () => view,
    nudge,
    onChange: (listener) => {
      listeners.add(listener)
      return () => listeners.delete(listener)
    }
  }
  return engine
})

/** Creates tables where they are missing. */
export const createTables = (session: CassandraSession["Service"], texts: ReadonlyArray<string>, whose: string) =>
  awaitTables(session.createTables(texts), whose)

/** Creates the tables of a processor where they are missing, and brings them up to date. */
export const prepareTables = (
  session: CassandraSession["Service"],
  { id, migrations, tables }: Pick<Processor, "id" | "migrations" | "tables">
) =>
  Effect.gen(function* () {
    const whose = `processor "${id}"`
    yield* createTables(session, tables, whose)
    if (migrations === undefined) return
    yield* awaitTables(Effect.provideService(CassandraMigrator.run(migrations, id), CassandraSession, session), whose)
  })

/** What made a change of tables fail, if that was Cassandra. */
const storeError = (error: CassandraError | CassandraMigrator.MigrationError): CassandraError | undefined =>
  error._tag === "CassandraError" ? error : error.cause instanceof CassandraError ? error.cause : undefined

/** A cluster that is away for a while is waited for. */
const awaitTables = <A>(made: Effect.Effect<A, CassandraError | CassandraMigrator.MigrationError>, whose: string) =>
  made.pipe(
    Effect.tapError((error) =>
      storeError(error)?.isRetryable
        ? Effect.logWarning(`the tables of ${whose} could not be made, trying again: ${error.message}`)
        : Effect.void
    ),
    Effect.retry({
      schedule: Schedule.min([Schedule.exponential("200 millis"), Schedule.spaced("10 seconds")]),
      while: (error) => storeError(error)?.isRetryable === true
    }),
    Effect.mapError((error) =>
      error._tag === "MigrationError" || error.reason._tag === "InvalidStatement"
        ? new ReadSideError({
            reason: new RequestRefused({ message: `the tables of ${whose} cannot be made: ${error.message}` })
          })
        : storeFailure(error)
    )
  )

/** The version that readers use: the recorded one, or where that does not exist the first that does. */
export const activeOf = ({ controls, registrations }: View, name: string): number => {
  const active = controls.get(name)?.active ?? 1
  const versions = [...registrations.values()].flatMap((one) => (one.name === name ? [one.version] : []))
  return versions.includes(active) || versions.length === 0 ? active : Math.min(...versions)
}

/** Whether a processor has everything that is stored now, given a second to get there. */
const caughtUp = Effect.fnUntraced(function* (
  journal: Journal["Service"],
  offsets: ReturnType<typeof makeOffsets>,
  id: string,
  entityTypes: ReadonlyArray<string>
) {
  const heads = yield* Effect.forEach(
    entityTypes.flatMap((entityType) => Array.from({ length: journal.shards }, (_, shard) => ({ entityType, shard }))),
    ({ entityType, shard }) => Effect.map(journal.head(entityType, shard), (head) => ({ entityType, shard, head })),
    { concurrency: 10 }
  ).pipe(Effect.mapError(journalFailure))
  for (let attempt = 0; attempt < 10; attempt++) {
    const stored = yield* Effect.mapError(offsets.all(id), storeFailure)
    const behind = heads.some(
      ({ entityType, head, shard }) =>
        head > 0 && !stored.some((one) => one.entityType === entityType && one.shard === shard && one.offset >= head)
    )
    if (!behind) return true
    yield* Effect.sleep(100)
  }
  return false
})
