import driver from "cassandra-driver"
import { Duration, Effect, Latch, Schedule, Tracer } from "effect"
import { CassandraError, NoHostAvailable, Overloaded, type Reason } from "../CassandraError.ts"
import type { Options } from "../CassandraSession.ts"
import { Admission, type Ticket } from "./admission.ts"
import { type DriverRetries, hostStates, prepared } from "./client.ts"
import { toConditionalReason, toReason } from "./driverError.ts"
import { SessionMetrics } from "./metrics.ts"
import type { Carriage, Page, Query, Transport } from "./operations.ts"
import { type TextInfo, textInfo } from "./text.ts"

const fail = (reason: Reason) => Effect.fail(new CassandraError({ reason }))

const defaultRetry = Schedule.exponential("50 millis").pipe(Schedule.jittered, Schedule.upTo({ times: 3 }))

/**
 * Carries requests by the driver: bounded, timed, tried again, counted and traced. Those under way are awaited when the
 * scope ends.
 */
export const driverTransport = Effect.fnUntraced(function* (
  options: Options,
  client: driver.Client,
  driverRetries: DriverRetries
) {
  const timeout = Duration.toMillis(options.requestTimeout ?? "10 seconds")
  const slow = Duration.toMillis(options.slowStatement ?? "1 second")
  const schedule = options.retry ?? defaultRetry
  const context = yield* Effect.context<never>()

  let closed = false
  const idle = Latch.makeUnsafe(true)
  const admission = new Admission(options.maxInFlight ?? 2048, options.maxQueued ?? 16384, () => idle.openUnsafe())
  const metrics = new SessionMetrics(context, options.keyspace, () => ({
    inFlight: admission.inFlight,
    queued: admission.queued,
    connections: hostStates(client).reduce((sum, host) => sum + host.connections, 0),
    driverRetries: driverRetries.count
  }))
  yield* Effect.addFinalizer(() =>
    Effect.andThen(
      Effect.sync(() => {
        closed = true
        metrics.close()
      }),
      Effect.timeoutOption(idle.await, timeout)
    )
  )

  /**
   * Runs one request of the driver when its turn comes. The driver cannot cancel: a request that is interrupted or timed out
   * goes on unheard, and its place is free.
   */
  const submit = <A>(
    run: (client: driver.Client) => Promise<A>,
    toError: (cause: unknown) => Reason,
    millis: number,
    info: TextInfo | undefined
  ): Effect.Effect<A, CassandraError> =>
    Effect.callback<A, CassandraError>((resume) => {
      if (closed) {
        resume(fail(new NoHostAvailable({ message: "the session is closed", cause: undefined })))
        return
      }
      idle.closeUnsafe()
      const begin = performance.now()
      const finish = (result: Effect.Effect<A, CassandraError>, error: Reason | undefined) => {
        if (ticket.state === "done") return
        clearTimeout(timer)
        admission.release(ticket)
        const elapsed = performance.now() - begin
        metrics.ended(elapsed / 1000, error?._tag)
        resume(
          elapsed < slow || info === undefined
            ? result
            : Effect.andThen(Effect.logWarning(`slow statement, ${Math.round(elapsed)} ms: ${info.redacted}`), result)
        )
      }
      const failed = (cause: unknown) => {
        const reason = toError(cause)
        finish(fail(reason), reason)
      }
      const ticket: Ticket = {
        state: "new",
        next: undefined,
        start: () => {
          let promise: Promise<A>
          try {
            promise = run(client)
          } catch (cause) {
            promise = Promise.reject(cause)
          }
          promise.then((value) => finish(Effect.succeed(value), undefined), failed)
        }
      }
      const timer = setTimeout(() => {
        if (ticket.state === "waiting") {
          const message = `its turn did not come within ${millis} ms: ${admission.inFlight} requests are under way and ${admission.queued} wait (maxInFlight, maxQueued)`
          const reason = new Overloaded({ message, cause: undefined })
          finish(fail(reason), reason)
        } else failed(new driver.errors.OperationTimedOutError(`no answer within ${Math.round(millis)} ms`))
      }, millis)
      if (!admission.submit(ticket)) {
        clearTimeout(timer)
        ticket.state = "done"
        const message = `${admission.inFlight} requests are under way and ${admission.queued} wait: try later, or raise maxInFlight or maxQueued`
        metrics.failed("Overloaded")
        resume(fail(new Overloaded({ message, cause: undefined })))
        return
      }
      return Effect.sync(() => {
        clearTimeout(timer)
        admission.release(ticket)
      })
    })

  /** With the tries that an idempotent request has, all within its time. */
  const request = <A>(
    run: (client: driver.Client) => Promise<A>,
    idempotent: boolean,
    millis: number,
    info: TextInfo | undefined
  ): Effect.Effect<A, CassandraError> => {
    const first = submit(run, toReason, millis, info)
    if (!idempotent) return first
    const begin = performance.now()
    const remaining = () => millis - (performance.now() - begin)
    const again = (error: CassandraError) =>
      error.isRetryable &&
      error.reason._tag !== "Overloaded" &&
      error.reason._tag !== "RequestTimeout" &&
      remaining() > 0
    return Effect.catchIf(first, again, (error) => {
      let tries = 0
      return Effect.suspend(() => {
        if (tries++ === 0) return Effect.fail(error)
        metrics.retries++
        return submit(run, toReason, Math.max(1, remaining()), info)
      }).pipe(Effect.retry({ schedule, while: again }))
    })
  }

  /** A span around a request, where there is a tracer to see it. */
  const traced = (
    info: TextInfo,
    text: string,
    effect: Effect.Effect<driver.types.ResultSet, CassandraError>
  ): Effect.Effect<driver.types.ResultSet, CassandraError> =>
    Effect.withFiber((fiber) => {
      if (fiber.getRef(Tracer.Tracer) === Tracer.nativeTracer) return effect
      const attributes = {
        "db.system.name": "cassandra",
        "db.namespace": options.keyspace,
        "db.operation.name": info.operation,
        "db.query.summary": info.summary,
        "db.query.text": text,
        ...(info.table === undefined ? {} : { "db.collection.name": info.table })
      }
      return Effect.useSpan(info.summary, { kind: "client", attributes }, (span) =>
        Effect.tapError(
          Effect.tap(effect, (result) =>
            Effect.sync(() => {
              const [, address, port] = /^(.*):(\d+)$/.exec(result.info.queriedHost) ?? []
              span.attribute("server.address", address ?? result.info.queriedHost)
              if (port !== undefined) span.attribute("server.port", Number(port))
              span.attribute("db.response.returned_rows", result.rows?.length ?? 0)
            })
          ),
          (error) => Effect.sync(() => span.attribute("error.type", error.reason._tag))
        )
      )
    })

  const carry = (run: (client: driver.Client) => Promise<driver.types.ResultSet>, text: string, how: Carriage) =>
    traced(
      how.info,
      text,
      how.conditional
        ? submit(run, toConditionalReason, how.millis, how.info)
        : request(run, how.idempotent, how.millis, how.info)
    ) as Effect.Effect<unknown, CassandraError> as Effect.Effect<Page, CassandraError>

  const transport: Transport = {
    execute: ({ params, query }, options, how) =>
      carry((client) => client.execute(query, params, options), how.info.redacted, how),
    batch: (queries, options, how) =>
      carry(
        (client) => client.batch(queries as Array<Query>, options),
        [...new Set(queries.map(({ query }) => textInfo(query).redacted))].join("; "),
        how
      ),
    prepare: (text) =>
      Effect.map(
        request((client) => prepared(client, text), true, timeout, undefined),
        ({ meta }) => meta
      ),
    use: (f) => submit(f, toReason, timeout, undefined),
    state: () => ({ hosts: hostStates(client), inFlight: admission.inFlight, queued: admission.queued }),
    onSpeculative: (count) => {
      metrics.speculative += count
    }
  }
  return transport
})
