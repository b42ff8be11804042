/**
 * What operators and readers ask of the read side. It works from every process, whoever runs the processors.
 */
import { Journal, type LogPosition } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { identifier, make } from "@effect-cassandra/session/Statement"
import { Clock, Duration, Effect, Option, Stream } from "effect"
import type { ParkedEntity, ReadSide, RewindTarget, Shard, Status } from "../ReadSide.ts"
import { NotProjected, ReadSideError, RequestRefused, Unknown } from "../ReadSideError.ts"
import { makeCluster, type Registration, type View, type Work } from "./cluster.ts"
import { type Control, desiredOf, initial, type Target, withActive, withDesired, withStart } from "./control.ts"
import { activeOf, createTables, type Engine, tables } from "./engine.ts"
import { journalFailure, storeFailure } from "./failures.ts"
import { tableOf } from "./fold.ts"
import { makeOffsets } from "./offsets.ts"
import { makeParking, type Parked } from "./parking.ts"
import { isId, type Place } from "./sink.ts"
import { maxGeneration } from "./statements.ts"

const idOf = (name: string, version: number) => (version === 1 ? name : `${name}@${version}`)

const fail = (reason: ReadSideError["reason"]) => Effect.fail(new ReadSideError({ reason }))
const refuse = (message: string) => fail(new RequestRefused({ message }))

export const makeRequests = Effect.fnUntraced(function* (engine: Engine | undefined, part?: string) {
  const journal = yield* Journal
  const session = yield* CassandraSession
  const cluster = makeCluster(session, part)
  const offsets = makeOffsets(session)
  const parking = makeParking(session)
  if (engine === undefined) yield* createTables(session, tables, "the read side")

  const store = <A>(effect: Effect.Effect<A, CassandraError>) => Effect.mapError(effect, storeFailure)
  const look = store(cluster.read)
  const nudge = engine?.nudge ?? Effect.void

  const change = (id: string, f: (control: Control) => Control | undefined) =>
    isId(id)
      ? Effect.tap(store(cluster.control(id, f)), nudge)
      : fail(new Unknown({ message: `no processor can be called "${id}"` }))

  const registrationOf = (view: View, id: string) => {
    const registration = view.registrations.get(id)
    const known = [...view.registrations.keys()].join(", ")
    return registration === undefined
      ? fail(new Unknown({ message: `there is no processor "${id}": known are ${known === "" ? "none" : known}` }))
      : Effect.succeed(registration)
  }

  const notFollowed = (id: string, entityTypes: ReadonlyArray<string>, entityType: string) =>
    fail(new Unknown({ message: `processor "${id}" follows ${entityTypes.join(", ")}, and not ${entityType}` }))

  /** Refuses an offset that a shard does not have; the shards of one that does not exist yet are not known. */
  const checkOffset = Effect.fnUntraced(function* (
    id: string,
    offset: number,
    place: Partial<Omit<Place, "processor">>
  ) {
    const registration = (yield* look).registrations.get(id)
    if (registration === undefined || offset === 0) return
    for (const { entityType, shard } of shardsOf(registration)) {
      if ((place.entityType ?? entityType) !== entityType || (place.shard ?? shard) !== shard) continue
      const head = yield* Effect.mapError(journal.head(entityType, shard), journalFailure)
      if (head < offset) {
        return yield* refuse(
          `${entityType} shard ${shard} ends at ${head}, so that "${id}" cannot go on after ${offset} there: name a shard that has it, or give a time`
        )
      }
    }
  })

  /** The shard that a request is for; the entity type is filled in where there is one only. */
  const placeOf = Effect.fnUntraced(function* (id: string, { entityType, shard }: Shard) {
    if (!Number.isInteger(shard) || shard < 0 || shard >= journal.shards) {
      return yield* fail(new Unknown({ message: `there is no shard ${shard}: there are 0 to ${journal.shards - 1}` }))
    }
    const view = yield* look
    // What is asked before there is a processor is taken as it is.
    if (entityType !== undefined && !view.registrations.has(id)) return { entityType, shard }
    const { entityTypes } = yield* registrationOf(view, id)
    if (entityType !== undefined) {
      return entityTypes.includes(entityType) ? { entityType, shard } : yield* notFollowed(id, entityTypes, entityType)
    }
    return entityTypes.length === 1
      ? { entityType: entityTypes[0]!, shard }
      : yield* refuse(`processor "${id}" follows ${entityTypes.join(", ")}: say of which the shard is`)
  })

  const desire = (desired: Control["desired"]) =>
    Effect.fnUntraced(function* (id: string, shard?: Shard) {
      const place = shard === undefined ? undefined : yield* placeOf(id, shard)
      yield* change(id, (control) => withDesired(control, desired, place))
    })

  // ------------------------------------------------------------------------------------------------ status

  const shardsOf = ({ entityTypes }: Registration) =>
    entityTypes.flatMap((entityType) => Array.from({ length: journal.shards }, (_, shard) => ({ entityType, shard })))

  const status = Effect.gen(function* () {
    const view = yield* look
    const now = yield* Clock.currentTimeMillis
    const live = [...view.registrations].filter(([id]) => !(view.controls.get(id)?.dropped ?? false))
    const heads = new Map<string, number>()
    const all = new Map(
      live.flatMap(([, one]) => shardsOf(one).map((shard) => [`${shard.entityType}/${shard.shard}`, shard] as const))
    )
    yield* Effect.forEach(
      all,
      ([key, { entityType, shard }]) =>
        Effect.map(Effect.mapError(journal.head(entityType, shard), journalFailure), (head) => heads.set(key, head)),
      { concurrency: 10, discard: true }
    )
    const ofProcessor = Effect.fnUntraced(function* (id: string, registration: Registration) {
      const control = view.controls.get(id) ?? initial
      const stored = yield* store(offsets.all(id))
      return yield* Effect.forEach(
        shardsOf(registration),
        ({ entityType, shard }) =>
          ofShard(
            { processor: id, entityType, shard },
            view,
            control,
            stored,
            heads.get(`${entityType}/${shard}`)!,
            now
          ),
        { concurrency: 10 }
      )
    })
    const found = yield* Effect.forEach(live, ([id, registration]) => ofProcessor(id, registration), { concurrency: 4 })
    return found.flat()
  })

  const ofShard = Effect.fnUntraced(function* (
    place: Place,
    view: View,
    control: Control,
    stored: ReadonlyArray<{ readonly entityType: string; readonly shard: number; readonly offset: number }>,
    head: number,
    now: number
  ) {
    const { entityType, processor, shard } = place
    const key = `${entityType}/${shard}`
    const owner = view.members.find(({ owns }) => owns[processor]?.[key] !== undefined)
    let work: Work | undefined = owner?.owns[processor]?.[key]
    const local = engine?.progress(place)
    if (local !== undefined) {
      const { attempts, failure, offset } = local
      work = {
        rate: 0,
        ...work,
        offset,
        head,
        error: failure?.reason.message,
        reason: failure?.reason._tag,
        attempts
      }
    }
    const saved = stored.find((one) => one.entityType === entityType && one.shard === shard)?.offset ?? 0
    const offset = Math.max(saved, work?.offset ?? 0, 0)
    const desired = desiredOf(control, entityType, shard)
    const lag = Math.max(0, head - offset)
    const first = lag === 0 ? Option.none() : yield* eventAfter(entityType, shard, offset)
    const rate = work?.rate ?? 0
    const rows = yield* store(parking.list(place))
    return {
      processor,
      entityType,
      shard,
      state:
        desired !== "running"
          ? desired
          : work === undefined
            ? "waiting"
            : work.error !== undefined
              ? "failed"
              : "running",
      offset,
      head,
      lag,
      lagMillis: Option.isSome(first) ? Math.max(0, now - first.value.stamp / 1000) : 0,
      rate,
      secondsLeft: lag === 0 ? 0 : rate > 0 ? lag / rate : undefined,
      parked: rows.length,
      owner: owner?.label,
      failure:
        work?.error === undefined || desired !== "running"
          ? undefined
          : { reason: work.reason ?? "", message: work.error, attempts: work.attempts ?? 0 }
    } satisfies Status
  })

  const eventAfter = (entityType: string, shard: number, offset: number) =>
    Stream.runHead(journal.currentEvents(entityType, shard, offset)).pipe(Effect.mapError(journalFailure))

  // ------------------------------------------------------------------------------------------------ going on elsewhere

  /** Waits until every process that runs a processor acts by a revision of its document, or is gone. */
  const acknowledged = (id: string, revision: number): Effect.Effect<void, ReadSideError> =>
    Effect.flatMap(look, ({ members }) =>
      members.every(({ seen }) => seen[id] === undefined || seen[id] >= revision)
        ? Effect.void
        : Effect.andThen(Effect.sleep(50), acknowledged(id, revision))
    )

  const forEachTable = (texts: ReadonlyArray<string>, verb: string) =>
    Effect.forEach(
      new Set(texts.map(tableOf)),
      (table) => store(session.execute(make(`${verb} ${identifier(table).quoted}`, [], { timeout: "2 minutes" }))),
      { discard: true }
    )

  const rewind = Effect.fnUntraced(function* (
    id: string,
    target: RewindTarget,
    options: { readonly shard?: Shard | undefined; readonly truncate?: boolean | undefined } = {}
  ) {
    const to: Target =
      target === "beginning" ? { offset: 0 } : "offset" in target ? target : { time: target.time.getTime() }
    if ("offset" in to ? !Number.isSafeInteger(to.offset) || to.offset < 0 : Number.isNaN(to.time)) {
      return yield* refuse(
        `processor "${id}" cannot go to ${JSON.stringify(target)}: give an offset of 0 or more, or a valid time`
      )
    }
    const place = options.shard === undefined ? {} : yield* placeOf(id, options.shard)
    if (!options.truncate) {
      if ("offset" in to) yield* checkOffset(id, to.offset, place)
      yield* change(id, (control) => withStart(control, { to, ...place }))
      return
    }
    if (options.shard !== undefined) {
      return yield* refuse("one shard alone cannot be rewound with truncate: the tables hold the rows of all")
    }
    if ("offset" in to ? to.offset > 0 : true) {
      return yield* refuse(
        "with truncate a processor can be rewound to the beginning only: what is before would be missing"
      )
    }
    const { tables, truncates } = yield* registrationOf(yield* look, id)
    if (tables.length === 0 && !truncates) {
      return yield* refuse(
        `processor "${id}" names no tables of its own to be emptied: give it their names, or rewind it without truncate`
      )
    }
    const control = yield* store(
      cluster.control(id, (control) =>
        control.generation >= maxGeneration
          ? undefined
          : { ...withStart(control, { to }), generation: control.generation + 1, held: true, dropped: false }
      )
    )
    if (!control.held)
      return yield* refuse(`the tables of "${id}" were emptied ${maxGeneration} times: give it a new version`)
    yield* nudge
    yield* acknowledged(id, control.revision)
    yield* forEachTable(tables, "TRUNCATE")
    yield* change(id, (control) => ({ ...control, held: false }))
  })

  // ------------------------------------------------------------------------------------------------ waiting

  const awaitProjected = (id: string, position: LogPosition, timeout: Duration.Input = "10 seconds") => {
    const { entityType, offset, shard } = position
    const place = { processor: id, entityType, shard }
    const here = (): boolean => (engine?.progress(place)?.offset ?? -1) >= offset
    const elsewhere = Effect.gen(function* () {
      for (let millis = 10; ; millis = Math.min(millis * 1.5, 250)) {
        const stored = yield* store(offsets.load(place))
        if (here() || (stored !== undefined && stored.offset >= offset)) return
        if (millis === 10) {
          yield* registrationOf(yield* look, id)
          yield* placeOf(id, { entityType, shard })
        }
        yield* Effect.sleep(millis)
      }
    })
    const locally = Effect.callback<void>((resume) => {
      const off = engine!.onChange((progress) => {
        if (progress.place.processor === id && here()) {
          off()
          resume(Effect.void)
        }
      })
      return Effect.sync(off)
    })
    if (!Number.isSafeInteger(offset))
      return refuse(`there is no offset ${offset} to wait for: give that of a position`)
    return Effect.suspend(() =>
      here() ? Effect.void : engine === undefined ? elsewhere : Effect.raceFirst(locally, elsewhere)
    ).pipe(
      Effect.timeoutOrElse({
        duration: timeout,
        orElse: () =>
          Effect.flatMap(Effect.option(oneStatus(place)), (found) => {
            const why = Option.match(found, {
              onNone: () => "",
              onSome: ({ failure, offset, state }) =>
                `: it is ${state} at offset ${offset}${failure === undefined ? "" : `, ${failure.message}`}`
            })
            return fail(
              new NotProjected({
                processor: id,
                message: `the view of "${id}" does not have event ${offset} of ${entityType} shard ${shard} after ${Duration.toMillis(timeout)} ms${why}`
              })
            )
          })
      }),
      Effect.withTracerEnabled(false)
    )
  }

  const oneStatus = Effect.fnUntraced(function* (place: Place) {
    const view = yield* look
    const control = view.controls.get(place.processor) ?? initial
    return yield* ofShard(place, view, control, yield* store(offsets.all(place.processor)), 0, 0)
  })

  // ------------------------------------------------------------------------------------------------ put aside

  const parked = Effect.fnUntraced(function* (id: string) {
    const registration = yield* registrationOf(yield* look, id)
    const found = yield* Effect.forEach(
      shardsOf(registration),
      (shard) => store(parking.list({ processor: id, ...shard })),
      { concurrency: 10 }
    )
    return found.flat()
  })

  const askParked = (first: Exclude<Parked["request"], undefined>) =>
    Effect.fnUntraced(function* (id: string, { entityId, entityType }: ParkedEntity) {
      const { entityTypes } = yield* registrationOf(yield* look, id)
      if (!entityTypes.includes(entityType)) return yield* notFollowed(id, entityTypes, entityType)
      const place = { processor: id, entityType, shard: journal.shardOf(entityId) }
      const rows = (yield* store(parking.list(place))).filter((row) => row.entityId === entityId)
      if (rows.length === 0) {
        return yield* fail(
          new Unknown({ message: `processor "${id}" has put no event of ${entityType} "${entityId}" aside` })
        )
      }
      for (const [i, { sequence }] of rows.entries()) {
        yield* store(parking.setRequest(place, entityId, sequence, i === 0 ? first : "retry"))
      }
      yield* change(id, (control) => ({ ...control, parked: control.parked + 1 }))
    })

  // ------------------------------------------------------------------------------------------------ versions

  const activeVersion = (name: string): Effect.Effect<number, ReadSideError> =>
    Effect.suspend(() =>
      engine === undefined
        ? Effect.map(look, (view) => activeOf(view, name))
        : Effect.succeed(activeOf(engine.view(), name))
    )

  const switchTo = Effect.fnUntraced(function* (name: string, version: number) {
    const id = idOf(name, version)
    const view = yield* look
    yield* registrationOf(view, id)
    if (view.controls.get(id)?.dropped) return yield* refuse(`version ${version} of "${name}" was dropped`)
    const { revision } = yield* change(name, (control) => withActive(control, version))
    yield* acknowledged(name, revision)
  })

  const drop = Effect.fnUntraced(function* (name: string, version: number) {
    const id = idOf(name, version)
    const view = yield* look
    const { tables } = yield* registrationOf(view, id)
    if (activeOf(view, name) === version) {
      return yield* refuse(`readers use version ${version} of "${name}": let them use another one first, by switchTo`)
    }
    // Every reader must have seen the switch before the tables go.
    yield* acknowledged(name, view.controls.get(name)?.revision ?? 0)
    const { revision } = yield* change(id, (control) => ({ ...control, dropped: true }))
    yield* acknowledged(id, revision)
    yield* store(session.withSchemaLock(forEachTable(tables, "DROP TABLE IF EXISTS").pipe(Effect.mapError(causeOf))))
  })

  const service: ReadSide["Service"] = {
    status,
    pause: desire("paused"),
    resume: desire("running"),
    stop: desire("stopped"),
    start: desire("running"),
    rewind,
    offsets: Effect.fnUntraced(function* (id) {
      yield* registrationOf(yield* look, id)
      const rows = yield* store(offsets.all(id))
      return rows.map(({ entityType, offset, shard }) => ({ entityType, shard, offset }))
    }),
    setOffset: (id, shard, offset) => rewind(id, { offset }, { shard }),
    clearOffsets: (id) => rewind(id, "beginning"),
    awaitProjected,
    parked,
    retryParked: askParked("retry"),
    skipParked: askParked("skip"),
    activeVersion,
    switchTo,
    drop
  }
  return service
})

const causeOf = (error: ReadSideError) =>
  (error.reason as Extract<ReadSideError["reason"], { _tag: "StoreFailure" }>).cause
