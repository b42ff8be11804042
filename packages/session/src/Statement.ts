/**
 * CQL statements as values: text with `?` markers, the values bound to them, and how to run them. A statement is an
 * Effect of its rows, run by the `CassandraSession` of its context.
 */
import {
  Context,
  type Duration,
  Effect,
  Effectable,
  type Option,
  Result,
  type Schema,
  SchemaIssue,
  SchemaParser,
  Stream
} from "effect"
import { dual } from "effect/Function"
import { CassandraError, RowMismatch } from "./CassandraError.ts"
import type { Applied, CassandraSession, RawResult } from "./CassandraSession.ts"
import { textInfo } from "./internal/text.ts"

/** How many replicas must answer. `SERIAL` and `LOCAL_SERIAL` are for reads that must see every conditional write. */
export type Consistency =
  | "ANY"
  | "ONE"
  | "TWO"
  | "THREE"
  | "QUORUM"
  | "ALL"
  | "LOCAL_QUORUM"
  | "EACH_QUORUM"
  | "LOCAL_ONE"
  | "SERIAL"
  | "LOCAL_SERIAL"

/** Which replicas agree on a conditional write: those of all data centres, or of the local one. */
export type SerialConsistency = "SERIAL" | "LOCAL_SERIAL"

/** Settings of one statement; what is absent comes from its profile, then from the session. */
export interface Options {
  readonly consistency?: Consistency
  readonly serialConsistency?: SerialConsistency
  /** Executing it twice leaves the same rows, so that it may be tried again. Default: true for SELECT only. */
  readonly idempotent?: boolean
  /** Rows per page. */
  readonly pageSize?: number
  /** Where to go on, as `raw` gave it: for a list that is read page by page over several requests of a user. */
  readonly pageState?: string
  /** Write timestamp in microseconds since the epoch. */
  readonly timestamp?: number
  /** Time to live of what an INSERT or UPDATE writes, in whole seconds; the text gets a `USING TTL`. */
  readonly ttl?: Duration.Input
  /** Bound on the whole request, the wait for its turn and all tries included. */
  readonly timeout?: Duration.Input
  /** One of the session's `profiles`, for what is not set here. */
  readonly profile?: string
  /** Lets the server record how it executes it; `raw` gives the id of the trace. */
  readonly trace?: boolean
}

/** A row by column name. `bigint` and `varint` arrive as bigint, `null` is a column without a value. */
export type Row = Readonly<Record<string, any>>

/**
 * A statement that returns rows of type `A`. Unless it has a schema (`withSchema`) the type is the caller's word, it is
 * not checked. As an Effect it gives all its rows.
 */
export interface Statement<out A = Row> extends Effect.Effect<ReadonlyArray<A>, CassandraError, CassandraSession> {
  readonly text: string
  readonly params: ReadonlyArray<unknown>
  readonly options: Options
  readonly decode: ((row: unknown) => Result.Result<A, CassandraError>) | undefined
  /** The first row, if there is one. */
  readonly first: Effect.Effect<Option.Option<A>, CassandraError, CassandraSession>
  /** The only row; none or several have the reason `UnexpectedRows`. */
  readonly one: Effect.Effect<A, CassandraError, CassandraSession>
  /** Rows as they are asked for, page by page. */
  readonly stream: Stream.Stream<A, CassandraError, CassandraSession>
  /** What became of a conditional write. */
  readonly applied: Effect.Effect<Applied<A>, CassandraError, CassandraSession>
  /** One page with all that the server said beside the rows. */
  readonly raw: Effect.Effect<RawResult<A>, CassandraError, CassandraSession>
}

// By its key, for the module of the session imports this one.
const Session = Context.Service<CassandraSession, CassandraSession["Service"]>(
  "@effect-cassandra/session/CassandraSession"
)

const none: Options = {}

class StatementImpl<A>
  extends Effectable.Class<ReadonlyArray<A>, CassandraError, CassandraSession>
  implements Statement<A>
{
  readonly text: string
  readonly params: ReadonlyArray<unknown>
  readonly options: Options
  readonly decode: Statement<A>["decode"]
  constructor(text: string, params: ReadonlyArray<unknown>, options: Options, decode: Statement<A>["decode"]) {
    super()
    this.text = text
    this.params = params
    this.options = options
    this.decode = decode
  }
  asEffect(): Effect.Effect<ReadonlyArray<A>, CassandraError, CassandraSession> {
    return Effect.flatMap(Session, (session) => session.execute(this))
  }
  get first(): Statement<A>["first"] {
    return Effect.flatMap(Session, (session) => session.first(this))
  }
  get one(): Statement<A>["one"] {
    return Effect.flatMap(Session, (session) => session.one(this))
  }
  get stream(): Statement<A>["stream"] {
    return Stream.unwrap(Effect.map(Session, (session) => session.stream(this)))
  }
  get applied(): Statement<A>["applied"] {
    return Effect.flatMap(Session, (session) => session.applied(this))
  }
  get raw(): Statement<A>["raw"] {
    return Effect.flatMap(Session, (session) => session.raw(this))
  }
}

/**
 * A statement from text with one `?` for each value.
 */
export const make = <A = Row>(
  text: string,
  params: ReadonlyArray<unknown> = [],
  options: Options = none
): Statement<A> => new StatementImpl<A>(text, params, options, undefined)

/** The name of a keyspace, table or column, for a place where no value can be bound. */
export class Identifier {
  readonly quoted: string
  constructor(name: string) {
    if (typeof name !== "string" || name === "")
      throw new TypeError(`the name of an identifier is ${String(name) || "empty"}`)
    this.quoted = `"${name.replaceAll('"', '""')}"`
  }
}

/**
 * Quotes a name so that it can stand in a `cql` template; the name is then case-sensitive.
 */
export const identifier = (name: string): Identifier => new Identifier(name)

const isIdentifier = (arg: unknown) => arg instanceof Identifier

const texts = new WeakMap<TemplateStringsArray, string>()

/**
 * A statement from a template: every interpolation becomes a bound value, never text.
 *
 * **Example**
 *
 * ```ts
 * cql`SELECT balance FROM accounts WHERE owner = ${owner}`
 * ```
 */
export const cql = <A = Row>(strings: TemplateStringsArray, ...args: ReadonlyArray<unknown>): Statement<A> => {
  if (!args.some(isIdentifier)) {
    let text = texts.get(strings)
    if (text === undefined) {
      text = strings.join("?")
      texts.set(strings, text)
    }
    return make(text, args)
  }
  let text = strings[0]!
  const params: Array<unknown> = []
  for (let i = 0; i < args.length; i++) {
    const arg = args[i]
    if (arg instanceof Identifier) text += arg.quoted
    else {
      text += "?"
      params.push(arg)
    }
    text += strings[i + 1]
  }
  return make(text, params)
}

/**
 * The same statement with some settings changed.
 */
export const withOptions: {
  (options: Options): <A>(self: Statement<A>) => Statement<A>
  <A>(self: Statement<A>, options: Options): Statement<A>
} = dual(
  2,
  <A>(self: Statement<A>, options: Options): Statement<A> =>
    new StatementImpl(self.text, self.params, { ...self.options, ...options }, self.decode)
)

// Says where and what was expected; the value itself stands in no message.
const describe = SchemaIssue.makeFormatterDefault()

/**
 * The same statement with rows that are decoded by a schema; a row that does not fit has the reason `RowMismatch`.
 *
 * **Example**
 *
 * ```ts
 * cql`SELECT name, age FROM users`.pipe(withSchema(User))
 * ```
 */
export const withSchema: {
  <A>(schema: Schema.Decoder<A>): (self: Statement<any>) => Statement<A>
  <A>(self: Statement<any>, schema: Schema.Decoder<A>): Statement<A>
} = dual(2, <A>(self: Statement<any>, schema: Schema.Decoder<A>): Statement<A> => {
  const decode = SchemaParser.decodeUnknownResult(schema)
  return new StatementImpl<A>(self.text, self.params, self.options, (row) =>
    Result.mapError(decode(row), (issue) => {
      const message = `a row of "${textInfo(self.text).redacted}" does not fit its schema: ${describe(issue)}`
      return new CassandraError({ reason: new RowMismatch({ message, cause: undefined }) })
    })
  )
})
