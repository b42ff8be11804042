import { defineConfig } from "vitest/config"

const condition = "@effect-cassandra/source"

export default defineConfig({
  ssr: {
    resolve: {
      conditions: [condition, "node", "import", "default"],
      externalConditions: [condition, "node", "import", "default"]
    }
  },
  test: {
    include: ["packages/*/test/**/*.test.ts", "examples/*/test/**/*.test.ts", "integration/**/*.test.ts"],
    globalSetup: "@effect-cassandra/testing/globalSetup",
    execArgv: ["--conditions", condition],
    testTimeout: 60_000,
    hookTimeout: 120_000,
    // The server, too, works on these cores.
    maxWorkers: 2
  }
})
