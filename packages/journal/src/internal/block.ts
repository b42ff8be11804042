/** The JSON of blocks and index rows. Keys are short, for they are stored with every event. */

/** An event as it stands in a log. */
export interface Entry {
  readonly entityId: string
  readonly sequence: number
  readonly offset: number
  /** Microseconds; strictly increasing within the log. */
  readonly stamp: number
  readonly type: string
  /** Sequence, type and payload as JSON members, where this process wrote them: a part of the block's text. */
  readonly text?: string
  /** The payload, where it was read from JSON. */
  readonly payload?: unknown
}

/** Between the stamps of two neighbouring events; what lies between is for the statements of read sides. */
export const stampStep = 10

export const encodeBody = (type: string, payload: unknown): string =>
  `"t":${JSON.stringify(type)},"p":${JSON.stringify(payload) ?? "null"}`

/** The payload as it comes back from JSON, whoever wrote it. */
export const payloadOf = (entry: Entry): unknown =>
  entry.text === undefined ? entry.payload : (JSON.parse(`{${entry.text}}`) as { p: unknown }).p

/** Builds the JSON of a block. */
export class BlockBuilder {
  readonly #parts: Array<string> = []
  readonly #entries: Array<{ -readonly [K in keyof Entry]: Entry[K] }> = []
  /** Where each entry's text begins, within its part. */
  readonly #begins: Array<number> = []

  add(entityId: string, sequence: number, offset: number, stamp: number, type: string, body: string): void {
    const begin = `${this.#parts.length === 0 ? "[" : ""}{"e":${JSON.stringify(entityId)},`
    this.#begins.push(begin.length)
    this.#parts.push(`${begin}"n":${sequence},${body}}`)
    this.#entries.push({ entityId, sequence, offset, stamp, type })
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

/** An event of an index row, which knows the entity by the row's key. */
export const encodeIndexEvent = (entry: Entry): string =>
  `{"o":${entry.offset},"s":${entry.stamp},${entry.text ?? `"n":${entry.sequence},${encodeBody(entry.type, entry.payload)}`}}`

interface BlockEvent {
  readonly e: string
  readonly n: number
  readonly t: string
  readonly p: unknown
}

interface IndexEvent {
  readonly n: number
  readonly o: number
  readonly s: number
  readonly t: string
  readonly p: unknown
}

/** Reads the events of a block whose last one has the given offset and stamp; throws a SyntaxError. */
export const decodeBlock = (events: string, offset: number, stamp: number): Array<Entry> => {
  const items = JSON.parse(events) as Array<BlockEvent>
  const last = items.length - 1
  return items.map((item, i) => ({
    entityId: item.e,
    sequence: item.n,
    offset: offset - last + i,
    stamp: stamp - (last - i) * stampStep,
    type: item.t,
    payload: item.p
  }))
}

/** Reads the events of an index row; throws a SyntaxError. */
export const decodeIndexRow = (entityId: string, events: string): Array<Entry> =>
  (JSON.parse(events) as Array<IndexEvent>).map((item) => ({
    entityId,
    sequence: item.n,
    offset: item.o,
    stamp: item.s,
    type: item.t,
    payload: item.p
  }))
