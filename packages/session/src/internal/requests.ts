import driver from "cassandra-driver"
import { Effect, Latch, Schedule, Tracer } from "effect"
import { CassandraError, Overloaded, type Reason, SessionClosed } from "../CassandraError.ts"
import { Admission, Deadlines, Ticket } from "./admission.ts"
import { type DriverRetries, execute, hostStates, prepared } from "./client.ts"
import { hideValues, toConditionalReason, toReason } from "./driverError.ts"
import { SessionMetrics } from "./metrics.ts"
import type { Carriage, Page, Query, Transport } from "./operations.ts"
import { millisOf, type Settings } from "./options.ts"
import { type TextInfo, textInfo } from "./text.ts"

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const defaultRetry = Schedule.exponential("50 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))

/** What a request needs beside itself. */
interface Requests {
  readonly client: driver.Client
  readonly admission: Admission
  readonly deadlines: Deadlines
  readonly metrics: SessionMetrics
  /** Of every request that has none of its own. */
  readonly timeout: number
  readonly slow: number
}

/**
 * One request of the driver. It cannot be cancelled there: one that is interrupted or timed out goes on unheard, and its
 * place is free.
 */
class Request<A, B> extends Ticket {
  readonly #requests: Requests
  readonly #run: (client: driver.Client) => Promise<A>
  readonly #onValue: (value: A) => Effect.Effect<B, CassandraError>
  readonly #onReason: (reason: Reason) => Effect.Effect<B, CassandraError>
  readonly #how: Carriage
  readonly #resume: (effect: Effect.Effect<B, CassandraError>) => void
  readonly #begin = performance.now()
  #timer: NodeJS.Timeout | undefined

  constructor(
    requests: Requests,
    run: (client: driver.Client) => Promise<A>,
    onValue: (value: A) => Effect.Effect<B, CassandraError>,
    onReason: (reason: Reason) => Effect.Effect<B, CassandraError>,
    how: Carriage,
    resume: (effect: Effect.Effect<B, CassandraError>) => void
  ) {
    super()
    this.#requests = requests
    this.#run = run
    this.#onValue = onValue
    this.#onReason = onReason
    this.#how = how
    this.#resume = resume
  }

  submit(millis: number): void {
    const { admission, deadlines, metrics, timeout } = this.#requests
    if (millis === timeout) deadlines.add(this, this.#begin)
    else this.#timer = setTimeout(() => this.expire(), millis)
    if (admission.submit(this)) return
    this.release()
    metrics.failed("Overloaded")
    const message = `${admission.inFlight} requests are under way and ${admission.queued} wait: try later, or raise maxInFlight or maxQueued`
    this.#resume(this.#onReason(new Overloaded({ message, cause: undefined })))
  }

  override start(): void {
    let promise: Promise<A>
    try {
      promise = this.#run(this.#requests.client)
    } catch (cause) {
      promise = Promise.reject(cause)
    }
    promise.then(
      (value) => {
        if (this.state === "running") this.#finish(this.#onValue(value), undefined)
      },
      (cause) => this.#fail(cause)
    )
  }

  override expire(): void {
    const { admission } = this.#requests
    const elapsed = Math.round(performance.now() - this.#begin)
    if (this.state === "waiting") {
      const message = `its turn did not come within ${elapsed} ms: ${admission.inFlight} requests are under way and ${admission.queued} wait (maxInFlight, maxQueued)`
      const reason = new Overloaded({ message, cause: undefined })
      this.#finish(this.#onReason(reason), reason)
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
    hideValues(cause, this.#how.queries)
    const reason = this.#how.conditional ? toConditionalReason(cause) : toReason(cause)
    this.#finish(this.#onReason(reason), reason)
  }

  #finish(result: Effect.Effect<B, CassandraError>, error: Reason | undefined): void {
    const { metrics, slow } = this.#requests
    const { info } = this.#how
    this.release()
    const elapsed = performance.now() - this.#begin
    metrics.ended(elapsed / 1000, error?._tag)
    this.#resume(
      elapsed < slow || info === undefined
        ? result
        : Effect.andThen(Effect.logWarning(`slow statement, ${Math.round(elapsed)} ms: ${info.redacted}`), result)
    )
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
  const requests: Requests = {
    client,
    admission,
    deadlines: new Deadlines(timeout),
    metrics,
    timeout,
    slow: millisOf(options.slowStatement)
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

  const submit = <A, B>(
    run: (client: driver.Client) => Promise<A>,
    onValue: (value: A) => Effect.Effect<B, CassandraError>,
    onReason: (reason: Reason) => Effect.Effect<B, CassandraError>,
    how: Carriage,
    millis = how.millis
  ): Effect.Effect<B, CassandraError> =>
    Effect.callback<B, CassandraError>((resume) => {
      if (closed) return resume(fail(new SessionClosed({ message: "the session is closed", cause: undefined })))
      const request = new Request(requests, run, onValue, onReason, how, resume)
      request.submit(millis)
      if (request.state !== "done") return Effect.sync(() => request.release())
    })

  /** With the tries that an idempotent request has, all within its time, which begins now. */
  const carry = <A, B>(
    run: (client: driver.Client) => Promise<A>,
    onValue: (value: A) => Effect.Effect<B, CassandraError>,
    how: Carriage
  ): Effect.Effect<B, CassandraError> => {
    if (!how.idempotent) return submit(run, onValue, fail, how)
    const end = performance.now() + how.millis
    const onReason = (reason: Reason): Effect.Effect<B, CassandraError> => {
      let last = new CassandraError({ reason })
      if (!mayPass(last)) return Effect.fail(last)
      let tries = 0
      return Effect.suspend(() => {
        if (tries++ === 0) return Effect.fail(last)
        metrics.retries++
        return submit(run, onValue, fail, how, Math.max(1, end - performance.now()))
      }).pipe(
        Effect.tapError((error) =>
          Effect.sync(() => {
            last = error
          })
        ),
        Effect.retry({ schedule, while: mayPass }),
        Effect.timeoutOrElse({ duration: Math.max(0, end - performance.now()), orElse: () => Effect.fail(last) })
      )
    }
    return submit(run, onValue, onReason, how)
  }

  /** A span around a request, where there is a tracer to see it. */
  const traced = <B>(
    run: (client: driver.Client) => Promise<Page>,
    how: Carriage & { readonly info: TextInfo },
    onPage: (page: Page) => Effect.Effect<B, CassandraError>
  ): Effect.Effect<B, CassandraError> =>
    Effect.withFiber((fiber) => {
      if (fiber.getRef(Tracer.Tracer) === Tracer.nativeTracer) return carry(run, onPage, how)
      const { operation, summary, table } = how.info
      const attributes = {
        "db.system.name": "cassandra",
        "db.namespace": options.keyspace,
        "db.operation.name": operation,
        "db.query.summary": summary,
        "db.query.text": [...new Set(how.queries.map(({ query }) => textInfo(query).redacted))].join("; "),
        ...(table === undefined ? {} : { "db.collection.name": table })
      }
      return Effect.useSpan(summary, { kind: "client", attributes }, (span) =>
        carry(
          run,
          (page) => {
            const [, address, port] = /^(.*):(\d+)$/.exec(page.info.queriedHost) ?? []
            span.attribute("server.address", address ?? page.info.queriedHost)
            if (port !== undefined) span.attribute("server.port", Number(port))
            span.attribute("db.response.returned_rows", page.rows?.length ?? 0)
            return onPage(page)
          },
          how
        ).pipe(Effect.tapError((error) => Effect.sync(() => span.attribute("error.type", error.reason._tag))))
      )
    })

  /** Of what is no statement. */
  const bare = (idempotent: boolean): Carriage => ({
    info: undefined,
    queries: [],
    conditional: false,
    idempotent,
    millis: timeout
  })

  const transport: Transport = {
    execute: ({ params, query }, driverOptions, how, onPage) =>
      traced(
        // The driver's types miss what its results have at run time.
        (client) => execute(client, query, params, driverOptions) as Promise<unknown> as Promise<Page>,
        how,
        onPage
      ),
    batch: (driverOptions, how, onPage) =>
      traced(
        (client) => client.batch(how.queries as Array<Query>, driverOptions) as Promise<unknown> as Promise<Page>,
        how,
        onPage
      ),
    prepare: (text) =>
      Effect.suspend(() =>
        carry(
          (client) => prepared(client, text),
          ({ meta }) => Effect.succeed(meta),
          bare(true)
        )
      ),
    use: (f) => submit(f, Effect.succeed, fail, bare(false)),
    state: () => ({ hosts: hostStates(client), inFlight: admission.inFlight, queued: admission.queued }),
    onSpeculative: (count) => {
      metrics.speculative += count
    }
  }
  return transport
})
