/**
 * One history of some processes that share a log: what they ask of the journal is drawn from a seed, and so is what goes
 * wrong. Everything is recorded, and each promise of PROTOCOL.md is then checked by itself.
 */
import { Cause, Effect, Exit, Option, Scope, Stream } from "effect"
import { decodeBlock, deletedType, type Entry, type Item, isDeletable, itemOf } from "../../src/internal/block.ts"
import { storeFailure } from "../../src/internal/failure.ts"
import { makeJournal } from "../../src/internal/journal.ts"
import { indexLog } from "../../src/internal/rebuild.ts"
import type { Limits } from "../../src/internal/shardLog.ts"
import type { Store, TypeRecord } from "../../src/internal/store.ts"
import type { EventEnvelope, Journal, Loaded, Options, Position, Queued } from "../../src/Journal.ts"
import type { JournalError } from "../../src/JournalError.ts"
import { Cluster } from "./cluster.ts"
import { Process, World } from "./world.ts"

/** An error that can be built in, to see that it is found. */
export type Planted =
  | "an unknown append is settled by a read and sent again under a new id"
  | "an expected sequence is checked without validThrough"
  | "index rows are written with ordinary clocks"
  | "a null head is taken for an empty shard"
  | "a reader skips a gap"
  | "an append does not say that it builds on another one"
  | "a command is looked for without a position"
  | "a deletion is written to the index with the timestamp of what it replaces"
  | "a deletion is logged without being recorded before"

/** What an event of the simulation says: its own name, and that of the entity's event before it as the writer knew it. */
interface Payload {
  readonly id: string
  /** Null where the writer did not look. */
  readonly previous: string | undefined | null
}

interface Appended {
  readonly entityId: string
  readonly ids: ReadonlyArray<string>
  /** No answer: the process died, or still waits. */
  outcome: "stored" | "refused" | "unknown"
  position: Position | undefined
  end: number | undefined
}

/** A command that clients send until they have an answer, and now and then once more. */
interface Sent {
  readonly entityId: string
  readonly id: string
  /** The names of its events; none for a command that stores only that it was there. */
  readonly ids: ReadonlyArray<string>
  readonly answers: Array<{ readonly sequence: number; readonly answer: unknown }>
}

/** Where an entity stands, as a client knows it, and the name of its last event. */
interface Known {
  readonly position: Position
  readonly last: string | undefined
}

interface Deleted {
  readonly entityId: string
  readonly end: number
  readonly sequence: number
}

/** An answer that rests on the newest state. */
interface Looked {
  readonly begin: number
  readonly entityId: string | undefined
  /** The sequence number, or the head. */
  readonly value: number
}

interface Read {
  readonly process: Process
  readonly after: number
  readonly events: Array<EventEnvelope>
}

/** What happened, and which promises were broken. */
export interface Report {
  readonly violations: ReadonlyArray<string>
  readonly counts: Readonly<Record<string, number>>
}

const log = { entityType: "Simulated", shard: 0 }
const entityType = log.entityType

export const simulate = (seed: number, planted?: Planted): Report => {
  const world = new World(seed)
  const { chance } = world
  const cluster = new Cluster(world)

  // -------------------------------------------------------------------------------------------- this history

  const loses = planted === "a null head is taken for an empty shard" || (planted === undefined && chance.happens(0.05))
  const naive = planted === "a reader skips a gap"
  const unchecked = planted === "an expected sequence is checked without validThrough"
  const silently = planted === "an append does not say that it builds on another one"
  const blindly = planted === "a command is looked for without a position"
  const often = planted?.startsWith("a deletion") === true
  const deletes = often || (planted === undefined && chance.happens(0.5))
  const options: Options = {
    shards: 1,
    bucketSize: chance.of([2, 5, 20, 1000]),
    partitionSize: chance.of([1, 200, 1_000_000]),
    appendTimeout: chance.of([300, 1000, 5000]),
    indexInterval: chance.of([30, 200, 1000]),
    maxPollInterval: chance.of([50, 1000])
  }
  const limits: Partial<Limits> = {
    maxBlockEvents: Math.min(options.bucketSize!, chance.of([3, 2000])),
    rememberedEntities: unchecked ? 1 : chance.of([1, 3, 50_000]),
    recordMillis: chance.of([300, 20_000])
  }
  const entityIds = ["a", "b", "c", "d", "e"].slice(0, chance.int(1, 5))
  const faults = loses
    ? { unanswered: 0, refused: 0 }
    : chance.of([
        { unanswered: 0, refused: 0 },
        { unanswered: 0.05, refused: 0.02 },
        { unanswered: 0.3, refused: 0.05 }
      ])
  cluster.faults = faults

  const appends: Array<Appended> = []
  const commands: Array<Sent> = []
  const deletions: Array<Deleted> = []
  const looks: Array<Looked> = []
  const loads: Array<{ readonly begin: number; readonly entityId: string; readonly loaded: Loaded }> = []
  const reads: Array<Read> = []
  const violations: Array<string> = []
  const counts: Record<string, number> = {}
  const count = (what: string) => {
    counts[what] = (counts[what] ?? 0) + 1
  }

  /** What was agreed on, event by event: as it was appended, or with the deletions. */
  const truth = (appended = true) =>
    cluster.log(log, appended).flatMap((block) => decodeBlock(block.events, block.offset, block.stamp))
  const idsOf = (entityId: string) => truth().flatMap((entry) => (entry.entityId === entityId ? [idOf(entry)] : []))

  // -------------------------------------------------------------------------------------------- what is asked

  let lost = false

  const note = <A>(what: string, effect: Effect.Effect<A, JournalError>, onOk: (value: A) => void) =>
    Effect.map(Effect.exit(effect), (exit) => {
      if (Exit.isSuccess(exit)) {
        count(`${what}: ok`)
        onOk(exit.value)
        return undefined
      }
      const error = Cause.findErrorOption(exit.cause)
      const tag = Option.isSome(error) ? error.value.reason._tag : "defect"
      count(`${what}: ${tag}`)
      if (!lost && /defect|DataCorrupt|DataLost/.test(tag)) violations.push(`${what}: ${Cause.pretty(exit.cause)}`)
      return tag
    })

  /** An append of who does not ask what there is. */
  const floating = (journal: Journal["Service"], name: string, entityId: string) => {
    const ids = [`${name}-0`]
    const appended: Appended = { entityId, ids, outcome: "unknown", position: undefined, end: undefined }
    appends.push(appended)
    const events = [{ type: "E", payload: { id: ids[0]!, previous: null } satisfies Payload }]
    const append = journal.append({ entityType, entityId, expected: "any", events })
    return Effect.map(
      note("floating append", append, (position) =>
        Object.assign(appended, { outcome: "stored", position, end: world.now })
      ),
      (tag) => {
        if (tag !== undefined && tag !== "OutcomeUnknown") appended.outcome = "refused"
      }
    )
  }

  /** Appends that build on each other before any of them is stored: events that were decided one after the other. */
  const chain = (journal: Journal["Service"], name: string, entityId: string, known: Known) => {
    const { position, last } = known
    let behind: Queued | undefined
    const links = Array.from({ length: chance.int(2, 4) }, (_, i) => {
      const id = `${name}-${i}`
      const previous = i === 0 ? last : `${name}-${i - 1}`
      const appended: Appended = { entityId, ids: [id], outcome: "unknown", position: undefined, end: undefined }
      appends.push(appended)
      const append = Effect.callback<Position, JournalError>((resume) =>
        journal.append.unsafe?.({
          entityType,
          entityId,
          metadata: {},
          decide: (own) => {
            const before = silently ? undefined : behind
            behind = own
            const expected = { sequence: position.sequence + i, validThrough: position.validThrough }
            const events = [{ type: "E", payload: { id, previous } satisfies Payload }]
            return { entityType, entityId, expected, behind: before, events }
          },
          onExit: resume
        })
      )
      return { append, appended, id }
    })
    return Effect.map(
      Effect.forEach(
        links,
        ({ append, appended }) =>
          Effect.map(
            note("append behind", append, (stored) => {
              Object.assign(appended, { outcome: "stored", position: stored, end: world.now })
            }),
            (tag) => {
              if (tag !== undefined && tag !== "OutcomeUnknown") appended.outcome = "refused"
              return tag === undefined
            }
          ),
        { concurrency: "unbounded" }
      ),
      (stored): Known | undefined =>
        stored.every(Boolean) ? { position: links.at(-1)!.appended.position!, last: links.at(-1)!.id } : undefined
    )
  }

  /** A new command, or one that was sent before, by this process or another: until it is answered, or there is no hope. */
  const command = (journal: Journal["Service"], name: string, entityId: string) =>
    Effect.gen(function* () {
      let sent = chance.happens(0.4) && commands.length > 0 ? chance.of(commands) : undefined
      if (sent === undefined) {
        const ids = Array.from({ length: chance.int(0, 2) }, (_, i) => `${name}-${i}`)
        sent = { entityId, id: name, ids: blindly && ids.length === 0 ? [`${name}-0`] : ids, answers: [] }
        commands.push(sent)
      }
      const { answers, id, ids } = sent
      const key = { entityType, entityId: sent.entityId }
      const events = ids.map((id, i) => ({
        type: "E",
        payload: { id, previous: i === 0 ? null : ids[i - 1] } satisfies Payload
      }))
      const blind = Effect.gen(function* () {
        const { commands } = yield* journal.load(key, { commands: true })
        const known = commands.get(id)
        return known !== undefined
          ? known
          : yield* journal.append({ ...key, expected: "any", events, metadata: { commandId: id } })
      })
      const whole = journal.append({ ...key, expected: "any", events, command: { id, answer: name } })
      for (let tries = 0; tries < 4; tries++) {
        const send: Effect.Effect<{ readonly sequence: number; readonly answer: unknown }, JournalError> = blindly
          ? blind
          : whole
        const tag = yield* note("command", send, ({ answer, sequence }) => answers.push({ sequence, answer }))
        if (tag === undefined) return
      }
    })

  /** A client of a process: some requests, one after the other. */
  const client = (journal: Journal["Service"], name: string, steps: number) =>
    Effect.gen(function* () {
      const known = new Map<string, Known>()
      for (let step = 0; step < steps; step++) {
        yield* Effect.sleep(chance.next() * chance.of([2, 50, 400]))
        const entityId = chance.of(entityIds)
        const has = known.get(entityId)
        const what = chance.next()
        if (has === undefined || what < 0.1) {
          const begin = world.now
          yield* note("load", journal.load({ entityType, entityId }), (loaded) => {
            loads.push({ begin, entityId, loaded })
            known.set(entityId, { position: loaded, last: idsIn(loaded).at(-1) })
          })
        } else if (what < 0.15 || (blindly && what < 0.4)) {
          yield* command(journal, `${name}-${step}`, entityId)
        } else if (what < 0.2) {
          yield* floating(journal, `${name}-${step}`, entityId)
        } else if (what < (often ? 0.35 : 0.22) && deletes) {
          const tag = yield* note("delete", journal.delete({ entityType, entityId }), ({ sequence }) => {
            // Of nothing nothing is deleted.
            if (sequence > 0) deletions.push({ entityId, end: world.now, sequence })
          })
          known.delete(entityId)
          if (tag === "MalformedAppend") violations.push(`a deletion of "${entityId}" was refused as malformed`)
        } else if (what < (silently ? 0.6 : 0.3)) {
          const stored = yield* chain(journal, `${name}-${step}`, entityId, has)
          if (stored === undefined) known.delete(entityId)
          else known.set(entityId, stored)
        } else if (what < 0.65) {
          const { last, position } = has
          const ids = Array.from({ length: chance.int(1, 3) }, (_, i) => `${name}-${step}-${i}`)
          const appended: Appended = { entityId, ids, outcome: "unknown", position: undefined, end: undefined }
          appends.push(appended)
          const events = ids.map((id, i) => ({
            type: "E",
            payload: { id, previous: i === 0 ? last : ids[i - 1] } satisfies Payload
          }))
          const validThrough = unchecked
            ? yield* Effect.orElseSucceed(journal.head(entityType, 0), () => position.validThrough)
            : position.validThrough
          const expected = { sequence: position.sequence, validThrough }
          const append = journal.append({ entityType, entityId, expected, events })
          const tag = yield* note("append", append, (stored) => {
            Object.assign(appended, { outcome: "stored", position: stored, end: world.now })
            known.set(entityId, { position: stored, last: ids.at(-1) })
          })
          if (tag !== undefined) known.delete(entityId)
          if (tag !== undefined && tag !== "OutcomeUnknown") appended.outcome = "refused"
        } else if (what < 0.8) {
          const begin = world.now
          const tag = yield* note("confirm", journal.confirm({ entityType, entityId }, has.position), (position) => {
            looks.push({ begin, entityId, value: position.sequence })
            known.set(entityId, { position, last: has.last })
          })
          if (tag === "SequenceConflict") known.delete(entityId)
        } else if (what < 0.9) {
          const begin = world.now
          yield* note("head", journal.head(entityType, 0), (value) => {
            looks.push({ begin, entityId: undefined, value })
          })
        } else {
          // The state of a simulated entity is the list of its events.
          const { sequence, validThrough } = has.position
          const state: State = { ids: idsOf(entityId).slice(0, sequence) }
          const save = journal.saveSnapshot(
            { entityType, entityId },
            { sequence, validThrough, state },
            Math.max(0, sequence - 3)
          )
          if (sequence > 0) yield* note("snapshot", save, () => {})
        }
      }
    })

  /** Reads from some offset on for as long as the process lives. */
  const reader = (journal: Journal["Service"], read: Read) =>
    Effect.suspend(() =>
      Stream.runForEach(journal.events(entityType, 0, read.events.at(-1)?.offset ?? read.after), (event) =>
        Effect.sync(() => read.events.push(event))
      )
    ).pipe(
      Effect.tapError(({ message, reason }) =>
        Effect.sync(() => {
          count(`read: ${reason._tag}`)
          if (!lost && /Data/.test(reason._tag)) violations.push(`read: ${message}`)
        })
      ),
      Effect.retry({ while: ({ reason }) => reason._tag === "StoreFailure" }),
      Effect.ignore
    )

  /** As somebody would write it who does not know that a read can miss a block and see the next. */
  const naiveReader = (store: Store, read: Read) =>
    Effect.gen(function* () {
      for (;;) {
        const position = read.events.at(-1)?.offset ?? read.after
        for (const bucket of [0, 1]) {
          const place = { bucket: Math.floor(position / options.bucketSize!) + bucket, part: 0 }
          for (const block of yield* Effect.eventually(store.readBlocks(log, place, position, 100, false))) {
            for (const entry of decodeBlock(block.events, block.offset, block.stamp)) {
              const { m: metadata = {}, p: payload } = itemOf(entry)
              read.events.push({ ...log, ...entry, payload, version: 1, metadata, deleted: false })
            }
          }
        }
        yield* Effect.sleep(5)
      }
    })

  // -------------------------------------------------------------------------------------------- processes

  interface Running {
    readonly process: Process
    readonly scope: Scope.Closeable
  }
  let running: ReadonlyArray<Running> = []
  /** By the process that does it. */
  const jobs: Array<{ readonly process: Process; readonly what: string; done: boolean }> = []
  let names = 0
  /** Processes that are about to be started again. */
  let starting = 0

  const run = (process: Process, what: string, effect: Effect.Effect<unknown>) => {
    const job = { process, what, done: false }
    jobs.push(job)
    process.run(effect, (exit) => {
      job.done = true
      if (Exit.isFailure(exit)) violations.push(`${what} of ${process.name} has a defect: ${Cause.pretty(exit.cause)}`)
    })
  }

  const start = (use: (process: Process, journal: Journal["Service"], store: Store) => void) => {
    const process = new Process(world, `p${++names}`, chance.of([0, 0, chance.int(-20_000, 20_000)]))
    const store = sabotaged(planted, cluster.store(process, planted === "index rows are written with ordinary clocks"))
    const scope = Scope.makeUnsafe()
    run(
      process,
      "the start",
      makeJournal(store, options, limits).pipe(
        Effect.provideService(Scope.Scope, scope),
        Effect.tap((journal) =>
          Effect.sync(() => {
            running = [...running, { process, scope }]
            use(process, journal, store)
          })
        ),
        Effect.orDie
      )
    )
  }

  const startWorking = () =>
    start((process, journal, store) => {
      for (let i = chance.int(1, 3); i > 0; i--) {
        run(process, "a client", client(journal, `${process.name}.${i}`, chance.int(3, 12)))
      }
      if (naive || chance.happens(0.4)) {
        const read: Read = { process, after: naive ? 0 : chance.of([0, 0, 3]), events: [] }
        reads.push(read)
        process.run(naive ? naiveReader(store, read) : reader(journal, read), () => {})
      }
    })

  /** Computes the index anew from the log, while the others go on. */
  const rebuild = () => {
    const process = new Process(world, "operator", 0)
    const store = cluster.store(process, false)
    const { bucketSize, partitionSize } = options
    const record: TypeRecord = {
      shards: 1,
      serialConsistency: "SERIAL",
      dataCenter: null,
      bucketSize: bucketSize!,
      partSize: partitionSize!,
      epoch: 1,
      indexGeneration: 1
    }
    const work = Effect.gen(function* () {
      yield* store.recordType(entityType, record).pipe(Effect.mapError(storeFailure))
      yield* indexLog(store, log, record, 2, () => Effect.void)
      yield* store
        .changeRecord(entityType, record, { epoch: 1, indexGeneration: 2 })
        .pipe(Effect.mapError(storeFailure))
    }).pipe(Effect.retry({ times: 20, while: ({ reason }) => reason._tag === "StoreFailure" }))
    run(
      process,
      "a rebuild of the index",
      note("rebuild", work, () => {})
    )
  }

  const nemesis = () => {
    if (!raging) return
    world.after(chance.int(100, 1500), nemesis)
    if (running.length === 0) return
    const { process, scope } = chance.of(running)
    const what = chance.of(["kill", "pause", "pause", "close", "clock", "storm", "calm"] as const)
    count(what)
    switch (what) {
      case "kill":
      case "close":
        running = running.filter((one) => one.process !== process)
        if (what === "kill") process.alive = false
        else run(process, "the end", Scope.close(scope, Exit.void))
        starting++
        world.after(chance.int(0, 500), () => {
          starting--
          startWorking()
        })
        break
      case "pause":
        process.pause(chance.int(50, 3000))
        break
      case "clock":
        process.skew += chance.int(-5000, 5000)
        break
      case "storm":
        cluster.faults = { unanswered: 0.7, refused: 0.1 }
        break
      case "calm":
        cluster.faults = faults
        break
    }
  }

  // -------------------------------------------------------------------------------------------- the history

  const patience = 600_000
  const rest = (what: string) => {
    const quiet = () => starting === 0 && jobs.every(({ done, process }) => done || !process.alive)
    if (!world.runUntil(quiet, patience)) {
      const open = jobs.filter(({ done, process }) => !done && process.alive)
      violations.push(`no end after ${what}: ${open.map((job) => `${job.what} of ${job.process.name}`)}`)
    }
  }

  for (let i = chance.of([1, 1, 2, 3]); i > 0; i--) startWorking()
  let raging = !loses && chance.happens(0.75)
  world.after(chance.int(20, 300), nemesis)
  const rebuilds = planted === undefined && !loses && chance.happens(0.3)
  if (rebuilds) world.after(chance.int(100, 2000), rebuild)
  world.runUntil(() => false, chance.int(500, 5000))
  raging = false
  cluster.faults = { unanswered: 0, refused: 0 }
  rest("requests after the last fault")
  // By then nothing of a dead process waits in a coordinator, and where the log will be lost, the index shows it: one who
  // follows writes what a dead process has left after three intervals.
  world.runUntil(() => false, cluster.fates.late > 0 ? 6000 : loses ? 4000 : 1000)

  if (loses) {
    lost = truth().length > 0
    const before = appends.length
    if (lost) cluster.loseLogs()
    startWorking()
    rest("requests after a loss of data")
    const places = appends.flatMap(({ position }) => (position === undefined ? [] : [position.validThrough]))
    if (new Set(places).size < places.length) violations.push("an offset was given out twice after the log was lost")
    if (lost) count("loss of data")
    count(`appends after a loss of data: ${appends.length > before ? "some" : "none"}`)
    return { violations, counts: { ...counts, ...cluster.fates } }
  }

  const final = truth()
  const caughtUp = () =>
    reads.every(
      ({ after, events, process }) =>
        !running.some((one) => one.process === process) || (events.at(-1)?.offset ?? after) >= final.length
    )
  if (!world.runUntil(caughtUp, patience)) violations.push("a reader does not reach the head")

  start((process, journal) =>
    run(
      process,
      "a look from outside",
      Effect.gen(function* () {
        for (const entityId of entityIds) {
          const begin = world.now
          const loaded = yield* journal.load({ entityType, entityId })
          loads.push({ begin, entityId, loaded })
          if (loaded.sequence !== idsOf(entityId).length) {
            violations.push(`"${entityId}" has ${idsOf(entityId).length} events, ${loaded.sequence} are loaded`)
          }
        }
        looks.push({ begin: world.now, entityId: undefined, value: yield* journal.head(entityType, 0) })
        const events = yield* Stream.runCollect(journal.currentEvents(entityType, 0, 0))
        reads.push({ process, after: 0, events: [...events] })
        if (events.length !== final.length) violations.push(`${events.length} of ${final.length} events are read`)
      }).pipe(Effect.orDie)
    )
  )
  rest("a look from outside")
  /** The logged deletion that names an event, if there is one. */
  const deletedBy = (entry: { readonly entityId: string; readonly sequence: number }) =>
    final.find(
      (marker) =>
        marker.entityId === entry.entityId &&
        marker.type === deletedType &&
        (itemOf(marker).p as { readonly through: number }).through >= entry.sequence
    )
  /** Events that a logged deletion names and that have their payload still. */
  const undone = () =>
    truth(false).filter((entry) => isDeletable(entry, entry.sequence) && deletedBy(entry) !== undefined)
  for (let waits = 0; deletes && undone().length > 0; waits++) {
    world.runUntil(() => false, 100)
    if (waits > 100) {
      violations.push("a deletion is never completed")
      break
    }
  }
  // Until every process has written what it holds into the index.
  if (deletes) world.runUntil(() => false, 1200)

  // -------------------------------------------------------------------------------------------- the promises

  const byId = new Map<string, Array<Entry>>()
  for (const entry of final) byId.set(idOf(entry), [...(byId.get(idOf(entry)) ?? []), entry])

  for (const { entityId, ids, outcome, position } of appends) {
    const found = ids.map((id) => byId.get(id)?.length ?? 0)
    if (outcome === "stored") {
      if (found.some((n) => n !== 1)) violations.push(`acknowledged ${ids} of "${entityId}" are there ${found} times`)
      const last = byId.get(ids.at(-1)!)?.[0]
      if (last !== undefined && (last.offset !== position!.validThrough || last.sequence !== position!.sequence)) {
        violations.push(`acknowledged ${ids} stand at ${last.offset}, not at ${position!.validThrough}`)
      }
    } else if (outcome === "refused") {
      if (found.some((n) => n > 0)) violations.push(`refused ${ids} of "${entityId}" are there ${found} times`)
    } else if (found.some((n) => n > 1 || n !== found[0])) {
      violations.push(`${ids} of unknown outcome are there ${found} times`)
    }
  }

  for (const { answers, entityId, id, ids } of commands) {
    const stored = final.filter((entry) => entry.entityId === entityId && itemOf(entry).m?.commandId === id)
    const each = Math.max(1, ids.length)
    // What was deleted is forgotten, and may come again.
    const remembered = stored.filter((entry, i) => {
      const marker = deletedBy(entry)
      return marker === undefined || i >= stored.length - each
    })
    if (remembered.length > each)
      violations.push(`command ${id} of "${entityId}" is stored ${stored.length / each} times`)
    if (stored.length % each !== 0) violations.push(`command ${id} of "${entityId}" is stored in part`)
    if (answers.length > 0 && stored.length === 0) violations.push(`command ${id} was answered, and is not stored`)
    if (stored.length === each && !blindly) {
      const last = stored.at(-1)!
      for (const { answer, sequence } of answers) {
        if (sequence !== last.sequence || answer !== itemOf(last).a) {
          violations.push(
            `command ${id} was answered ${answer} at ${sequence}, it is ${itemOf(last).a} at ${last.sequence}`
          )
        }
      }
    }
  }

  final.forEach((entry, i) => {
    if (entry.offset !== i + 1) violations.push(`offset ${entry.offset} follows ${i}`)
    if (i > 0 && entry.stamp < final[i - 1]!.stamp + 10)
      violations.push(`stamp ${entry.stamp} at offset ${entry.offset}`)
  })

  for (const entityId of entityIds) {
    const own = final.filter((entry) => entry.entityId === entityId)
    own.forEach((entry, i) => {
      if (entry.sequence !== i + 1) violations.push(`event ${entry.sequence} of "${entityId}" follows ${i}`)
      const payload = itemOf(entry).p as Payload | undefined
      if (entry.type !== "E" || payload?.previous === null) return
      const before = i === 0 ? undefined : idOf(own[i - 1]!)
      if (payload?.previous !== before) {
        violations.push(`${idOf(entry)} was decided after ${payload?.previous}, and follows ${before}`)
      }
    })
  }

  // Deleted is what a logged deletion names, all of it and nothing else; nothing else of an event changes by it.
  truth(false).forEach((entry, i) => {
    const { d, ...now }: Item = itemOf(entry)
    const named = deletedBy(entry) !== undefined && entry.type !== deletedType
    if ((d === 1) !== named) violations.push(`event ${entry.offset} is ${d === 1 ? "" : "not "}deleted`)
    if (
      d === 1
        ? now.p !== undefined || now.n !== entry.sequence
        : JSON.stringify(now) !== JSON.stringify(itemOf(final[i]!))
    ) {
      violations.push(`event ${entry.offset} is not what it was`)
    }
  })
  for (const { entityId, sequence } of deletions) {
    const marker = final.find((entry) => entry.entityId === entityId && entry.sequence === sequence)
    if (marker?.type !== deletedType) violations.push(`a deletion of "${entityId}" is not logged at ${sequence}`)
  }
  // A process that dies may leave a row on its way, which counts for nothing when the entity is loaded.
  if (names === 2 && counts.kill === undefined && !rebuilds) {
    for (const { entityId, events } of cluster.indexRows()) {
      for (const item of JSON.parse(events) as ReadonlyArray<Item>) {
        if (item.d !== 1 && item.t !== deletedType && deletedBy({ entityId, sequence: item.n }) !== undefined) {
          violations.push(`the index has deleted event ${item.n} of "${entityId}"`)
        }
      }
    }
  }

  for (const { begin, entityId, loaded } of loads) {
    const own = final.filter((entry) => entry.entityId === entityId)
    const snapshot = Option.getOrUndefined(loaded.snapshot)
    const ids = (snapshot?.state as State | undefined)?.ids ?? []
    const gone = deletions.filter((one) => one.entityId === entityId && one.end < begin)
    const says = [...ids, ...loaded.events.map((event) => (event.deleted ? undefined : idOf(event)))]
    // Without the state, which is deleted, only what follows it is loaded.
    const skipped = loaded.sequence - says.length
    const wrong = says.some((id, i) => {
      const entry = own[skipped + i]
      if (entry === undefined) return true
      return id === undefined ? deletedBy(entry) === undefined : id !== idOf(entry)
    })
    if (wrong || (skipped !== 0 && deletedBy(own[skipped - 1] ?? { entityId, sequence: -1 }) === undefined)) {
      violations.push(`"${entityId}" was loaded as ${says}, and is ${own.map(idOf)}`)
    }
    for (const { sequence } of gone) {
      // A process may have events in memory and not have followed the log as far as their deletion.
      if (own[sequence - 1] !== undefined && own[sequence - 1]!.offset > loaded.validThrough) continue
      const shown = says.some(
        (id, i) => i >= ids.length && id !== undefined && skipped + i + 1 < sequence && !id.startsWith(deletedType)
      )
      if (shown) violations.push(`"${entityId}" was loaded with events that were deleted before: ${says}`)
    }
    const through = own.filter(({ offset }) => offset <= loaded.validThrough).length
    if (through !== loaded.sequence) {
      violations.push(
        `"${entityId}" was loaded to ${loaded.sequence}, and has ${through} through ${loaded.validThrough}`
      )
    }
  }

  for (const { begin, entityId, value } of looks) {
    for (const append of appends) {
      if (append.end === undefined || append.end >= begin) continue
      if (entityId !== undefined && append.entityId !== entityId) continue
      const { sequence, validThrough } = append.position!
      const acknowledged = entityId === undefined ? validThrough : sequence
      if (acknowledged > value)
        violations.push(`a look at ${entityId ?? "the head"} gave ${value} after ${acknowledged}`)
    }
  }

  for (const { after, events } of reads) {
    events.forEach((event, i) => {
      const entry = final[after + i]
      if (
        entry === undefined ||
        event.offset !== entry.offset ||
        (event.deleted ? deletedBy(entry) === undefined : idOf(event) !== idOf(entry))
      ) {
        violations.push(`a reader got ${event.offset} in the place of ${after + i + 1}`)
      }
    })
  }

  return { violations, counts: { ...counts, ...cluster.fates } }
}

/** The name of an event. */
const idOf = (event: EventEnvelope | Entry): string => {
  const isEntry = "item" in event
  const payload = isEntry ? itemOf(event).p : (event as EventEnvelope).payload
  if (event.type === deletedType) return `${deletedType} ${event.sequence}`
  if (event.type !== "E")
    return `${event.type} ${(isEntry ? itemOf(event).m : (event as EventEnvelope).metadata)?.commandId}`
  return (payload as Payload | undefined)?.id ?? "deleted"
}

interface State {
  readonly ids: ReadonlyArray<string>
}

/** The events of an entity as they were loaded, by their names. */
const idsIn = ({ events, snapshot }: Loaded): ReadonlyArray<string> => [
  ...(Option.isSome(snapshot) ? (snapshot.value.state as State).ids : []),
  ...events.map(idOf)
]

const sabotaged = (planted: Planted | undefined, store: Store): Store => {
  switch (planted) {
    case "an unknown append is settled by a read and sent again under a new id":
      return {
        ...store,
        appendBlock: (of, block) =>
          Effect.catch(store.appendBlock(of, block), (error) =>
            Effect.gen(function* () {
              if (error.reason._tag !== "OutcomeUnknown") return yield* error
              const blocks = yield* Effect.eventually(store.readBlocks(of, block.place, block.offset - 1, 1, true))
              if (blocks[0]?.blockId === block.blockId) return { applied: true } as const
              return yield* store.appendBlock(of, { ...block, blockId: `${block.blockId}-again` })
            })
          )
      }
    case "a null head is taken for an empty shard":
      return {
        ...store,
        readWatermark: (of, epoch) =>
          Effect.flatMap(store.readHead(of, { bucket: 0, part: 0 }, true), (head) =>
            head === null ? Effect.succeed(0) : store.readWatermark(of, epoch)
          )
      }
    case "a deletion is written to the index with the timestamp of what it replaces":
      return {
        ...store,
        writeIndexRows: (generation, rows) =>
          store.writeIndexRows(
            generation,
            rows.map((row) => ({ ...row, deleted: 0 }))
          )
      }
    case "a deletion is logged without being recorded before":
      return { ...store, writeDeletion: () => Effect.void }
    default:
      return store
  }
}
