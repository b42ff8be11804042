/**
 * Says when the event loop was held: for how long, in which span, and where in the code.
 */
import { Worker } from "node:worker_threads"
import { Duration, Effect, Layer } from "effect"

/** The event loop was held. */
export interface Report {
  readonly duration: Duration.Duration
  /** Name of the span of the fiber that was running, if it had one. */
  readonly span: string | undefined
  /** Where it was, as `function (file:line)`, innermost first. Empty when it was over before it could be looked at. */
  readonly stack: ReadonlyArray<string>
}

/** Settings of the watch. */
export interface Options {
  /** What is shorter is not reported. Default: 100 milliseconds. */
  readonly threshold?: Duration.Input
  /** Default: a warning in the log. */
  readonly onHeld?: (report: Report) => Effect.Effect<void>
}

const warn = ({ duration, span, stack }: Report) =>
  Effect.logWarning(
    `the event loop was held for ${Math.round(Duration.toMillis(duration))} ms${span === undefined ? "" : ` in span "${span}"`}${
      stack.length === 0 ? "" : `, at ${stack.slice(0, 5).join(" < ")}`
    }: give such work to a BlockingPool`
  )

/**
 * Watches the event loop from a thread of its own, which costs the loop a timer only. When the loop is held, the thread stops
 * it by Node's inspector for a moment to see where it is, as watchdogs of applications that do not respond do.
 */
export const layer = (options: Options = {}): Layer.Layer<never> =>
  Layer.effectDiscard(
    Effect.gen(function* () {
      const threshold = Math.max(1, Duration.toMillis(options.threshold ?? "100 millis"))
      const run = Effect.runForkWith(yield* Effect.context<never>())
      const beats = new Int32Array(new SharedArrayBuffer(4))
      const period = Math.max(1, threshold / 4)
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          const timer = setInterval(() => Atomics.add(beats, 0, 1), period)
          timer.unref()
          const worker = new Worker(
            new URL(
              import.meta.url.endsWith(".ts") ? "./internal/watcher.ts" : "./internal/watcher.js",
              import.meta.url
            ),
            // Without the flags of the process, some of which a thread refuses, as --max-old-space-size.
            { workerData: { beats, period, threshold }, execArgv: [] }
          )
          worker.unref()
          worker.on("error", (cause) => run(Effect.logWarning("the watch of the event loop ended", cause)))
          worker.on("message", ({ millis, span, stack }) =>
            run((options.onHeld ?? warn)({ duration: Duration.millis(millis), span, stack }))
          )
          return { timer, worker }
        }),
        ({ timer, worker }) =>
          Effect.promise(() => {
            clearInterval(timer)
            return worker.terminate()
          })
      )
    })
  )
