import driver from "cassandra-driver"
import { Effect, Fiber, Latch, Schedule, Tracer } from "effect"
import { CassandraError, Overloaded, type Reason, SessionClosed } from "../CassandraError.ts"
import { Admission, Deadlines, Ticket } from "./admission.ts"
import { type DriverRetries, execute, hostStates, prepared } from "./client.ts"
import { hideValues, toConditionalReason, toReason } from "./driverError.ts"
import { SessionMetrics } from "./metrics.ts"
import { type Carriage, isBatch, type Page, type Query, queriesOf, type Sending, type Transport } from "./operations.ts"
import { millisOf, type Settings } from "./options.ts"
import { type TextInfo, textInfo } from "./text.ts"

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const defaultRetry = Schedule.exponential("50 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))

const slowLogInterval = 10_000

/** What a request needs beside itself. */
interface Requests {
  readonly client: driver.Client
  readonly admission: Admission
  readonly deadlines: Deadlines
  readonly metrics: SessionMetrics
  /** One for all: under load most answers may be refusals, and an error with its stack takes longer than a statement. */
  readonly refusal: Effect.Effect<never, CassandraError>
  /** Of every request that has none of its own. */
  readonly timeout: number
  readonly slow: number
  /** When a slow statement on a table was last logged, and how many were not since. */
  readonly slowLogged: Map<string, { readonly at: number; unsaid: number }>
}

/**
 * One request of the driver. It cannot be cancelled there: one that is interrupted or timed out goes on unheard, and its
 * place is free.
 */
class Request<A, B, How extends Carriage> extends Ticket {
  readonly #requests: Requests
  readonly how: How
  readonly run: (client: driver.Client, how: How) => Promise<A>
  readonly onValue: (value: A, how: How) => Effect.Effect<B, CassandraError>
  readonly #onReason: (reason: Reason, request: Request<A, B, How>) => Effect.Effect<B, CassandraError>
  readonly #resume: (effect: Effect.Effect<B, CassandraError>) => void
  readonly begin = performance.now()
  #timer: NodeJS.Timeout | undefined

  constructor(
    requests: Requests,
    how: How,
    run: (client: driver.Client, how: How) => Promise<A>,
    onValue: (value: A, how: How) => Effect.Effect<B, CassandraError>,
    onReason: (reason: Reason, request: Request<A, B, How>) => Effect.Effect<B, CassandraError>,
    resume: (effect: Effect.Effect<B, CassandraError>) => void
  ) {
    super()
    this.#requests = requests
    this.how = how
    this.run = run
    this.onValue = onValue
    this.#onReason = onReason
    this.#resume = resume
  }

  submit(millis: number): void {
    const { admission, deadlines, metrics, refusal, timeout } = this.#requests
    if (millis === timeout) deadlines.add(this, this.begin)
    else this.#timer = setTimeout(() => this.expire(), millis)
    if (admission.submit(this)) return
    this.release()
    metrics.failed("Overloaded")
    this.#resume(refusal)
  }

  override start(): void {
    let promise: Promise<A>
    try {
      promise = this.run(this.#requests.client, this.how)
    } catch (cause) {
      promise = Promise.reject(cause)
    }
    promise.then(
      (value) => {
        if (this.state === "running") this.#finish(this.onValue(value, this.how), undefined)
      },
      (cause) => this.#fail(cause)
    )
  }

  override expire(): void {
    const { admission } = this.#requests
    const elapsed = Math.round(performance.now() - this.begin)
    if (this.state === "waiting") {
      const message = `its turn did not come within ${elapsed} ms: ${admission.inFlight} requests are under way and ${admission.queued} wait (maxInFlight, maxQueued)`
      const reason = new Overloaded({ message, cause: undefined })
      this.#finish(this.#onReason(reason, this), reason)
    } else this.#fail(new driver.errors.OperationTimedOutError(`no answer within ${elapsed} ms`))
  }

  release(): void {
    const { admission, deadlines } = this.#requests
    if (this.#timer === undefined) deadlines.remove(this)
    else clearTimeout(this.#timer)
    admission.release(this)
  }

  #fail(cause: unknown): void {
    if (this.state !== "running") return
    hideValues(cause, queriesOf(this.how))
    const reason = this.how.conditional ? toConditionalReason(cause) : toReason(cause)
    this.#finish(this.#onReason(reason, this), reason)
  }

  #finish(result: Effect.Effect<B, CassandraError>, error: Reason | undefined): void {
    const { metrics, slow } = this.#requests
    const { info } = this.how
    this.release()
    const elapsed = performance.now() - this.begin
    metrics.ended(elapsed / 1000, error?._tag)
    this.#resume(
      elapsed < slow || info === undefined ? result : Effect.andThen(this.#logSlow(info, Math.round(elapsed)), result)
    )
  }

  /** One line in a while for each kind of statement: when a cluster is slow, everything is. */
  #logSlow({ redacted, summary }: TextInfo, millis: number): Effect.Effect<void> {
    const { slowLogged } = this.#requests
    const now = performance.now()
    const last = slowLogged.get(summary)
    if (last !== undefined && now - last.at < slowLogInterval) {
      last.unsaid++
      return Effect.void
    }
    slowLogged.set(summary, { at: now, unsaid: 0 })
    const others =
      last === undefined || last.unsaid === 0 ? "" : `, and ${last.unsaid} more ${summary} since the last such line`
    return Effect.logWarning(`slow statement, ${millis} ms${others}: ${redacted}`)
  }
}

/** Whether a try of an idempotent request that failed so is worth another. */
const mayPass = (error: CassandraError) =>
  error.isRetryable && error.reason._tag !== "Overloaded" && error.reason._tag !== "RequestTimeout"

/**
 * Carries requests by the driver: bounded, timed, tried again, counted and traced. Those under way are awaited when the
 * scope ends.
 */
export const driverTransport = Effect.fnUntraced(function* (
  options: Settings,
  client: driver.Client,
  driverRetries: DriverRetries
) {
  const schedule = options.retry ?? defaultRetry
  const context = yield* Effect.context<never>()
  const log = (effect: Effect.Effect<void>) => Effect.runForkWith(context)(effect)
  client.on("hostDown", (host: driver.Host) => log(Effect.logWarning(`Cassandra node ${host.address} is down`)))
  client.on("hostUp", (host: driver.Host) => log(Effect.logInfo(`Cassandra node ${host.address} is up`)))

  const timeout = millisOf(options.requestTimeout)
  const idle = Latch.makeUnsafe(true)
  const admission = new Admission(options.maxInFlight, options.maxQueued, () => idle.openUnsafe())
  const metrics = new SessionMetrics(context, options.keyspace, () => ({
    inFlight: admission.inFlight,
    queued: admission.queued,
    connections: hostStates(client).reduce((sum, host) => sum + host.connections, 0),
    driverRetries: driverRetries.count
  }))
  const message = `${options.maxInFlight} requests are under way and ${options.maxQueued} wait: try later, or raise maxInFlight or maxQueued`
  const requests: Requests = {
    client,
    admission,
    deadlines: new Deadlines(timeout),
    metrics,
    refusal: fail(new Overloaded({ message, cause: undefined })),
    timeout,
    slow: millisOf(options.slowStatement),
    slowLogged: new Map()
  }
  let closed = false
  yield* Effect.addFinalizer(() =>
    Effect.gen(function* () {
      closed = true
      if (admission.inFlight > 0) {
        idle.closeUnsafe()
        yield* Effect.timeoutOption(idle.await, timeout)
      }
      requests.deadlines.close()
      metrics.close()
    })
  )

  /** Sends a request, and gives what ends it when its fiber is interrupted. */
  const start = <A, B, How extends Carriage>(
    how: How,
    run: (client: driver.Client, how: How) => Promise<A>,
    onValue: (value: A, how: How) => Effect.Effect<B, CassandraError>,
    onReason: (reason: Reason, request: Request<A, B, How>) => Effect.Effect<B, CassandraError>,
    resume: (effect: Effect.Effect<B, CassandraError>) => void,
    millis: number
  ): Effect.Effect<void> | undefined => {
    if (closed) {
      resume(fail(new SessionClosed({ message: "the session is closed", cause: undefined })))
      return
    }
    const request = new Request(requests, how, run, onValue, onReason, resume)
    request.submit(millis)
    return request.state === "done" ? undefined : Effect.sync(() => request.release())
  }

  const submit = <A, B, How extends Carriage>(
    how: How,
    run: (client: driver.Client, how: How) => Promise<A>,
    onValue: (value: A, how: How) => Effect.Effect<B, CassandraError>,
    onReason: (reason: Reason, request: Request<A, B, How>) => Effect.Effect<B, CassandraError> = fail,
    millis = how.millis
  ): Effect.Effect<B, CassandraError> =>
    Effect.callback<B, CassandraError>((resume) => start(how, run, onValue, onReason, resume, millis))

  /** The tries that an idempotent request has after its first one, within its time. */
  const again = <A, B, How extends Carriage>(
    reason: Reason,
    { begin, how, onValue, run }: Request<A, B, How>
  ): Effect.Effect<B, CassandraError> => {
    let last = new CassandraError({ reason })
    if (!mayPass(last)) return Effect.fail(last)
    const left = () => begin + how.millis - performance.now()
    let tries = 0
    return Effect.suspend(() => {
      if (tries++ === 0) return Effect.fail(last)
      metrics.retries++
      return submit(how, run, onValue, fail, Math.max(1, left()))
    }).pipe(
      Effect.tapError((error) =>
        Effect.sync(() => {
          last = error
        })
      ),
      Effect.retry({ schedule, while: mayPass }),
      Effect.timeoutOrElse({ duration: Math.max(0, left()), orElse: () => Effect.fail(last) })
    )
  }

  const run = (client: driver.Client, { driverOptions, query }: Sending): Promise<Page> => {
    const params = ({ params }: Query) => params as Array<unknown>
    const result: Promise<unknown> = isBatch(query)
      ? client.batch(
          query.map((one) => ({ query: one.text, params: params(one) })),
          driverOptions
        )
      : execute(client, query.text, params(query), driverOptions)
    // The driver's types miss what its results have at run time.
    return result as Promise<Page>
  }

  const traced = <B>(how: Sending, onPage: (page: Page, how: Sending) => Effect.Effect<B, CassandraError>) => {
    const { operation, summary, table } = how.info
    const attributes = {
      "db.system.name": "cassandra",
      "db.namespace": options.keyspace,
      "db.operation.name": operation,
      "db.query.summary": summary,
      "db.query.text": [...new Set(queriesOf(how).map(({ text }) => textInfo(text).redacted))].join("; "),
      ...(table === undefined ? {} : { "db.collection.name": table })
    }
    return Effect.useSpan(summary, { kind: "client", attributes }, (span) => {
      const onValue = (page: Page, how: Sending) => {
        const [, address, port] = /^(.*):(\d+)$/.exec(page.info.queriedHost) ?? []
        span.attribute("server.address", address ?? page.info.queriedHost)
        if (port !== undefined) span.attribute("server.port", Number(port))
        span.attribute("db.response.returned_rows", page.rows?.length ?? 0)
        return onPage(page, how)
      }
      return submit(how, run, onValue, how.idempotent ? again : fail).pipe(
        Effect.tapError((error) => Effect.sync(() => span.attribute("error.type", error.reason._tag)))
      )
    })
  }

  /** Of what is no statement. */
  const bare: Carriage = { info: undefined, query: [], conditional: false, idempotent: false, millis: timeout }

  const transport: Transport = {
    send: (how, onPage) =>
      Effect.callback((resume) => {
        // A span, where there is a tracer to see it.
        if (Fiber.getCurrent()?.getRef(Tracer.Tracer) !== Tracer.nativeTracer) return resume(traced(how, onPage))
        return start(how, run, onPage, how.idempotent ? again : fail, resume, how.millis)
      }),
    prepare: (text) =>
      submit(
        bare,
        (client) => prepared(client, text),
        ({ meta }) => Effect.succeed(meta),
        again
      ),
    use: (f) => submit(bare, f, Effect.succeed),
    state: () => ({ hosts: hostStates(client), inFlight: admission.inFlight, queued: admission.queued }),
    onSpeculative: (count) => {
      metrics.speculative += count
    }
  }
  return transport
})
