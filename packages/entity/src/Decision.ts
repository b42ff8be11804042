/**
 * What a command handler decides: store events and reply, only reply, or reject with an error.
 */

/**
 * A decision about events of type `Event` for an entity with state `State`, replying `A` or failing with `E`.
 */
export type Decision<Event, State, A, E> = Persist<Event, State, A> | Reply<A> | Reject<E>

/** Stores events, all or none; `reply` sees the state after them. */
export interface Persist<Event, State, A> {
  readonly _tag: "Persist"
  readonly events: ReadonlyArray<Event>
  readonly reply: (state: State) => A
}

/** Stores nothing. */
export interface Reply<A> {
  readonly _tag: "Reply"
  readonly value: A
}

/** Stores nothing. */
export interface Reject<E> {
  readonly _tag: "Reject"
  readonly error: E
}

/**
 * Stores one event, or several at once, and replies from the state after them; without `reply` the caller gets nothing.
 */
export const persist: {
  <Event>(events: Event | ReadonlyArray<Event>): Persist<Event, unknown, void>
  <Event, State, A>(events: Event | ReadonlyArray<Event>, reply: (state: State) => A): Persist<Event, State, A>
} = <Event, State, A>(events: Event | ReadonlyArray<Event>, reply?: (state: State) => A): Persist<Event, State, A> => ({
  _tag: "Persist",
  events: Array.isArray(events) ? events : [events as Event],
  reply: reply ?? (() => undefined as A)
})

/** Replies without storing anything. */
export const reply = <A>(value: A): Reply<A> => ({ _tag: "Reply", value })

/** Fails the command with an error of its schema; nothing is stored. */
export const reject = <E>(error: E): Reject<E> => ({ _tag: "Reject", error })
