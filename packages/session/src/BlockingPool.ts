/**
 * A fixed number of threads for what would hold the event loop: hashing of passwords, compression, a synchronous library.
 */
import { Context, Effect, Metric, Schema, type Scope } from "effect"
import { Piscina } from "piscina"

/** Settings of a pool. */
export interface Options {
  /** The module whose exported functions are the tasks: `new URL("./tasks.ts", import.meta.url)`. */
  readonly module: URL
  /** Threads, each with one task at a time. Default: 2. */
  readonly threads?: number
  /** Tasks that wait; what comes then fails at once with `Overloaded`. Default: 1000. */
  readonly maxQueued?: number
  /** Tells the metrics of several pools apart. Default: the file name of the module. */
  readonly name?: string
}

/** A task was not run, or failed. */
export class BlockingPoolError extends Schema.TaggedError<BlockingPoolError>()("BlockingPoolError", {
  /**
   * `InvalidOptions`: the pool cannot be made so. `Overloaded`: too many tasks wait. `Closed`: the scope of the pool ended.
   * `NoSuchTask`: the module exports no such function. `Failed`: the task threw.
   */
  reason: Schema.Literals(["InvalidOptions", "Overloaded", "Closed", "NoSuchTask", "Failed"]),
  message: Schema.String,
  cause: Schema.Defect()
}) {}

type Tasks = Readonly<Record<string, any>>
type Names<T extends Tasks> = { [K in keyof T]: T[K] extends (...args: any) => any ? K : never }[keyof T] & string

/** A pool of threads for the functions of a module. */
export interface BlockingPool<T extends Tasks> {
  /**
   * Runs a function of the module in one of the threads. Arguments and result are copied as by `structuredClone`.
   * Interruption ends the task, even one that never yields: its thread is replaced.
   */
  readonly run: <Name extends Names<T>>(
    name: Name,
    ...args: Parameters<T[Name]>
  ) => Effect.Effect<Awaited<ReturnType<T[Name]>>, BlockingPoolError>
}

/**
 * Starts a pool, which ends with the scope.
 *
 * **Example**
 *
 * ```ts
 * const pool = yield* BlockingPool.make<typeof import("./tasks.ts")>({ module: new URL("./tasks.ts", import.meta.url) })
 * const hash = yield* pool.run("hashPassword", password)
 * ```
 */
export const make = Effect.fnUntraced(function* <T extends Tasks>(
  options: Options
): Effect.fn.Return<BlockingPool<T>, BlockingPoolError, Scope.Scope> {
  const threads = options.threads ?? 2
  const maxQueued = options.maxQueued ?? 1000
  for (const [name, value, least] of [
    ["threads", threads, 1],
    ["maxQueued", maxQueued, 0]
  ] as const) {
    if (Number.isInteger(value) && value >= least) continue
    const message = `${name} is ${value}: it must be a whole number of at least ${least}`
    return yield* new BlockingPoolError({ reason: "InvalidOptions", message, cause: undefined })
  }
  let closed = false
  const pool = yield* Effect.acquireRelease(
    Effect.sync(
      () =>
        new Piscina({
          filename: new URL(
            import.meta.url.endsWith(".ts") ? "./internal/task.ts" : "./internal/task.js",
            import.meta.url
          ).href,
          minThreads: threads,
          maxThreads: threads
        })
    ),
    (pool) =>
      Effect.promise(() => {
        closed = true
        return pool.destroy()
      })
  )
  const module = options.module.href
  const context = yield* Effect.contextWith((context: Context.Context<never>) =>
    Effect.succeed(
      Context.add(context, Metric.CurrentMetricAttributes, {
        ...Context.get(context, Metric.CurrentMetricAttributes),
        pool: options.name ?? module.slice(module.lastIndexOf("/") + 1)
      })
    )
  )
  let tasks = 0
  for (const [name, description, get] of [
    ["blocking_pool.running", "Tasks that have a thread", () => Math.min(tasks, threads)],
    ["blocking_pool.queued", "Tasks that wait for a thread", () => Math.max(0, tasks - threads)]
  ] as const) {
    yield* Effect.acquireRelease(
      Effect.sync(() =>
        Metric.registerUnsafe(Metric.gauge(name, { description }), context, {
          get: () => ({ value: get() }),
          update: () => {},
          modify: () => {}
        })
      ),
      (registration) => Effect.sync(registration.remove)
    )
  }
  return {
    run: (name, ...args) =>
      Effect.callback((resume, signal) => {
        // Piscina's own bound does not hold for tasks that can be ended.
        if (tasks >= threads + maxQueued) {
          const message = `${maxQueued} tasks wait for ${threads} threads: try "${name}" later, or raise maxQueued or threads`
          return resume(Effect.fail(new BlockingPoolError({ reason: "Overloaded", message, cause: undefined })))
        }
        if (closed) {
          const message = `the pool was closed before "${name}" could run`
          return resume(Effect.fail(new BlockingPoolError({ reason: "Closed", message, cause: undefined })))
        }
        tasks++
        pool.run({ module, name, args }, { signal }).then(
          (result) => {
            tasks--
            resume(Effect.succeed(result))
          },
          (cause) => {
            tasks--
            const text = cause instanceof Error ? cause.message : String(cause)
            const isMissing = text === `no such task: ${name}`
            const [reason, message] = isMissing
              ? (["NoSuchTask", `${module} exports no function "${name}"`] as const)
              : closed
                ? (["Closed", `the pool was closed while "${name}" ran`] as const)
                : (["Failed", `task "${name}" failed: ${text}`] as const)
            resume(Effect.fail(new BlockingPoolError({ reason, message, cause })))
          }
        )
      })
  }
})
