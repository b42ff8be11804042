import { assert, it } from "@effect/vitest"
import { Clock, Effect } from "effect"
import { makeJournal } from "../src/internal/journal.ts"
import { memoryStore } from "../src/internal/memoryStore.ts"
import { setOff } from "./clocks.ts"

it.live("a time of day that is set back keeps nobody from appending whose turn it is", () =>
  Effect.gen(function* () {
    let set = 0
    const clock = setOff(yield* Clock.Clock, () => set)
    const store = memoryStore()
    const appended = Effect.gen(function* () {
      const journals = yield* Effect.all([makeJournal(store, { shards: 1 }), makeJournal(store, { shards: 1 })])
      const append = (process: 0 | 1) =>
        journals[process].append({
          entityType: "Account",
          entityId: "account",
          expected: "any",
          events: [{ type: "Deposited", payload: {} }]
        })
      for (let i = 0; i < 5; i++) yield* append(0)
      // It has seen then who is at work.
      yield* journals[1].head("Account", 0)
      set = -30_000
      return yield* append(1)
    })
    const { sequence } = yield* appended.pipe(Effect.provideService(Clock.Clock, clock), Effect.timeout("8 seconds"))
    assert.strictEqual(sequence, 6)
  }).pipe(Effect.scoped)
)
