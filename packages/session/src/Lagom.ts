/**
 * The verbs of Lagom's CassandraSession, for those who come from it. Each is one line over what `CassandraSession` offers.
 */
import { Effect, type Option, type Stream } from "effect"
import { CassandraError, InvalidStatement } from "./CassandraError.ts"
import { type BatchOptions, CassandraSession } from "./CassandraSession.ts"
import { textInfo } from "./internal/text.ts"
import { make, type Row, type Statement } from "./Statement.ts"

type Query<A> = readonly [statement: Statement<A>] | readonly [text: string, ...params: ReadonlyArray<unknown>]

const statementOf = <A>([first, ...params]: Query<A>): Statement<A> =>
  typeof first === "string" ? make<A>(first, params) : first

/** Rows page by page. */
export const select = <A = Row>(...query: Query<A>): Stream.Stream<A, CassandraError, CassandraSession> =>
  statementOf(query).stream

/** All rows. */
export const selectAll = <A = Row>(
  ...query: Query<A>
): Effect.Effect<ReadonlyArray<A>, CassandraError, CassandraSession> => statementOf(query)

/** The first row, if there is one. */
export const selectOne = <A = Row>(
  ...query: Query<A>
): Effect.Effect<Option.Option<A>, CassandraError, CassandraSession> => statementOf(query).first

/** Executes an INSERT, UPDATE or DELETE. One with an IF is refused, as its outcome would be lost: run it by `applied`. */
export const executeWrite = (...query: Query<unknown>): Effect.Effect<void, CassandraError, CassandraSession> =>
  Effect.suspend((): Effect.Effect<unknown, CassandraError, CassandraSession> => {
    const statement = statementOf(query)
    const { isConditional, redacted } = textInfo(statement.text)
    if (!isConditional) return statement
    const message = `"${redacted}" has an IF, whose outcome would be lost: run it by \`applied\``
    return new CassandraError({ reason: new InvalidStatement({ message, cause: undefined }) })
  }).pipe(Effect.asVoid)

/** Executes several writes as one request. */
export const executeWriteBatch = (
  statements: ReadonlyArray<Statement<unknown>>,
  options?: BatchOptions
): Effect.Effect<void, CassandraError, CassandraSession> =>
  Effect.flatMap(CassandraSession, (session) => session.batch(statements, options))

/** Executes a `CREATE TABLE IF NOT EXISTS`. */
export const executeCreateTable = (text: string): Effect.Effect<void, CassandraError, CassandraSession> =>
  Effect.flatMap(CassandraSession, (session) => session.createTables([text]))

/** Lets the server check a text, and gives a function from values to the statement. */
export const prepare = <A = Row>(
  text: string
): Effect.Effect<(...params: ReadonlyArray<unknown>) => Statement<A>, CassandraError, CassandraSession> =>
  Effect.flatMap(CassandraSession, (session) => session.prepare<A>(text))

/** The driver's client. */
export const underlying = Effect.flatMap(CassandraSession, (session) =>
  session.use((client) => Promise.resolve(client))
)
