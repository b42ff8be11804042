/** Another process, as one that sends commands to it. */
import { connect } from "node:tls"
import { Link } from "./link.ts"
import type { Member } from "./members.ts"

/** Encrypted, and both sides know the key that stands in the keyspace: no certificates. */
export const security = {
  ciphers: "ECDHE-PSK-CHACHA20-POLY1305",
  minVersion: "TLSv1.2",
  maxVersion: "TLSv1.2"
} as const

const connectMillis = 1000
/** After a connection failed, nothing is sent for so long. */
const restMillis = 1000
const silenceMillis = 5000

/** A command, from the sender; a single id takes one back, and nothing at all is answered with nothing. */
export type Request =
  | readonly [id: number, entityType: string, entityId: string, command: string, payload: unknown, more?: More]
  | readonly [id: number]
  | readonly []

/** What a command may carry beside its payload. */
export interface More {
  readonly metadata?: object
  readonly id?: { readonly of: string; readonly strict: boolean; readonly since?: number | undefined }
  readonly traceparent?: string
  /** A local read must see everything up to this offset of the shard. */
  readonly seen?: number
}

/** `"refused"`: it was not begun there, for whatever reason. */
export type Outcome = "success" | "failure" | "error" | "defect" | "refused"

/** The answer to a command, with the offset that it rests on; or -1 from a process that is about to close. */
export type Response =
  | readonly [id: number, outcome: Outcome, value?: unknown, offset?: number | undefined]
  | readonly [id: -1]
  | readonly []

/** One who waits for an answer. */
export interface Waiting {
  onAnswer(outcome: Outcome, value: unknown, offset: number | undefined): void
  /** There will be none: the command was not sent, or it was and nobody knows what became of it. */
  onLost(wasSent: boolean): void
}

export class Peer {
  readonly member: Member
  #link: Link | undefined
  readonly #waiting: Array<Waiting | undefined> = []
  readonly #free: Array<number> = []
  #failedAt = Number.NEGATIVE_INFINITY
  /** It has said that it closes. */
  #isClosing = false
  /** It is not among the members any more. */
  isGone = false

  constructor(member: Member) {
    this.member = member
  }

  /** Whether there is a connection, or one could be made. */
  get isUsable(): boolean {
    if (this.#isClosing || this.isGone) return false
    return this.#link !== undefined || performance.now() - this.#failedAt > restMillis
  }

  /** Sends a command; gives its number among those under way. */
  request(
    waiting: Waiting,
    entityType: string,
    entityId: string,
    command: string,
    payload: unknown,
    more: More | undefined
  ): number {
    this.#link ??= this.#connect()
    const id = this.#free.pop() ?? this.#waiting.length
    this.#waiting[id] = waiting
    const request: Request =
      more === undefined
        ? [id, entityType, entityId, command, payload]
        : [id, entityType, entityId, command, payload, more]
    this.#link.send(request)
    return id
  }

  /** Its answer is not wanted any more; it is one of those under way until it comes. */
  cancel(id: number): void {
    this.#link?.send([id] satisfies Request)
  }

  *waiting(): Generator<Waiting> {
    for (const one of this.#waiting) if (one !== undefined) yield one
  }

  /** Asks for a sign of life; a process that gives none for long is not there, unless this one has not listened. */
  probe(hasNotListened: boolean): void {
    if (this.#link === undefined) return
    if (hasNotListened) this.#link.heard = performance.now()
    if (performance.now() - this.#link.heard > silenceMillis) this.#link.destroy()
    else this.#link.send([] satisfies Request)
  }

  /** Ends the connection if nothing is under way; true if there is none then. */
  endIfIdle(): boolean {
    if (this.#link !== undefined && this.#free.length === this.#waiting.length) {
      this.#link.end()
      this.#link = undefined
    }
    return this.#link === undefined
  }

  close(): void {
    this.#link?.destroy()
  }

  #connect(): Link {
    const { host, key, name, port } = this.member
    const socket = connect({
      ...security,
      host,
      port,
      pskCallback: () => ({ psk: Buffer.from(key, "hex"), identity: name }),
      // The key says who it is.
      checkServerIdentity: () => undefined
    })
    const timeout = setTimeout(() => socket.destroy(), connectMillis)
    let isOpen = false
    const link: Link = new Link(socket, false, {
      onMessages: (messages) => {
        for (const [id, outcome, value, offset] of messages as ReadonlyArray<Response>) {
          if (id === undefined) continue
          if (outcome === undefined) {
            this.#isClosing = true
            continue
          }
          const waiting = this.#waiting[id]
          this.#waiting[id] = undefined
          this.#free.push(id)
          waiting?.onAnswer(outcome, value, offset)
        }
        if (this.#isClosing || this.isGone) this.endIfIdle()
      },
      onClose: (unsent) => {
        clearTimeout(timeout)
        // It was ended, and there may be another one.
        if (this.#link !== link) return
        this.#link = undefined
        if (!isOpen) this.#failedAt = performance.now()
        const notSent = new Set((unsent as ReadonlyArray<Request>).filter(({ length }) => length > 1).map(([id]) => id))
        const waiting = this.#waiting.splice(0)
        this.#free.length = 0
        for (const [id, one] of waiting.entries()) one?.onLost(!notSent.has(id))
      }
    })
    socket.once("secureConnect", () => {
      clearTimeout(timeout)
      isOpen = true
      link.open()
    })
    return link
  }
}
