// `npm run build`: publishable packages, as ECMAScript modules with types and source maps, in each package's dist.
import { spawnSync } from "node:child_process"
import { copyFileSync, mkdtempSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = mkdtempSync(join(tmpdir(), "effect-cassandra-build-"))

// In the order of their dependencies: each is compiled against the types that the ones before have just got.
for (const name of ["session", "journal", "entity", "read-side", "testing"]) {
  const home = join(root, "packages", name)
  rmSync(join(home, "dist"), { recursive: true, force: true })
  const config = join(folder, `${name}.json`)
  writeFileSync(
    config,
    JSON.stringify({
      extends: join(root, "tsconfig.json"),
      compilerOptions: {
        customConditions: [],
        rootDir: join(home, "src"),
        outDir: join(home, "dist"),
        typeRoots: [join(root, "node_modules", "@types")]
      },
      include: [join(home, "src")]
    })
  )
  const { status } = spawnSync("tsc", ["--project", config], { cwd: root, stdio: "inherit" })
  if (status !== 0) {
    console.error(`@effect-cassandra/${name} does not compile`)
    process.exitCode = 1
    break
  }
  copyFileSync(join(root, "LICENSE"), join(home, "LICENSE"))
  console.log(`@effect-cassandra/${name} built`)
}
rmSync(folder, { recursive: true })
