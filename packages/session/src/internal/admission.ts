/** A request that waits for its turn, is under way, or is over. */
export abstract class Ticket {
  state: "new" | "waiting" | "running" | "done" = "new"
  /** In the queue. */
  next: Ticket | undefined
  /** Neighbours among those that have a deadline. */
  earlier: Ticket | undefined
  later: Ticket | undefined
  deadline = 0
  abstract start(): void
  abstract expire(): void
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
        const next: Ticket = this.#first
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

/**
 * Time-outs of one length, so that they come due in the order in which they were set: one timer for all, instead of one to
 * set and clear for each request.
 */
export class Deadlines {
  readonly #millis: number
  #first: Ticket | undefined
  #last: Ticket | undefined
  #timer: NodeJS.Timeout | undefined

  constructor(millis: number) {
    this.#millis = millis
  }

  add(ticket: Ticket, now: number): void {
    ticket.deadline = now + this.#millis
    ticket.earlier = this.#last
    if (this.#last === undefined) this.#first = ticket
    else this.#last.later = ticket
    this.#last = ticket
    // It goes on until nothing is left, rather than being set anew for each first one.
    this.#timer ??= setTimeout(this.#due, this.#millis)
  }

  remove(ticket: Ticket): void {
    const { earlier, later } = ticket
    if (earlier === undefined && later === undefined && this.#first !== ticket) return
    if (earlier === undefined) this.#first = later
    else earlier.later = later
    if (later === undefined) this.#last = earlier
    else later.earlier = earlier
    ticket.earlier = undefined
    ticket.later = undefined
  }

  close(): void {
    clearTimeout(this.#timer)
  }

  readonly #due = () => {
    const now = performance.now()
    while (this.#first !== undefined && this.#first.deadline <= now) {
      const ticket = this.#first
      this.remove(ticket)
      ticket.expire()
    }
    this.#timer = this.#first === undefined ? undefined : setTimeout(this.#due, Math.max(1, this.#first.deadline - now))
  }
}
