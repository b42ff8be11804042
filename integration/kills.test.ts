import { spawn } from "node:child_process"
import { createInterface } from "node:readline"
import { fileURLToPath } from "node:url"
import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { JournalAdmin } from "@effect-cassandra/journal/JournalAdmin"
import { CassandraError, NoHostAvailable } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Statement } from "@effect-cassandra/session/Statement"
import { make as statement } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Effect, Layer, References } from "effect"
import { journalOptions, stepOf } from "./kills.ts"

const script = fileURLToPath(new URL("killed.ts", import.meta.url))

const child = (entityType: string, task: "work" | "take-over", kill?: string) =>
  Effect.gen(function* () {
    const { contactPoints, keyspace, localDataCenter } = yield* TestKeyspace
    return yield* Effect.callback<{ readonly lines: ReadonlyArray<string>; readonly signal: string | null }>(
      (resume) => {
        const started = spawn(process.execPath, ["--conditions=@effect-cassandra/source", script], {
          env: {
            ...process.env,
            CONTACT_POINT: contactPoints![0],
            LOCAL_DATA_CENTER: localDataCenter ?? "datacenter1",
            KEYSPACE: keyspace,
            ENTITY_TYPE: entityType,
            TASK: task,
            ...(kill === undefined ? {} : { KILL: kill })
          },
          stdio: ["ignore", "pipe", "inherit"]
        })
        const lines: Array<string> = []
        createInterface(started.stdout).on("line", (line) => lines.push(line))
        started.on("close", (_, signal) => resume(Effect.succeed({ lines, signal })))
      }
    )
  })

/** The steps that a child has counted, as they are named to kill another one there. */
const stepsOf = (lines: ReadonlyArray<string>) =>
  lines.flatMap((line) => {
    const [, name, count] = /^steps (.*) (\d+)$/.exec(line) ?? []
    return Array.from({ length: Number(count ?? 0) }, (_, i) => `${name}:${i + 1}`)
  })

/** After a take-over every acknowledged event is there once, and everything stored is as it must be. */
const check = Effect.fnUntraced(function* (entityType: string, lines: ReadonlyArray<string>, what: string) {
  const admin = yield* JournalAdmin
  const session = yield* CassandraSession
  const record = statement("SELECT entity_type FROM entity_types WHERE entity_type = ?", [entityType])
  if ((yield* session.execute(record)).length === 0) return assert.isEmpty(lines, what)
  yield* Effect.gen(function* () {
    const journal = yield* Journal
    for (const entityId of ["a", "b", "d"]) {
      const acknowledged = lines.flatMap((line) => (line.startsWith(`stored ${entityId} `) ? [line.split(" ")[2]] : []))
      const { events } = yield* journal.load({ entityType, entityId }, { snapshotsUpTo: 0 })
      const own = events.filter(({ type }) => type === "E")
      const deleted = events.some(({ type }) => type === "$deleted")
      if (deleted) {
        assert.isTrue(
          own.every((event) => event.deleted),
          what
        )
        assert.isAtLeast(own.length, acknowledged.length, what)
      } else {
        assert.isFalse(lines.includes(`deleted ${entityId}`), what)
        const ids = own.map(({ payload }) => (payload as { readonly id: string }).id)
        assert.strictEqual(new Set(ids).size, ids.length, what)
        // At most one append was not acknowledged.
        assert.deepStrictEqual(ids.slice(0, acknowledged.length), acknowledged, what)
      }
      const { sequence, snapshot } = yield* journal.load({ entityType, entityId })
      assert.strictEqual(sequence, events.length, what)
      if (snapshot._tag === "Some") assert.strictEqual(snapshot.value.state, snapshot.value.sequence, what)
      // It goes on; with this event a deletion that was begun and not logged is void.
      yield* journal.append({ entityType, entityId, expected: sequence, events: [{ type: "After", payload: null }] })
    }
    yield* admin.finishDeletions(entityType)
  }).pipe(Effect.provide(Layer.fresh(Journal.layer(journalOptions))))
  assert.deepStrictEqual((yield* admin.verify(entityType)).findings, [], what)
})

/** A journal whose index cannot be written: it leaves everything to who takes over. */
const withoutIndex = Layer.effect(
  CassandraSession,
  Effect.map(CassandraSession, (session) => {
    const refused = Effect.fail(
      new CassandraError({ reason: new NoHostAvailable({ message: "made up", cause: undefined }) })
    )
    const isIndex = (statement: Statement<any>) => stepOf(statement.text) === "index"
    return CassandraSession.of({
      ...session,
      execute: (statement) => (isIndex(statement) ? refused : session.execute(statement)),
      batch: (statements, options) => (statements.some(isIndex) ? refused : session.batch(statements, options))
    })
  })
)

const leaveWork = (entityType: string) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    const lines: Array<string> = []
    for (const [entityId, ...ids] of [
      ["a", "a1", "a2", "a3"],
      ["d", "d1", "d2"],
      ["b", "b1"],
      ["d", "d3"]
    ] as const) {
      const events = ids.map((id) => ({ type: "E", payload: { id } }))
      yield* journal.append({ entityType, entityId: entityId!, expected: "any", events })
      for (const id of ids) lines.push(`stored ${entityId} ${id}`)
    }
    // The fact is logged; then the index would be needed.
    yield* Effect.flip(journal.delete({ entityType, entityId: "d" }))
    return lines
  }).pipe(
    Effect.provide(Layer.fresh(Journal.layer(journalOptions).pipe(Layer.provide(withoutIndex)))),
    Effect.provideService(References.MinimumLogLevel, "None")
  )

const Live = JournalAdmin.layer().pipe(
  Layer.provideMerge(Layer.effectDiscard(Layer.build(Journal.layer(journalOptions)))),
  Layer.provideMerge(TestKeyspace.layer)
)

const concurrency = 3

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("a process that is killed", (it) => {
  it.effect(
    "at any step of its work leaves nothing lost, doubled or half done",
    () =>
      Effect.gen(function* () {
        const whole = yield* child("Whole", "work")
        assert.isNull(whole.signal)
        yield* check("Whole", whole.lines, "without a kill")
        const steps = stepsOf(whole.lines).filter((step) => !step.startsWith("look"))
        for (const name of ["append", "index", "watermark", "snapshot", "redaction", "beginning", "end", "removal"]) {
          assert.isTrue(
            steps.some((step) => step.startsWith(name)),
            `no step "${name}" in ${steps}`
          )
        }
        const kills = steps.flatMap((step) =>
          // What is executed and not answered matters where an answer decides what comes next.
          /^(append|redaction)/.test(step) ? [`${step}:before`, `${step}:after`] : [`${step}:before`]
        )
        yield* Effect.forEach(
          [...kills, `${steps.at(-1)}:after`],
          (kill) =>
            Effect.gen(function* () {
              const { lines, signal } = yield* child(`Killed ${kill}`, "work", kill)
              assert.strictEqual(signal, "SIGKILL", kill)
              yield* check(`Killed ${kill}`, lines, `killed ${kill}`)
            }),
          { concurrency, discard: true }
        )
      }),
    400_000
  )

  it.effect(
    "at any step of a take-over leaves it to the next",
    () =>
      Effect.gen(function* () {
        yield* leaveWork("Taken over")
        const whole = yield* child("Taken over", "take-over")
        const steps = stepsOf(whole.lines)
        for (const name of ["look for a watermark", "look at the log", "look for deletions", "index", "watermark"]) {
          assert.isTrue(
            steps.some((step) => step.startsWith(name)),
            `no step "${name}" in ${steps}`
          )
        }
        yield* Effect.forEach(
          steps,
          (step) =>
            Effect.gen(function* () {
              const entityType = `Left ${step}`
              const lines = yield* leaveWork(entityType)
              const { signal } = yield* child(entityType, "take-over", `${step}:before`)
              // Whether it comes to the last steps of what it does in the background depends on its speed.
              if (/^(record|append|index|watermark)/.test(step)) assert.strictEqual(signal, "SIGKILL", step)
              yield* check(entityType, lines, `killed at ${step} of a take-over`)
            }),
          { concurrency, discard: true }
        )
      }),
    400_000
  )
})
