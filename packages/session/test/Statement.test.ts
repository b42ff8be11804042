import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { textInfo, withTtl } from "../src/internal/text.ts"
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

  it("refuses what cannot be a name", () => {
    for (const name of [undefined, null, "", 5]) assert.throws(() => identifier(name as never), /name of an identifier/)
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

describe("what a text says", () => {
  it("literals and comments are left out of what is told", () => {
    for (const [text, redacted] of [
      ["SELECT * FROM t WHERE k = 's3cret' AND n = 42", "SELECT * FROM t WHERE k = ? AND n = ?"],
      ["SELECT a -- don't\n FROM t WHERE k = 's3cret'", "SELECT a  \n FROM t WHERE k = ?"],
      ["/* it's */ UPDATE t SET v = $$s3'cret$$ WHERE k = 0xcafe", "UPDATE t SET v = ? WHERE k = ?"],
      [`SELECT "n 5", n5 FROM t LIMIT 10`, `SELECT "n 5", n5 FROM t LIMIT ?`],
      ["DELETE FROM t WHERE id = 8f1c2e3a-0000-1000-8000-00000000000a", "DELETE FROM t WHERE id = ?"]
    ] as const) {
      assert.strictEqual(textInfo(text).redacted, redacted)
    }
  })

  it("no comment or literal makes a write look like a read", () => {
    for (const text of [
      "/* ' */ INSERT INTO t (k) VALUES (1) -- ' */ SELECT",
      "-- SELECT\nINSERT INTO t (k) VALUES ('SELECT')",
      "/* $$ */ DELETE FROM t -- $$ */ SELECT"
    ]) {
      assert.isFalse(textInfo(text).isSelect, text)
    }
  })

  it("knows the table, and whether there is an IF", () => {
    for (const [text, table, isConditional] of [
      ["INSERT INTO ks.t (k) VALUES (?) IF NOT EXISTS", "t", true],
      ["UPDATE t SET v = 'if' WHERE k = ?", "t", false],
      [`UPDATE "a if b" SET v = ? WHERE k = ? -- if`, `"a if b"`, false],
      ["DELETE FROM t WHERE k = ? if v = ?", "t", true],
      ["BEGIN BATCH INSERT INTO t (k) VALUES (?) IF NOT EXISTS APPLY BATCH", "t", true],
      ["CREATE TABLE IF NOT EXISTS t (k int PRIMARY KEY)", "t", false],
      ["TRUNCATE TABLE t", "t", false],
      ["TRUNCATE t", "t", false],
      ["SELECT * FROM t", "t", false]
    ] as const) {
      const info = textInfo(text)
      assert.deepStrictEqual([info.table, info.isConditional], [table, isConditional], text)
    }
  })

  it("a time to live finds its place among comments, quotes and conditions", () => {
    for (const [text, expected, index] of [
      ["INSERT INTO t (k) VALUES (?) -- what?\n", "INSERT INTO t (k) VALUES (?) USING TTL ?", 1],
      ["INSERT INTO t (k) VALUES (?) IF NOT EXISTS;", "INSERT INTO t (k) VALUES (?) IF NOT EXISTS USING TTL ?", 1],
      ["/* ? */ UPDATE t SET v = ?", "/* ? */ UPDATE t USING TTL ? SET v = ?", 0],
      [`UPDATE "a b"."c?" SET v = ?`, `UPDATE "a b"."c?" USING TTL ? SET v = ?`, 0]
    ] as const) {
      assert.deepStrictEqual(withTtl(text), { text: expected, index })
    }
    for (const text of ["INSERT INTO t (k) VALUES (?) USING TIMESTAMP ? AND TTL ?", "UPDATE t USING TTL 5 SET v = 1"]) {
      assert.strictEqual(withTtl(text), "it has a USING TTL already")
    }
  })
})
