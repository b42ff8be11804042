import { mkdtempSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { assert, layer } from "@effect/vitest"
import { CassandraCluster } from "@effect-cassandra/testing/CassandraCluster"
import * as SkewedClock from "@effect-cassandra/testing/SkewedClock"
import { Effect, Layer } from "effect"
import { check } from "./faults/checker.ts"
import { readHistory } from "./faults/history.ts"
import { outages } from "./faults/outages.ts"
import { type Options, run } from "./faults/run.ts"

const isPossible = await Effect.runPromise(CassandraCluster.isPossible)
const clocks =
  (await Effect.runPromise(CassandraCluster.clocksArePossible)) && (await Effect.runPromise(SkewedClock.isPossible))

/** The seed is fixed: what it found once, it finds again as far as real processes allow. */
const short: Omit<Options, "folder"> = {
  seconds: 45,
  atLeast: 200,
  seed: "npm test",
  writers: 2,
  nemesis: ["nodes", "connections", "pauses", "services", ...(clocks ? (["clocks"] as const) : [])],
  accounts: 60,
  callers: 6,
  rate: 20
}

const temporary = Effect.acquireRelease(
  Effect.sync(() => mkdtempSync(join(tmpdir(), "faults-"))),
  (path) => Effect.sync(() => rmSync(path, { recursive: true }))
)

// The quick compiler only: nodes start with a third of the work, beside all that runs meanwhile.
const cluster = CassandraCluster.layer({ jvm: ["-XX:TieredStopAtLevel=1"], clocks })

layer(isPossible ? cluster : (Layer.empty as Layer.Layer<any> as typeof cluster), {
  excludeTestServices: true,
  timeout: "3 minutes"
})("services on three nodes", (it) => {
  // `npm run faults -- --outages` makes them last.
  it.effect.skipIf(!isPossible)(
    "recover unaided from outages, and tell callers meanwhile what is",
    () =>
      Effect.gen(function* () {
        const found = yield* outages({ seconds: 3, folder: yield* temporary })
        for (const { answered, name, refused } of found.slice(1, 3)) {
          assert.isAbove(refused, 0, name)
          assert.isAbove(answered, 0, name)
        }
      }),
    420_000
  )

  it.effect.skipIf(!isPossible)(
    "lose, double and reorder nothing in a short fault run (`npm run faults` is the long one)",
    () =>
      Effect.gen(function* () {
        const folder = yield* temporary
        const report = yield* run({ ...short, folder })
        assert.deepStrictEqual(report.problems, [])
        // It was a run, and there were faults.
        const { acknowledged, completed, localReads, reads, rejected } = report.looked
        for (const [what, found] of Object.entries({ acknowledged, completed, localReads, reads, rejected })) {
          assert.isAbove(found!, 0, what)
        }
        assert.isAtLeast(report.faults.length, 3)
        assert.strictEqual(report.ends.afterOpening, 0)
        // The history in the file is the one that was checked.
        const history = readHistory(join(folder, "history.ndjson"))
        const nothing = { logs: [], index: new Map(), views: new Map(), transfers: new Map() }
        const { looked } = check({ history, ...nothing, resources: [], complaints: [], samples: [], calm: 0 })
        assert.strictEqual(looked.acknowledged, report.looked.acknowledged)
      }),
    600_000
  )
})
