import * as EventStream from "@effect-cassandra/journal/EventStream"
import { Schema } from "effect"
import { HttpApi, HttpApiEndpoint, HttpApiGroup, HttpApiMiddleware, HttpApiSchema, OpenApi } from "effect/http-api"
import {
  AccountClosed,
  AccountExists,
  AccountId,
  AccountUnknown,
  BalanceNotZero,
  Cents,
  Overdraft,
  TransfersPending
} from "./Account.ts"
import { TransferExists, TransferUnknown } from "./Transfer.ts"

/** The bank could not do it now; the message says whether it may have been done. */
export class BankUnavailable extends Schema.TaggedError<BankUnavailable>()(
  "BankUnavailable",
  { message: Schema.String },
  { httpApiStatus: 503 }
) {}

/** The request does not fit the API; the message says where. */
export class MalformedRequest extends Schema.TaggedError<MalformedRequest>()(
  "MalformedRequest",
  { message: Schema.String },
  { httpApiStatus: 400 }
) {}

/** Answers a malformed request with what is wrong with it. */
export class Validation extends HttpApiMiddleware.Service<Validation>()("bank/Validation", {
  error: MalformedRequest
}) {}

const Amount = Schema.Struct({ cents: Cents })
const Balance = Schema.Struct({ account: Schema.String, balance: Schema.Int })
const params = { account: AccountId }
const always = [AccountUnknown, AccountClosed, BankUnavailable] as const

const Accounts = HttpApiGroup.make("accounts")
  .add(
    HttpApiEndpoint.put("open", "/accounts/:account", {
      params,
      payload: Schema.Struct({ owner: Schema.NonEmptyString.check(Schema.isMaxLength(200)) }),
      success: Balance,
      error: [AccountExists, BankUnavailable]
    }),
    HttpApiEndpoint.post("deposit", "/accounts/:account/deposits", {
      params,
      payload: Amount,
      success: Balance,
      error: always
    }),
    HttpApiEndpoint.post("withdraw", "/accounts/:account/withdrawals", {
      params,
      payload: Amount,
      success: Balance,
      error: [...always, Overdraft]
    }),
    HttpApiEndpoint.delete("close", "/accounts/:account", {
      params,
      error: [...always, BalanceNotZero, TransfersPending]
    }),
    HttpApiEndpoint.get("balance", "/accounts/:account", {
      params,
      query: { local: Schema.optional(Schema.Literal("true")) },
      success: Balance,
      error: always
    })
  )
  .annotateMerge(
    OpenApi.annotations({
      description:
        "Commands and questions to one account: always up to date, but for a balance with `local=true`, which is what this process has in memory"
    })
  )

const Transfers = HttpApiGroup.make("transfers")
  .add(
    HttpApiEndpoint.put("start", "/transfers/:transfer", {
      params: { transfer: AccountId },
      payload: Schema.Struct({ from: AccountId, to: AccountId, cents: Cents }),
      success: Schema.Struct({ transfer: Schema.String }),
      error: [TransferExists, BankUnavailable]
    }),
    HttpApiEndpoint.get("show", "/transfers/:transfer", {
      params: { transfer: AccountId },
      success: Schema.Struct({
        transfer: Schema.String,
        status: Schema.String,
        from: Schema.String,
        to: Schema.String,
        cents: Schema.Int,
        reason: Schema.String
      }),
      error: [TransferUnknown, BankUnavailable]
    })
  )
  .annotateMerge(
    OpenApi.annotations({ description: "Money from one account to another: all of it arrives or comes back" })
  )

const Views = HttpApiGroup.make("views")
  .add(
    HttpApiEndpoint.get("statement", "/accounts/:account/statement", {
      params,
      query: {
        before: Schema.optional(Schema.NumberFromString.check(Schema.isInt(), Schema.isGreaterThan(0))),
        limit: Schema.optional(
          Schema.NumberFromString.check(Schema.isInt(), Schema.isBetween({ minimum: 1, maximum: 100 }))
        )
      },
      success: Schema.Struct({
        account: Schema.String,
        lines: Schema.Array(
          Schema.Struct({ sequence: Schema.Int, at: Schema.String, text: Schema.String, balance: Schema.Int })
        ),
        next: Schema.optional(Schema.Int)
      }),
      error: BankUnavailable
    }),
    HttpApiEndpoint.get("ofOwner", "/owners/:owner/accounts", {
      params: { owner: Schema.NonEmptyString },
      success: Schema.Struct({ owner: Schema.String, accounts: Schema.Array(Balance), total: Schema.Int }),
      error: BankUnavailable
    })
  )
  .annotateMerge(OpenApi.annotations({ description: "Views: milliseconds behind" }))

/** An event as it is stored, with the version of its schema, and the position to go on after it. */
export const FeedEvent = Schema.Struct({
  position: EventStream.OffsetFromString,
  account: Schema.String,
  sequence: Schema.Int,
  time: Schema.String,
  type: Schema.String,
  version: Schema.Int,
  metadata: Schema.Record(Schema.String, Schema.Json),
  payload: Schema.Json
})

const feed = {
  query: {
    after: Schema.optional(EventStream.OffsetFromString),
    since: Schema.optional(Schema.DateTimeUtcFromString),
    live: Schema.optional(Schema.Literals(["true", "false"]))
  },
  headers: { "last-event-id": Schema.optional(EventStream.OffsetFromString) },
  error: [MalformedRequest, BankUnavailable]
} as const

/** The feed by itself. */
export const Feed = HttpApiGroup.make("feed")
  .add(
    HttpApiEndpoint.get("sse", "/events", { ...feed, success: HttpApiSchema.StreamSse({ data: FeedEvent }) }),
    HttpApiEndpoint.get("ndjson", "/events.ndjson", {
      ...feed,
      success: HttpApiSchema.StreamNdjson({ schema: FeedEvent })
    })
  )
  .annotateMerge(
    OpenApi.annotations({
      description:
        "The events of all accounts, for other services: those of an account in order, each once. It goes on after Last-Event-ID or `after`, or begins with `since`; with `live=false` it ends with the last event that is stored"
    })
  )

export class BankApi extends HttpApi.make("bank")
  .add(Accounts)
  .add(Transfers)
  .add(Views)
  .add(Feed)
  .middleware(Validation)
  .annotateMerge(OpenApi.annotations({ title: "Bank", description: "Accounts, with money in cents" })) {}
