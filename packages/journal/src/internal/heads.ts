/**
 * How processes hear of each other's events: whoever appends says soon afterwards where its logs end, all shards of an entity
 * type in one partition; whoever waits for events reads that partition, often while others append, seldom while nothing
 * happens. It is for speed only: now and then the logs themselves are looked at, in case that nothing was said.
 */
import { Effect, Latch } from "effect"
import type { ShardLog } from "./shardLog.ts"
import type { Store } from "./store.ts"

/** Between two times that the heads are said. */
const sayMillis = 20
const minPollMillis = 15
/** How often a head is heard that is not reached, before it is taken for one that cannot be. */
const maxTimes = 20
/** In which every log that is waited for is looked at itself. */
const roundMillis = 20_000

export class Heads {
  readonly #store: Store
  readonly #entityType: string
  readonly #epoch: number
  readonly #maxPollMillis: number
  #unsaid = new Map<number, number>()
  readonly #toSay = Latch.makeUnsafe(false)
  readonly #waiting = new Map<ShardLog, number>()
  readonly #waited = Latch.makeUnsafe(false)
  /** What was heard last and how often, so that a head that cannot be reached is not looked for again and again. */
  readonly #heard = new Map<number, { readonly head: number; readonly times: number }>()

  constructor(store: Store, entityType: string, epoch: number, maxPollMillis: number) {
    this.#epoch = epoch
    this.#store = store
    this.#entityType = entityType
    this.#maxPollMillis = maxPollMillis
  }

  /** Says where a log ends, in a moment. */
  say(shard: number, head: number): void {
    this.#unsaid.set(shard, head)
    this.#toSay.openUnsafe()
  }

  /** Says what was not said yet. */
  readonly flush: Effect.Effect<void> = Effect.suspend(() => {
    const heads = [...this.#unsaid]
    this.#unsaid = new Map()
    return heads.length === 0
      ? Effect.void
      : Effect.ignore(this.#store.writeHeads(this.#entityType, this.#epoch, heads))
  })

  readonly saying: Effect.Effect<never> = Effect.forever(
    Effect.suspend(() => this.#toSay.await).pipe(
      Effect.andThen(
        Effect.suspend(() => {
          this.#toSay.closeUnsafe()
          return this.flush
        })
      ),
      Effect.andThen(Effect.sleep(sayMillis))
    )
  )

  /** Looks out for events of other processes, for one who waits at a log's head. */
  listen(log: ShardLog): Effect.Effect<never> {
    return Effect.callback(() => {
      this.#waiting.set(log, (this.#waiting.get(log) ?? 0) + 1)
      this.#waited.openUnsafe()
      return Effect.sync(() => {
        const others = this.#waiting.get(log)! - 1
        if (others > 0) this.#waiting.set(log, others)
        else this.#waiting.delete(log)
      })
    })
  }

  readonly hearing: Effect.Effect<never> = Effect.suspend(() => {
    const self = this
    return Effect.gen(function* () {
      let millis = minPollMillis
      let looked = 0
      let sinceLook = 0
      for (;;) {
        if (self.#waiting.size === 0) {
          self.#waited.closeUnsafe()
          yield* self.#waited.await
        }
        yield* Effect.sleep(millis)
        sinceLook += millis
        const heads = yield* Effect.orElseSucceed(self.#store.readHeads(self.#entityType), () => [])
        let moved = false
        for (const [log] of self.#waiting) {
          const { shard } = log.log
          const head = heads.find((one) => one[0] === shard)?.[1] ?? 0
          if (head <= log.head) continue
          const heard = self.#heard.get(shard)
          const times = heard?.head === head ? heard.times + 1 : 1
          self.#heard.set(shard, { head, times })
          if (times > maxTimes) continue
          moved = true
          if (times < maxTimes) log.hear(head)
          // It should have been there to see: what a serial read says counts.
          else yield* Effect.forkChild(Effect.ignore(log.sync))
        }
        millis = moved ? minPollMillis : Math.min(self.#maxPollMillis, millis * 1.3)
        const logs = [...self.#waiting.keys()]
        if (sinceLook * logs.length > roundMillis) {
          sinceLook = 0
          yield* Effect.forkChild(Effect.ignore(logs[looked++ % logs.length]!.poll(0)))
        }
      }
    })
  })
}
