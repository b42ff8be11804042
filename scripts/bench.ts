// What `npm run bench` runs: every benchmark, one after the other. `npm run bench:journal` and its siblings run one, and take
// options, which stand at the head of each file.
import { spawnSync } from "node:child_process"

for (const name of ["session", "journal", "entity", "read-side", "processes", "commitlog"]) {
  console.log(`\n=== bench:${name}`)
  const { status } = spawnSync("npm", ["run", "--silent", `bench:${name}`], { stdio: "inherit" })
  if (status !== 0) process.exitCode = 1
}
