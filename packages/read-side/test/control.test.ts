import { assert, describe, it } from "@effect/vitest"
import { type Control, desiredOf, initial, later, startOf, withDesired, withStart } from "../src/internal/control.ts"

describe("requests", () => {
  it("for all and for one shard: the last one wins", () => {
    let control: Control = withDesired(initial, "stopped", { entityType: "A", shard: 1 })
    assert.strictEqual(desiredOf(control, "A", 1), "stopped")
    assert.strictEqual(desiredOf(control, "A", 0), "running")
    control = withDesired(control, "paused")
    assert.strictEqual(desiredOf(control, "A", 1), "paused")
    control = withDesired(control, "running", { entityType: "A", shard: 1 })
    assert.strictEqual(desiredOf(control, "A", 1), "running")
    assert.strictEqual(desiredOf(control, "A", 0), "paused")
    assert.strictEqual(desiredOf({ ...control, held: true }, "A", 1), "stopped")
  })

  it("to begin elsewhere: a later one replaces those that it covers, and each has an epoch of its own", () => {
    let control = withStart(initial, { to: { offset: 5 }, entityType: "A", shard: 1 })
    assert.deepStrictEqual(startOf(control, "A", 1), { to: { offset: 5 }, entityType: "A", shard: 1, epoch: 1 })
    assert.strictEqual(startOf(control, "A", 0).epoch, 0)
    control = withStart(control, { to: { time: 7 } })
    assert.strictEqual(control.starts.length, 1)
    assert.strictEqual(startOf(control, "A", 1).epoch, 2)
    control = withStart(control, { to: { offset: 9 }, entityType: "A", shard: 0 })
    assert.strictEqual(startOf(control, "A", 0).epoch, 3)
    assert.strictEqual(startOf(control, "B", 0).epoch, 2)
  })

  it("an epoch stands before any offset of an earlier one", () => {
    const old = { epoch: 1, offset: 100 }
    const now = { epoch: 2, offset: 3 }
    assert.strictEqual(later(old, now), now)
    assert.strictEqual(later(now, old), now)
    assert.strictEqual(later(undefined, old), old)
  })
})
