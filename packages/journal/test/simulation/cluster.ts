/**
 * Cassandra as a service sees it, without its network and disks: three replicas that hold cells with timestamps, of which
 * two must have a write before it is acknowledged, and any two are asked by a read, each at a moment of its own.
 * Conditional updates agree on one truth, from which the replicas learn; a coordinator may execute them late, twice, never,
 * or without an answer.
 */
import {
  CassandraError,
  NoHostAvailable,
  OutcomeUnknown,
  RequestTimeout
} from "@effect-cassandra/session/CassandraError"
import { Effect } from "effect"
import type {
  BlockAppend,
  Deletion,
  IndexRow,
  LogId,
  Place,
  Store,
  StoredBlock,
  StoredSnapshot,
  TypeRecord
} from "../../src/internal/store.ts"
import type { Process, World } from "./world.ts"

const replicas = [0, 1, 2] as const

/** How often requests go wrong, from 0 to 1. */
export interface Faults {
  /** Sent and not answered in time; it may be executed all the same, even later. */
  readonly unanswered: number
  /** Known not to have been executed. */
  readonly refused: number
}

type Fate = "answered" | "answer lost" | "late" | "lost" | "twice" | "refused"

const requestTimeout = 200

const failure = (reason: CassandraError["reason"]) => Effect.fail(new CassandraError({ reason }))
const detail = { message: "simulated", cause: undefined }
const notExecuted = failure(new NoHostAvailable(detail))
const unanswered = failure(new RequestTimeout(detail))
const outcomeUnknown = failure(new OutcomeUnknown(detail))

/** When each replica has a write. */
type Arrivals = readonly [number, number, number]

/** A bucket of a log: what was agreed on, and since when each replica has it. */
interface Bucket {
  head: number | null
  blocks: Array<{ readonly block: StoredBlock; readonly arrivals: Arrivals }>
}

/** All versions of a cell that were ever written. */
type Cell<A> = Array<{ readonly value: A | undefined; readonly timestamp: number; readonly arrivals: Arrivals }>

export class Cluster {
  faults: Faults = { unanswered: 0, refused: 0 }
  /** What happened to conditional updates, for the report. */
  readonly fates: Record<Fate, number> = { answered: 0, "answer lost": 0, late: 0, lost: 0, twice: 0, refused: 0 }
  readonly #world: World
  readonly #types = new Map<string, TypeRecord>()
  readonly #buckets = new Map<string, Bucket>()
  readonly #index = new Map<string, Map<number, Cell<IndexRow>>>()
  readonly #watermarks = new Map<string, Cell<number>>()
  /** Said for speed only, so that nothing is made of their delays. */
  readonly #heads = new Map<string, Map<number, number>>()
  readonly #claims = new Map<string, Map<string, number>>()
  readonly #deletions = new Map<string, Map<string, Cell<Deletion>>>()
  readonly #snapshots = new Map<string, Map<number, Cell<StoredSnapshot>>>()

  constructor(world: World) {
    this.#world = world
  }

  /** All blocks of a log, as they were agreed on: with all deletions, or as they were appended. */
  log(log: LogId, appended = false): ReadonlyArray<StoredBlock> {
    return [...this.#buckets]
      .filter(([key]) => key.startsWith(`${log.entityType}/${log.shard}/`))
      .flatMap(([, { blocks }]) => {
        const all = blocks.map(({ block }) => block)
        return appended ? all.filter(({ revision }) => revision === 0) : newestRevisions(all)
      })
      .sort((a, b) => a.offset - b.offset)
  }

  /** What the index has in the end, when all replicas have everything. */
  indexRows(): ReadonlyArray<IndexRow> {
    return [...this.#index.values()].flatMap((rows) => this.#final(rows))
  }

  #final<K, A>(rows: Map<K, Cell<A>>): Array<A> {
    return [...rows.values()].flatMap((cell) => cell.reduce(newer).value ?? [])
  }

  /** The log is gone, as after a restore of an empty table; index, watermarks and snapshots are still there. */
  loseLogs(): void {
    this.#buckets.clear()
  }

  // ------------------------------------------------------------------------------------------------ requests

  #arrivals(): Arrivals {
    const { chance, now } = this.#world
    return [now + chance.latency(), now + chance.latency(), now + chance.latency()]
  }

  /** When two of three replicas have it. */
  #quorum(arrivals: Arrivals): number {
    return arrivals.toSorted((a, b) => a - b)[1]!
  }

  #bucket(log: LogId, { bucket, part }: Place): Bucket {
    const key = `${log.entityType}/${log.shard}/${bucket}/${part}`
    const found = this.#buckets.get(key) ?? { head: null, blocks: [] }
    this.#buckets.set(key, found)
    return found
  }

  #fate(): Fate {
    const { chance } = this.#world
    return chance.happens(this.faults.refused)
      ? "refused"
      : chance.happens(this.faults.unanswered)
        ? chance.of(["answer lost", "late", "late", "lost", "twice"] as const)
        : "answered"
  }

  /** An update that all agree on; `execute` tells when two replicas have it. */
  #agree<A>(process: Process, execute: () => { readonly answer: A; readonly at: number }) {
    return Effect.callback<A, CassandraError>((resume) => {
      const world = this.#world
      const { chance } = world
      const fate = this.#fate()
      this.fates[fate]++
      const executeAfter = (millis: number, answered: boolean) =>
        world.after(millis, () => {
          const { answer, at } = execute()
          if (answered) process.after(at - world.now + chance.latency(), () => resume(Effect.succeed(answer)))
        })
      switch (fate) {
        case "refused":
          return process.after(chance.latency(), () => resume(notExecuted))
        case "answered":
          return executeAfter(chance.latency(), true)
        case "twice": {
          // By a coordinator that tries again; the answer is that of the second time.
          const first = chance.latency()
          executeAfter(first, false)
          return executeAfter(first + chance.latency(), true)
        }
        case "answer lost":
          executeAfter(chance.latency(), false)
          break
        case "late":
          executeAfter(requestTimeout + chance.next() * chance.of([10, 300, 5000]), false)
          break
      }
      process.after(requestTimeout, () => resume(outcomeUnknown))
    })
  }

  /** A read of what was agreed on. */
  #serial<A>(process: Process, read: () => A) {
    return Effect.callback<A, CassandraError>((resume) => {
      const { chance } = this.#world
      if (chance.happens(this.faults.unanswered + this.faults.refused))
        return process.after(requestTimeout, () => resume(unanswered))
      this.#world.after(chance.latency(), () => {
        const value = read()
        process.after(chance.latency(), () => resume(Effect.succeed(value)))
      })
    })
  }

  /** A read of two replicas, each at its own time. */
  #quorumRead<A, B>(process: Process, read: (replica: 0 | 1 | 2) => A, merge: (one: A, other: A) => B) {
    return Effect.callback<B, CassandraError>((resume) => {
      const { chance } = this.#world
      if (chance.happens(this.faults.unanswered + this.faults.refused))
        return process.after(requestTimeout, () => resume(unanswered))
      const left = chance.of(replicas)
      const answers: Array<A> = []
      for (const replica of replicas) {
        if (replica === left) continue
        this.#world.after(chance.latency(), () => {
          answers.push(read(replica))
          if (answers.length === 2) {
            const merged = merge(answers[0]!, answers[1]!)
            process.after(chance.latency(), () => resume(Effect.succeed(merged)))
          }
        })
      }
    })
  }

  /** A plain write, which an unlucky one leaves on some replicas only. */
  #write(process: Process, write: (arrivals: Arrivals) => void) {
    return Effect.callback<void, CassandraError>((resume) => {
      const world = this.#world
      const { chance } = world
      const fails = chance.happens(this.faults.unanswered + this.faults.refused)
      if (fails) process.after(requestTimeout, () => resume(unanswered))
      world.after(fails ? chance.latency() + chance.next() * 400 : chance.latency(), () => {
        const arrivals = this.#arrivals()
        const missed = (at: number) => (fails && chance.happens(0.5) ? Number.POSITIVE_INFINITY : at)
        write([missed(arrivals[0]), missed(arrivals[1]), missed(arrivals[2])])
        if (!fails) {
          process.after(this.#quorum(arrivals) - world.now + chance.latency(), () => resume(Effect.void))
        }
      })
    })
  }

  /** What a replica has of a cell: the version with the highest timestamp, and of equal ones the larger value. */
  #newest<A>(cell: Cell<A>, replica: 0 | 1 | 2): Cell<A>[number] | undefined {
    let newest: Cell<A>[number] | undefined
    for (const version of cell) {
      if (version.arrivals[replica] <= this.#world.now) newest = newest === undefined ? version : newer(newest, version)
    }
    return newest
  }

  // ------------------------------------------------------------------------------------------------ the store

  /** The store as a process has it; with `indexByClock`, a planted error: index rows carry ordinary timestamps. */
  store(process: Process, indexByClock: boolean): Store {
    const world = this.#world

    const append = (log: LogId, block: BlockAppend) => {
      const bucket = this.#bucket(log, block.place)
      const standing = bucket.blocks.find((one) => one.block.offset === block.offset)
      if (bucket.head !== block.head || standing !== undefined) {
        const answer = { applied: false, head: bucket.head, blockId: standing?.block.blockId ?? null } as const
        return { answer, at: world.now }
      }
      bucket.head = block.offset
      const arrivals = this.#arrivals()
      bucket.blocks.push({ block, arrivals })
      return { answer: { applied: true } as const, at: this.#quorum(arrivals) }
    }

    /** A row of a table, written or removed at the time of the process's clock. */
    const put = <K, A>(table: Map<string, Map<K, Cell<A>>>, partition: string, key: K, value: A | undefined) =>
      Effect.suspend(() => {
        const timestamp = process.time * 1000
        return this.#write(process, (arrivals) => {
          const rows = getOrPut(table, partition, () => new Map<K, Cell<A>>())
          getOrPut(rows, key, (): Cell<A> => []).push({ value, timestamp, arrivals })
        })
      })

    const removeSnapshots: Store["removeSnapshots"] = (entityType, entityId, sequence) =>
      Effect.suspend(() => {
        const partition = `${entityType}/${entityId}`
        const present = [...(this.#snapshots.get(partition)?.keys() ?? [])].filter((one) => one <= sequence)
        return Effect.forEach(present, (one) => put(this.#snapshots, partition, one, undefined), { discard: true })
      })

    const headOf = (bucket: Bucket, replica: 0 | 1 | 2) =>
      bucket.blocks.reduce<number | null>(
        (head, { arrivals, block }) => (arrivals[replica] <= world.now ? Math.max(head ?? 0, block.offset) : head),
        null
      )

    return {
      recordType: (entityType, record) =>
        this.#serial(process, () => {
          const present = this.#types.get(entityType) ?? record
          this.#types.set(entityType, present)
          return present
        }),

      appendBlock: (log, block) =>
        this.#agree<Effect.Success<ReturnType<Store["appendBlock"]>>>(process, () => append(log, block)),

      changeRecord: (entityType, from, to) =>
        this.#agree(process, () => {
          const present = this.#types.get(entityType)
          const applied = present?.epoch === from.epoch && present.indexGeneration === from.indexGeneration
          if (applied) this.#types.set(entityType, { ...present, ...to })
          return { answer: applied, at: world.now }
        }),

      reviseBlock: (log, place, block) =>
        this.#agree(process, () => {
          const { blocks } = this.#bucket(log, place)
          const standing = newestRevisions(blocks.map((one) => one.block)).find(({ offset }) => offset === block.offset)
          if (standing?.revision !== block.revision) return { answer: false, at: world.now }
          const arrivals = this.#arrivals()
          blocks.push({ block: { ...block, revision: block.revision + 1 }, arrivals })
          return { answer: true, at: this.#quorum(arrivals) }
        }),

      readHead: (log, place, serial) =>
        serial
          ? this.#serial(process, () => this.#bucket(log, place).head)
          : this.#quorumRead(
              process,
              (replica) => headOf(this.#bucket(log, place), replica),
              (one, other) => (one === null ? other : other === null ? one : Math.max(one, other))
            ),

      readBlocks: (log, place, after, limit, serial) => {
        const inOrder = (blocks: ReadonlyArray<StoredBlock>) =>
          newestRevisions(blocks).sort((a, b) => a.offset - b.offset)
        const later = () => this.#bucket(log, place).blocks.filter(({ block }) => block.offset > after)
        return serial
          ? this.#serial(process, () => inOrder(later().map(({ block }) => block)).slice(0, limit))
          : this.#quorumRead(
              process,
              (replica) => later().flatMap(({ arrivals, block }) => (arrivals[replica] <= world.now ? [block] : [])),
              (one, other) => inOrder([...one, ...other]).slice(0, limit)
            )
      },

      // The server carries out each row of a batch by itself.
      writeIndexRows: (generation, rows) =>
        Effect.forEach(
          rows,
          (row) => {
            const timestamp = indexByClock ? process.time * 1000 : row.lastSequence * 128 + row.deleted
            return this.#write(process, (arrivals) => {
              const partition = getOrPut(
                this.#index,
                `${generation}/${row.entityType}/${row.entityId}/${row.partition}`,
                () => new Map<number, Cell<IndexRow>>()
              )
              getOrPut(partition, row.sequence, (): Cell<IndexRow> => []).push({ value: row, timestamp, arrivals })
            })
          },
          { concurrency: "unbounded", discard: true }
        ),

      readIndexRows: (generation, entityType, entityId, partition, sequence) =>
        this.#quorumRead(
          process,
          (replica) => this.#rows(this.#index.get(`${generation}/${entityType}/${entityId}/${partition}`), replica),
          (one, other) =>
            merged(one, other)
              .filter((row) => row.sequence >= sequence)
              .sort((a, b) => a.sequence - b.sequence)
        ),

      readWatermark: (log, epoch) =>
        this.#quorumRead(
          process,
          (replica) =>
            this.#newest(this.#watermarks.get(`${log.entityType}/${log.shard}/${epoch}`) ?? [], replica)?.value ?? 0,
          Math.max
        ),

      writeWatermark: (log, epoch, offset) =>
        this.#write(process, (arrivals) =>
          getOrPut(this.#watermarks, `${log.entityType}/${log.shard}/${epoch}`, (): Cell<number> => []).push({
            value: offset,
            timestamp: offset,
            arrivals
          })
        ),

      readHeads: (entityType) => Effect.sync(() => [...(this.#heads.get(entityType) ?? [])]),

      writeHeads: (entityType, _, heads) =>
        Effect.sync(() => {
          const said = getOrPut(this.#heads, entityType, () => new Map<number, number>())
          for (const [shard, offset] of heads) said.set(shard, Math.max(offset, said.get(shard) ?? 0))
        }),

      readClaims: (log) => Effect.sync(() => [...(this.#claims.get(`${log.entityType}/${log.shard}`) ?? [])]),

      claimTurn: (log, writer, offset) =>
        Effect.sync(() => {
          getOrPut(this.#claims, `${log.entityType}/${log.shard}`, () => new Map<string, number>()).set(writer, offset)
        }),

      readSnapshot: (entityType, entityId, sequence) =>
        this.#quorumRead(
          process,
          (replica) => this.#rows(this.#snapshots.get(`${entityType}/${entityId}`), replica),
          (one, other) =>
            merged(one, other)
              .filter((snapshot) => snapshot.sequence <= sequence)
              .sort((a, b) => b.sequence - a.sequence)[0]
        ),

      writeSnapshot: (entityType, entityId, snapshot, removeThrough) =>
        Effect.andThen(
          put(this.#snapshots, `${entityType}/${entityId}`, snapshot.sequence, snapshot),
          removeSnapshots(entityType, entityId, removeThrough)
        ),

      removeSnapshots,

      readDeletions: (log) =>
        this.#quorumRead(
          process,
          (replica) => this.#rows(this.#deletions.get(`${log.entityType}/${log.shard}`), replica),
          merged
        ),

      writeDeletion: (log, deletion) =>
        put(this.#deletions, `${log.entityType}/${log.shard}`, `${deletion.entityId}/${deletion.marker}`, deletion),

      removeDeletion: (log, deletion) =>
        put(this.#deletions, `${log.entityType}/${log.shard}`, `${deletion.entityId}/${deletion.marker}`, undefined)
    }
  }

  #rows<K, A>(rows: Map<K, Cell<A>> | undefined, replica: 0 | 1 | 2): Map<K, Cell<A>[number]> {
    const seen = new Map<K, Cell<A>[number]>()
    for (const [key, cell] of rows ?? []) {
      const newest = this.#newest(cell, replica)
      if (newest !== undefined) seen.set(key, newest)
    }
    return seen
  }
}

/** Of each block the newest revision. */
const newestRevisions = (blocks: ReadonlyArray<StoredBlock>): Array<StoredBlock> => {
  const newest = new Map<number, StoredBlock>()
  for (const block of blocks) {
    const present = newest.get(block.offset)
    if (present === undefined || present.revision < block.revision) newest.set(block.offset, block)
  }
  return [...newest.values()]
}

const newer = <A>(one: Cell<A>[number], other: Cell<A>[number]) =>
  one.timestamp !== other.timestamp
    ? one.timestamp > other.timestamp
      ? one
      : other
    : JSON.stringify(one.value) >= JSON.stringify(other.value)
      ? one
      : other

const merged = <K, A>(one: Map<K, Cell<A>[number]>, other: Map<K, Cell<A>[number]>): Array<A> => {
  const all = new Map(one)
  for (const [key, version] of other) {
    const present = all.get(key)
    all.set(key, present === undefined ? version : newer(present, version))
  }
  return [...all.values()].flatMap(({ value }) => (value === undefined ? [] : [value]))
}

const getOrPut = <K, V>(map: Map<K, V>, key: K, empty: () => V): V => {
  const found = map.get(key) ?? empty()
  map.set(key, found)
  return found
}
