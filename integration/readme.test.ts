import { execFileSync } from "node:child_process"
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { assert, describe, it, layer } from "@effect/vitest"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect } from "effect"
import { afterAll, vi } from "vitest"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, "integration", ".readme")

/** The TypeScript examples of a page. */
const examples = (page: string) =>
  [...readFileSync(join(root, page), "utf8").matchAll(/```ts\n(.*?)```/gs)].map((match) => match[1]!)

const files: Record<string, string> = {}
const [entity, test, view, all] = examples("README.md")
Object.assign(files, { "entity.ts": entity, "test.ts": test, "view.ts": view, "all.ts": all })
/** Those that need a session only, by their file. */
const pages = ["session-0.ts"]
for (const name of readdirSync(join(root, "packages"))) {
  for (const [i, example] of examples(`packages/${name}/README.md`).entries()) files[`${name}-${i}.ts`] = example
  const docs = join(root, "packages", name, "docs")
  for (const page of existsSync(docs) ? readdirSync(docs) : []) {
    for (const [i, example] of examples(join("packages", name, "docs", page)).entries()) {
      const own = /^\/\/ (\S+\.ts)$/m.exec(example)?.[1]
      const file = own ?? `${name}-${page.replace(".md", "")}-${i}.ts`
      files[file] = example
      if (own === undefined || example.includes("export const program")) pages.push(file)
    }
  }
}
files["run.ts"] = `
  import { program } from "./journal-0.ts"
  import { Effect } from "effect"
  await Effect.runPromise(program)`
rmSync(folder, { recursive: true, force: true })
mkdirSync(folder)
for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ extends: "../../tsconfig.json", include: ["*.ts"] }))

afterAll(() => rmSync(folder, { recursive: true, force: true }))

describe("the examples of the READMEs", () => {
  it("compile, and run where they need no server", { timeout: 60_000 }, () => {
    assert.isAbove(Object.keys(files).length, 6)
    const run = (script: string, ...args: ReadonlyArray<string>) =>
      execFileSync(process.execPath, [script, ...args], { cwd: folder, encoding: "utf8" })
    run(join(root, "node_modules", "typescript", "bin", "tsc"), "--noEmit", "--project", folder)
    assert.match(run("--conditions=@effect-cassandra/source", "run.ts"), /1 Withdrawn|Withdrawn/)
  })
})

interface Page {
  readonly program: Effect.Effect<unknown, unknown, CassandraSession>
}

const hasTests = (file: string) => files[file]!.includes("@effect/vitest")

// They register their tests when they are loaded.
for (const file of ["test.ts", ...pages.filter(hasTests)]) await import(join(folder, file))

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })(
  "the examples of the pages run",
  (it) => {
    for (const file of pages.filter((file) => !hasTests(file) && files[file]!.includes("program"))) {
      it.effect(file, () =>
        Effect.gen(function* () {
          const { contactPoints, keyspace, localDataCenter = "datacenter1" } = yield* TestKeyspace
          vi.stubEnv("KEYSPACE", keyspace)
          vi.stubEnv("CONTACT_POINTS", contactPoints!.join())
          vi.stubEnv("LOCAL_DATA_CENTER", localDataCenter)
          const { program } = yield* Effect.promise(() => import(join(folder, file)) as Promise<Page>)
          yield* program
        }).pipe(Effect.ensuring(Effect.sync(() => vi.unstubAllEnvs())))
      )
    }
  }
)
