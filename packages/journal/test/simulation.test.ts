import { assert, describe, it } from "@effect/vitest"
import { type Planted, simulate } from "./simulation/scenario.ts"

const first = Number(process.env.SIMULATION_SEED ?? 1)
const runs = Number(process.env.SIMULATION_RUNS ?? (process.env.SIMULATION_SEED === undefined ? 2000 : 1))

describe("any history of writers and readers", () => {
  it(`keeps the promises, in ${runs} of them`, { timeout: 300_000 }, () => {
    const total: Record<string, number> = {}
    for (let seed = first; seed < first + runs; seed++) {
      const { counts, violations } = simulate(seed)
      if (violations.length > 0) {
        const replay = `SIMULATION_SEED=${seed} npx vitest run packages/journal/test/simulation.test.ts`
        assert.fail(`seed ${seed}:\n${violations.slice(0, 10).join("\n")}\nagain with: ${replay}`)
      }
      for (const [what, count] of Object.entries(counts)) total[what] = (total[what] ?? 0) + count
    }
    // What was never tried proves nothing.
    if (runs > 1000)
      for (const what of ["late", "twice", "lost", "kill", "loss of data", "delete: ok", "command: ok", "rebuild: ok"])
        assert.isAbove(total[what] ?? 0, 0)
  })

  const planted: ReadonlyArray<Planted> = [
    "an unknown append is settled by a read and sent again under a new id",
    "an expected sequence is checked without validThrough",
    "index rows are written with ordinary clocks",
    "a null head is taken for an empty shard",
    "a reader skips a gap",
    "an append does not say that it builds on another one",
    "a command is looked for without a position",
    "a deletion is written to the index with the timestamp of what it replaces",
    "a deletion is logged without being recorded before"
  ]
  for (const error of planted) {
    it(`would not, if ${error}`, () => {
      for (let seed = 1; seed <= 500; seed++) {
        const { violations } = simulate(seed, error)
        if (violations.length > 0) return
      }
      assert.fail("500 histories did not show it")
    })
  }
})
