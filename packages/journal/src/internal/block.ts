/** The JSON of blocks and index rows. Keys are short, for they are stored with every event. */

/** An event as it stands in a log. */
export interface Entry {
  readonly entityId: string
  readonly sequence: number
  readonly offset: number
  /** Microseconds; strictly increasing within the log. */
  readonly stamp: number
  readonly type: string
  /** Type and payload as JSON members; absent where the payload was read from JSON. */
  readonly body?: string
  /** The payload as JSON gives it; absent until somebody asks, where `body` holds it. */
  payload?: unknown
}

/** Between the stamps of two neighbouring events; what lies between is for the statements of read sides. */
export const stampStep = 10

export const encodeBody = (type: string, payload: unknown): string =>
  `"t":${JSON.stringify(type)},"p":${JSON.stringify(payload) ?? "null"}`

/** The payload as it comes back from JSON, whoever wrote it. */
export const payloadOf = (entry: Entry): unknown => {
  if (entry.payload === undefined) entry.payload = (JSON.parse(`{${entry.body}}`) as { p: unknown }).p
  return entry.payload
}

/** An event of a block, which knows its offset and stamp by its place. */
export const encodeBlockEvent = (entityId: string, sequence: number, body: string): string =>
  `{"e":${JSON.stringify(entityId)},"n":${sequence},${body}}`

/** An event of an index row, which knows the entity by the row's key. */
export const encodeIndexEvent = (entry: Entry): string =>
  `{"n":${entry.sequence},"o":${entry.offset},"s":${entry.stamp},${entry.body ?? encodeBody(entry.type, entry.payload)}}`

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
