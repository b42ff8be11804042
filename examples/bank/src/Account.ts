import { Decision, PersistentEntity, ReadOnly } from "@effect-cassandra/entity"
import { Schema } from "effect"
import { Rpc } from "effect/rpc"

/** Money is in cents, so that nothing is ever rounded. */
export const Cents = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 100_000_000_00 }))

export const AccountId = Schema.String.check(Schema.isPattern(/^[\w-]{1,64}$/))

// Events: what happened. They are stored for ever.
export const Opened = Schema.TaggedStruct("Opened", { owner: Schema.String })
const moved = { cents: Cents, balance: Schema.Int, transfer: Schema.optionalKey(Schema.String) }
export const Deposited = Schema.TaggedStruct("Deposited", moved)
export const Withdrawn = Schema.TaggedStruct("Withdrawn", moved)
/** Money that left by a transfer has arrived, or has come back. */
const Settled = Schema.TaggedStruct("Settled", { transfer: Schema.String })
export const Closed = Schema.TaggedStruct("Closed", {})

// Errors: why a command is refused. The status is that of the HTTP response.
export class AccountExists extends Schema.TaggedError<AccountExists>()(
  "AccountExists",
  { message: Schema.String },
  { httpApiStatus: 409 }
) {}
export class AccountUnknown extends Schema.TaggedError<AccountUnknown>()(
  "AccountUnknown",
  { message: Schema.String },
  { httpApiStatus: 404 }
) {}
export class AccountClosed extends Schema.TaggedError<AccountClosed>()(
  "AccountClosed",
  { message: Schema.String },
  { httpApiStatus: 410 }
) {}
export class Overdraft extends Schema.TaggedError<Overdraft>()(
  "Overdraft",
  { message: Schema.String, balance: Schema.Int },
  { httpApiStatus: 422 }
) {}
export class BalanceNotZero extends Schema.TaggedError<BalanceNotZero>()(
  "BalanceNotZero",
  { message: Schema.String, balance: Schema.Int },
  { httpApiStatus: 422 }
) {}
export class TransfersPending extends Schema.TaggedError<TransfersPending>()(
  "TransfersPending",
  { message: Schema.String },
  { httpApiStatus: 409 }
) {}

const NotOpen = Schema.Union([AccountUnknown, AccountClosed])

const State = Schema.Struct({
  status: Schema.Literals(["unknown", "open", "closed"]),
  owner: Schema.String,
  balance: Schema.Int,
  /** Cents that have left, and may come back, by transfer. */
  outgoing: Schema.Record(Schema.String, Schema.Int)
})

const Transferred = { transfer: Schema.String, cents: Cents }

/** A bank account: consistent within itself, asked by its id only. */
export const Account = PersistentEntity.make("Account", {
  state: State,
  initialState: { status: "unknown", owner: "", balance: 0, outgoing: {} },
  events: [Opened, Deposited, Withdrawn, Settled, Closed],
  commands: [
    Rpc.make("Open", { payload: { owner: Schema.NonEmptyString }, error: AccountExists }),
    Rpc.make("Deposit", { payload: { cents: Cents }, success: Schema.Int, error: NotOpen }),
    Rpc.make("Withdraw", { payload: { cents: Cents }, success: Schema.Int, error: Schema.Union([NotOpen, Overdraft]) }),
    Rpc.make("Close", { error: Schema.Union([NotOpen, BalanceNotZero, TransfersPending]) }),
    ReadOnly.fresh(Rpc.make("Balance", { success: Schema.Int, error: NotOpen })),
    ReadOnly.local(Rpc.make("BalanceHere", { success: Schema.Int, error: NotOpen })),
    // What a transfer asks for.
    Rpc.make("Send", { payload: Transferred, success: Schema.Int, error: Schema.Union([NotOpen, Overdraft]) }),
    Rpc.make("Receive", { payload: Transferred, success: Schema.Int, error: NotOpen }),
    Rpc.make("Settle", { payload: { transfer: Schema.String } }),
    Rpc.make("TakeBack", { payload: { transfer: Schema.String } })
  ]
})

const notOpen = (account: typeof State.Type) =>
  Decision.reject(
    account.status === "closed"
      ? new AccountClosed({ message: "the account is closed" })
      : new AccountUnknown({ message: "there is no such account" })
  )

const overdraft = (cents: number, balance: number) =>
  Decision.reject(new Overdraft({ message: `${dollars(cents)} is more than the ${dollars(balance)} there`, balance }))

const dollars = (cents: number) => `$${(cents / 100).toFixed(2)}`

/** What an account does. */
export const behavior = Account.behavior({
  apply: (account, event) => {
    switch (event._tag) {
      case "Opened":
        return { ...account, status: "open", owner: event.owner }
      case "Deposited":
        return { ...account, balance: event.balance }
      case "Withdrawn": {
        const { balance, cents, transfer } = event
        return transfer === undefined
          ? { ...account, balance }
          : { ...account, balance, outgoing: { ...account.outgoing, [transfer]: cents } }
      }
      case "Settled": {
        const { [event.transfer]: _, ...outgoing } = account.outgoing
        return { ...account, outgoing }
      }
      case "Closed":
        return { ...account, status: "closed" }
    }
  },
  commands: {
    Open: (account, { owner }) =>
      account.status === "unknown"
        ? Decision.persist(Opened.make({ owner }))
        : Decision.reject(new AccountExists({ message: "there is an account with this id" })),

    Deposit: (account, { cents }) =>
      account.status === "open"
        ? Decision.persist(Deposited.make({ cents, balance: account.balance + cents }), ({ balance }) => balance)
        : notOpen(account),

    Withdraw: (account, { cents }) => {
      if (account.status !== "open") return notOpen(account)
      const { balance } = account
      return cents <= balance
        ? Decision.persist(Withdrawn.make({ cents, balance: balance - cents }), (after) => after.balance)
        : overdraft(cents, balance)
    },

    Close: (account) => {
      if (account.status !== "open") return notOpen(account)
      const { balance, outgoing } = account
      if (balance !== 0) {
        return Decision.reject(new BalanceNotZero({ message: `${dollars(balance)} must be withdrawn first`, balance }))
      }
      // Their money may come back.
      return Object.keys(outgoing).length === 0
        ? Decision.persist(Closed.make({}))
        : Decision.reject(new TransfersPending({ message: "a transfer from the account is under way" }))
    },

    Balance: (account) => (account.status === "open" ? Decision.reply(account.balance) : notOpen(account)),
    BalanceHere: (account) => (account.status === "open" ? Decision.reply(account.balance) : notOpen(account)),

    Send: (account, { cents, transfer }) => {
      if (account.status !== "open") return notOpen(account)
      const { balance } = account
      return cents <= balance
        ? Decision.persist(Withdrawn.make({ cents, balance: balance - cents, transfer }), (after) => after.balance)
        : overdraft(cents, balance)
    },

    Receive: (account, { cents, transfer }) =>
      account.status === "open"
        ? Decision.persist(
            Deposited.make({ cents, balance: account.balance + cents, transfer }),
            ({ balance }) => balance
          )
        : notOpen(account),

    Settle: ({ outgoing }, { transfer }) =>
      Decision.persist(outgoing[transfer] === undefined ? [] : [Settled.make({ transfer })]),

    TakeBack: ({ balance, outgoing }, { transfer }) => {
      const cents = outgoing[transfer]
      return Decision.persist(
        cents === undefined
          ? []
          : [Deposited.make({ cents, balance: balance + cents, transfer }), Settled.make({ transfer })]
      )
    }
  }
})
