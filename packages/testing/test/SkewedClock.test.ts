import { spawn } from "node:child_process"
import { readdirSync } from "node:fs"
import { createInterface } from "node:readline"
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as SkewedClock from "../src/SkewedClock.ts"

const isPossible = await Effect.runPromise(SkewedClock.isPossible)

/** Says what time it is, and what has elapsed, whenever it is asked. */
const program = `
  const begin = performance.now()
  process.stdin.on("data", () => console.log(JSON.stringify([Date.now(), performance.now() - begin])))`

describe("a clock that is set off", () => {
  it.live.skipIf(!isPossible)("is off at once, and back at once, and leaves alone what has elapsed", () =>
    Effect.gen(function* () {
      const clock = yield* SkewedClock.make
      const child = yield* Effect.acquireRelease(
        Effect.sync(() =>
          spawn(process.execPath, ["--eval", program], {
            stdio: ["pipe", "pipe", "inherit"],
            env: { ...process.env, ...clock.environment }
          })
        ),
        (process) =>
          Effect.promise(async () => {
            const ended = new Promise((resolve) => process.on("exit", resolve))
            process.kill("SIGKILL")
            await ended
            clock.forget(process.pid!)
            assert.notInclude(readdirSync("/dev/shm").join(), `_${process.pid}`)
          })
      )
      const lines = createInterface(child.stdout)[Symbol.asyncIterator]()
      const begin = performance.now()
      const ask = Effect.promise(async () => {
        const before = Date.now()
        child.stdin.write("?")
        const { value } = await lines.next()
        const [now, elapsed] = JSON.parse(value!) as [number, number]
        assert.isBelow(elapsed, performance.now() - begin)
        return [now - Date.now(), now - before] as const
      })
      for (const millis of [0, 5000, -5000, 1500, 0]) {
        yield* clock.shift(millis)
        // The true time lies between asking and hearing.
        const [least, most] = yield* ask
        assert.isAtMost(least, millis)
        assert.isAtLeast(most, millis)
      }
    })
  )
})
