import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import { assert, describe, it, layer } from "@effect/vitest"
import { Decision, TestEntity } from "@effect-cassandra/entity"
import { Journal } from "@effect-cassandra/journal/Journal"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, Schedule } from "effect"
import {
  Account,
  AccountClosed,
  behavior as accountBehavior,
  Closed,
  Deposited,
  Opened,
  TransfersPending
} from "../src/Account.ts"
import { behavior, Transfer } from "../src/Transfer.ts"

const opened = TestEntity.make(Account, accountBehavior)
  .given(Opened.make({ owner: "ada" }))
  .given(Deposited.make({ cents: 500, balance: 500 }))

describe("an account", () => {
  it.effect("cannot be closed while money that has left may come back", () =>
    opened
      .when("Send", { transfer: "t", cents: 500 })
      .expect({ reply: 0 })
      .when("Close")
      .expect({ rejection: new TransfersPending({ message: "a transfer from the account is under way" }) })
      .when("Settle", { transfer: "t" })
      .when("Close")
      .expect({ events: [Closed.make({})] })
  )

  it.effect("takes back the money of a transfer once", () =>
    opened
      .when("Send", { transfer: "t", cents: 200 })
      .when("TakeBack", { transfer: "t" })
      .expect({ state: { status: "open", owner: "ada", balance: 500, outgoing: {} } })
      .when("TakeBack", { transfer: "t" })
      .expect({ events: [] })
  )

  it.effect("receives nothing once it is closed", () =>
    opened
      .when("Withdraw", { cents: 500 })
      .when("Close")
      .when("Receive", { transfer: "t", cents: 1 })
      .expect({ rejection: new AccountClosed({ message: "the account is closed" }) })
  )
})

describe("a transfer", () => {
  const transfer = TestEntity.reactions(Transfer, behavior)
  const details = { from: "ada", to: "bob", cents: 500 }
  const closed = Decision.reject(new AccountClosed({ message: "the account is closed" }))

  it.effect("takes the money from the first account, gives it to the second, and settles it with the first", () =>
    transfer
      .given(Account, { Send: Decision.reply(0), Receive: Decision.reply(500) })
      .when({ _tag: "Started", ...details }, { entityId: "t" })
      .expect([
        { to: "Account", id: "ada", command: "Send", payload: { transfer: "t", cents: 500 } },
        { to: "Transfer", id: "t", command: "HaveSent" }
      ])
      .when({ _tag: "Sent", ...details }, { entityId: "t" })
      .expect([
        { to: "Account", id: "bob", command: "Receive", payload: { transfer: "t", cents: 500 } },
        { to: "Transfer", id: "t", command: "HaveReceived" }
      ])
      .when({ _tag: "Received", ...details }, { entityId: "t" })
      .expect([{ to: "Account", id: "ada", command: "Settle", payload: { transfer: "t" } }])
  )

  it.effect("ends where the first account refuses, and brings the money back where the second does", () =>
    transfer
      .given(Account, { Send: closed, Receive: closed })
      .when({ _tag: "Started", ...details }, { entityId: "t" })
      .expect([
        { to: "Account", id: "ada", command: "Send", payload: { transfer: "t", cents: 500 } },
        { to: "Transfer", id: "t", command: "Decline", payload: { reason: "the account is closed" } }
      ])
      .when({ _tag: "Sent", ...details }, { entityId: "t" })
      .expect([
        { to: "Account", id: "bob", command: "Receive", payload: { transfer: "t", cents: 500 } },
        { to: "Transfer", id: "t", command: "Refuse", payload: { reason: "the account is closed" } }
      ])
      .when({ _tag: "Refused", ...details, reason: "the account is closed" }, { entityId: "t" })
      .expect([
        { to: "Account", id: "ada", command: "TakeBack", payload: { transfer: "t" } },
        { to: "Transfer", id: "t", command: "HaveReturned" }
      ])
  )
})

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "5 minutes" })("transfers", (it) => {
  /** Runs a bank in a process of its own; whether it was killed. */
  const mortalBank = (round: number) =>
    Effect.flatMap(TestKeyspace, ({ contactPoints, keyspace, localDataCenter = "datacenter1" }) =>
      Effect.callback<boolean, Error>((resume) => {
        const file = fileURLToPath(new URL("mortalBank.ts", import.meta.url))
        const child = spawn(process.execPath, ["--conditions=@effect-cassandra/source", file], {
          env: {
            ...process.env,
            CONTACT_POINTS: contactPoints!.join(),
            LOCAL_DC: localDataCenter,
            KEYSPACE: keyspace,
            ROUND: String(round),
            DIES_AT: String(round)
          },
          stdio: ["ignore", "ignore", "inherit"]
        })
        child.on("exit", (code, signal) =>
          resume(
            signal === "SIGKILL" || code === 0
              ? Effect.succeed(signal === "SIGKILL")
              : Effect.fail(new Error(`the bank of round ${round} ended with ${code ?? signal}`))
          )
        )
        return Effect.sync(() => child.kill("SIGKILL"))
      })
    )

  it.effect(
    "survive kill -9 between any two steps, come back where they must, and the money is always all there",
    () =>
      Effect.gen(function* () {
        let rounds = 1
        while (yield* mortalBank(rounds)) rounds++
        // Started, sent, noted, received, noted, settled; started, sent, noted, refused, noted, taken back, noted.
        assert.strictEqual(rounds, 14)

        const live = Transfer.layer(behavior).pipe(
          Layer.provideMerge(Account.layer(accountBehavior)),
          Layer.provide(Journal.layer({ shards: 2 }))
        )
        yield* Effect.gen(function* () {
          const accounts = yield* Account
          const transfers = yield* Transfer
          let arrived = 0
          for (let round = 1; round <= rounds; round++) {
            const arrives = yield* transfers(`arrives-${round}`).Show()
            assert.strictEqual(arrives.status, "completed")
            arrived += arrives.cents
            // The first six died before they had started it.
            if (round <= 6) continue
            const returns = yield* transfers(`returns-${round}`).Show()
            assert.deepInclude(returns, { status: "failed", reason: "the account is closed" })
          }
          assert.strictEqual(arrived, 10 * rounds)
          assert.strictEqual(yield* accounts("to").Balance(), arrived)
          assert.strictEqual(yield* accounts("from").Balance(), 10_000 - arrived)
          // Nothing is under way any more, so it can be closed.
          yield* accounts("from").Withdraw({ cents: 10_000 - arrived })
          yield* accounts("from")
            .Close()
            .pipe(
              Effect.retry({
                schedule: Schedule.spaced("10 millis"),
                times: 500,
                while: (error) => error._tag === "TransfersPending"
              })
            )
        }).pipe(Effect.provide(live))
      }),
    // Fourteen processes, one after the other, each of which finds out first that the one before is gone.
    300_000
  )
})
