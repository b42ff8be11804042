/**
 * CQL statements as values: text with `?` markers, the values bound to them, and how to run them.
 */
import type { Duration } from "effect"
import { dual } from "effect/Function"

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

/** Settings of one statement; what is absent comes from the session. */
export interface Options {
  readonly consistency?: Consistency
  readonly serialConsistency?: SerialConsistency
  /** Executing it twice leaves the same rows, so the driver may try another node. Default: true for SELECT only. */
  readonly idempotent?: boolean
  /** Rows per page. */
  readonly pageSize?: number
  /** Write timestamp in microseconds since the epoch. */
  readonly timestamp?: number
  /** Bound on the whole request, all nodes tried included. */
  readonly timeout?: Duration.Input
}

/** A row by column name. `bigint` and `varint` arrive as bigint, `null` is a column without a value. */
export type Row = Readonly<Record<string, any>>

/** A statement that returns rows of type `A`; the type is the caller's word, it is not checked. */
export interface Statement<out A = Row> {
  readonly text: string
  readonly params: ReadonlyArray<unknown>
  readonly options: Options
  readonly _Row?: A
}

/**
 * A statement from text with one `?` for each value.
 */
export const make = <A = Row>(
  text: string,
  params: ReadonlyArray<unknown> = [],
  options: Options = {}
): Statement<A> => ({ text, params, options })

/** The name of a keyspace, table or column, for a place where no value can be bound. */
export class Identifier {
  readonly quoted: string
  constructor(name: string) {
    this.quoted = `"${name.replaceAll('"', '""')}"`
  }
}

/**
 * Quotes a name so that it can stand in a `cql` template; the name is then case-sensitive.
 */
export const identifier = (name: string): Identifier => new Identifier(name)

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
  if (!args.some((arg) => arg instanceof Identifier)) {
    const text = texts.get(strings) ?? strings.join("?")
    texts.set(strings, text)
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
    make(self.text, self.params, { ...self.options, ...options })
)
