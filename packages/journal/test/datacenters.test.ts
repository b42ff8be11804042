import { assert, describe, layer } from "@effect/vitest"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect } from "effect"
import { Journal, type Options } from "../src/Journal.ts"
import { JournalAdmin } from "../src/JournalAdmin.ts"

/** Appends once, as a process of its own. */
const append = (entityType: string, options: Options) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    return yield* journal.append({ entityType, entityId: "a", expected: "any", events: [{ type: "E", payload: 1 }] })
  }).pipe(Effect.provide(Journal.layer(options), { local: true }))

const recorded = (entityType: string) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    return (yield* session.one<{ data_center: string | null }>(
      cql`SELECT data_center FROM entity_types WHERE entity_type = ${entityType}`
    )).data_center
  })

/** As if another data centre had used the entity type first. */
const moveTo = (entityType: string, dataCenter: string) =>
  Effect.gen(function* () {
    const session = yield* CassandraSession
    const { applied } = yield* session.applied(
      cql`UPDATE entity_types SET data_center = ${dataCenter} WHERE entity_type = ${entityType} IF EXISTS`
    )
    assert.isTrue(applied)
  })

describe("data centres", () => {
  layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })((it) => {
    it.effect("all may append under SERIAL", () =>
      Effect.gen(function* () {
        yield* append("Everywhere", {})
        assert.isNull(yield* recorded("Everywhere"))
        assert.strictEqual((yield* append("Everywhere", {})).sequence, 2)
      })
    )

    it.effect("only the one that was first may append under LOCAL_SERIAL, and operate", () =>
      Effect.gen(function* () {
        const options: Options = { serialConsistency: "LOCAL_SERIAL" }
        yield* append("Local", options)
        const here = yield* recorded("Local")
        assert.isString(here)
        assert.strictEqual((yield* append("Local", options)).sequence, 2)

        yield* moveTo("Local", "elsewhere")
        const error = yield* Effect.flip(append("Local", options))
        assert(error._tag === "JournalError" && error.reason._tag === "SettingsMismatch")
        assert.deepInclude(error.reason, { setting: "localDataCenter", recorded: "elsewhere", given: here! })
        assert.match(error.message, /in data centre "elsewhere" only \(LOCAL_SERIAL\), and this process uses/)

        const refused = yield* Effect.gen(function* () {
          return yield* Effect.flip((yield* JournalAdmin).finishDeletions("Local"))
        }).pipe(Effect.provide(JournalAdmin.layer()))
        assert.strictEqual(refused.reason._tag, "OperationRefused")
        assert.match(refused.message, /belongs to data centre "elsewhere"/)

        yield* moveTo("Local", here!)
        assert.strictEqual((yield* append("Local", options)).sequence, 3)
      })
    )

    it.effect("another serial consistency than the recorded one is refused", () =>
      Effect.gen(function* () {
        yield* append("Serial", {})
        const error = yield* Effect.flip(append("Serial", { serialConsistency: "LOCAL_SERIAL" }))
        assert(error._tag === "JournalError" && error.reason._tag === "SettingsMismatch")
        assert.strictEqual(error.reason.setting, "serialConsistency")
      })
    )
  })
})
