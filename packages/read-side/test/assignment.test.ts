import { assert, describe, it } from "@effect/vitest"
import { decide } from "../src/internal/assignment.ts"

const shards = Array.from({ length: 10 }, (_, i) => `Account/${i}`)

/** Lets every member decide once from the same view, and gives what each has then. */
const round = (members: Map<string, Set<string>>, groups: ReadonlyArray<string>) => {
  const before = new Map([...members].map(([id, owns]) => [id, new Set(owns)]))
  for (const group of groups) {
    const named = (id: string) => new Set([...before.get(id)!].filter((one) => one.startsWith(`${group} `)))
    const all = shards.map((shard) => `${group} ${shard}`)
    for (const [id, owns] of members) {
      const holders = [...members.keys()].map((other) => ({ id: other, owns: named(other) }))
      const { claim, release } = decide(id, holders, group, all)
      for (const shard of release) owns.delete(shard)
      for (const shard of claim) owns.add(shard)
    }
  }
}

const check = (members: Map<string, Set<string>>, groups: number) => {
  const counts = [...members.values()].map(({ size }) => size)
  const owned = [...members.values()].flatMap((owns) => [...owns])
  assert.strictEqual(new Set(owned).size, owned.length, "a shard has two owners")
  assert.strictEqual(owned.length, shards.length * groups, "a shard has no owner")
  for (const owns of members.values()) {
    for (const group of new Set([...owns].map((one) => one.split(" ")[0]!))) {
      const ofGroup = [...owns].filter((one) => one.startsWith(`${group} `)).length
      assert.isAtMost(ofGroup, Math.ceil(shards.length / members.size))
      assert.isAtLeast(ofGroup, Math.floor(shards.length / members.size))
    }
  }
  return counts
}

describe("shards among processes", () => {
  it("are spread evenly while members come and go, and none has ever two owners", () => {
    const groups = Array.from({ length: 7 }, (_, i) => `p${i}`)
    const members = new Map<string, Set<string>>()
    let seed = 1
    const random = (n: number) => {
      seed = (seed * 48271) % 2147483647
      return seed % n
    }
    for (let step = 0; step < 200; step++) {
      if (members.size < 2 || (random(2) === 0 && members.size < 12)) members.set(`m${step}`, new Set())
      else members.delete([...members.keys()][random(members.size)]!)
      for (let i = 0; i < 2; i++) {
        round(members, groups)
        const owned = [...members.values()].flatMap((owns) => [...owns])
        assert.strictEqual(new Set(owned).size, owned.length)
      }
      check(members, groups.length)
    }
  })

  it("stay where they are when nothing changes, and move as little as possible when a member joins", () => {
    const members = new Map([
      ["a", new Set<string>()],
      ["b", new Set<string>()]
    ])
    round(members, ["p"])
    const before = new Map([...members].map(([id, owns]) => [id, new Set(owns)]))
    round(members, ["p"])
    assert.deepStrictEqual(members, before)
    members.set("c", new Set())
    round(members, ["p"])
    round(members, ["p"])
    check(members, 1)
    const moved = [...members.get("c")!].length
    assert.isAtMost(moved, 4)
    for (const id of ["a", "b"]) assert.isTrue([...members.get(id)!].every((shard) => before.get(id)!.has(shard)))
  })

  it("with several processors, what does not come out even is not always the same member's", () => {
    const groups = Array.from({ length: 40 }, (_, i) => `p${i}`)
    const members = new Map(["a", "b", "c"].map((id) => [id, new Set<string>()]))
    round(members, groups)
    for (const count of check(members, groups.length)) assert.isBelow(Math.abs(count - 400 / 3), 15)
  })
})
