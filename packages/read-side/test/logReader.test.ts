import { assert, describe, it } from "@effect/vitest"
import type { EventEnvelope, Journal } from "@effect-cassandra/journal/Journal"
import { Context, Deferred, Effect, Fiber, Stream } from "effect"
import { LogReader } from "../src/internal/logReader.ts"

const pages = 40
const pageEvents = 1000
const head = pages * pageEvents

/** A log of so many pages, which counts those that were read. */
const log = () => {
  const read: Array<number> = []
  const events = (_: string, shard: number, after: number) =>
    Stream.paginate(after, (after) =>
      after >= head
        ? Effect.never
        : Effect.sync(() => {
            read.push(after)
            const page = Array.from(
              { length: pageEvents },
              (_, i) => ({ shard, offset: after + 1 + i }) as unknown as EventEnvelope
            )
            return [page, { _tag: "Some", value: after + pageEvents }] as never
          })
    )
  return { read, reader: new LogReader({ events } as unknown as Journal["Service"], "Any", 0, Context.empty()) }
}

/** Follows the log from an offset to its end, and does something after each page. */
const follow = (reader: LogReader, from: number, work: (offset: number) => Effect.Effect<unknown>) =>
  Effect.gen(function* () {
    const who = {}
    yield* reader.join(who)
    let at = from
    while (at < head) {
      const events = yield* reader.next(at, who)
      assert.strictEqual(events[0]!.offset, at + 1)
      at = events.at(-1)!.offset
      yield* work(at)
    }
  }).pipe(Effect.scoped)

describe("one reader for several processors", () => {
  it.live("reads every page once, whichever of them is first", () =>
    Effect.gen(function* () {
      const { read, reader } = log()
      let turn = 0
      yield* Effect.forEach(
        Array.from({ length: 10 }, (_, i) => i),
        (i) => follow(reader, 0, () => Effect.sleep((turn++ * 7 + i) % 4)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(read.length, pages)
    })
  )

  it.live("reads on with the same stream when it is asked again for what it gave before", () =>
    Effect.gen(function* () {
      const { read, reader } = log()
      const who = {}
      yield* reader.join(who)
      const first = yield* reader.next(0, who)
      assert.strictEqual(yield* reader.next(0, who), first)
      assert.strictEqual((yield* reader.next(10, who))[0]!.offset, 11)
      yield* reader.next(1000, who)
      assert.isAtMost(read.length, 3)
    }).pipe(Effect.scoped)
  )

  it.live("leaves one behind that stands still, and those who come later read the log for themselves", () =>
    Effect.gen(function* () {
      const { read, reader } = log()
      const go = yield* Deferred.make<void>()
      const slow = yield* Effect.forkChild(follow(reader, 0, () => Deferred.await(go)))
      yield* follow(reader, 0, () => Effect.void)
      assert.strictEqual(read.length, pages)
      yield* Deferred.succeed(go, undefined)
      yield* Fiber.join(slow)
      // What it had in hand it did not read again.
      assert.strictEqual(read.length, 2 * pages - 1)
      yield* follow(reader, head - 5000, () => Effect.void)
      assert.strictEqual(read.length, 2 * pages - 1 + 5)
    })
  )

  it.live("waits for one who does not know its place yet", () =>
    Effect.gen(function* () {
      const { read, reader } = log()
      const late = {}
      yield* Effect.scoped(
        Effect.gen(function* () {
          yield* reader.join(late)
          const fast = yield* Effect.forkChild(follow(reader, 0, () => Effect.void))
          while (read.length < 10) yield* Effect.yieldNow
          for (let at = 0; at < head; ) at = (yield* reader.next(at, late)).at(-1)!.offset
          yield* Fiber.join(fast)
        })
      )
      assert.strictEqual(read.length, pages)
    })
  )
})
