import { assert, describe, it } from "@effect/vitest"
import { Deferred, Duration, Effect, Exit, Fiber, Metric, Scope } from "effect"
import * as BlockingPool from "../src/BlockingPool.ts"
import * as EventLoopWatch from "../src/EventLoopWatch.ts"

const module = new URL("./tasks.ts", import.meta.url)
const pool = (options?: Partial<BlockingPool.Options>) =>
  BlockingPool.make<typeof import("./tasks.ts")>({ module, ...options })

describe("BlockingPool", () => {
  it.live("runs functions of a module in a fixed number of threads", () =>
    Effect.gen(function* () {
      const { run } = yield* pool({ threads: 2 })
      assert.strictEqual(yield* run("add", 1, 2), 3)
      const threads = yield* Effect.forEach(Array.from({ length: 10 }), () => run("hold", 10), { concurrency: 10 })
      assert.isAtMost(new Set(threads).size, 2)
    })
  )

  it.live("leaves the event loop free", () =>
    Effect.gen(function* () {
      const { run } = yield* pool()
      yield* run("thread")
      const fiber = yield* Effect.forkChild(run("hold", 300), { startImmediately: true })
      let ticks = 0
      yield* Effect.sync(() => ticks++).pipe(
        Effect.delay("10 millis"),
        Effect.repeat({ until: () => fiber.pollUnsafe() !== undefined })
      )
      assert.isAbove(ticks, 5)
    })
  )

  it.live("refuses at once what is over the bound, and counts what waits", () =>
    Effect.gen(function* () {
      const { run } = yield* pool({ threads: 1, maxQueued: 2, name: "bounded" })
      yield* run("thread")
      const fibers = yield* Effect.forEach(Array.from({ length: 8 }), () =>
        Effect.forkChild(Effect.result(run("hold", 200)), { startImmediately: true })
      )
      const queued = (yield* Metric.snapshot).find(
        ({ attributes, id }) => id === "blocking_pool.queued" && attributes?.pool === "bounded"
      )
      assert.deepStrictEqual(queued?.state, { value: 2 })
      const results = yield* Effect.forEach(fibers, Fiber.join)
      const refused = results.flatMap((result) => (result._tag === "Failure" ? [result.failure] : []))
      assert.strictEqual(refused.length, 5)
      assert.strictEqual(refused[0]?.reason, "Overloaded")
      assert.match(refused[0]!.message, /2 tasks wait for 1 threads/)
    })
  )

  it.live("interruption ends a task that never yields, and its thread is replaced", () =>
    Effect.gen(function* () {
      const { run } = yield* pool({ threads: 1 })
      yield* run("thread")
      const fiber = yield* Effect.forkChild(run("forever"), { startImmediately: true })
      yield* Effect.sleep("50 millis")
      yield* Fiber.interrupt(fiber)
      assert.strictEqual(yield* run("add", 2, 2), 4)
    })
  )

  it.live("says which task failed and why, and which is not there", () =>
    Effect.gen(function* () {
      const { run } = yield* pool()
      const failed = yield* Effect.flip(run("fail"))
      assert.strictEqual(failed.reason, "Failed")
      assert.match(failed.message, /task "fail" failed: as it should/)
      const missing = yield* Effect.flip(run("nothing" as "fail"))
      assert.strictEqual(missing.reason, "NoSuchTask")
      assert.match(missing.message, /tasks\.ts exports no function "nothing"/)
    })
  )
})

describe("a pool that cannot be", () => {
  it.live("says which setting makes no sense", () =>
    Effect.gen(function* () {
      for (const [wrong, message] of [
        [{ threads: 0 }, /threads is 0: it must be a whole number of at least 1/],
        [{ threads: Number.NaN }, /threads is NaN/],
        [{ maxQueued: -1 }, /maxQueued is -1/]
      ] as const) {
        const error = yield* Effect.flip(pool(wrong))
        assert.strictEqual(error.reason, "InvalidOptions")
        assert.match(error.message, message)
      }
    })
  )

  it.live("ends what it runs when it is closed, and starts no thread again", () =>
    Effect.gen(function* () {
      const scope = yield* Scope.make()
      const { run } = yield* Scope.provide(pool({ threads: 1 }), scope)
      yield* run("thread")
      const running = yield* Effect.forkChild(Effect.flip(run("forever")), { startImmediately: true })
      yield* Scope.close(scope, Exit.void)
      assert.strictEqual((yield* Fiber.join(running)).reason, "Closed")
      const late = yield* Effect.flip(run("add", 1, 2))
      assert.strictEqual(late.reason, "Closed")
    })
  )
})

describe("EventLoopWatch", () => {
  const block = (millis: number) =>
    Effect.sync(function holdTheLoop() {
      const end = performance.now() + millis
      while (performance.now() < end);
    })

  it.live("reports how long the loop was held, in which span and where", () =>
    Effect.gen(function* () {
      const reported = yield* Deferred.make<EventLoopWatch.Report>()
      yield* Effect.gen(function* () {
        // The thread needs a moment to start watching, and to look, on a machine that is busy with other tests.
        let millis = 300
        yield* Effect.suspend(() => {
          millis += 100
          return block(millis)
        }).pipe(
          Effect.withSpan("hash a password"),
          Effect.andThen(Effect.sleep("100 millis")),
          Effect.repeat({ until: () => Deferred.isDoneUnsafe(reported) })
        )
        const { duration, span, stack } = yield* Deferred.await(reported)
        assert.isAbove(Duration.toMillis(duration), 200)
        assert.strictEqual(span, "hash a password")
        assert.isTrue(
          stack.some((frame) => /^holdTheLoop \(BlockingPool\.test\.ts:\d+\)/.test(frame)),
          stack.join()
        )
      }).pipe(
        Effect.provide(
          EventLoopWatch.layer({
            threshold: "100 millis",
            // The runner of the tests may hold the loop too.
            onHeld: (report) =>
              report.span === undefined ? Effect.void : Effect.asVoid(Deferred.succeed(reported, report))
          })
        )
      )
    })
  )

  it.live("starts in a process with flags that a thread does not take", () =>
    Effect.gen(function* () {
      process.execArgv.push("--max-old-space-size=512")
      yield* Effect.addFinalizer(() => Effect.sync(() => void process.execArgv.pop()))
      yield* Effect.void.pipe(Effect.provide(EventLoopWatch.layer()))
    }).pipe(Effect.scoped)
  )

  it.live("reports nothing of work that yields", () =>
    Effect.gen(function* () {
      let reports = 0
      yield* Effect.gen(function* () {
        for (let i = 0; i < 50; i++) yield* Effect.andThen(block(5), Effect.sleep(1))
      }).pipe(
        Effect.provide(
          EventLoopWatch.layer({ threshold: "200 millis", onHeld: () => Effect.sync(() => void reports++) })
        )
      )
      assert.strictEqual(reports, 0)
    })
  )
})
