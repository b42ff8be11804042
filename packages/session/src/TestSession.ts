/**
 * A session for unit tests: it runs nothing, answers what the test says, and records what it was asked.
 */
import { Context, Effect, Layer } from "effect"
import { CassandraError, InvalidStatement } from "./CassandraError.ts"
import { type Applied, CassandraSession } from "./CassandraSession.ts"
import { type Carriage, isBatch, makeOperations, type Page, type Query, queriesOf } from "./internal/operations.ts"
import { withDefaults } from "./internal/options.ts"
import type { Row } from "./Statement.ts"

/** A statement as it would have been sent. */
export interface Recorded {
  readonly text: string
  readonly params: ReadonlyArray<unknown>
  /** Whether it has an IF, or is of a batch in which one has. */
  readonly conditional: boolean
  /** Statements of one batch have the same number. */
  readonly batch: number | undefined
}

/** What a statement gets: rows, or what became of a conditional write, or an error. */
export type Answer = (statement: Recorded) => ReadonlyArray<Row> | Applied<Row> | CassandraError

/**
 * What was sent to the session.
 */
export class TestSession extends Context.Service<
  TestSession,
  {
    /** In the order in which it was sent. */
    readonly statements: Effect.Effect<ReadonlyArray<Recorded>>
    /** Forgets them. */
    readonly clear: Effect.Effect<void>
  }
>()("@effect-cassandra/session/TestSession") {
  /**
   * A session that answers by a function; without one, with no rows, and that conditional writes are applied.
   *
   * **Example**
   *
   * ```ts
   * TestSession.layer(({ text }) => (text.startsWith("SELECT balance") ? [{ balance: 100 }] : []))
   * ```
   */
  static readonly layer = (answer: Answer = () => []): Layer.Layer<TestSession | CassandraSession> =>
    Layer.effectContext(
      Effect.sync(() => {
        let statements: Array<Recorded> = []
        let batches = 0
        const give = (recorded: Recorded): Effect.Effect<ReadonlyArray<unknown>, CassandraError> => {
          statements.push(recorded)
          const given = answer(recorded)
          if (given instanceof CassandraError) return Effect.fail(given)
          if ("applied" in given) {
            return Effect.succeed([{ "[applied]": given.applied, ...(given.applied ? {} : given.current) }])
          }
          return Effect.succeed(recorded.conditional && given.length === 0 ? [{ "[applied]": true }] : given)
        }
        const page = (rows: ReadonlyArray<unknown>): Page => ({
          rows,
          pageState: undefined,
          info: {
            queriedHost: "test",
            speculativeExecutions: 0,
            isSchemaInAgreement: true,
            traceId: undefined,
            warnings: undefined
          }
        })
        const recorded = ({ params, text }: Query, { conditional }: Carriage, batch?: number): Recorded => ({
          text,
          params,
          conditional,
          batch
        })
        const session = makeOperations(withDefaults({ keyspace: "test" }), {
          send: (how, onPage) =>
            Effect.suspend(() => {
              const batch = isBatch(how.query) ? ++batches : undefined
              return Effect.forEach(queriesOf(how), (query) => give(recorded(query, how, batch)))
            }).pipe(Effect.flatMap((rows) => onPage(page(rows.find((answers) => answers.length > 0) ?? []), how))),
          prepare: () => Effect.succeed({}),
          use: () =>
            Effect.fail(
              new CassandraError({
                reason: new InvalidStatement({
                  message: "a TestSession has no client of the driver: test what calls `use` with a real Cassandra",
                  cause: undefined
                })
              })
            ),
          state: () => ({ hosts: [], inFlight: 0, queued: 0 }),
          onSpeculative: () => {}
        })
        return Context.make(CassandraSession, {
          ...session,
          createTables: () => Effect.void,
          withSchemaLock: (effect) => effect
        }).pipe(
          Context.add(TestSession, {
            statements: Effect.sync(() => statements),
            clear: Effect.sync(() => {
              statements = []
            })
          })
        )
      })
    )
}
