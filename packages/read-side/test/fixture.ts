import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make as statement } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Schedule, Schema } from "effect"
import { makeEngine } from "../src/internal/engine.ts"
import { makeRequests } from "../src/internal/requests.ts"
import * as Processor from "../src/Processor.ts"
import { type Options, ReadSide } from "../src/ReadSide.ts"

export const Added = Schema.TaggedStruct("Added", { amount: Schema.Int })

export const added = (amount: number) => ({ type: "Added", payload: { amount } })

/** Keeps, for each entity, its last amount, and a line for each event. */
export const lines = (
  name: string,
  entityType: string,
  more: { readonly version?: number; readonly table?: string } = {}
) => {
  const table = more.table ?? "lines"
  return Processor.make(name, {
    entityType,
    events: [Added],
    version: more.version,
    tables: [
      `CREATE TABLE IF NOT EXISTS ${table} (name text, id text, sequence bigint, amount int, PRIMARY KEY ((name, id), sequence))`
    ],
    handlers: {
      Added: ({ amount }, { entityId, sequence }) => insertLine(table, name, entityId, sequence, amount)
    }
  })
}

const insertLine = (table: string, name: string, id: string, sequence: number, amount: number) =>
  statement(`INSERT INTO ${table} (name, id, sequence, amount) VALUES (?, ?, ?, ?)`, [
    name,
    id,
    BigInt(sequence),
    amount
  ])

export const append = (
  entityType: string,
  entityId: string,
  ...events: ReadonlyArray<{ type: string; payload: unknown }>
) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    yield* journal.append({ entityType, entityId, expected: "any", events })
    const shard = journal.shardOf(entityId)
    return { entityType, shard, offset: yield* journal.head(entityType, shard) }
  })

export const linesOf = (name: string, id: string, table = "lines") =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    const rows = yield* session.execute<{ sequence: bigint; amount: number }>(
      statement(`SELECT sequence, amount FROM ${table} WHERE name = ? AND id = ?`, [name, id])
    )
    return rows.map(({ amount, sequence }) => [Number(sequence), amount])
  })

/** Tries again until it does not fail any more, by an error or an assertion. */
export const eventually = <A, E, R>(effect: Effect.Effect<A, E, R>, seconds = 20) =>
  effect.pipe(Effect.sandbox, Effect.retry({ schedule: Schedule.spaced("20 millis"), times: seconds * 50 }))

/** Ids of entities in different shards, in their order. */
export const oneOfEachShard = Effect.map(Journal, (journal) => {
  const ids: Array<string> = []
  for (let i = 0; ids.filter(() => true).length < journal.shards; i++) {
    const shard = journal.shardOf(`id${i}`)
    ids[shard] ??= `id${i}`
  }
  return ids
})

/** One that does not know of the others, and so works on the same shards. */
export const blind = <R = never>(
  processors: ReadonlyArray<Processor.Processor<R>>,
  part: string,
  options: Options = {}
) =>
  Layer.effect(
    ReadSide,
    Effect.flatMap(makeEngine(processors, options, part), (engine) => makeRequests(engine, part))
  )

export const Live = Journal.layer({ shards: 3, indexInterval: "50 millis", maxPollInterval: "100 millis" }).pipe(
  Layer.provideMerge(TestKeyspace.layer)
)
