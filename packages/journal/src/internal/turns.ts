/**
 * Turns of processes that append to one log at the same time. They see from the log itself who is at it: a block's id names
 * its writer, and the time by the writer's clock. Who has to wait says so once, by a claim; a process that appends block
 * after block looks at the end of its turn whether there are claims, and lets the others go on if so, in the order of their
 * names. Nothing of this is needed for safety: whoever is wrong about the turn loses a conditional update.
 */
import driver from "cassandra-driver"
import { Effect, Random } from "effect"

/** A turn ends with the first block that is this long after the first one, and this many blocks. */
const turnMillis = 100
const turnBlocks = 12
/** The claims are looked at this much before, to be known when it ends. */
const askMillis = 80
const askBlocks = 10
/** A writer is taken for one at work from this block of a turn on, if they come as soon as this after each other. */
const workBlocks = 3
const workMillis = 60
/** After such a time, or where its clock went back, a writer's blocks are another run. */
const pauseMillis = 1000
/** How long the one after next waits for the next before it looks who has claims, beside the time of two blocks. */
const stepMillis = 10
/** How long one with a claim is waited for: it may have to decide anew what it has queued, on a busy machine. */
const claimMillis = 250
/** How long a writer that has appended is taken for one that wants to. */
const memoryMillis = 10_000
/** Between two looks at the log of the one who is next. */
const lookMillis = 3
/** A claim that is not followed by a block is made again, before it expires. */
const claimAgainMillis = 5000

const ticksPerMilli = 10_000

/** Consecutive blocks of one writer. */
interface Run {
  readonly writer: string
  readonly begin: number
  last: number
  blocks: number
  /** When the last one was seen, by the clock of this process. */
  seen: number
  /** The turn that this process has begun last: the time of its first block, and how many blocks of the run came before. */
  turnBegin: number
  turnAfter: number
  /** Its writer surely knows of the claim of this process. */
  knowing: boolean
  /** It came when the turn of another one was over. */
  readonly inTurn: boolean
  /** Milliseconds between two blocks, until there are some. */
  readonly guess: number
}

/** A process that waits for its turn, and the log's head when it began to. */
export type Claim = readonly [writer: string, offset: number]

/** A name for a process that no other has: six bytes. */
export const writerName = Effect.map(Random.next, (random) =>
  Buffer.from(
    Math.floor(random * 2 ** 48)
      .toString(16)
      .padStart(12, "0"),
    "hex"
  )
)

const writerOf = (blockId: string): string => blockId.slice(24)
/** Milliseconds, by the clock of the writer. */
const timeOf = (blockId: string): number =>
  Number.parseInt(blockId.slice(15, 18) + blockId.slice(9, 13) + blockId.slice(0, 8), 16) / ticksPerMilli

export class Turns {
  readonly #node: Buffer
  /** Its name in claims. */
  readonly name: string
  #blocks = 0
  /** Left alone, the driver waits for random bytes for each id, which may block and takes as long as all else of it. */
  readonly #clock = Buffer.alloc(2)
  #run: Run | undefined
  /** When each writer's last block was seen, and the offset of that. */
  readonly #writers = new Map<string, { readonly seen: number; readonly offset: number }>()
  /** The claims of others, once they were looked at since the run or the turn began, or are being looked at. */
  #claims: ReadonlyArray<Claim> | undefined
  #asked = false
  /** The claims that were waited for in vain, and how many of the writer's in a row. */
  readonly #missed = new Map<string, { readonly offset: number; readonly times: number }>()
  /** The claim of this process. */
  #own: { readonly offset: number; readonly at: number; known: boolean } | undefined

  /** `name`: six bytes that no other process has. */
  constructor(name: Buffer) {
    this.#node = name
    this.name = name.toString("hex")
  }

  /** The id of a block of this process: whatever its clock says, no other one of a hundred million has it. */
  blockId(now: number): string {
    const ticks = ++this.#blocks % ticksPerMilli
    this.#clock.writeUInt16BE(Math.floor(this.#blocks / ticksPerMilli) % 2 ** 14)
    return driver.types.TimeUuid.fromDate(new Date(now), ticks, this.#node, this.#clock).toString()
  }

  /** A block was appended, by whomever, the last event of which has this offset. */
  seen(blockId: string, offset: number, now: number): void {
    const writer = writerOf(blockId)
    const time = timeOf(blockId)
    this.#writers.set(writer, { seen: now, offset })
    this.#missed.delete(writer)
    const own = writer === this.name
    if (own) this.#own = undefined
    let run = this.#run
    // A run has no pause, and ends where its writer's clock is set.
    if (run?.writer === writer && time >= run.last && time - run.last < pauseMillis) {
      run.last = time
      run.blocks++
      run.seen = now
    } else {
      const inTurn = run !== undefined && this.#isAtWork(run) && this.#isReached(run, turnBlocks, turnMillis)
      const guess = run === undefined ? 0 : spacingOf(run)
      const turn = { turnBegin: time, turnAfter: 0, knowing: false, inTurn, guess }
      run = { writer, begin: time, last: time, blocks: 1, seen: now, ...turn }
      this.#run = run
      this.#forgetClaims()
    }
    if (own) return
    if (this.#own?.known === true && !this.#isReached(run, askBlocks, askMillis)) run.knowing = true
  }

  /**
   * Milliseconds to wait before this process should append, by what it has seen; then it should look at the log again. 0:
   * it is its turn.
   */
  wait(now: number): number {
    const run = this.#run
    if (run === undefined || !this.#isAtWork(run)) return 0
    const since = now - run.seen
    return run.writer === this.name ? this.#waitAfterOwn(run, since) : this.#waitForOther(run, since, now)
  }

  /** Whether to look at the claims now; `told` is called with them. */
  toAsk(now: number): boolean {
    const run = this.#run
    if (run === undefined || this.#asked || !this.#isAtWork(run)) return false
    const since = now - run.seen
    this.#asked =
      run.writer === this.name || rankOf(this.name, run.writer, this.#order(now)) === 1
        ? this.#isReached(run, askBlocks, askMillis)
        : this.#isLeft(run, since) && since >= stepOf(run)
    return this.#asked
  }

  told(claims: ReadonlyArray<Claim>): void {
    this.#claims = claims
    this.#asked = true
  }

  #forgetClaims(): void {
    this.#claims = undefined
    this.#asked = false
  }

  /** Whether this process, which has to wait, should say so; `claimed` is called when that has been done. */
  toClaim(offset: number, now: number): boolean {
    if (this.#own !== undefined && now - this.#own.at < claimAgainMillis) return false
    this.#own = { offset, at: now, known: false }
    return true
  }

  /** An append of this process came too late, and others may not wait any more. */
  lost(): void {
    this.#own = undefined
    if (this.#run !== undefined) this.#run.knowing = false
  }

  claimed(offset: number): void {
    if (this.#own?.offset === offset) this.#own.known = true
  }

  #waitAfterOwn(run: Run, since: number): number {
    if (!this.#isReached(run, turnBlocks, turnMillis) || this.#claims === undefined) return 0
    const claims = this.#standing()
    const rest = this.#patience(claims) - since
    if (rest > 0) return Math.min(rest, Math.max(stepMillis, spacingOf(run)))
    // There are none, or nobody has come: the next turn is its own, too.
    for (const [writer, offset] of claims) {
      this.#missed.set(writer, { offset, times: (this.#missed.get(writer)?.times ?? 0) + 1 })
    }
    run.turnBegin = run.last
    run.turnAfter = run.blocks
    this.#forgetClaims()
    return 0
  }

  #waitForOther(run: Run, since: number, now: number): number {
    const spacing = spacingOf(run)
    const rank = rankOf(this.name, run.writer, this.#order(now))
    if (!this.#isLeft(run, since)) {
      const rest = Math.max(turnMillis - (run.last - run.begin), (turnBlocks - run.blocks) * spacing) - since
      // The next one reads on meanwhile, to be ready, also where it stops before.
      return Math.max(lookMillis, rank === 1 ? Math.min(rest / 2, stopOf(run) - since) : rest + stepMillis)
    }
    // One who does not know of the claim goes on after its turn, until it knows.
    const isFree = run.knowing || since > 1.5 * spacing + lookMillis
    const look = Math.max(lookMillis, spacing / 2)
    if (rank === 1) return isFree ? 0 : look
    if (since < stepOf(run)) return Math.max(lookMillis, stepOf(run) - since)
    if (this.#claims === undefined) return lookMillis
    const claims = this.#standing()
    const names = [...claims.map(([writer]) => writer), this.name].sort()
    const own = rankOf(this.name, run.writer, names)
    const rest = this.#patience(claims.filter(([writer]) => rankOf(writer, run.writer, names) < own)) - since
    if (rest > 0) return Math.min(rest, look + stepMillis)
    return isFree ? 0 : look
  }

  /** The claims of others that have not had their turn since. */
  #standing(): ReadonlyArray<Claim> {
    return (this.#claims ?? []).filter(
      ([writer, offset]) =>
        writer !== this.name &&
        offset >= (this.#writers.get(writer)?.offset ?? 0) &&
        offset !== this.#missed.get(writer)?.offset
    )
  }

  /** How long those with claims are waited for: longer, where they came too late before. */
  #patience(claims: ReadonlyArray<Claim>): number {
    return claims.reduce(
      (sum, [writer]) => sum + claimMillis * 2 ** Math.min(2, this.#missed.get(writer)?.times ?? 0),
      0
    )
  }

  /** This process and the writers that have been at it, in the order of their turns. */
  #order(now: number): Array<string> {
    for (const [writer, { seen }] of this.#writers) {
      if (now - seen <= memoryMillis) continue
      this.#writers.delete(writer)
      this.#missed.delete(writer)
    }
    return [...new Set([...this.#writers.keys(), ...this.#standing().map(([writer]) => writer), this.name])].sort()
  }

  /** Whether the turn of another one is over, or it has stopped by itself. */
  #isLeft(run: Run, since: number): boolean {
    return this.#isReached(run, turnBlocks, turnMillis) || since > stopOf(run)
  }

  #isReached({ blocks, last, turnAfter, turnBegin }: Run, count: number, millis: number): boolean {
    return blocks - turnAfter >= count && last - turnBegin >= millis
  }

  #isAtWork({ begin, blocks, inTurn, last }: Run): boolean {
    return (blocks >= workBlocks || inTurn) && last - begin <= workMillis * (blocks - 1)
  }
}

/** Milliseconds between two blocks. */
const spacingOf = ({ begin, blocks, guess, last }: Run): number =>
  blocks < workBlocks ? guess : (last - begin) / (blocks - 1)

/** Who has not appended for so long has stopped: the sooner, the less it has done. */
const stopOf = (run: Run): number =>
  run.blocks < workBlocks ? stepMillis + 1.5 * run.guess : 2 * stepMillis + 4 * spacingOf(run)

const stepOf = (run: Run): number => stepMillis + 2 * spacingOf(run)

/** 1 for the next one after a writer in the order of their names. */
const rankOf = (name: string, after: string, sorted: ReadonlyArray<string>): number => {
  const before = sorted.filter((one) => one <= after).length
  return ((sorted.indexOf(name) - before + sorted.length) % sorted.length) + 1
}
