// What `npm test` runs: types, lint, unused code, then all tests against a real Cassandra. Arguments go to Vitest.
import { spawnSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"

const folder = mkdtempSync(join(tmpdir(), "effect-cassandra-test-"))
const report = join(folder, "report.json")
let passed = 0
let failed = 0
let skipped = 0

const check = (name: string, command: string, args: ReadonlyArray<string>) => {
  console.log(`\n${name}`)
  const ok = spawnSync(command, args, { stdio: "inherit" }).status === 0
  if (ok) passed++
  else failed++
  return ok
}

check("Types", "tsc", ["--noEmit"])
check("Lint and format", "biome", ["check", "."])
check("Unused code and dependencies", "knip", [])

console.log("\nTests")
const tests = spawnSync(
  "vitest",
  ["run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`, ...process.argv.slice(2)],
  { stdio: "inherit" }
)
try {
  const { numFailedTests, numPassedTests, numPendingTests } = JSON.parse(readFileSync(report, "utf8")) as Record<
    string,
    number
  >
  passed += numPassedTests!
  failed += numFailedTests!
  skipped = numPendingTests!
  // A file that cannot be loaded has no tests to count.
  if (tests.status !== 0 && numFailedTests === 0) failed++
} catch {
  failed++
}
rmSync(folder, { recursive: true })

console.log(`\n${passed} passed, ${failed} failed${skipped === 0 ? "" : `, ${skipped} skipped`}`)
process.exitCode = failed === 0 ? 0 : 1
