import { createServer } from "node:http"
import { NodeHttpServer } from "@effect/platform-node"
import type { EntityError } from "@effect-cassandra/entity/EntityError"
import { Journal } from "@effect-cassandra/journal/Journal"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { Effect, Layer } from "effect"
import { HttpRouter } from "effect/http"
import { HttpApiBuilder, HttpApiMiddleware, HttpApiScalar } from "effect/http-api"
import { Account, behavior } from "./Account.ts"
import { BankApi, BankUnavailable, MalformedRequest, Validation } from "./Api.ts"
import { AccountStatement, AccountsOfOwner, accountsOf, statementOf } from "./Views.ts"

/** What the bank's callers hear of Effect.catchTag("EntityError", unavailable)s that are not theirs; the details go to the log. */
const unavailable = (error: EntityError | CassandraError) =>
  Effect.andThen(
    Effect.logError(error),
    Effect.fail(
      new BankUnavailable({
        message:
          error._tag === "EntityError" &&
          error.reason._tag === "JournalFailure" &&
          error.reason.cause.reason._tag === "OutcomeUnknown"
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
      balance: ({ params }) =>
        accounts(params.account)
          .Balance()
          .pipe(
            Effect.map((balance) => ({ account: params.account, balance })),
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

const ValidationLive = HttpApiMiddleware.layerSchemaErrorTransform(Validation, (error) =>
  Effect.fail(error.kind.startsWith("Response") ? error : new MalformedRequest({ message: error.cause.message }))
)

/** The bank without its HTTP server: accounts and views, in the keyspace of a session. */
const BankLive = Layer.mergeAll(Account.layer(behavior), ReadSide.layer([AccountsOfOwner, AccountStatement])).pipe(
  Layer.provideMerge(Journal.layer())
)

const Routes = Layer.mergeAll(
  HttpApiBuilder.layer(BankApi, { openapiPath: "/openapi.json" }).pipe(
    Layer.provide([AccountsLive, ViewsLive]),
    Layer.provide(ValidationLive)
  ),
  HttpApiScalar.layer(BankApi, { path: "/docs" })
)

/** The bank behind HTTP, on the loopback. */
export const BankServer = (port: number) =>
  HttpRouter.serve(Routes, { disableLogger: true }).pipe(
    Layer.provideMerge(NodeHttpServer.layer(createServer, { port, host: "127.0.0.1" })),
    Layer.provide(BankLive)
  )
