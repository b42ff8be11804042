/** A request that waits for its turn. */
export interface Ticket {
  readonly start: () => void
  state: "new" | "waiting" | "running" | "done"
  next: Ticket | undefined
}

/** Bounds the requests under way and those that wait, first come first served. */
export class Admission {
  readonly #maxInFlight: number
  readonly #maxQueued: number
  readonly #onIdle: () => void
  #first: Ticket | undefined
  #last: Ticket | undefined
  inFlight = 0
  queued = 0

  constructor(maxInFlight: number, maxQueued: number, onIdle: () => void) {
    this.#maxInFlight = maxInFlight
    this.#maxQueued = maxQueued
    this.#onIdle = onIdle
  }

  /** Starts the request or lets it wait; false when there is no room. */
  submit(ticket: Ticket): boolean {
    if (this.inFlight < this.#maxInFlight) {
      this.#run(ticket)
      return true
    }
    if (this.queued >= this.#maxQueued) return false
    ticket.state = "waiting"
    this.queued++
    if (this.#last === undefined) this.#first = ticket
    else this.#last.next = ticket
    this.#last = ticket
    return true
  }

  /** Ends a request, whether it is under way or still waits. */
  release(ticket: Ticket): void {
    if (ticket.state === "waiting") {
      // It stays in the list and is passed over when its turn comes.
      this.queued--
    } else if (ticket.state === "running") {
      this.inFlight--
      while (this.#first !== undefined && this.inFlight < this.#maxInFlight) {
        const next = this.#first
        this.#first = next.next
        if (this.#first === undefined) this.#last = undefined
        if (next.state !== "waiting") continue
        this.queued--
        this.#run(next)
      }
    }
    ticket.state = "done"
    if (this.inFlight === 0 && this.queued === 0) this.#onIdle()
  }

  #run(ticket: Ticket): void {
    ticket.state = "running"
    this.inFlight++
    ticket.start()
  }
}
