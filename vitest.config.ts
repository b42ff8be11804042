import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"
import { BaseSequencer, type TestSpecification } from "vitest/node"

const packages = fileURLToPath(new URL("packages", import.meta.url))

/** The longest file first, which would else run alone in the end. */
class LongestFirst extends BaseSequencer {
  override async sort(files: Array<TestSpecification>) {
    const isLongest = ({ moduleId }: TestSpecification) => Number(moduleId.endsWith("integration/faults.test.ts"))
    return (await super.sort(files)).toSorted((one, other) => isLongest(other) - isLongest(one))
  }
}

export default defineConfig({
  resolve: {
    // Vitest loads the global set-up without regard to the condition that leads to the sources.
    alias: [
      { find: /^@effect-cassandra\/([\w-]+)$/, replacement: `${packages}/$1/src/index.ts` },
      { find: /^@effect-cassandra\/([\w-]+)\/(\w+)$/, replacement: `${packages}/$1/src/$2.ts` }
    ]
  },
  test: {
    include: ["packages/*/test/**/*.test.ts", "examples/*/test/**/*.test.ts", "integration/**/*.test.ts"],
    globalSetup: "packages/testing/src/globalSetup.ts",
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // The server, too, works on these cores.
    maxWorkers: 2,
    sequence: { sequencer: LongestFirst }
  }
})
