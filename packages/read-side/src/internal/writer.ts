/**
 * Executes the statements of many events at once: in batches by partition, and of several writes of the same row by the
 * same statement only the last, for the earlier ones would leave no trace.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Statement } from "@effect-cassandra/session/Statement"
import { Effect } from "effect"
import { type Analysis, analyse } from "./analysis.ts"

/** A statement with the write timestamp that it gets. */
export interface Write {
  readonly statement: Statement<unknown>
  readonly stamp: number
}

interface Plan {
  readonly analysis: Analysis
  /** Places of the values of the partition key, and of the whole primary key; absent where they are not all bound. */
  readonly partition: ReadonlyArray<number> | undefined
  readonly row: ReadonlyArray<number> | undefined
}

/** Statements of one partition in a batch. */
const batchSize = 100
/** Partitions that share a batch, and its size: the server warns of more than 10, and of more than 5 KiB. */
const mixedPartitions = 10
const mixedBytes = 4096

/** About the size of a statement's values, in bytes. */
const sizeOf = ({ params }: Statement<unknown>) => {
  let size = 0
  for (const param of params)
    size += typeof param === "string" ? param.length : Buffer.isBuffer(param) ? param.length : 16
  return size
}

const keyOf = (params: ReadonlyArray<unknown>, places: ReadonlyArray<number>) =>
  places.length === 1 ? String(params[places[0]!]) : places.map((place) => String(params[place])).join("\u0000")

/** A writer in the keyspace of a session. */
export class Writer {
  readonly #session: CassandraSession["Service"]
  readonly #concurrency: number
  readonly #analyses = new Map<string, Analysis | string>()
  readonly #plans = new Map<string, Plan>()

  /** With `concurrency` requests in flight for each call of `write`. */
  constructor(session: CassandraSession["Service"], concurrency: number) {
    this.#session = session
    this.#concurrency = concurrency
  }

  /** Why a statement may not be executed, if so. */
  refusal(statement: Statement<unknown>): string | undefined {
    let analysis = this.#analyses.get(statement.text)
    if (analysis === undefined) {
      analysis = analyse(statement.text)
      this.#analyses.set(statement.text, analysis)
    }
    return typeof analysis === "string" ? analysis : undefined
  }

  #plan(text: string): Effect.Effect<Plan, CassandraError> {
    const known = this.#plans.get(text)
    if (known !== undefined) return Effect.succeed(known)
    const analysis = this.#analyses.get(text) as Analysis
    return Effect.map(
      this.#session.use((client) => client.metadata.getTable(this.#session.keyspace, analysis.table)),
      (table) => {
        const places = (names: ReadonlyArray<{ readonly name: string }> | undefined) => {
          const found = names?.map(({ name }) => analysis.columns.get(name))
          return found?.every((place) => place !== undefined) && found.length > 0 ? found : undefined
        }
        const plan: Plan = {
          analysis,
          partition: places(table?.partitionKeys),
          row: table == null ? undefined : places([...table.partitionKeys, ...table.clusteringKeys])
        }
        this.#plans.set(text, plan)
        return plan
      }
    )
  }

  /** Executes the writes, and says how many were left to execute; they may be executed again when it fails. */
  write(writes: ReadonlyArray<Write>): Effect.Effect<number, CassandraError> {
    const self = this
    return Effect.gen(function* () {
      // Of the writes that replace each other, the last; by what identifies statement and row.
      const last = new Map<string, readonly [Write, Plan]>()
      let unique = 0
      for (const write of writes) {
        const { params, text } = write.statement
        const plan = self.#plans.get(text) ?? (yield* self.#plan(text))
        const { analysis, row } = plan
        const replaces = analysis.replaces && row !== undefined && !params.includes(undefined)
        last.set(replaces ? `${text}\u0000${keyOf(params, row)}` : `#${unique++}`, [write, plan])
      }
      const batches: Array<Array<Statement<unknown>>> = []
      const partitions = new Map<string, Array<Statement<unknown>>>()
      for (const [{ stamp, statement }, { analysis, partition }] of last.values()) {
        const params = statement.params.toSpliced(analysis.timestampIndex, 0, BigInt(stamp))
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
      const execute = (batch: Array<Statement<unknown>>): Effect.Effect<unknown, CassandraError> =>
        batch.length === 1
          ? self.#session.execute(batch[0]!)
          : self.#session.batch(batch, { type: "unlogged", idempotent: true })
      yield* Effect.forEach(batches, execute, { concurrency: self.#concurrency, discard: true })
      return last.size
    })
  }
}
