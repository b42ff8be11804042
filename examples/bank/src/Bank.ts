import { createServer } from "node:http"
import { NodeHttpServer } from "@effect/platform-node"
import { CommandRouting } from "@effect-cassandra/entity/CommandRouting"
import type { EntityError } from "@effect-cassandra/entity/EntityError"
import { Journal } from "@effect-cassandra/journal/Journal"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { ByteSize, Effect, Layer } from "effect"
import { HttpRouter, HttpServerRequest } from "effect/http"
import { HttpApiBuilder, HttpApiMiddleware, HttpApiScalar } from "effect/http-api"
import { Account, behavior } from "./Account.ts"
import { BankApi, BankUnavailable, MalformedRequest, Validation } from "./Api.ts"
import { EventFeed, OpenFeeds } from "./EventFeed.ts"
import { Transfer, behavior as transferBehavior } from "./Transfer.ts"
import { AccountStatement, AccountsOfOwner, accountsOf, statementOf } from "./Views.ts"

/** What the bank's callers hear of failures that are not theirs; the details go to the log. */
const unavailable = (error: EntityError | CassandraError) =>
  Effect.andThen(
    Effect.logError(error),
    Effect.fail(
      new BankUnavailable({
        message:
          error._tag === "EntityError" && error.maybeStored
            ? "it is not known whether this was done: ask for the balance before trying again"
            : "the bank cannot do this now, and has not done it: try again later"
      })
    )
  )

const AccountsLive = HttpApiBuilder.group(
  BankApi,
  "accounts",
  Effect.fn(function* (handlers) {
    const accounts = yield* Account
    return handlers.handleAll({
      open: ({ params, payload }) =>
        accounts(params.account)
          .Open(payload)
          .pipe(Effect.as({ account: params.account, balance: 0 }), Effect.catchTag("EntityError", unavailable)),
      deposit: ({ params, payload }) =>
        accounts(params.account)
          .Deposit(payload)
          .pipe(
            Effect.map((balance) => ({ account: params.account, balance })),
            Effect.catchTag("EntityError", unavailable)
          ),
      withdraw: ({ params, payload }) =>
        accounts(params.account)
          .Withdraw(payload)
          .pipe(
            Effect.map((balance) => ({ account: params.account, balance })),
            Effect.catchTag("EntityError", unavailable)
          ),
      close: ({ params }) => accounts(params.account).Close().pipe(Effect.catchTag("EntityError", unavailable)),
      balance: ({ params, query }) =>
        accounts(params.account)
          [query.local === "true" ? "BalanceHere" : "Balance"]()
          .pipe(
            Effect.map((balance) => ({ account: params.account, balance })),
            Effect.catchTag("EntityError", unavailable)
          )
    })
  })
)

const TransfersLive = HttpApiBuilder.group(
  BankApi,
  "transfers",
  Effect.fn(function* (handlers) {
    const transfers = yield* Transfer
    return handlers.handleAll({
      start: ({ params: { transfer }, payload }) =>
        transfers(transfer).Start(payload).pipe(Effect.as({ transfer }), Effect.catchTag("EntityError", unavailable)),
      show: ({ params: { transfer } }) =>
        transfers(transfer)
          .Show()
          .pipe(
            Effect.map((state) => ({ transfer, ...state })),
            Effect.catchTag("EntityError", unavailable)
          )
    })
  })
)

const ViewsLive = HttpApiBuilder.group(
  BankApi,
  "views",
  Effect.fn(function* (handlers) {
    return handlers.handleAll({
      statement: ({ params, query }) =>
        statementOf(params.account, query.before ?? Number.MAX_SAFE_INTEGER, query.limit ?? 20).pipe(
          Effect.catchTag("CassandraError", unavailable)
        ),
      ofOwner: ({ params }) => accountsOf(params.owner).pipe(Effect.catchTag("CassandraError", unavailable))
    })
  })
)

export const ValidationLive = HttpApiMiddleware.layerSchemaErrorTransform(Validation, (error) =>
  Effect.fail(error.kind.startsWith("Response") ? error : new MalformedRequest({ message: error.cause.message }))
)

const EntitiesLive = Transfer.layer(transferBehavior).pipe(Layer.provideMerge(Account.layer(behavior)))

/** The bank without its HTTP server: accounts, transfers and views, in the keyspace of a session. */
const BankLive = (options: Options) =>
  Layer.mergeAll(
    options.routing === true ? Layer.provide(EntitiesLive, CommandRouting.layer()) : EntitiesLive,
    ReadSide.layer([AccountsOfOwner, AccountStatement])
  ).pipe(
    // So many events may an account get between the crash of a process and the transfers that the next one takes up.
    Layer.provideMerge(Journal.layer({ commandWindow: { events: 1000 } }))
  )

const Routes = Layer.mergeAll(
  HttpApiBuilder.layer(BankApi, { openapiPath: "/openapi.json" }).pipe(
    Layer.provide([AccountsLive, TransfersLive, ViewsLive, EventFeed()]),
    Layer.provide(ValidationLive)
  ),
  HttpApiScalar.layer(BankApi, { path: "/docs" })
)

export interface Options {
  readonly port: number
  /** Whether commands go to the process that has the account, where several processes are the bank. */
  readonly routing?: boolean | undefined
}

/** The bank behind HTTP, on the loopback. */
export const BankServer = (options: Options) =>
  OpenFeeds.closing.pipe(
    Layer.provideMerge(HttpRouter.serve(Routes, { disableLogger: true })),
    // Nobody fills the memory: what the bank takes is much smaller.
    Layer.provide(Layer.succeed(HttpServerRequest.MaxBodySize, ByteSize.kilobytes(64))),
    Layer.provide(OpenFeeds.layer),
    Layer.provideMerge(NodeHttpServer.layer(createServer, { port: options.port, host: "127.0.0.1" })),
    Layer.provide(BankLive(options))
  )
