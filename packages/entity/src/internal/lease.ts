/**
 * Who of several processes does what one is enough for. The holder says every second that it is still there, by a snapshot of
 * an entity that has no events; when others hear nothing new for some seconds, one of them takes over. They do not agree on
 * it: for a moment two may hold it, so what they do must be right, if wasteful, when two do it.
 */
import type { EntityKey, Journal } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import { type Clock, Effect, Option, Schema } from "effect"

const beatMillis = 1000
const silenceMillis = 3000

/** The holder, none when it is empty, and how often it has said so. */
const Claim = Schema.Struct({ holder: Schema.String, beat: Schema.Int })

const readClaim = Schema.decodeUnknownOption(Claim)

export class Lease {
  readonly #journal: Journal["Service"]
  readonly #entity: EntityKey
  readonly #clock: Clock.Clock
  readonly #me = crypto.randomUUID()
  /** Each holder has a higher one than those before, so that a late write of theirs changes nothing. */
  #term = 0
  #beat = 0
  /** Until then nobody else takes it. */
  #until = 0
  /** What was heard last, and since when nothing else. */
  #heard = ""
  #heardAt = 0

  constructor(journal: Journal["Service"], entity: EntityKey, clock: Clock.Clock) {
    this.#journal = journal
    this.#entity = entity
    this.#clock = clock
  }

  /** Whether surely nobody else has it. */
  get held(): boolean {
    return this.#now < this.#until
  }

  /** Waits until nobody else has it, and takes it. Says whether the one before had not given it back. */
  readonly take: Effect.Effect<boolean, JournalError> = Effect.suspend(() =>
    Effect.gen({ self: this }, function* () {
      for (;;) {
        const { beat, holder, term } = yield* this.#read
        const heard = `${term} ${holder} ${beat}`
        if (heard !== this.#heard) {
          this.#heard = heard
          this.#heardAt = this.#now
        }
        if (holder === "" || this.#now - this.#heardAt >= silenceMillis) {
          this.#term = term + 1
          yield* this.#say(this.#me)
          return holder !== ""
        }
        yield* Effect.sleep(beatMillis)
      }
    })
  )

  /** Goes on saying that it is held, and ends when another process has taken it. */
  readonly keep: Effect.Effect<void, JournalError> = Effect.suspend(() =>
    Effect.gen({ self: this }, function* () {
      for (;;) {
        const { holder, term } = yield* this.#read
        if (term > this.#term || (term === this.#term && holder !== this.#me)) {
          this.#until = 0
          return
        }
        yield* this.#say(this.#me)
        yield* Effect.sleep(beatMillis)
      }
    })
  )

  /** Gives it back, so that the next one need not wait. */
  readonly release: Effect.Effect<void> = Effect.suspend(() => (this.held ? Effect.ignore(this.#say("")) : Effect.void))

  /** Milliseconds that pass whatever the time of day is set to. */
  get #now() {
    return Number(this.#clock.monotonicTimeNanosUnsafe()) / 1e6
  }

  get #read() {
    return Effect.map(this.#journal.load(this.#entity), ({ snapshot }) => ({
      ...Option.getOrElse(
        Option.flatMap(snapshot, ({ state }) => readClaim(state)),
        () => ({ holder: "", beat: 0 })
      ),
      term: Option.match(snapshot, { onNone: () => 0, onSome: ({ sequence }) => sequence })
    }))
  }

  #say(holder: string) {
    this.#until = holder === "" ? 0 : this.#now + silenceMillis
    const sequence = this.#term
    const state: typeof Claim.Type = { holder, beat: this.#beat++ }
    return this.#journal.saveSnapshot(this.#entity, { sequence, validThrough: 0, state }, sequence - 1)
  }
}
