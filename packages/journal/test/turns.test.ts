import { assert, describe, it } from "@effect/vitest"
import { Turns } from "../src/internal/turns.ts"

const turnsOf = (name: string) => new Turns(Buffer.from(name.padEnd(6)))

/** An append takes so long. */
const appendMillis = 5

/**
 * Some writers who always have something to append to one log, for so many milliseconds: the blocks of each, the updates
 * that were lost to others once all had time to meet, and how long nobody was at it.
 */
const contend = (count: number, millis: number, stopped: (writer: number, now: number) => boolean = () => false) => {
  const log: Array<{ readonly id: string; readonly writer: number; readonly at: number }> = []
  const writers = Array.from({ length: count }, (_, i) => ({ turns: turnsOf(`w${i}`), seen: 0 }))
  const tasks: Array<{ readonly at: number; readonly run: (now: number) => void }> = []
  const after = (at: number, run: (now: number) => void) => {
    tasks.push({ at, run })
    tasks.sort((a, b) => b.at - a.at)
  }
  const begin = 1_700_000_000_000
  let lost = 0
  let chance = 1
  const random = () => {
    chance = (chance * 16807) % 2147483647
    return chance / 2147483647
  }
  const look = (i: number, now: number) => {
    const writer = writers[i]!
    for (; writer.seen < log.length; writer.seen++) writer.turns.seen(log[writer.seen]!.id, now)
  }
  const step = (i: number) => (now: number) => {
    const writer = writers[i]!
    if (stopped(i, now)) return after(now + 10, step(i))
    const wait = writer.turns.wait(now)
    if (wait > 0) {
      const { isOwn } = writer.turns
      return after(now + wait, (then) => {
        look(i, then)
        if (isOwn && writer.turns.isOwn) writer.turns.declined()
        after(then + 1, step(i))
      })
    }
    const id = writer.turns.blockId(now)
    const head = writer.seen
    after(now + appendMillis, (then) => {
      if (log.length === head) {
        log.push({ id, writer: i, at: then })
        look(i, then)
        return after(then, step(i))
      }
      if (then > begin + 5000) lost++
      look(i, then)
      after(then + 1 + (writer.turns.wait(then) === 0 ? random() * 10 : 0), step(i))
    })
  }
  for (const i of writers.keys()) after(begin + i, step(i))
  for (let task = tasks.pop(); task !== undefined && task.at < begin + millis; task = tasks.pop()) task.run(task.at)
  const blocks = writers.map((_, i) => log.filter(({ writer }) => writer === i).length)
  return { blocks, lost, share: (log.length * appendMillis) / millis }
}

describe("turns", () => {
  it("cost one writer next to nothing", () => {
    const { lost, share } = contend(1, 10_000)
    assert.strictEqual(lost, 0)
    assert.isAbove(share, 0.985)
  })

  for (const count of [2, 5, 10]) {
    it(`let ${count} writers append in turn, with few updates lost and little time left over`, () => {
      const { blocks, lost, share } = contend(count, 60_000)
      const total = blocks.reduce((sum, n) => sum + n, 0)
      assert.isAbove(Math.min(...blocks), (0.6 * total) / count, `${blocks}`)
      assert.isBelow(lost, total * 0.05)
      assert.isAbove(share, 0.8)
    })
  }

  it("wait little for a writer that stops in the middle of its turn, or is gone", () => {
    const { blocks, share } = contend(3, 30_000, (writer, now) => writer === 1 && Math.floor(now / 700) % 2 === 0)
    assert.isAbove(share, 0.7)
    assert.isAbove(Math.min(...blocks), 0)
    const gone = contend(3, 30_000, (writer, now) => writer < 2 && now > 1_700_000_001_000)
    assert.isAbove(gone.share, 0.95)
  })

  it("hold nobody back from a log at which no other is at work", () => {
    const [mine, other] = [turnsOf("mine"), turnsOf("other")]
    const now = 1_700_000_000_000
    mine.seen(mine.blockId(now), now)
    for (const at of [now + 10, now + 400]) mine.seen(other.blockId(at), at)
    assert.strictEqual(mine.wait(now + 405), 0)
  })

  it("leave a gap that ends by itself, also when looks at the log disturb it", () => {
    const turns = turnsOf("me")
    let now = 1_700_000_000_000
    while (turns.wait(now) === 0) {
      turns.seen(turns.blockId(now), now)
      now += 5
    }
    assert.isAtMost(turns.wait(now), 20)
    assert.strictEqual(turns.wait(now + 20), 0)
    // Then it goes on as before.
    turns.seen(turns.blockId(now + 20), now + 20)
    assert.strictEqual(turns.wait(now + 20), 0)
  })

  it("are named by the ids of blocks, which are time UUIDs", () => {
    const id = turnsOf("abcdef").blockId(1_700_000_000_123)
    assert.match(id, /^[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-616263646566$/)
  })

  it("never have two blocks of one id, also where the clock stands still", () => {
    const turns = turnsOf("abcdef")
    const ids = Array.from({ length: 30_000 }, () => turns.blockId(1_700_000_000_123))
    assert.strictEqual(new Set(ids).size, ids.length)
  })
})
