import { execFileSync } from "node:child_process"
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, assert, describe, it } from "@effect/vitest"

const root = fileURLToPath(new URL("..", import.meta.url))
const folder = join(root, "integration", ".readme")

/** The TypeScript examples of a README. */
const examples = (readme: string) =>
  [...readFileSync(join(root, readme), "utf8").matchAll(/```ts\n(.*?)```/gs)].map((match) => match[1]!)

describe("the examples of the READMEs", () => {
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  it("compile, and run where they need no server", { timeout: 60_000 }, () => {
    rmSync(folder, { recursive: true, force: true })
    mkdirSync(folder)
    const [entity, test, view, all] = examples("README.md")
    const files: Record<string, string> = { "entity.ts": entity!, "test.ts": test!, "view.ts": view!, "all.ts": all! }
    for (const name of readdirSync(join(root, "packages"))) {
      for (const [i, example] of examples(`packages/${name}/README.md`).entries()) files[`${name}-${i}.ts`] = example
    }
    assert.isAbove(Object.keys(files).length, 6)
    files["run.ts"] = `
      import { program } from "./journal-0.ts"
      import { Effect } from "effect"
      await Effect.runPromise(program)`
    for (const [name, text] of Object.entries(files)) writeFileSync(join(folder, name), text)
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ extends: "../../tsconfig.json", include: ["*.ts"] }))
    const run = (script: string, ...args: ReadonlyArray<string>) =>
      execFileSync(process.execPath, [script, ...args], { cwd: folder, encoding: "utf8" })
    run(join(root, "node_modules", "typescript", "bin", "tsc"), "--noEmit", "--project", folder)
    assert.match(run("--conditions=@effect-cassandra/source", "run.ts"), /1 Withdrawn|Withdrawn/)
  })
})
