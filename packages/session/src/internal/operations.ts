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
import type { Applied, BatchOptions, CassandraSession, Health, Options } from "../CassandraSession.ts"
import { type Row, type Statement, type Options as StatementOptions, make as statement } from "../Statement.ts"
import { consistencies } from "./consistency.ts"
import { isSchemaChanging, tablesOf, withSchemaLock } from "./keyspace.ts"
import { type TextInfo, type TtlText, textInfo, withTtl } from "./text.ts"

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
  readonly query: string
  readonly params: Array<unknown>
}

/** How a request is to be carried. */
export interface Carriage {
  readonly info: TextInfo
  /** It has an IF: it is sent once, and a lost answer leaves its outcome unknown. */
  readonly conditional: boolean
  readonly idempotent: boolean
  /** Bound on the whole request. */
  readonly millis: number
}

/** Carries requests. */
export interface Transport {
  readonly execute: <A>(
    query: Query,
    options: driver.QueryOptions,
    how: Carriage,
    onPage: (page: Page) => Effect.Effect<A, CassandraError>
  ) => Effect.Effect<A, CassandraError>
  readonly batch: <A>(
    queries: ReadonlyArray<Query>,
    options: driver.QueryOptions,
    how: Carriage,
    onPage: (page: Page) => Effect.Effect<A, CassandraError>
  ) => Effect.Effect<A, CassandraError>
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

const none: StatementOptions = {}

/** Size of a value as the server counts it, at least. */
const sizeOf = (value: unknown): number =>
  value == null || typeof value === "boolean"
    ? 1
    : typeof value === "string"
      ? Buffer.byteLength(value)
      : ArrayBuffer.isView(value)
        ? value.byteLength
        : value instanceof Map
          ? [...value].reduce((sum, [key, item]) => sum + sizeOf(key) + sizeOf(item), 0)
          : globalThis.Array.isArray(value) || value instanceof Set
            ? [...value].reduce((sum: number, item) => sum + sizeOf(item), 0)
            : 4

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
    const message = `not a conditional write, it has no IF: ${textInfo(self.text).redacted}`
    return fail(new InvalidStatement({ message, cause: undefined }))
  }
  if (row["[applied]"]) return Effect.succeed({ applied: true })
  const { "[applied]": _, ...current } = row
  return self.decode === undefined
    ? Effect.succeed({ applied: false, current: current as Partial<A> })
    : Effect.map(Effect.fromResult(self.decode(current)), (current) => ({ applied: false, current }))
}

/** The operations of a session with these options. */
export const makeOperations = (options: Options, transport: Transport): CassandraSession["Service"] => {
  const timeout = Duration.toMillis(options.requestTimeout ?? "10 seconds")
  const maxBatchSize = options.maxBatchSize ?? 50 * 1024
  const ttlTexts = new Map<string, TtlText>()

  /** A statement as the driver wants it, or why it cannot be one. */
  const resolve = (self: Statement<any>, conditional: boolean) => {
    const profile = self.options.profile === undefined ? none : options.profiles?.[self.options.profile]
    if (profile === undefined) {
      const known = Object.keys(options.profiles ?? {}).map((name) => `"${name}"`)
      const message = `there is no profile "${self.options.profile}" among ${known.join(", ") || "none"}: add it to \`profiles\``
      return new InvalidOptions({ message, cause: undefined })
    }
    const settings = profile === none ? self.options : { ...profile, ...self.options }
    const info = textInfo(self.text)
    if (options.access === "read" && !info.isSelect) {
      const message = `the session of keyspace "${options.keyspace}" was opened with \`access: "read"\`: ${info.summary} is refused`
      return new ReadOnly({ message, cause: undefined })
    }
    let query = self.text
    let params = self.params
    if (settings.ttl !== undefined) {
      const changed = ttlTexts.get(query) ?? withTtl(query)
      ttlTexts.set(query, changed)
      const seconds = Duration.toSeconds(settings.ttl)
      if (typeof changed === "string" || !Number.isInteger(seconds) || seconds < 1) {
        const why = typeof changed === "string" ? changed : `${seconds} s is not a whole number of seconds`
        return new InvalidStatement({ message: `no ttl for "${info.redacted}": ${why}`, cause: undefined })
      }
      query = changed.text
      params = params.toSpliced(changed.index, 0, seconds)
    }
    const { consistency, pageSize, serialConsistency, timestamp, trace } = settings
    const idempotent = !conditional && (settings.idempotent ?? info.isSelect)
    const driverOptions: Mutable<driver.QueryOptions> = { prepare: info.isPreparable, isIdempotent: idempotent }
    if (conditional) driverOptions.retry = never
    if (consistency !== undefined) driverOptions.consistency = consistencies[consistency]
    if (serialConsistency !== undefined) driverOptions.serialConsistency = consistencies[serialConsistency]
    if (pageSize !== undefined) driverOptions.fetchSize = pageSize
    if (timestamp !== undefined) driverOptions.timestamp = timestamp
    if (trace) driverOptions.traceQuery = true
    const millis = settings.timeout === undefined ? timeout : Duration.toMillis(settings.timeout)
    if (millis > timeout) driverOptions.readTimeout = millis + 1000
    return { query, params: params as Array<unknown>, driverOptions, info, conditional, idempotent, millis }
  }

  const warned = new Set<string>()

  /** What the server says of a request beside its rows. */
  const heed = <A>(
    info: TextInfo,
    result: Page,
    onPage: (page: Page) => Effect.Effect<A, CassandraError>
  ): Effect.Effect<A, CassandraError> => {
    const { isSchemaInAgreement, speculativeExecutions, warnings } = result.info
    if (speculativeExecutions > 0) transport.onSpeculative(speculativeExecutions)
    if (!isSchemaInAgreement) {
      const message = `the nodes did not agree on the schema in time after ${info.summary}: one of them is away or slow`
      return fail(new SchemaDisagreement({ message, cause: undefined }))
    }
    if (warnings == null || warnings.length === 0 || warned.has(info.redacted)) return onPage(result)
    warned.add(info.redacted)
    return Effect.andThen(Effect.logWarning(`${info.summary}: ${warnings.join(", ")}`), onPage(result))
  }

  const page = <A>(
    self: Statement<any>,
    conditional: boolean,
    pageState: string | undefined,
    onPage: (page: Page) => Effect.Effect<A, CassandraError>
  ): Effect.Effect<A, CassandraError> => {
    const resolved = resolve(self, conditional)
    if ("_tag" in resolved) return fail(resolved)
    if (pageState !== undefined) resolved.driverOptions.pageState = pageState
    return transport.execute(resolved, resolved.driverOptions, resolved, (result) =>
      heed(resolved.info, result, onPage)
    )
  }

  const execute = <A = Row>(self: Statement<A>): Effect.Effect<ReadonlyArray<A>, CassandraError> =>
    page(self, false, undefined, (first) => {
      if (!first.pageState) return rowsOf(self, first)
      return Effect.gen(function* () {
        const rows = yield* rowsOf(self, first)
        for (let state = first.pageState; state; ) {
          const next: Page = yield* page(self, false, state, Effect.succeed)
          for (const row of yield* rowsOf(self, next)) rows.push(row)
          state = next.pageState
        }
        return rows
      })
    })

  const stream = <A = Row>(self: Statement<A>): Stream.Stream<A, CassandraError> =>
    Stream.paginate(undefined as string | undefined, (state) =>
      page(self, false, state, (result) =>
        Effect.map(
          rowsOf(self, result),
          (rows) => [rows, result.pageState ? Option.some(result.pageState) : Option.none()] as const
        )
      )
    )

  const countPartitions = Effect.fnUntraced(function* (queries: ReadonlyArray<Query>) {
    const partitions = new Set<string>()
    for (const [i, { params, query }] of queries.entries()) {
      const { partitionKeys, table } = yield* transport.prepare(query)
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
    onPage: (page: Page) => Effect.Effect<A, CassandraError>
  ): Effect.Effect<A, CassandraError> => {
    const queries: Array<Query> = []
    let bytes = 0
    for (const self of statements) {
      const resolved = resolve(self, false)
      if ("_tag" in resolved) return fail(resolved)
      queries.push({ query: resolved.query, params: resolved.params })
      for (const param of resolved.params) bytes += sizeOf(param)
    }
    const { consistency, serialConsistency, timestamp, type = "logged" } = batchOptions
    const idempotent = !conditional && (batchOptions.idempotent ?? false)
    const driverOptions: Mutable<driver.QueryOptions> = {
      prepare: true,
      logged: type === "logged",
      counter: type === "counter",
      isIdempotent: idempotent
    }
    if (conditional) driverOptions.retry = never
    if (consistency !== undefined) driverOptions.consistency = consistencies[consistency]
    if (serialConsistency !== undefined) driverOptions.serialConsistency = consistencies[serialConsistency]
    if (timestamp !== undefined) driverOptions.timestamp = timestamp
    const millis = batchOptions.timeout === undefined ? timeout : Duration.toMillis(batchOptions.timeout)
    if (millis > timeout) driverOptions.readTimeout = millis + 1000
    const first = textInfo(statements[0]!.text)
    const info: TextInfo = {
      ...first,
      operation: "BATCH",
      summary: first.table === undefined ? "BATCH" : `BATCH ${first.table}`
    }
    const send = transport.batch(queries, driverOptions, { info, conditional, idempotent, millis }, (result) =>
      heed(info, result, onPage)
    )
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
    first: <A = Row>(self: Statement<A>) =>
      page(self, false, undefined, (result) =>
        result.rows?.length || !result.pageState
          ? Effect.map(rowsOf(self, result), Array.head)
          : // An empty page, and more follow.
            Stream.runHead(stream(self))
      ),
    one: <A = Row>(self: Statement<A>) =>
      Effect.flatMap(Stream.runCollect(Stream.take(stream(self), 2)), (rows) => {
        if (rows.length === 1) return Effect.succeed(rows[0]!)
        const message = `${rows.length === 0 ? "no row" : "several rows"} where one was expected: ${textInfo(self.text).redacted}`
        return fail(new UnexpectedRows({ message, rows: rows.length, cause: undefined }))
      }),
    raw: <A = Row>(self: Statement<A>) =>
      page(self, false, undefined, (result) =>
        Effect.map(rowsOf(self, result), (rows) => ({
          rows,
          hasMore: Boolean(result.pageState),
          coordinator: result.info.queriedHost,
          traceId: result.info.traceId?.toString(),
          warnings: result.info.warnings ?? []
        }))
      ),
    applied: (self) => page(self, true, undefined, (result) => appliedOf(self, result)),
    batch: (statements, batchOptions = {}) =>
      statements.length === 0 ? Effect.void : batch(statements, batchOptions, false, () => Effect.void),
    appliedBatch: (statements, batchOptions = {}) =>
      statements.length === 0
        ? fail(new InvalidStatement({ message: "a conditional batch without statements", cause: undefined }))
        : batch(statements, batchOptions, true, (result) => appliedOf(statements[0]!, result)),
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
      if ((yield* missing).length === 0 && !(yield* isSchemaChanging(session))) return
      yield* session.withSchemaLock(
        Effect.flatMap(missing, (tables) =>
          Effect.forEach(tables, ([, text]) => execute(statement(text)), { discard: true })
        )
      )
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
