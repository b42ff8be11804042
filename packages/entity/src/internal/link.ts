/** A connection between two processes of a service: messages go in batches, and both sides know when it is gone. */
import type { TLSSocket } from "node:tls"
import { encodeFrame, FrameReader } from "./frames.ts"

/** Messages in one frame: JSON of many keeps the process busy. */
const maxMessages = 500

const keepAliveMillis = 30_000

/** What happens on a connection. */
export interface LinkEvents {
  onMessages(messages: ReadonlyArray<unknown>): void
  /** Once, at the end; with the messages that were not sent. */
  onClose(unsent: ReadonlyArray<unknown>): void
}

export class Link {
  readonly #socket: TLSSocket
  #outgoing: Array<unknown> = []
  #isDue = false
  #isOpen: boolean
  /** When something was heard last: `performance.now()`. */
  heard = performance.now()

  /** `isOpen`: messages can be sent already. */
  constructor(socket: TLSSocket, isOpen: boolean, events: LinkEvents) {
    this.#socket = socket
    this.#isOpen = isOpen
    const reader = new FrameReader()
    // Answers are waited for: a message must not wait for the next one.
    socket.setNoDelay(true)
    // A machine that is gone says nothing of it.
    socket.setKeepAlive(true, keepAliveMillis)
    socket.on("data", (part: Buffer) => {
      this.heard = performance.now()
      try {
        const messages = reader.read(part)
        if (messages.length > 0) events.onMessages(messages)
      } catch {
        // It speaks another language.
        socket.destroy()
      }
    })
    socket.on("close", () => events.onClose(this.#outgoing.splice(0)))
    // It is closed after that, too.
    socket.on("error", () => socket.destroy())
  }

  /** From now on messages can be sent. */
  open(): void {
    this.#isOpen = true
    this.heard = performance.now()
    this.#flush()
  }

  /** Sends a message, together with all others of the same moment. */
  send(message: unknown): void {
    this.#outgoing.push(message)
    if (this.#isDue || !this.#isOpen) return
    this.#isDue = true
    setImmediate(() => {
      this.#isDue = false
      this.#flush()
    })
  }

  #flush(): void {
    const outgoing = this.#outgoing
    if (outgoing.length === 0 || this.#socket.destroyed) return
    this.#outgoing = []
    for (let i = 0; i < outgoing.length; i += maxMessages) {
      this.#socket.write(encodeFrame(outgoing.slice(i, i + maxMessages)))
    }
  }

  /** Sends what there is, then ends. */
  end(): void {
    this.#flush()
    this.#socket.end()
  }

  destroy(): void {
    this.#socket.destroy()
  }
}
