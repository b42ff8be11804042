import { Decision, PersistentEntity, ReadOnly } from "@effect-cassandra/entity"
import type { EntityError } from "@effect-cassandra/entity/EntityError"
import { Effect, Schema } from "effect"
import { Rpc } from "effect/rpc"
import { Account, AccountId, Cents } from "./Account.ts"

const details = { from: AccountId, to: AccountId, cents: Cents }
const reason = { reason: Schema.String }

// The way of the money: Started, Sent, Received. When the first account refuses: Started, Declined. When the second one
// does: Started, Sent, Refused, Returned.
const Started = Schema.TaggedStruct("Started", details)
const Declined = Schema.TaggedStruct("Declined", reason)
const Sent = Schema.TaggedStruct("Sent", details)
const Received = Schema.TaggedStruct("Received", details)
const Refused = Schema.TaggedStruct("Refused", { ...details, ...reason })
const Returned = Schema.TaggedStruct("Returned", {})

export class TransferExists extends Schema.TaggedError<TransferExists>()(
  "TransferExists",
  { message: Schema.String },
  { httpApiStatus: 409 }
) {}
export class TransferUnknown extends Schema.TaggedError<TransferUnknown>()(
  "TransferUnknown",
  { message: Schema.String },
  { httpApiStatus: 404 }
) {}

const State = Schema.Struct({
  status: Schema.Literals(["unknown", "started", "sent", "completed", "returning", "failed"]),
  from: Schema.String,
  to: Schema.String,
  cents: Schema.Int,
  reason: Schema.String
})

/** Money on its way from one account to another: all of it arrives, or all of it comes back. */
export const Transfer = PersistentEntity.make("Transfer", {
  state: State,
  initialState: { status: "unknown", from: "", to: "", cents: 0, reason: "" },
  events: [Started, Declined, Sent, Received, Refused, Returned],
  commands: [
    Rpc.make("Start", { payload: details, error: TransferExists }),
    ReadOnly.fresh(Rpc.make("Show", { success: State, error: TransferUnknown })),
    // What became of each step.
    Rpc.make("Decline", { payload: reason }),
    Rpc.make("HaveSent"),
    Rpc.make("HaveReceived"),
    Rpc.make("Refuse", { payload: reason }),
    Rpc.make("HaveReturned")
  ]
})

const detailsOf = ({ cents, from, to }: typeof State.Type) => ({ from, to, cents })

/**
 * From one status to the next, once. The event is made only then: what this process has in memory may be older than what it
 * was told of, and have no details yet; the decision is taken anew where that turns out.
 */
const step = <Event>(
  transfer: typeof State.Type,
  from: typeof transfer.status,
  event: (before: typeof transfer) => Event
) => Decision.persist(transfer.status === from ? [event(transfer)] : [])

/** Goes on when an account has done its part, or has refused; what is not known is tried again. */
const then = <E extends { readonly message: string }>(
  command: Effect.Effect<unknown, E | EntityError>,
  next: {
    readonly done: Effect.Effect<void, EntityError>
    readonly refused: (reason: string) => Effect.Effect<void, EntityError>
  }
): Effect.Effect<void, EntityError> =>
  Effect.matchEffect(command, {
    onSuccess: () => next.done,
    onFailure: (error) => (isEntityError(error) ? Effect.fail(error) : next.refused(error.message))
  })

const isEntityError = (error: { readonly message: string }): error is EntityError =>
  "_tag" in error && error._tag === "EntityError"

export const behavior = Transfer.behavior({
  apply: (transfer, event) => {
    switch (event._tag) {
      case "Started":
        return { status: "started", from: event.from, to: event.to, cents: event.cents, reason: "" }
      case "Declined":
        return { ...transfer, status: "failed", reason: event.reason }
      case "Sent":
        return { ...transfer, status: "sent" }
      case "Received":
        return { ...transfer, status: "completed" }
      case "Refused":
        return { ...transfer, status: "returning", reason: event.reason }
      case "Returned":
        return { ...transfer, status: "failed" }
    }
  },

  commands: {
    Start: (transfer, { cents, from, to }) =>
      transfer.status === "unknown"
        ? Decision.persist(Started.make({ from, to, cents }))
        : Decision.reject(new TransferExists({ message: "there is a transfer with this id" })),
    Show: (transfer) =>
      transfer.status === "unknown"
        ? Decision.reject(new TransferUnknown({ message: "there is no such transfer" }))
        : Decision.reply(transfer),
    Decline: (transfer, { reason }) => step(transfer, "started", () => Declined.make({ reason })),
    HaveSent: (transfer) => step(transfer, "started", (before) => Sent.make(detailsOf(before))),
    HaveReceived: (transfer) => step(transfer, "sent", (before) => Received.make(detailsOf(before))),
    Refuse: (transfer, { reason }) =>
      step(transfer, "sent", (before) => Refused.make({ ...detailsOf(before), reason })),
    HaveReturned: (transfer) => step(transfer, "returning", () => Returned.make({}))
  },

  // What each event leads to: at least once, whatever crashes, and once in effect, as the commands have ids.
  reactions: {
    Started: ({ cents, from }, { entityId: transfer, self }) =>
      Effect.flatMap(Account, (accounts) =>
        then(accounts(from).Send({ transfer, cents }), {
          done: self.HaveSent(),
          refused: (reason) => self.Decline({ reason })
        })
      ),
    Sent: ({ cents, to }, { entityId: transfer, self }) =>
      Effect.flatMap(Account, (accounts) =>
        then(accounts(to).Receive({ transfer, cents }), {
          done: self.HaveReceived(),
          refused: (reason) => self.Refuse({ reason })
        })
      ),
    Received: ({ from }, { entityId: transfer }) =>
      Effect.flatMap(Account, (accounts) => accounts(from).Settle({ transfer })),
    Refused: ({ from }, { entityId: transfer, self }) =>
      Effect.flatMap(Account, (accounts) => Effect.andThen(accounts(from).TakeBack({ transfer }), self.HaveReturned()))
  }
})
