// A bank in a process that dies, as by kill -9, when the append of its choice has been stored and nobody has heard of it
// yet. It takes up the transfers of the processes before it, sends one that arrives and one that comes back, and ends when
// all have ended.
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Effect, Layer, Schedule } from "effect"
import { Account, behavior } from "../src/Account.ts"
import { Transfer, behavior as transferBehavior } from "../src/Transfer.ts"

const { CONTACT_POINTS = "", DIES_AT = "0", KEYSPACE = "", LOCAL_DC, ROUND = "1" } = process.env

let counting = false
let appends = 0

const MortalJournal = Layer.effect(
  Journal,
  Effect.map(Journal, (journal): Journal["Service"] => ({
    ...journal,
    append: (append) =>
      Effect.tap(journal.append(append), () => {
        if (counting && ++appends === Number(DIES_AT)) process.kill(process.pid, "SIGKILL")
        return Effect.void
      })
  }))
).pipe(Layer.provide(Journal.layer({ shards: 2 })))

const Live = Transfer.layer(transferBehavior).pipe(
  Layer.provideMerge(Account.layer(behavior)),
  Layer.provideMerge(MortalJournal),
  Layer.provide(
    CassandraSession.layer({
      contactPoints: CONTACT_POINTS.split(","),
      localDataCenter: LOCAL_DC,
      keyspace: KEYSPACE,
      development: true
    })
  )
)

await Effect.gen(function* () {
  const journal = yield* Journal
  const accounts = yield* Account
  const transfers = yield* Transfer

  const ended = (id: string) =>
    transfers(id)
      .Show()
      .pipe(
        Effect.catchTag("TransferUnknown", () => Effect.succeed({ status: "unknown" })),
        Effect.filterOrFail(({ status }) => ["unknown", "completed", "failed"].includes(status)),
        Effect.retry({ schedule: Schedule.spaced("5 millis"), times: 4000 })
      )

  /** The first account knows what became of all that has left it, the last thing to be done about a transfer. */
  const settled = journal.load({ entityType: "Account", entityId: "from" }, { snapshotsUpTo: 0 }).pipe(
    Effect.filterOrFail(({ events }) => {
      const count = (type: string) => events.filter((event) => event.type === type).length
      return count("Withdrawn") === count("Settled")
    }),
    Effect.retry({ schedule: Schedule.spaced("5 millis"), times: 4000 })
  )

  if (ROUND === "1") {
    for (const id of ["from", "to", "closed"]) yield* accounts(id).Open({ owner: "ada" })
    yield* accounts("from").Deposit({ cents: 10_000 })
    yield* accounts("closed").Close()
  }
  for (let round = 1; round < Number(ROUND); round++) {
    yield* ended(`arrives-${round}`)
    yield* ended(`returns-${round}`)
  }
  yield* settled
  counting = true
  yield* transfers(`arrives-${ROUND}`).Start({ from: "from", to: "to", cents: 10 })
  yield* ended(`arrives-${ROUND}`)
  yield* transfers(`returns-${ROUND}`).Start({ from: "from", to: "closed", cents: 7 })
  yield* ended(`returns-${ROUND}`)
}).pipe(Effect.provide(Live), Effect.runPromise)
