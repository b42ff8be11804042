/**
 * What a session offers, over whatever carries its requests: the driver, or a recording in a user's test.
 */
import driver from "cassandra-driver"
import { Array, Cause, Duration, Effect, Option, Result, Stream } from "effect"
import {
  BatchTooLarge,
  CassandraError,
  InvalidOptions,
  InvalidStatement,
  ReadOnly,
  type Reason,
  SchemaDisagreement,
  UnexpectedRows
} from "../CassandraError.ts"
import type { Applied, BatchOptions, CassandraSession, Health } from "../CassandraSession.ts"
import { type Row, type Statement, type Options as StatementOptions, make as statement } from "../Statement.ts"
import { withoutValues } from "./driverError.ts"
import { isSchemaChanging, tablesOf, withSchemaLock } from "./keyspace.ts"
import { consistencies, millisOf, problemOf, type Settings } from "./options.ts"
import { patiently } from "./patience.ts"
import { type TextInfo, textInfo, withTtl } from "./text.ts"

/** What the session reads of the driver's result. */
export interface Page {
  readonly rows: ReadonlyArray<unknown> | undefined
  readonly pageState: string | null | undefined
  readonly info: {
    readonly queriedHost: string
    readonly speculativeExecutions: number
    readonly isSchemaInAgreement: boolean
    readonly traceId: { readonly toString: () => string } | null | undefined
    readonly warnings: ReadonlyArray<string> | null | undefined
  }
}

/** A text with its values. */
export interface Query {
  readonly text: string
  readonly params: ReadonlyArray<unknown>
}

/** How a request is to be carried. */
export interface Carriage {
  /** What its first text says; undefined for what is no statement. */
  readonly info: TextInfo | undefined
  /** One, or those of a batch. */
  readonly query: Query | ReadonlyArray<Query>
  /** It has an IF: it is sent once, and a lost answer leaves its outcome unknown. */
  readonly conditional: boolean
  readonly idempotent: boolean
  /** Bound on the whole request. */
  readonly millis: number
}

/** A request of a statement, or of a batch. */
export interface Sending extends Carriage {
  /** The statement, or the first. */
  readonly self: Statement<any>
  readonly info: TextInfo
  readonly driverOptions: Mutable<driver.QueryOptions>
}

export const isBatch = (query: Query | ReadonlyArray<Query>): query is ReadonlyArray<Query> =>
  globalThis.Array.isArray(query)

export const queriesOf = ({ query }: Carriage): ReadonlyArray<Query> => (isBatch(query) ? query : [query])

/** What becomes of a page. It is made once, and not for each request, of which a thousand may be under way. */
type OnPage<A> = (page: Page, how: Sending) => Effect.Effect<A, CassandraError>

/** Carries requests. */
export interface Transport {
  readonly send: <A>(how: Sending, onPage: OnPage<A>) => Effect.Effect<A, CassandraError>
  /** Lets the server check a text; the places of the values of the partition key, and the table. */
  readonly prepare: (
    text: string
  ) => Effect.Effect<{ readonly partitionKeys?: ReadonlyArray<number>; readonly table?: string }, CassandraError>
  readonly use: CassandraSession["Service"]["use"]
  readonly state: () => Pick<Health, "hosts" | "inFlight" | "queued">
  /** Counts a SELECT that was sent to several nodes. */
  readonly onSpeculative: (count: number) => void
}

type Mutable<A> = { -readonly [K in keyof A]: A[K] }

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const never = new driver.policies.retry.FallthroughRetryPolicy()

/** Size of a value as the server counts it, at least. */
const sizeOf = (value: unknown, depth = 8): number => {
  const sum = (items: Iterable<unknown>) => {
    let bytes = 0
    if (depth > 0) for (const item of items) bytes += sizeOf(item, depth - 1)
    return bytes
  }
  if (value == null || typeof value === "boolean") return 1
  if (typeof value === "string") return Buffer.byteLength(value)
  if (ArrayBuffer.isView(value)) return value.byteLength
  if (value instanceof Map) return sum(value.keys()) + sum(value.values())
  if (globalThis.Array.isArray(value) || value instanceof Set) return sum(value)
  if (value instanceof driver.types.Tuple) return sum(value.elements)
  const isUdt = typeof value === "object" && Object.getPrototypeOf(value) === Object.prototype
  return isUdt ? sum(Object.values(value)) : 4
}

const rowsOf = <A>(self: Statement<A>, result: Page): Effect.Effect<Array<A>, CassandraError> => {
  const rows = (result.rows ?? []) as Array<A>
  const { decode } = self
  if (decode === undefined) return Effect.succeed(rows)
  const decoded: Array<A> = []
  for (const row of rows) {
    const outcome = decode(row)
    if (Result.isFailure(outcome)) return Effect.fail(outcome.failure)
    decoded.push(outcome.success)
  }
  return Effect.succeed(decoded)
}

const appliedOf = <A>(self: Statement<A>, result: Page): Effect.Effect<Applied<A>, CassandraError> => {
  const row = result.rows?.[0] as Record<string, unknown> | undefined
  if (row === undefined || typeof row["[applied]"] !== "boolean") {
    const message = `no answer of a conditional write: ${textInfo(self.text).redacted}`
    return fail(new InvalidStatement({ message, cause: undefined }))
  }
  if (row["[applied]"]) return Effect.succeed({ applied: true })
  const { "[applied]": _, ...current } = row
  return self.decode === undefined
    ? Effect.succeed({ applied: false, current: current as Partial<A> })
    : Effect.map(Effect.fromResult(self.decode(current)), (current) => ({ applied: false, current }))
}

/** Settings that a batch has as a whole: where it has none, those that its statements agree on. */
const ofBatch = ["consistency", "serialConsistency", "timestamp", "timeout"] as const

const maxWarned = 2000

/** What the protocol can count in one batch. */
const maxStatements = 65_535

/** The operations of a session with these options. */
export const makeOperations = (options: Settings, transport: Transport): CassandraSession["Service"] => {
  const timeout = millisOf(options.requestTimeout)
  const { maxBatchSize } = options

  const invalid = (message: string) => new InvalidStatement({ message, cause: undefined })

  /** The settings that a statement has by itself and by its profile. */
  const settingsOf = (self: Statement<any>): StatementOptions | Reason => {
    if (typeof self?.text !== "string" || !globalThis.Array.isArray(self.params)) {
      return invalid("not a statement: make one with cql`...`, or with make(text, params) of an array of values")
    }
    if (self.options.profile === undefined) return self.options
    const profile = options.profiles?.[self.options.profile]
    if (profile !== undefined) return { ...profile, ...self.options }
    const known = Object.keys(options.profiles ?? {}).map((name) => `"${name}"`)
    const message = `there is no profile "${self.options.profile}" among ${known.join(", ") || "none"}: add it to \`profiles\``
    return new InvalidOptions({ message, cause: undefined })
  }

  /** A text with its values, the one for the time to live among them, or why it cannot be sent. */
  const queryOf = (self: Statement<any>, settings: StatementOptions, info: TextInfo): Query | Reason => {
    if (options.access === "read" && !info.isSelect) {
      const message = `the session of keyspace "${options.keyspace}" was opened with \`access: "read"\`: ${info.summary} is refused`
      return new ReadOnly({ message, cause: undefined })
    }
    const problem = problemOf(settings)
    if (problem !== undefined) return invalid(`${problem}, in "${info.redacted}"`)
    if (settings.ttl === undefined) return self
    const seconds = Option.map(Duration.fromInput(settings.ttl), Duration.toSeconds).pipe(Option.getOrElse(() => NaN))
    const changed =
      Number.isInteger(seconds) && seconds >= 1
        ? withTtl(self.text)
        : `${settings.ttl} is not a whole number of seconds`
    if (typeof changed === "string") return invalid(`no ttl for "${info.redacted}": ${changed}`)
    return { text: changed.text, params: self.params.toSpliced(changed.index, 0, seconds) }
  }

  /** As the driver wants it. */
  const driverOptionsOf = (settings: BatchOptions, conditional: boolean, idempotent: boolean, millis: number) => {
    const { consistency, serialConsistency, timestamp } = settings
    const driverOptions: Mutable<driver.QueryOptions> = { prepare: true, isIdempotent: idempotent }
    if (conditional) driverOptions.retry = never
    if (consistency !== undefined) driverOptions.consistency = consistencies[consistency]
    if (serialConsistency !== undefined) driverOptions.serialConsistency = consistencies[serialConsistency]
    if (timestamp !== undefined) driverOptions.timestamp = timestamp
    if (millis > timeout) driverOptions.readTimeout = millis + 1000
    return driverOptions
  }

  const resolve = (self: Statement<any>, mustHaveIf: boolean): Sending | Reason => {
    const settings = settingsOf(self)
    if ("_tag" in settings) return settings
    const info = textInfo(self.text)
    const query = queryOf(self, settings, info)
    if ("_tag" in query) return query
    const conditional = info.isConditional
    if (mustHaveIf && !conditional) return invalid(`not a conditional write, it has no IF: ${info.redacted}`)
    if (conditional && settings.timestamp !== undefined) {
      return invalid(`a conditional write gets its timestamp from the server: "${info.redacted}" cannot have another`)
    }
    const idempotent = !conditional && (settings.idempotent ?? info.isSelect)
    const millis = settings.timeout === undefined ? timeout : millisOf(settings.timeout)
    const driverOptions = driverOptionsOf(settings, conditional, idempotent, millis)
    if (!info.isPreparable) driverOptions.prepare = false
    if (settings.pageSize !== undefined) driverOptions.fetchSize = settings.pageSize
    if (settings.pageState !== undefined) driverOptions.pageState = settings.pageState
    if (settings.trace) driverOptions.traceQuery = true
    return { self, query, info, driverOptions, conditional, idempotent, millis }
  }

  const warned = new Set<string>()

  /** With what the server says beside the rows. */
  const heeding =
    <A>(onPage: OnPage<A>): OnPage<A> =>
    (result, how) => {
      const { isSchemaInAgreement, speculativeExecutions, warnings } = result.info
      const { info } = how
      if (speculativeExecutions > 0) transport.onSpeculative(speculativeExecutions)
      if (!isSchemaInAgreement) {
        const message = `the nodes did not agree on the schema in time after ${info.summary}: one of them is away or slow`
        return fail(new SchemaDisagreement({ message, cause: undefined }))
      }
      if (warnings == null || warnings.length === 0 || warned.has(info.redacted)) return onPage(result, how)
      if (warned.size >= maxWarned) warned.clear()
      warned.add(info.redacted)
      const message = `${info.summary}: ${withoutValues(warnings.join(", "), queriesOf(how))}`
      return Effect.andThen(Effect.logWarning(message), onPage(result, how))
    }

  const page = <A>(
    self: Statement<any>,
    pageState: string | undefined,
    onPage: OnPage<A>,
    mustHaveIf = false
  ): Effect.Effect<A, CassandraError> => {
    const how = resolve(self, mustHaveIf)
    if ("_tag" in how) return fail(how)
    if (pageState !== undefined) how.driverOptions.pageState = pageState
    return transport.send(how, onPage)
  }

  const onRows = heeding((result, { self }) =>
    Effect.map(rowsOf<any>(self, result), (rows) => ({ rows, pageState: result.pageState ?? undefined }))
  )

  const allFrom = Effect.fnUntraced(function* (
    self: Statement<unknown>,
    first: Page
  ): Effect.fn.Return<Array<any>, CassandraError> {
    const rows = yield* rowsOf<any>(self, first)
    for (let state = first.pageState; state; ) {
      const next: { readonly rows: Array<any>; readonly pageState: string | undefined } = yield* page(
        self,
        state,
        onRows
      )
      for (const row of next.rows) rows.push(row)
      state = next.pageState
    }
    return rows
  })

  const onAll = heeding((first, { self }) => (first.pageState ? allFrom(self, first) : rowsOf<any>(self, first)))

  const execute = <A = Row>(self: Statement<A>): Effect.Effect<ReadonlyArray<A>, CassandraError> =>
    page(self, undefined, onAll)

  const stream = <A = Row>(self: Statement<A>): Stream.Stream<A, CassandraError> =>
    Stream.paginate(undefined as string | undefined, (state) =>
      Effect.map(page(self, state, onRows), ({ pageState, rows }) => [rows, Option.fromUndefinedOr(pageState)] as const)
    )

  const onFirst = heeding(
    (result, { self }): Effect.Effect<Option.Option<any>, CassandraError> =>
      result.rows?.length || !result.pageState
        ? Effect.map(rowsOf<any>(self, result), Array.head)
        : // An empty page, and more follow.
          Stream.runHead(stream<any>(self))
  )

  const onRaw = heeding((result, { self }) =>
    Effect.map(rowsOf<any>(self, result), (rows) => ({
      rows,
      pageState: result.pageState ?? undefined,
      coordinator: result.info.queriedHost,
      traceId: result.info.traceId?.toString(),
      warnings: result.info.warnings ?? []
    }))
  )

  const onApplied = heeding((result, { self }) => appliedOf<any>(self, result))

  const onDone = heeding(() => Effect.void)

  const countPartitions = Effect.fnUntraced(function* (queries: ReadonlyArray<Query>) {
    const partitions = new Set<string>()
    for (const [i, { params, text }] of queries.entries()) {
      const { partitionKeys, table } = yield* transport.prepare(text)
      // Without all of the key bound nothing is known of the partition.
      const key = partitionKeys?.length ? partitionKeys.map((place) => String(params[place])) : [i]
      partitions.add(JSON.stringify([table, ...key]))
    }
    return partitions.size
  })

  const batch = <A>(
    statements: ReadonlyArray<Statement<any>>,
    batchOptions: BatchOptions,
    conditional: boolean,
    onPage: OnPage<A>
  ): Effect.Effect<A, CassandraError> => {
    const queries: Array<Query> = []
    let settings: BatchOptions = batchOptions
    let idempotent = true
    let bytes = 0
    if (statements.length > maxStatements) {
      return fail(invalid(`a batch of ${statements.length} statements: the server takes ${maxStatements} at most`))
    }
    for (const [i, self] of statements.entries()) {
      const own = settingsOf(self)
      if ("_tag" in own) return fail(own)
      const info = textInfo(self.text)
      const query = queryOf(self, own, info)
      if ("_tag" in query) return fail(query)
      if (info.isConditional && !conditional) {
        return fail(invalid(`"${info.redacted}" has an IF, whose outcome would be lost: use appliedBatch`))
      }
      for (const name of ofBatch) {
        if (batchOptions[name] !== undefined) continue
        if (i === 0) settings = { ...settings, [name]: own[name] }
        else if (settings[name] !== own[name]) {
          const way = name === "timestamp" ? "give each a USING TIMESTAMP" : "set it for the batch"
          return fail(invalid(`the statements of a batch differ in ${name}: ${way}, as they are sent as one`))
        }
      }
      idempotent &&= own.idempotent ?? false
      queries.push(query)
      for (const param of query.params) bytes += sizeOf(param)
    }
    const problem = problemOf(settings)
    if (problem !== undefined) return fail(invalid(`${problem}, in a batch`))
    if (conditional && settings.timestamp !== undefined) {
      return fail(invalid("a conditional batch gets its timestamp from the server, and cannot have another"))
    }
    if (conditional && !statements.some(({ text }) => textInfo(text).isConditional)) {
      return fail(invalid("not a conditional batch, none of its statements has an IF: use batch"))
    }
    idempotent = !conditional && (batchOptions.idempotent ?? idempotent)
    const millis = settings.timeout === undefined ? timeout : millisOf(settings.timeout)
    const driverOptions = driverOptionsOf(settings, conditional, idempotent, millis)
    driverOptions.logged = (settings.type ?? "logged") === "logged"
    driverOptions.counter = settings.type === "counter"
    const first = textInfo(statements[0]!.text)
    const info: TextInfo = {
      ...first,
      operation: "BATCH",
      summary: first.table === undefined ? "BATCH" : `BATCH ${first.table}`
    }
    const self = statements[0]!
    const send = transport.send({ self, query: queries, info, driverOptions, conditional, idempotent, millis }, onPage)
    if (bytes <= maxBatchSize) return send
    return Effect.flatMap(countPartitions(queries), (partitions) => {
      if (partitions === 1) return send
      const message = `${bytes} bytes over ${partitions} partitions, and the server accepts ${maxBatchSize} (batch_size_fail_threshold): write each partition by itself, a batch is for keeping a few rows together`
      return fail(new BatchTooLarge({ message, bytes, limit: maxBatchSize, cause: undefined }))
    })
  }

  const session: CassandraSession["Service"] = {
    keyspace: options.keyspace,
    execute,
    stream,
    first: (self) => page(self, undefined, onFirst),
    one: <A = Row>(self: Statement<A>) =>
      Effect.flatMap(Stream.runCollect(Stream.take(stream(self), 2)), (rows) => {
        if (rows.length === 1) return Effect.succeed(rows[0]!)
        const message = `${rows.length === 0 ? "no row" : "several rows"} where one was expected: ${textInfo(self.text).redacted}`
        return fail(new UnexpectedRows({ message, rows: rows.length, cause: undefined }))
      }),
    raw: (self) => page(self, undefined, onRaw),
    applied: (self) => page(self, undefined, onApplied, true),
    batch: (statements, batchOptions = {}) =>
      statements.length === 0 ? Effect.void : batch(statements, batchOptions, false, onDone),
    appliedBatch: (statements, batchOptions = {}) =>
      statements.length === 0
        ? fail(invalid("a conditional batch without statements"))
        : batch(statements, batchOptions, true, onApplied),
    prepare: (text, statementOptions) =>
      Effect.as(transport.prepare(text), (...params) => statement(text, params, statementOptions)),
    createTables: Effect.fnUntraced(function* (statements) {
      const wanted: Array<readonly [string, string]> = []
      for (const text of statements) {
        const name = /^\s*create\s+table\s+if\s+not\s+exists\s+("?)(\w+)\1[\s(]/i.exec(text)
        if (name === null) {
          const message = `not of the form CREATE TABLE IF NOT EXISTS name (...): ${text}`
          return yield* fail(new InvalidStatement({ message, cause: undefined }))
        }
        wanted.push([name[1] === "" ? name[2]!.toLowerCase() : name[2]!, text])
      }
      // A look first: most of the time there is nothing to do, and no lock to wait for.
      const missing = Effect.map(tablesOf(session), (present) => wanted.filter(([name]) => !present.has(name)))
      const create = Effect.gen(function* () {
        if ((yield* missing).length === 0 && !(yield* isSchemaChanging(session))) return
        yield* session.withSchemaLock(
          Effect.flatMap(missing, (tables) =>
            Effect.forEach(tables, ([, text]) => execute(statement(text)), { discard: true })
          )
        )
      })
      yield* patiently(options, create)
    }),
    withSchemaLock: (effect) => withSchemaLock(session, effect),
    health: Effect.map(
      Effect.exit(
        execute(statement("SELECT key FROM system.local", [], { consistency: "ONE", timeout: Math.min(timeout, 2000) }))
      ),
      (exit) => ({
        healthy: exit._tag === "Success",
        error: exit._tag === "Success" ? undefined : Option.getOrUndefined(Cause.findErrorOption(exit.cause)),
        ...transport.state()
      })
    ),
    use: transport.use
  }
  return session
}
