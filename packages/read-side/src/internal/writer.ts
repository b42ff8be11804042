/**
 * Executes the statements of many events at once: one batch per partition, and of several writes of the same row by the
 * same statement only the last, for the earlier ones would leave no trace.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Statement } from "@effect-cassandra/session/Statement"
import { Effect, type Semaphore } from "effect"
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

const batchSize = 100

const keyOf = (params: ReadonlyArray<unknown>, places: ReadonlyArray<number>) =>
  places.map((place) => `${typeof params[place]}:${params[place]}`).join("\u0000")

/** A writer in the keyspace of a session. */
export class Writer {
  readonly #session: CassandraSession["Service"]
  readonly #inFlight: Semaphore.Semaphore
  readonly #analyses = new Map<string, Analysis | string>()
  readonly #plans = new Map<string, Plan>()

  constructor(session: CassandraSession["Service"], inFlight: Semaphore.Semaphore) {
    this.#session = session
    this.#inFlight = inFlight
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

  /** Executes the writes; they may be executed again when it fails. */
  write(writes: ReadonlyArray<Write>): Effect.Effect<void, CassandraError> {
    const self = this
    return Effect.gen(function* () {
      const groups = new Map<string, Map<string, Statement<unknown>>>()
      let unique = 0
      for (const { stamp, statement } of writes) {
        const { analysis, partition, row } = self.#plans.get(statement.text) ?? (yield* self.#plan(statement.text))
        const { params } = statement
        const group = partition === undefined ? `#${unique++}` : `${analysis.table}\u0000${keyOf(params, partition)}`
        const replaces = analysis.replaces && row !== undefined && !params.includes(undefined)
        const member = replaces ? `${statement.text}\u0000${keyOf(params, row)}` : `#${unique++}`
        const timed = [...params]
        timed.splice(analysis.timestampIndex, 0, BigInt(stamp))
        const members = groups.get(group)
        const stamped = make(analysis.timestamped, timed, { ...statement.options, idempotent: true })
        if (members === undefined) groups.set(group, new Map([[member, stamped]]))
        else members.set(member, stamped)
      }
      const requests: Array<Effect.Effect<unknown, CassandraError>> = []
      for (const members of groups.values()) {
        const statements = [...members.values()]
        if (statements.length === 1) requests.push(self.#session.execute(statements[0]!))
        else {
          for (let i = 0; i < statements.length; i += batchSize) {
            requests.push(
              self.#session.batch(statements.slice(i, i + batchSize), { type: "unlogged", idempotent: true })
            )
          }
        }
      }
      yield* Effect.forEach(requests, (request) => self.#inFlight.withPermits(1)(request), {
        concurrency: "unbounded",
        discard: true
      })
    })
  }
}
