/** The JSON of blocks and index rows. Keys are short, for they are stored with every event. */
import type { Json, Metadata } from "../Journal.ts"

/** An event as JSON; in a block with `e`, in an index row with `o` and `s`. */
export interface Item {
  /** Entity id. */
  readonly e?: string
  /** Sequence number. */
  readonly n: number
  /** Offset. */
  readonly o?: number
  /** Stamp. */
  readonly s?: number
  /** Type. */
  readonly t: string
  /** Version, where it is not 1. */
  readonly v?: number | undefined
  /** Metadata, where there are any. */
  readonly m?: Metadata | undefined
  /** Answer to the command whose last event it is. */
  readonly a?: Json | undefined
  /** Name of the payload's encoding, where it is not JSON; the payload is then base64. */
  readonly x?: string | undefined
  /** Payload. */
  readonly p?: unknown
  /** Deleted: payload, metadata and answer are gone. */
  readonly d?: 1
}

/** An event as it stands in a log. */
export interface Entry {
  readonly entityId: string
  readonly sequence: number
  readonly offset: number
  /** Microseconds; strictly increasing within the log. */
  readonly stamp: number
  readonly type: string
  /** The members from the sequence number on, where this process wrote them: a part of the block's text. */
  readonly text?: string | undefined
  /** The event, where it was read from JSON. */
  readonly item?: Item | undefined
}

/** Between the stamps of two neighbouring events; what lies between is for the statements of read sides. */
export const stampStep = 10

/** An event to append: all members after the sequence number. */
export interface Body {
  readonly type: string
  readonly text: string
}

export const encodeBody = ({ a, m, p, t, v, x }: Omit<Item, "n">): Body => {
  const payload = JSON.stringify(p) ?? "null"
  if (m === undefined && a === undefined && x === undefined && (v === undefined || v === 1)) {
    return { type: t, text: `${beginOf(t)}${payload}` }
  }
  let text = `"t":${JSON.stringify(t)}`
  if (v !== undefined && v !== 1) text += `,"v":${v}`
  if (m !== undefined) text += `,"m":${JSON.stringify(m)}`
  if (a !== undefined) text += `,"a":${JSON.stringify(a)}`
  if (x !== undefined) text += `,"x":${JSON.stringify(x)}`
  return { type: t, text: `${text},"p":${payload}` }
}

const begins = new Map<string, string>()

/** How the plain event of a type begins: there are few, and many events wait to be stored, so that small ones are worth while. */
const beginOf = (type: string): string => {
  let begin = begins.get(type)
  if (begin === undefined) {
    begin = `"t":${JSON.stringify(type)},"p":`
    if (begins.size === maxBegins) begins.clear()
    begins.set(type, begin)
  }
  return begin
}
const maxBegins = 1000

/** The event as it comes back from JSON, whoever wrote it. */
export const itemOf = (entry: Entry): Item => entry.item ?? (JSON.parse(`{${entry.text}}`) as Item)

/** The type of an event that says that events were deleted; it is never deleted itself. */
export const deletedType = "$deleted"

/** Whether a deletion up to a sequence number still has something to take from an event. */
export const isDeletable = ({ item, sequence, type }: Entry, through: number): boolean =>
  sequence <= through && item?.d !== 1 && type !== deletedType

/** An event after a deletion up to a sequence number. */
export const afterDeletion = (entry: Entry, through: number): Entry => {
  if (!isDeletable(entry, through)) return entry
  const { entityId, offset, sequence, stamp, type } = entry
  return { entityId, sequence, offset, stamp, type, text: undefined, item: { n: sequence, t: type, d: 1 } }
}

/** Builds the JSON of a block. */
export class BlockBuilder {
  readonly #parts: Array<string> = []
  readonly #entries: Array<{ -readonly [K in keyof Entry]: Entry[K] }> = []
  /** Where each entry's text begins, within its part. */
  readonly #begins: Array<number> = []

  add(entityId: string, sequence: number, offset: number, stamp: number, { text, type }: Body): void {
    const begin = `${this.#parts.length === 0 ? "[" : ""}{"e":${JSON.stringify(entityId)},`
    this.#begins.push(begin.length)
    this.#parts.push(`${begin}"n":${sequence},${text}}`)
    this.#entries.push({ entityId, sequence, offset, stamp, type, text: undefined, item: undefined })
  }

  /** The text, and the entries as parts of it: many events in memory are then few objects. */
  build(): { readonly text: string; readonly entries: ReadonlyArray<Entry> } {
    const parts = this.#parts
    const last = parts.length - 1
    parts[last] += "]"
    const text = parts.join(",")
    let position = 0
    for (let i = 0; i <= last; i++) {
      const end = position + parts[i]!.length
      this.#entries[i]!.text = text.slice(position + this.#begins[i]!, i === last ? end - 2 : end - 1)
      position = end + 1
    }
    return { text, entries: this.#entries }
  }
}

/** The events of a block again, in which some have lost their payload. */
export const encodeBlock = (entries: ReadonlyArray<Entry>): string =>
  JSON.stringify(entries.map((entry) => ({ e: entry.entityId, ...itemOf(entry) })))

/** An event of an index row, which knows the entity by the row's key. */
export const encodeIndexEvent = (entry: Entry): string => {
  const begin = `{"o":${entry.offset},"s":${entry.stamp},`
  if (entry.text !== undefined) return `${begin}${entry.text}}`
  const { e: _, o: __, s: ___, ...item } = entry.item!
  return begin + JSON.stringify(item).slice(1)
}

/** The events of a text that should be JSON of some; throws an Error that says what it is instead. */
const itemsOf = (events: string): Array<Item> => {
  const items = JSON.parse(events) as Array<Item>
  if (!Array.isArray(items)) throw new TypeError("it is no list of events")
  for (const item of items) {
    if (!Number.isSafeInteger(item?.n) || item.n < 1) throw new TypeError(`an event has the sequence number ${item?.n}`)
    if (typeof item.t !== "string") throw new TypeError(`event ${item.n} has the type ${item.t}`)
  }
  return items
}

/** Reads the events of a block whose last one has the given offset and stamp; throws an Error. */
export const decodeBlock = (events: string, offset: number, stamp: number): Array<Entry> => {
  const items = itemsOf(events)
  const last = items.length - 1
  const entries = new Array<Entry>(items.length)
  for (let i = 0; i <= last; i++) {
    const item = items[i]!
    if (typeof item.e !== "string") throw new TypeError(`event ${item.n} belongs to the entity ${item.e}`)
    entries[i] = {
      entityId: item.e,
      sequence: item.n,
      offset: offset - last + i,
      stamp: stamp - (last - i) * stampStep,
      type: item.t,
      text: undefined,
      item
    }
  }
  return entries
}

/** Reads the events of an index row; throws an Error. */
export const decodeIndexRow = (entityId: string, events: string): Array<Entry> =>
  itemsOf(events).map((item) => {
    const { n, o: offset, s: stamp, t: type } = item
    if (!Number.isSafeInteger(offset) || !Number.isSafeInteger(stamp)) {
      throw new TypeError(`event ${n} has the offset ${offset} and the stamp ${stamp}`)
    }
    return { entityId, sequence: n, offset: offset!, stamp: stamp!, type, text: undefined, item }
  })
