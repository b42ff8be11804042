/**
 * A network between a program and a server that can fail: it holds back, delays and cuts what passes.
 */
import { connect, createServer, type Socket } from "node:net"
import { Effect, type Scope } from "effect"

/** A TCP proxy on the loopback. */
export interface FaultProxy {
  /** `"127.0.0.1:port"`, to be connected to instead of the server. */
  readonly address: string
  /** Halts all connections, and those to come: they stay open, and nothing passes in either direction. */
  readonly hold: Effect.Effect<void>
  /** Holds back what clients send, while answers pass. */
  readonly holdRequests: Effect.Effect<void>
  /**
   * Passes on what was held back, in its order: to the server also what a client has sent that is gone by now, as a request
   * that was on its way may still be carried out.
   */
  readonly release: Effect.Effect<void>
  /** Passes everything on later by some milliseconds in each direction, in its order. */
  readonly delay: (millis: number) => Effect.Effect<void>
  /** Cuts all connections, and loses what was held back; new ones are made as before. */
  readonly drop: Effect.Effect<void>
  /** Cuts all connections, and every new one at once. */
  readonly refuse: Effect.Effect<void>
  /** Ends `refuse`. */
  readonly accept: Effect.Effect<void>
}

/**
 * Starts a proxy before a server at `"host:port"`, on a free port of 127.0.0.1 unless an address of the loopback is given;
 * it ends with the scope.
 */
export const make = (target: string, address = "127.0.0.1:0"): Effect.Effect<FaultProxy, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<{ readonly proxy: FaultProxy; readonly close: () => void }>((resume) => {
      const separator = target.lastIndexOf(":")
      const [host, port] = [target.slice(0, separator), Number(target.slice(separator + 1))]
      const state: State = { requestsHeld: false, answersHeld: false, millis: 0 }
      const pipes = new Set<Pipe>()
      let refused = false
      const cut = () => {
        for (const pipe of pipes) pipe.cut()
      }
      const set = (change: Partial<State>) =>
        Effect.sync(() => {
          Object.assign(state, change)
          for (const pipe of pipes) pipe.flush()
        })
      const server = createServer({ allowHalfOpen: true, noDelay: true }, (client) => {
        if (refused) return void client.destroy()
        const upstream = connect({ port, host, allowHalfOpen: true, noDelay: true })
        for (const pipe of [
          new Pipe(client, upstream, state, "requestsHeld"),
          new Pipe(upstream, client, state, "answersHeld")
        ]) {
          pipes.add(pipe)
          pipe.onClose = () => pipes.delete(pipe)
        }
      })
      const [ownHost, ownPort] = address.split(":")
      server.listen(Number(ownPort), ownHost, () =>
        resume(
          Effect.succeed({
            close: () => {
              cut()
              server.close()
            },
            proxy: {
              address: `${ownHost}:${(server.address() as { readonly port: number }).port}`,
              hold: set({ requestsHeld: true, answersHeld: true }),
              holdRequests: set({ requestsHeld: true, answersHeld: false }),
              release: set({ requestsHeld: false, answersHeld: false }),
              delay: (millis) => set({ millis }),
              drop: Effect.sync(cut),
              refuse: Effect.sync(() => {
                refused = true
                cut()
              }),
              accept: Effect.sync(() => {
                refused = false
              })
            }
          })
        )
      )
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ proxy }) => proxy))

/** What holds for all connections of a proxy. */
interface State {
  requestsHeld: boolean
  answersHeld: boolean
  millis: number
}

/** What waits for its time: bytes, or that the sender sends no more, or is gone. */
interface Waiting {
  readonly due: number
  readonly data: Buffer | "end" | "close"
}

/** More than this is not taken from the sender before it was passed on. */
const maxWaiting = 64 * 1024 * 1024

/** One direction of a connection. */
class Pipe {
  readonly #from: Socket
  readonly #to: Socket
  readonly #state: State
  readonly #held: "requestsHeld" | "answersHeld"
  readonly #waiting: Array<Waiting> = []
  #bytes = 0
  #timer: NodeJS.Timeout | undefined
  onClose = () => {}

  constructor(from: Socket, to: Socket, state: State, held: "requestsHeld" | "answersHeld") {
    this.#from = from
    this.#to = to
    this.#state = state
    this.#held = held
    from.on("data", (data: Buffer) => this.#take(data))
    from.on("end", () => this.#take("end"))
    from.on("error", () => {})
    // However the sender has gone, what it sent before is on its way.
    from.on("close", () => this.#take("close"))
    to.on("drain", () => this.flush())
    to.on("close", () => {
      this.#discard()
      this.onClose()
    })
  }

  #take(data: Waiting["data"]) {
    if (this.#to.destroyed) return
    const { millis } = this.#state
    this.#waiting.push({ due: millis === 0 ? 0 : performance.now() + millis, data })
    this.#bytes += data.length
    if (this.#bytes > maxWaiting) this.#from.pause()
    this.flush()
  }

  #discard() {
    clearTimeout(this.#timer)
    this.#waiting.length = 0
    this.#bytes = 0
    this.#from.resume()
  }

  /** Passes on what is due and not held back. */
  flush() {
    if (this.#state[this.#held] || this.#to.writableNeedDrain) return
    const now = performance.now()
    while (this.#waiting.length > 0 && this.#waiting[0]!.due <= now) {
      const { data } = this.#waiting.shift()!
      this.#bytes -= data.length
      if (data === "end") this.#to.end()
      else if (data === "close") this.#to.destroySoon()
      else if (!this.#to.write(data)) break
    }
    if (this.#from.isPaused() && this.#bytes <= maxWaiting) this.#from.resume()
    clearTimeout(this.#timer)
    if (this.#waiting.length > 0 && !this.#to.writableNeedDrain)
      this.#timer = setTimeout(() => this.flush(), Math.max(1, this.#waiting[0]!.due - now))
  }

  cut() {
    this.#discard()
    this.#from.destroy()
    this.#to.destroy()
  }
}
