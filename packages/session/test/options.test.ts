import { readFileSync } from "node:fs"
import { assert, describe, it } from "@effect/vitest"
import { fields } from "../src/internal/config.ts"
import { defaults } from "../src/internal/options.ts"

const read = (file: string) => readFileSync(new URL(`../${file}`, import.meta.url), "utf8")

/** As it is written for a reader. */
const written = (name: keyof typeof defaults) =>
  name === "maxBatchSize"
    ? `${defaults[name] / 1024} KiB`
    : /Timeout$|^slowStatement$/.test(name)
      ? String(defaults[name])
      : JSON.stringify(defaults[name])

const names = Object.keys(defaults) as ReadonlyArray<keyof typeof defaults>

describe("the options of a session", () => {
  const table = read("README.md").split("## Options")[1]!.split("## Errors")[0]!
  const rows = [...table.matchAll(/^\| (`.*?`) +\| (.*?) +\|/gm)].flatMap(([, options, value]) =>
    [...options!.matchAll(/`(\w+)`/g)].map(([, name]) => [name!, value!.replaceAll("`", "")] as const)
  )

  it("stand in the table of the README, all of them, by the names that Config has", () => {
    assert.deepStrictEqual(
      rows.map(([name]) => name).toSorted(),
      [...Object.keys(fields), "retry", "profiles"].toSorted()
    )
  })

  it("have the defaults that the table and their comments say", () => {
    const source = read("src/CassandraSession.ts")
    for (const name of names) {
      assert.strictEqual(Object.fromEntries(rows)[name], written(name), name)
      const comment = source
        .slice(0, source.indexOf(`readonly ${name}?:`))
        .split("/**")
        .at(-1)!
      assert.include(comment.replaceAll("`", ""), `Default: ${written(name)}`, name)
    }
    for (const [name, value] of rows) {
      if (!(name in defaults) && name !== "keyspace" && name !== "retry") assert.match(value, /^(none|off)$/, name)
    }
  })
})
