import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect } from "effect"
import { overload } from "./faults/overload.ts"

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })(
  "twice the load that is possible",
  (it) => {
    // How quickly and how much is measured by `npm run faults -- --overload`, on a machine that has nothing else to do.
    it.effect(
      "is refused in part, by an error that says so, and done in part",
      () =>
        Effect.gen(function* () {
          for (const { done, failed, name, refused } of yield* overload(yield* TestKeyspace, 1)) {
            assert.isAbove(done, 0, name)
            assert.isAbove(refused, 0, name)
            assert.strictEqual(failed, 0, name)
          }
        }),
      120_000
    )
  }
)
