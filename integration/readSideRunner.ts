// A process that runs processors, for the tests of what happens when such a process is killed or stopped.
import { Journal } from "@effect-cassandra/journal/Journal"
import { Processor } from "@effect-cassandra/read-side"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { Console, Effect, Layer, Schema } from "effect"

export const Added = Schema.TaggedStruct("Added", { amount: Schema.Int })

/** The last amount of each entity, a line for each event, and the sum over all. */
export const Lines = Processor.make("lines", {
  entityType: "Killed",
  events: [Added],
  tables: [
    "CREATE TABLE IF NOT EXISTS last (id text PRIMARY KEY, amount int, sequence bigint)",
    "CREATE TABLE IF NOT EXISTS lines (id text, sequence bigint, amount int, PRIMARY KEY (id, sequence))"
  ],
  handlers: {
    Added: ({ amount }, { entityId, sequence }) => [
      cql`INSERT INTO last (id, amount, sequence) VALUES (${entityId}, ${amount}, ${BigInt(sequence)})`,
      cql`INSERT INTO lines (id, sequence, amount) VALUES (${entityId}, ${BigInt(sequence)}, ${amount})`
    ]
  }
})

export const Sums = Processor.fold("sums", {
  entityType: "Killed",
  events: [Added],
  table: "sums",
  state: Schema.Struct({ events: Schema.Int, sum: Schema.Int }),
  initial: { events: 0, sum: 0 },
  key: ({ amount }) => String(amount % 3),
  fold: ({ events, sum }, { amount }) => ({ events: events + 1, sum: sum + amount }),
  merge: (a, b) => ({ events: a.events + b.events, sum: a.sum + b.sum })
})

if (process.env.RUNNER_KEYSPACE !== undefined) {
  const { RUNNER_CONTACT_POINT, RUNNER_KEYSPACE } = process.env
  const Live = ReadSide.layer([Lines, Sums], { lease: "2 seconds", offsetInterval: "50 millis" }).pipe(
    Layer.provide(Journal.layer({ shards: 3 })),
    Layer.provide(
      CassandraSession.layer({ contactPoints: [RUNNER_CONTACT_POINT!], keyspace: RUNNER_KEYSPACE, development: true })
    )
  )
  Effect.runFork(Effect.andThen(Console.log("running"), Effect.never).pipe(Effect.provide(Live)))
}
