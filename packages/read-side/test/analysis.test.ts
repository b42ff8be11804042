import { assert, describe, it } from "@effect/vitest"
import { analyse } from "../src/internal/analysis.ts"

describe("statements of a view", () => {
  it.each([
    ["INSERT INTO t (k, v) VALUES (?, ?)", "INSERT INTO t (k, v) VALUES (?, ?) USING TIMESTAMP ?", 2],
    ["UPDATE t SET a = ?, b = ? WHERE k = ?;", "UPDATE t USING TIMESTAMP ? SET a = ?, b = ? WHERE k = ?;", 0],
    ["DELETE FROM t WHERE k = ?", "DELETE FROM t USING TIMESTAMP ? WHERE k = ?", 0],
    ["delete m[?] from t where k = ?", "delete m[?] from t USING TIMESTAMP ? WHERE k = ?", 1]
  ])("get the event's timestamp: %s", (text, timestamped, index) => {
    const analysis = analyse(text)
    assert.isObject(analysis)
    if (typeof analysis === "string") return
    assert.strictEqual(analysis.timestamped, timestamped)
    assert.strictEqual(analysis.timestampIndex, index)
  })

  it("know the columns that name the row", () => {
    const analysis = analyse('UPDATE t SET a = ? WHERE "Key" = ? AND n = ?')
    assert.deepStrictEqual(typeof analysis === "string" ? [] : [...analysis.columns], [
      ["Key", 1],
      ["n", 2]
    ])
  })

  it.each([
    ["UPDATE t SET n = n + ? WHERE k = ?", /counts twice/],
    ["UPDATE t SET list = ? + list WHERE k = ?", /counts twice/],
    ["INSERT INTO t (k) VALUES (?) IF NOT EXISTS", /conditional/],
    ["UPDATE t SET a = ? WHERE k = ? IF a = ?", /conditional/],
    ["INSERT INTO t (k, id) VALUES (?, now())", /now\(\) gives another value/],
    ["INSERT INTO t (k, id) VALUES (?, uuid())", /uuid\(\) gives another value/],
    ["INSERT INTO t (k) VALUES (?) USING TIMESTAMP ?", /USING/],
    ["INSERT INTO t (k) VALUES (?) USING TTL 5", /USING/],
    ["INSERT INTO other.t (k) VALUES (?)", /names a keyspace/],
    ["INSERT INTO t (k) VALUES ('x')", /bind every value/],
    ["SELECT * FROM t", /not an INSERT/],
    ["TRUNCATE t", /not an INSERT/],
    ["BEGIN BATCH INSERT INTO t (k) VALUES (?); APPLY BATCH", /single statements/]
  ])("are refused when a repetition would leave other rows: %s", (text, why) => {
    const analysis = analyse(text)
    assert.isString(analysis)
    assert.match(String(analysis), why)
  })
})
