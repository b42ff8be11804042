// Entry of `npm start`, `npm test`, `npm run build`, `npm run faults` and the benchmarks: works on a fresh clone with the host's
// Node 20 or later, installs what package-lock.json asks for, then runs the task under the project's own Node.
import { spawn, spawnSync } from "node:child_process"
import { existsSync, readFileSync, writeFileSync } from "node:fs"
import { delimiter, join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const bin = join(root, "node_modules", ".bin")
const node = [join(bin, "node"), "--conditions=@effect-cassandra/source"]

// With thousands of requests under way, of either side, what lives until they are answered is more than Node's young generation
// holds by default.
const bench = [...node, "--expose-gc", "--max-semi-space-size=64"]

const tasks = {
  start: [...node, "examples/bank/src/main.ts"],
  test: [...node, "scripts/test.ts"],
  bench: [...node, "scripts/bench.ts"],
  "bench:commitlog": [...node, "integration/benchCommitlog.ts"],
  "bench:entity": [...bench, "integration/benchEntity.ts"],
  "bench:journal": [...bench, "integration/benchJournal.ts"],
  "bench:processes": [...node, "integration/benchProcesses.ts"],
  "bench:read-side": [...bench, "integration/benchReadSide.ts"],
  "bench:session": [...bench, "integration/benchSession.ts"],
  audit: [...node, "scripts/audit.ts"],
  faults: [...node, "integration/faults.ts"],
  build: [...node, "scripts/build.ts"]
}

const [task, ...args] = process.argv.slice(2)
if (!(task in tasks)) {
  console.error(`Unknown task "${task}". Known: ${Object.keys(tasks).join(", ")}`)
  process.exit(2)
}

const stamp = join(root, "node_modules", ".installed")
const wanted = readFileSync(join(root, "package-lock.json"), "utf8")
if (!existsSync(stamp) || readFileSync(stamp, "utf8") !== wanted) {
  console.log("Installing npm packages (once, about half a minute) ...")
  // Not `npm ci`: it refuses a lock file that lacks the optional binaries of other platforms.
  const npm = spawnSync("npm", ["install", "--no-save", "--no-audit", "--no-fund", "--loglevel=error"], {
    cwd: root,
    stdio: "inherit"
  })
  if (npm.status !== 0) {
    console.error("npm install failed: its output above says why. It needs the npm registry, and npm 10 or later.")
    process.exit(1)
  }
  writeFileSync(stamp, wanted)
}

const [command, ...rest] = tasks[task]
const child = spawn(command, [...rest, ...args], {
  cwd: root,
  stdio: "inherit",
  env: { ...process.env, PATH: `${bin}${delimiter}${process.env.PATH}` }
})
// Ctrl-C reaches the child by the terminal's process group; what is sent to this process alone is passed on.
process.on("SIGINT", () => {})
process.on("SIGTERM", () => child.kill("SIGTERM"))
child.on("exit", (code, signal) => process.exit(signal === null ? code : 1))
