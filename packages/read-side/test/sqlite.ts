import { DatabaseSync } from "node:sqlite"
import { Context, Effect, Layer, Semaphore, Stream } from "effect"
import { Reactivity } from "effect/reactivity"
import { SqlClient, SqlError, Statement } from "effect/sql"
import type { Connection } from "effect/sql/SqlConnection"

/** A SqlClient over the SQLite that Node brings along: one connection, one transaction at a time. */
export const sqlite = (file = ":memory:") =>
  Layer.effectContext(
    Effect.gen(function* () {
      const db = yield* Effect.acquireRelease(
        Effect.sync(() => new DatabaseSync(file)),
        (db) => Effect.sync(() => db.close())
      )
      db.exec("PRAGMA journal_mode = WAL; PRAGMA busy_timeout = 5000")
      const run = (sql: string, params: ReadonlyArray<unknown>) =>
        Effect.try({
          try: () => db.prepare(sql).all(...(params as Array<null>)) as Array<any>,
          catch: (cause) =>
            new SqlError.SqlError({ reason: new SqlError.UnknownError({ cause, message: String(cause) }) })
        })
      const connection: Connection = {
        execute: (sql, params, transform) =>
          Effect.map(run(sql, params), (rows) => (transform ? transform(rows) : rows)),
        executeRaw: run,
        executeValues: (sql, params) => Effect.map(run(sql, params), (rows) => rows.map((row) => Object.values(row))),
        executeValuesUnprepared: (sql, params) =>
          Effect.map(run(sql, params), (rows) => rows.map((row) => Object.values(row))),
        executeUnprepared: (sql, params, transform) =>
          Effect.map(run(sql, params), (rows) => (transform ? transform(rows) : rows)),
        executeStream: () => Stream.die("not used")
      }
      const one = Semaphore.makeUnsafe(1)
      const acquire = Effect.acquireRelease(Effect.as(one.take(1), connection), () => one.release(1))
      const client = yield* SqlClient.make({
        acquirer: acquire,
        transactionAcquirer: acquire,
        beginTransaction: "BEGIN IMMEDIATE",
        compiler: Statement.makeCompilerSqlite(),
        driver: "node-sqlite",
        spanAttributes: []
      })
      return Context.make(SqlClient.SqlClient, client)
    })
  ).pipe(Layer.provide(Reactivity.layer))
