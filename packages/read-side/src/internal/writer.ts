/**
 * Executes the statements of many events at once: in batches by partition, and of several writes of the same row by the
 * same statement only the last, for the earlier ones would leave no trace.
 */
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Statement } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import { type Analysis, analyse } from "./analysis.ts"

/** A statement with the event that it comes from, and the write timestamp that it gets. */
export interface Write {
  readonly statement: Statement<unknown>
  readonly stamp: bigint
  readonly event: EventEnvelope
}

/** A statement that must not be executed. */
interface Refused {
  readonly write: Write
  readonly why: string
}

interface Plan {
  readonly analysis: Analysis
  /** Columns of the key, and places of those of their values that are bound. */
  readonly key: ReadonlyArray<string>
  readonly bound: ReadonlyArray<number>
  /** Places of the values of the partition key, and of the whole primary key; absent where they are not all bound. */
  readonly partition: ReadonlyArray<number> | undefined
  readonly row: ReadonlyArray<number> | undefined
  /** Columns outside of the key that are set; undefined where the row is deleted. */
  readonly sets: ReadonlySet<string> | undefined
  /** Why no event can have this statement. */
  readonly refusal: string | undefined
}

/** Who wrote a row first. */
interface Feed {
  readonly entityType: string
  readonly shard: number
  readonly entity: string
  readonly plan: Plan
  readonly params: ReadonlyArray<unknown>
}

/** Statements of one partition in a batch. */
const batchSize = 100
/** Partitions that share a batch, and its size: the server warns of more than 10, and of more than 5 KiB. */
const mixedPartitions = 10
const mixedBytes = 4096
/** Events, or writes, that are looked at before others have their turn: some milliseconds. */
export const atOnce = 1000
/** Rows whose shard is remembered. What many shards write are few rows, written often. */
const rememberedRows = 20_000

/** About the size of a statement's values, in bytes. */
const sizeOf = ({ params }: Statement<unknown>) => {
  let size = 0
  for (const param of params)
    size += typeof param === "string" ? param.length : Buffer.isBuffer(param) ? param.length : 16
  return size
}

const keyOf = (params: ReadonlyArray<unknown>, places: ReadonlyArray<number>) =>
  places.length === 1 ? String(params[places[0]!]) : places.map((place) => String(params[place])).join("\u0000")

/** What identifies the row of a write, where its whole key is bound. */
const rowOf = ({ statement: { params } }: Write, { row }: Plan) => (row === undefined ? undefined : keyOf(params, row))

const sameValues = (a: ReadonlyArray<unknown>, b: ReadonlyArray<unknown>) =>
  a.every((value, i) => String(value) === String(b[i]))

const overlap = (a: Plan, b: Plan) =>
  a.sets === undefined || b.sets === undefined || [...a.sets].some((name) => b.sets!.has(name))

const optionsRefusal = ({ options }: Statement<unknown>): string | undefined =>
  options.timestamp !== undefined
    ? "it has a timestamp of its own: the write timestamp is that of the event"
    : options.ttl !== undefined
      ? "it has a time to live, which would count anew from each repetition"
      : undefined

/** Why a statement may not be executed, if so, as far as it shows without its table. */
export const refusalOf = (statement: Statement<unknown>): string | undefined => {
  const analysis = analyse(statement.text)
  return typeof analysis === "string" ? analysis : optionsRefusal(statement)
}

/** A writer in the keyspace of a session, for the shards of one processor. */
export class Writer {
  readonly #session: CassandraSession["Service"]
  readonly #entityKeys: boolean
  readonly #analyses = new Map<string, Analysis | string>()
  readonly #plans = new Map<string, Plan>()
  /** By table and row. */
  readonly #feeds = new Map<string, Map<string, Feed>>()
  #fed = 0

  /** `entityKeys`: a row's key must name the entity. */
  constructor(session: CassandraSession["Service"], entityKeys: boolean) {
    this.#session = session
    this.#entityKeys = entityKeys
  }

  /** As `refusalOf`, which looks at a text once. */
  refusal(statement: Statement<unknown>): string | undefined {
    const { text } = statement
    let analysis = this.#analyses.get(text)
    if (analysis === undefined) {
      analysis = analyse(text)
      this.#analyses.set(text, analysis)
    }
    return typeof analysis === "string" ? analysis : optionsRefusal(statement)
  }

  /** What is known of a statement whose text was not refused, and of its table. */
  plan(text: string): Effect.Effect<Plan, CassandraError> {
    const known = this.#plans.get(text)
    if (known !== undefined) return Effect.succeed(known)
    const analysis = this.#analyses.get(text) as Analysis
    return Effect.map(
      this.#session.use((client) => client.metadata.getTable(this.#session.keyspace, analysis.table)),
      (table) => {
        const places = (names: ReadonlyArray<string>) => {
          const found = names.map((name) => analysis.columns.get(name))
          return found.every((place) => place !== undefined) && found.length > 0 ? found : undefined
        }
        const partition = (table?.partitionKeys ?? []).map(({ name }) => name)
        const key = [...partition, ...(table?.clusteringKeys ?? []).map(({ name }) => name)]
        const sets = analysis.sets?.filter((name) => !key.includes(name))
        const plan: Plan = {
          analysis,
          key,
          bound: key.flatMap((name) => analysis.columns.get(name) ?? []),
          partition: places(partition),
          row: places(key),
          sets: sets === undefined ? undefined : new Set(sets),
          refusal:
            table != null && !key.some((name) => analysis.columns.has(name))
              ? `no column of its key (${key.join(", ")}) is bound, so that all entities write the same row: let the key name the entity, and sum when reading`
              : undefined
        }
        // One that is not there yet may be in a moment.
        if (table != null) this.#plans.set(text, plan)
        return plan
      }
    )
  }

  /** Why a row's key says too little, if so. */
  #foreignKey({ event: { entityId }, statement: { params } }: Write, { bound, key }: Plan): string | undefined {
    return !this.#entityKeys || bound.length === 0 || bound.some((place) => String(params[place]).includes(entityId))
      ? undefined
      : `no column of its key (${key.join(", ")}) holds the entity's id, "${entityId}", so that entities of several shards may write the same row, and between shards there is no order: let the key name the entity, keep a sum by Processor.fold, or say keys: "own" where the key is something else that belongs to one entity`
  }

  /** Why a row may not be written by this shard, if another was seen to write it. */
  #otherShard(row: string, write: Write, plan: Plan): string | undefined {
    const { entityId, entityType, shard } = write.event
    const { table } = plan.analysis
    let feeds = this.#feeds.get(table)
    if (feeds === undefined) {
      feeds = new Map()
      this.#feeds.set(table, feeds)
    }
    const feed = feeds.get(row)
    if (feed === undefined) {
      if (this.#fed < rememberedRows) {
        this.#fed++
        const entity = `${entityType} "${entityId}" (shard ${shard})`
        feeds.set(row, { entityType, shard, entity, plan, params: write.statement.params })
      }
      return undefined
    }
    if ((feed.shard === shard && feed.entityType === entityType) || !overlap(feed.plan, plan)) return undefined
    // What does not differ does not depend on an order.
    if (
      feed.plan.analysis === plan.analysis &&
      plan.sets !== undefined &&
      sameValues(feed.params, write.statement.params)
    )
      return undefined
    return `${feed.entity} writes the same row of ${plan.analysis.table} as ${entityType} "${entityId}" (shard ${shard}), and between shards there is no order: let the key name the entity, or keep a sum by Processor.fold`
  }

  /** Why a write may not be executed, if so. */
  problem(write: Write, plan: Plan, row: string | undefined): string | undefined {
    if (plan.refusal !== undefined) return plan.refusal
    // A row that only names something is the same whoever writes it.
    if (plan.sets !== undefined && plan.sets.size === 0) return undefined
    return this.#foreignKey(write, plan) ?? (row === undefined ? undefined : this.#otherShard(row, write, plan))
  }

  /** Executes statements that may be executed again. */
  execute(batch: ReadonlyArray<Statement<unknown>>): Effect.Effect<unknown, CassandraError> {
    return batch.length === 1
      ? this.#session.execute(batch[0]!)
      : this.#session.batch(batch, { type: "unlogged", idempotent: true })
  }
}

/** A write that is left, of those that replace each other the last. */
interface Last {
  statement: Statement<unknown>
  stamp: bigint
  readonly plan: Plan
}

/** The writes of some events. */
export class Batch {
  readonly #writer: Writer
  readonly #plans = new Map<string, Plan>()
  readonly #last: Array<Last> = []
  /** By what identifies statement and row. */
  readonly #rows = new Map<Plan, Map<string, Last>>()

  constructor(writer: Writer) {
    this.#writer = writer
  }

  get size(): number {
    return this.#last.length
  }

  /** Whether the table of a write has been looked at. */
  knows({ statement: { text } }: Write): boolean {
    return this.#plans.has(text)
  }

  learn({ statement: { text } }: Write): Effect.Effect<void, CassandraError> {
    return Effect.map(this.#writer.plan(text), (plan) => void this.#plans.set(text, plan))
  }

  /** Takes in the writes of an event, whose tables are known; or none of them, where one must not be executed. */
  add(writes: ReadonlyArray<Write>): Refused | undefined {
    const identified = writes.map((write) => rowOf(write, this.#planOf(write)))
    for (const [i, write] of writes.entries()) {
      const why = this.#writer.problem(write, this.#planOf(write), identified[i])
      if (why !== undefined) return { write, why }
    }
    for (const [i, write] of writes.entries()) {
      const { statement, stamp } = write
      const plan = this.#planOf(write)
      const row = plan.analysis.replaces && !statement.params.includes(undefined) ? identified[i] : undefined
      let rows = this.#rows.get(plan)
      if (rows === undefined) {
        rows = new Map()
        this.#rows.set(plan, rows)
      }
      const before = row === undefined ? undefined : rows.get(row)
      if (before !== undefined) {
        before.statement = statement
        before.stamp = stamp
        continue
      }
      const last: Last = { statement, stamp, plan }
      this.#last.push(last)
      if (row !== undefined) rows.set(row, last)
    }
    return undefined
  }

  #planOf({ statement: { text } }: Write): Plan {
    return this.#plans.get(text)!
  }

  /** Executes the writes, and says how many were left to execute; they may be executed again when it fails. */
  readonly write = Effect.fnUntraced(function* (
    this: Batch,
    concurrency: number
  ): Effect.fn.Return<number, CassandraError> {
    let unique = 0
    const batches: Array<Array<Statement<unknown>>> = []
    const partitions = new Map<string, Array<Statement<unknown>>>()
    for (const [i, { plan, stamp, statement }] of this.#last.entries()) {
      const { analysis, partition } = plan
      if (i % atOnce === atOnce - 1) yield* Effect.yieldNow
      const params = statement.params.toSpliced(analysis.timestampIndex, 0, stamp)
      const stamped = make(analysis.timestamped, params, { ...statement.options, idempotent: true })
      const { consistency, profile, timeout } = statement.options
      if (consistency !== undefined || profile !== undefined || timeout !== undefined) {
        // A batch has one of each.
        batches.push([stamped])
        continue
      }
      const key =
        partition === undefined ? `#${unique++}` : `${analysis.table}\u0000${keyOf(statement.params, partition)}`
      const others = partitions.get(key)
      if (others === undefined) partitions.set(key, [stamped])
      else others.push(stamped)
    }
    let mixed: Array<Statement<unknown>> = []
    let mixedSize = 0
    for (const statements of partitions.values()) {
      if (statements.length > 1) {
        for (let i = 0; i < statements.length; i += batchSize) batches.push(statements.slice(i, i + batchSize))
        continue
      }
      const size = sizeOf(statements[0]!)
      if (mixed.length === mixedPartitions || (mixed.length > 0 && mixedSize + size > mixedBytes)) {
        batches.push(mixed)
        mixed = []
        mixedSize = 0
      }
      mixed.push(statements[0]!)
      mixedSize += size
    }
    if (mixed.length > 0) batches.push(mixed)
    yield* Effect.forEach(batches, (batch) => this.#writer.execute(batch), { concurrency, discard: true })
    return this.#last.length
  })
}
