import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { assign, type Member } from "../src/internal/members.ts"

const member = (name: string, types = ["A"]): Member => ({ name, host: "h", port: 1, key: "", types })
const count = (maximum: number) => Schema.Int.check(Schema.isBetween({ minimum: 1, maximum }))

describe("the process of each shard", () => {
  it.prop("is the same for all, and none has more than its part", [count(40), count(40)], ([shards, size]) => {
    const members = Array.from({ length: size }, (_, i) => member(`process-${i}`))
    const assigned = assign("A", shards, members)
    assert.strictEqual(assigned.length, shards)
    for (const one of members) {
      assert.isAtMost(assigned.filter((owner) => owner === one).length, Math.ceil(shards / size))
    }
    assert.deepStrictEqual(assign("A", shards, members.toReversed()), assigned)
  })

  it("seldom changes when another process comes", () => {
    const members = Array.from({ length: 10 }, (_, i) => member(`process-${i}`))
    const before = assign("A", 100, members)
    const after = assign("A", 100, [...members, member("another")])
    assert.isAtMost(before.filter((owner, shard) => owner !== after[shard]).length, 30)
  })

  it("is one that runs entities of the type", () => {
    const members = [member("a", ["A"]), member("b", ["B"]), member("both", ["A", "B"])]
    assert.sameMembers([...new Set(assign("B", 4, members).map(({ name }) => name))], ["b", "both"])
    assert.deepStrictEqual(assign("C", 4, members), [])
  })
})
