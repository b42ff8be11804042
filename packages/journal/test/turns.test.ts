import { assert, describe, it } from "@effect/vitest"
import { type Claim, Turns } from "../src/internal/turns.ts"

const turnsOf = (name: string) => new Turns(Buffer.from(name.padEnd(6)))

/**
 * Some writers who always have something to append to one log, for so many milliseconds: the blocks of each, the longest
 * time without one, the updates that were lost to others once all had time to meet, the longest that a rare one waited, and
 * the share of the time in which somebody was at it. A writer whose turn begins needs some time to get ready, in which what
 * it has queued is decided anew.
 */
const contend = (
  count: number,
  millis: number,
  {
    appendMillis = 5,
    prepareMillis = () => 0,
    rareMillis,
    stopped = () => false
  }: {
    readonly appendMillis?: number
    readonly prepareMillis?: (random: number) => number
    /** The last one has one block only to append, and the next so long after that. */
    readonly rareMillis?: number
    readonly stopped?: (writer: number, now: number) => boolean
  } = {}
) => {
  const log: Array<{ readonly id: string; readonly writer: number; readonly at: number }> = []
  const writers = Array.from({ length: count }, (_, i) => ({ turns: turnsOf(`w${i}`), seen: 0, ready: true }))
  const tasks: Array<{ readonly at: number; readonly run: (now: number) => void }> = []
  const after = (at: number, run: (now: number) => void) => {
    tasks.push({ at, run })
    tasks.sort((a, b) => b.at - a.at)
  }
  const claims = new Map<string, number>()
  const begin = 1_700_000_000_000
  let due = begin
  const waited: Array<number> = []
  let lost = 0
  let chance = 1
  const random = () => {
    chance = (chance * 16807) % 2147483647
    return chance / 2147483647
  }
  const look = (i: number, now: number) => {
    const writer = writers[i]!
    for (; writer.seen < log.length; writer.seen++) {
      const block = log[writer.seen]!
      writer.turns.seen(block.id, writer.seen + 1, now)
      if (block.writer !== i) writer.ready = false
    }
  }
  const step = (i: number) => (now: number) => {
    const writer = writers[i]!
    const isRare = rareMillis !== undefined && i === count - 1
    if (isRare && now < due) return after(due, step(i))
    if (stopped(i, now)) return after(now + 10, step(i))
    const wait = writer.turns.wait(now)
    if (writer.turns.toAsk(now)) after(now + 3, () => writer.turns.told([...claims]))
    if (wait === 0 && !writer.ready) {
      writer.ready = true
      return after(now + prepareMillis(random()), step(i))
    }
    if (wait > 0) {
      if (writer.turns.toClaim(writer.seen, now)) {
        const offset = writer.seen
        after(now + 2, () => {
          claims.set(writer.turns.name, offset)
          writer.turns.claimed(offset)
        })
      }
      return after(now + wait, (then) => {
        look(i, then)
        after(then + 1, step(i))
      })
    }
    const id = writer.turns.blockId(now)
    const head = writer.seen
    after(now + appendMillis, (then) => {
      if (log.length === head) {
        log.push({ id, writer: i, at: then })
        look(i, then)
        if (isRare) {
          waited.push(then - due)
          due = then + rareMillis
        }
        return after(then, step(i))
      }
      if (then > begin + 5000) lost++
      writer.turns.lost()
      look(i, then)
      after(then + 1 + (writer.turns.wait(then) === 0 ? random() * 10 : 0), step(i))
    })
  }
  for (const i of writers.keys()) after(begin + i, step(i))
  for (let task = tasks.pop(); task !== undefined && task.at < begin + millis; task = tasks.pop()) task.run(task.at)
  const times = writers.map((_, i) =>
    log.filter(({ at, writer }) => writer === i && at > begin + 5000).map(({ at }) => at)
  )
  return {
    blocks: times.map((of) => of.length),
    longest: Math.max(
      ...times.map((of) =>
        Math.max(...of.map((at, i) => at - (of[i - 1] ?? begin + 5000)), begin + millis - (of.at(-1) ?? begin + 5000))
      )
    ),
    lost,
    waited: Math.max(...waited),
    share: (log.length * appendMillis) / millis
  }
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

  for (const [count, appendMillis, prepareMillis] of [
    [2, 3, 120],
    [2, 20, 60],
    [5, 3, 60],
    [5, 20, 120]
  ] as const) {
    it(`let none of ${count} wait for ever, whose blocks take ${appendMillis} ms, and ${prepareMillis} to get ready`, () => {
      const { blocks, longest, lost } = contend(count, 60_000, {
        appendMillis,
        prepareMillis: (random) => prepareMillis * (0.5 + random)
      })
      const total = blocks.reduce((sum, n) => sum + n, 0)
      assert.isAbove(Math.min(...blocks), (0.9 * total) / count, `${blocks}`)
      assert.isBelow(lost, total * 0.02)
      // A turn of each, and the time between two.
      assert.isBelow(longest, count * (Math.max(100, 12 * appendMillis) + 1.5 * prepareMillis + 50))
    })
  }

  for (const appendMillis of [1, 8, 20]) {
    it(`let one append now and then beside one at full speed, whose blocks take ${appendMillis} ms`, () => {
      const { share, waited } = contend(2, 60_000, { appendMillis, rareMillis: 1000 })
      assert.isBelow(waited, 1.5 * Math.max(100, 12 * appendMillis))
      assert.isAbove(share, 0.9)
    })
  }

  it("let one that is slower than others wait for it go on after some more of them", () => {
    const { blocks, longest } = contend(3, 60_000, { prepareMillis: (random) => 200 * (0.5 + random) })
    assert.isAbove(Math.min(...blocks), 0.2 * Math.max(...blocks), `${blocks}`)
    assert.isBelow(longest, 4000)
  })

  it("wait little for a writer that stops in the middle of its turn, or is gone", () => {
    const { blocks, share } = contend(3, 30_000, {
      stopped: (writer, now) => writer === 1 && Math.floor(now / 700) % 2 === 0
    })
    assert.isAbove(share, 0.7)
    assert.isAbove(Math.min(...blocks), 0)
    const gone = contend(3, 30_000, { stopped: (writer, now) => writer < 2 && now > 1_700_000_001_000 })
    assert.isAbove(gone.share, 0.95)
  })

  it("hold nobody back from a log at which no other is at work", () => {
    const [mine, other] = [turnsOf("mine"), turnsOf("other")]
    const now = 1_700_000_000_000
    mine.seen(mine.blockId(now), 1, now)
    for (const [i, at] of [now + 10, now + 400].entries()) mine.seen(other.blockId(at), 2 + i, at)
    assert.strictEqual(mine.wait(now + 405), 0)
    assert.isFalse(mine.toAsk(now + 405))
  })

  it("are left to those who have said that they wait, once each", () => {
    const turns = turnsOf("me")
    const other = turnsOf("other").name
    let now = 1_700_000_000_000
    let offset = 0
    const goOn = () => {
      for (; !turns.toAsk(now); now += 5) {
        assert.strictEqual(turns.wait(now), 0)
        turns.seen(turns.blockId(now), ++offset, now)
      }
    }
    goOn()
    const claim: Claim = [other, offset]
    turns.told([claim])
    const endTurn = () => {
      for (let i = 0; i < 5; i++) {
        now += 5
        turns.seen(turns.blockId(now), ++offset, now)
      }
    }
    endTurn()
    // It looks at the log now and then.
    assert.isAbove(turns.wait(now), 0)
    assert.isAtMost(turns.wait(now), 20)
    // Nobody has come.
    now += 300
    assert.strictEqual(turns.wait(now), 0)
    turns.seen(turns.blockId(now), ++offset, now)
    goOn()
    turns.told([claim])
    endTurn()
    assert.strictEqual(turns.wait(now), 0)
  })

  for (const step of [-3_600_000, 3_600_000]) {
    it(`end where a writer's clock is set by ${step} ms`, () => {
      const [mine, other] = [turnsOf("mine"), turnsOf("other")]
      let now = 1_700_000_000_000
      let offset = 0
      const goOn = (count: number, shift: number) => {
        for (let i = 0; i < count; i++) {
          now += 10
          mine.seen(other.blockId(now + shift), ++offset, now)
        }
      }
      goOn(5, 0)
      assert.isAbove(mine.wait(now), 0)
      goOn(5, step)
      assert.isAbove(mine.wait(now), 0)
      assert.isAtMost(mine.wait(now), 120)
      goOn(8, step)
      assert.isAtMost(mine.wait(now), 10)
      assert.strictEqual(mine.wait(now + 20), 0)
    })
  }

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
