import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { cql, identifier, make, withOptions } from "../src/Statement.ts"

describe("Statement", () => {
  it("binds interpolated values and never writes them into the text", () => {
    const evil = "x'; DROP TABLE accounts; --"
    const statement = cql`SELECT * FROM accounts WHERE owner = ${evil} AND n = ${1}`
    assert.strictEqual(statement.text, "SELECT * FROM accounts WHERE owner = ? AND n = ?")
    assert.deepStrictEqual(statement.params, [evil, 1])
  })

  it("quotes identifiers, so that a name cannot end its quotes", () => {
    const statement = cql`SELECT ${identifier('a"b')} FROM t WHERE k = ${1}`
    assert.strictEqual(statement.text, 'SELECT "a""b" FROM t WHERE k = ?')
    assert.deepStrictEqual(statement.params, [1])
  })

  it("keeps options that are not changed", () => {
    const statement = make("SELECT 1", [], { consistency: "ONE", pageSize: 5 }).options
    const changed = withOptions(make("SELECT 1", [], statement), { pageSize: 7 })
    assert.deepStrictEqual(changed.options, { consistency: "ONE", pageSize: 7 })
  })

  it.prop(
    "has a marker for each value, whatever names and values are mixed",
    [Schema.Array(Schema.Boolean)],
    ([names]) => {
      const args = names.map((isName, i) => (isName ? identifier(`c?${i}`.replace("?", "")) : i))
      const strings = Object.assign(["SELECT ", ...names.map(() => " ")], {
        raw: [] as Array<string>
      }) as unknown as TemplateStringsArray
      const { params, text } = cql(strings, ...args)
      assert.strictEqual(text.split("?").length - 1, params.length)
    }
  )
})
