import { assert, describe, it } from "@effect/vitest"
import { verdict } from "../scripts/audit.ts"

const report = (vulnerabilities: Record<string, number>) => JSON.stringify({ metadata: { vulnerabilities } })

describe("the audit of dependencies", () => {
  it("passes without vulnerabilities, and with small ones", () => {
    assert.strictEqual(verdict(report({ critical: 0, high: 0, moderate: 0, low: 0 })).code, 0)
    const { code, message } = verdict(report({ critical: 0, high: 0, moderate: 2, low: 1 }))
    assert.strictEqual(code, 0)
    assert.match(message, /2 moderate, 1 low/)
  })

  it("fails with high and critical ones", () => {
    assert.strictEqual(verdict(report({ high: 1 })).code, 1)
    assert.strictEqual(verdict(report({ critical: 1 })).code, 1)
  })

  it("passes, and says so, where the registry cannot be asked", () => {
    for (const output of ['{"message":"request to https://registry failed","error":{}}', "npm error", ""]) {
      const { code, message } = verdict(output)
      assert.strictEqual(code, 0)
      assert.match(message, /Not audited/)
    }
  })
})
