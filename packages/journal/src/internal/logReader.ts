/**
 * Reads a shard's log block by block, and takes nothing for granted: each block must follow the one before it.
 */
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Effect } from "effect"
import type { JournalError } from "../JournalError.ts"
import { decodeBlock, type Entry } from "./block.ts"
import { corrupt, storeFailure } from "./failure.ts"
import type { LogId, Place, Store, StoredBlock, TypeRecord } from "./store.ts"

/** Consecutive events of the log, `from` excluded, `to` included. */
export interface Block {
  readonly from: number
  readonly to: number
  readonly blockId: string
  /** Of the last event. */
  readonly stamp: number
  readonly place: Place
  readonly written: number
  readonly entries: ReadonlyArray<Entry>
}

/** Where a reader goes on: after an offset, in the partition that holds the next block. */
export interface Cursor {
  readonly after: number
  readonly place: Place
}

export const firstPlace: Place = { bucket: 0, part: 0 }

/**
 * The partition of the block that follows. Everybody computes the same from the last block, so that whoever knows the head
 * knows the row to write.
 */
export const placeAfter = (
  { bucketSize, partSize }: Pick<TypeRecord, "bucketSize" | "partSize">,
  { place, to, written }: Pick<Block, "place" | "to" | "written">
): Place => {
  const bucket = Math.floor(to / bucketSize)
  if (bucket > place.bucket) return { bucket, part: 0 }
  return written >= partSize ? { bucket, part: place.part + 1 } : place
}

/** About what one page of blocks should hold, in characters. */
const pageSize = 1_000_000
const tries = 6

export class LogReader {
  readonly log: LogId
  readonly #store: Store
  readonly #record: TypeRecord
  /** Blocks per page: follows the size of the blocks that were read. */
  #limit = 32

  constructor(store: Store, log: LogId, record: TypeRecord) {
    this.#store = store
    this.log = log
    this.#record = record
  }

  /** Reads the events of a stored block. */
  decode(place: Place, stored: StoredBlock): Effect.Effect<Block, JournalError> {
    return Effect.suspend(() => {
      const { blockId, events, offset, stamp, written } = stored
      try {
        const entries = decodeBlock(events, offset, stamp)
        if (entries.length === 0) return corrupt(this.log, `block ${blockId} at ${offset} has no events`)
        return Effect.succeed({ from: offset - entries.length, to: offset, blockId, stamp, place, written, entries })
      } catch (cause) {
        return corrupt(this.log, `block ${blockId} at ${offset} is not readable: ${cause}`)
      }
    })
  }

  /** The stored block that holds an offset, with its place; undefined where none is to be seen. */
  readonly find = Effect.fnUntraced(function* (this: LogReader, offset: number, serial: boolean) {
    const bucket = Math.floor((offset - 1) / this.#record.bucketSize)
    // A block belongs to the bucket of the offset before its first: it may reach into the next one.
    for (const at of bucket === 0 ? [0] : [bucket, bucket - 1]) {
      for (let part = 0; ; part++) {
        const place = { bucket: at, part }
        const head = yield* this.#store.readHead(this.log, place, serial).pipe(Effect.mapError(storeFailure))
        if (head === null) break
        if (head < offset) continue
        const [stored] = yield* this.#read(place, offset - 1, 1, serial)
        if (stored === undefined) break
        const block = yield* this.decode(place, stored)
        if (block.from < offset) return { stored, block }
        break
      }
    }
    return undefined
  })

  /** Where to read on after an offset; undefined when it is beyond what is to be seen. */
  locate(after: number, serial = false): Effect.Effect<Cursor | undefined, JournalError> {
    if (after === 0) return Effect.succeed({ after, place: firstPlace })
    return Effect.map(this.find(after, serial), (found) =>
      found === undefined
        ? undefined
        : { after, place: found.block.to === after ? placeAfter(this.#record, found.block) : found.block.place }
    )
  }

  /**
   * The blocks that follow a cursor without a gap, and where to go on. None when there are none to be seen, or when the
   * next is not among them: a quorum read may show a block and not yet the one before it.
   */
  readonly next = Effect.fnUntraced(function* (this: LogReader, { after, place }: Cursor, serial: boolean) {
    const blocks: Array<Block> = []
    let position = after
    let next = place
    let size = 0
    for (const stored of yield* this.#read(place, after, this.#limit, serial)) {
      const block = yield* this.decode(place, stored)
      // The first may begin before, where the reader starts in the middle of a block.
      if (block.from > position || (position > after && block.from < position)) break
      size += stored.events.length
      blocks.push(block)
      position = block.to
      next = placeAfter(this.#record, block)
    }
    if (blocks.length > 0) this.#limit = Math.min(2000, Math.max(4, Math.ceil((pageSize * blocks.length) / size)))
    return { blocks, cursor: { after: position, place: next } }
  })

  /** As `next`, for blocks that are known to be there: asks again, at a serial consistency, before it is an error. */
  readonly demand = Effect.fnUntraced(function* (this: LogReader, cursor: Cursor, head: number) {
    for (let attempt = 0; attempt < tries; attempt++) {
      const page = yield* this.next(cursor, attempt > 0)
      if (page.blocks.length > 0) return page
      yield* Effect.sleep(20 * 2 ** attempt)
    }
    return yield* corrupt(this.log, `event ${cursor.after + 1} is missing, the head is ${head}`)
  })

  #read(place: Place, after: number, limit: number, serial: boolean) {
    return this.#store
      .readBlocks(this.log, place, after, limit, serial)
      .pipe(Effect.mapError((error: CassandraError) => storeFailure(error)))
  }
}
