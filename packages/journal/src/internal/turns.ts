/**
 * Turns of processes that append to one log at the same time. They see from the log itself who is at it: a block's id names
 * its writer, and the time by the writer's clock. A process that appends block after block goes on for a turn, then the next
 * one in the order of their names does, while the others hold back. Nothing of this is needed for safety: whoever is wrong
 * about the turn loses a conditional update.
 */
import driver from "cassandra-driver"
import { Effect, Random } from "effect"

/** A turn ends with the first block that is this long after the first one, and this many blocks. */
const turnMillis = 100
const turnBlocks = 12
/** A writer is taken for one at work from this block of a turn on, if they come as soon as this after each other. */
const workBlocks = 3
const workMillis = 60
/** How long the one after next waits for the next, beside the time of two blocks. */
const stepMillis = 10
/** How long a writer that has appended is taken for one that wants to. */
const memoryMillis = 10_000
/** How long a writer without others goes on before it leaves a gap, in which one can show itself. */
const aloneMillis = 2000
/** Between two looks at the log of the one who is next. */
const lookMillis = 3

const ticksPerMilli = 10_000

/** Consecutive blocks of one writer. */
interface Run {
  readonly writer: string
  readonly begin: number
  last: number
  blocks: number
  /** When the last one was seen, by the clock of this process. */
  seen: number
}

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
  readonly #me: string
  #blocks = 0
  /** Left alone, the driver waits for random bytes for each id, which may block and takes as long as all else of it. */
  readonly #clock = Buffer.alloc(2)
  #run: Run | undefined
  /** When each writer's last block was seen. */
  readonly #writers = new Map<string, number>()

  /** `name`: six bytes that no other process has. */
  constructor(name: Buffer) {
    this.#node = name
    this.#me = name.toString("hex")
  }

  /** The id of a block of this process: whatever its clock says, no other one of a hundred million has it. */
  blockId(now: number): string {
    const ticks = ++this.#blocks % ticksPerMilli
    this.#clock.writeUInt16BE(Math.floor(this.#blocks / ticksPerMilli) % 2 ** 14)
    return driver.types.TimeUuid.fromDate(new Date(now), ticks, this.#node, this.#clock).toString()
  }

  /** A block was appended, by whomever. */
  seen(blockId: string, now: number): void {
    const writer = writerOf(blockId)
    const time = timeOf(blockId)
    this.#writers.set(writer, now)
    const run = this.#run
    if (run?.writer === writer) {
      run.last = time
      run.blocks++
      run.seen = now
    } else this.#run = { writer, begin: time, last: time, blocks: 1, seen: now }
  }

  /**
   * Milliseconds to wait before this process should append, by what it has seen; then it should look at the log again. 0:
   * it is its turn.
   */
  wait(now: number): number {
    const run = this.#run
    if (run === undefined) return 0
    const order = this.#order(now)
    const own = run.writer === this.#me
    const spacing = run.blocks < 2 ? 0 : (run.last - run.begin) / (run.blocks - 1)
    const since = now - run.seen
    if (own && order.length < 2) {
      if (!this.#isAtWork(run) || run.last - run.begin < aloneMillis) return 0
      const gap = stepMillis + 2 * spacing - since
      if (gap > 0) return gap
      this.declined()
      return 0
    }
    if (own && !this.#isOver(run)) return 0
    if (!own && !this.#isAtWork(run)) return 0
    const rest = Math.max(turnMillis - (run.last - run.begin), (turnBlocks - run.blocks) * spacing)
    // Who is not known to the others shows itself by a block: with luck after theirs, else between two turns or in a gap.
    if (!own && !order.includes(this.#me)) {
      const overNow = this.#isOver(run) && -rest <= 2 * spacing
      return since < lookMillis || since > 1.5 * spacing || overNow ? 0 : lookMillis
    }
    // 1 for the next; the writer itself comes after all others.
    const rank = own
      ? order.length + 1
      : (order.indexOf(this.#me) - order.indexOf(run.writer) + order.length) % order.length
    const before = (stepMillis + 2 * spacing) * (rank - 1)
    if (this.#isOver(run)) return Math.max(0, before - since)
    // It has stopped by itself.
    const stopped = 2 * stepMillis + 4 * spacing
    if (since > stopped) return Math.max(0, before + stopped - since)
    // The next one reads on meanwhile, to be ready.
    return Math.max(lookMillis, rank === 1 ? (rest - since) / 2 : rest - since + before)
  }

  /** Nobody has taken the turn that was left to others. */
  declined(): void {
    this.#writers.clear()
    this.#run = undefined
  }

  get isOwn(): boolean {
    return this.#run?.writer === this.#me
  }

  /** The writers that have been at it, in the order of their turns. */
  #order(now: number): Array<string> {
    for (const [writer, seen] of this.#writers) if (now - seen > memoryMillis) this.#writers.delete(writer)
    return [...this.#writers.keys()].sort()
  }

  #isOver({ begin, blocks, last }: Run): boolean {
    return blocks >= turnBlocks && last - begin >= turnMillis
  }

  #isAtWork({ begin, blocks, last }: Run): boolean {
    return blocks >= workBlocks && last - begin <= workMillis * (blocks - 1)
  }
}
