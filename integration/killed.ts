// A process that writes to a journal and is killed, as by `kill -9`, at a step that its environment names: just before a request
// is sent, or just after it was executed. What was acknowledged it has printed.
import { writeSync } from "node:fs"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Statement } from "@effect-cassandra/session/Statement"
import { Config, Effect, Layer, References } from "effect"
import { journalOptions, stepOf } from "./kills.ts"

const say = (line: string) => Effect.sync(() => writeSync(1, `${line}\n`))

const program = Effect.gen(function* () {
  const settings = yield* Config.all({
    contactPoint: Config.String("CONTACT_POINT"),
    localDataCenter: Config.String("LOCAL_DATA_CENTER"),
    keyspace: Config.String("KEYSPACE"),
    entityType: Config.String("ENTITY_TYPE"),
    /** `work` or `take-over`. */
    task: Config.String("TASK"),
    /** The step, its number among those of its name, and `before` or `after`; without it the steps are counted. */
    kill: Config.String("KILL").pipe(Config.withDefault(""))
  })
  const { contactPoint, entityType, keyspace, kill, localDataCenter, task } = settings
  const counts = new Map<string, number>()

  const step = <A, E>(statement: Statement<any>, request: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    Effect.suspend(() => {
      const name = stepOf(statement.text)
      if (name === undefined) return request
      const count = (counts.get(name) ?? 0) + 1
      counts.set(name, count)
      const die = Effect.sync(() => process.kill(process.pid, "SIGKILL"))
      const here = `${name}:${count}`
      if (kill === `${here}:before`) return Effect.andThen(die, Effect.never)
      return kill === `${here}:after` ? Effect.andThen(request, Effect.andThen(die, Effect.never)) : request
    })

  const Session = Layer.effect(
    CassandraSession,
    Effect.map(CassandraSession, (session) =>
      CassandraSession.of({
        ...session,
        execute: (statement) => step(statement, session.execute(statement)),
        applied: (statement) => step(statement, session.applied(statement)),
        batch: (statements, options) => step(statements[0]!, session.batch(statements, options))
      })
    )
  ).pipe(
    Layer.provide(
      CassandraSession.layer({ contactPoints: [contactPoint], localDataCenter, keyspace, development: true })
    )
  )

  const work = Effect.gen(function* () {
    const journal = yield* Journal
    if (task === "take-over") {
      yield* journal.load({ entityType, entityId: "a" })
      return
    }
    const append = Effect.fnUntraced(function* (entityId: string, ...ids: ReadonlyArray<string>) {
      yield* journal.append({
        entityType,
        entityId,
        expected: "any",
        events: ids.map((id) => ({ type: "E", payload: { id } })),
        command: { id: `command ${ids[0]}` }
      })
      for (const id of ids) yield* say(`stored ${entityId} ${id}`)
    })
    yield* append("a", "a1", "a2", "a3")
    yield* append("b", "b1")
    yield* append("a", "a4")
    yield* append("d", "d1", "d2")
    yield* append("d", "d3")
    const position = yield* journal.load({ entityType, entityId: "a" })
    yield* journal.saveSnapshot({ entityType, entityId: "a" }, { ...position, state: position.sequence }, 0)
    const older = yield* journal.load({ entityType, entityId: "d" })
    yield* journal.saveSnapshot({ entityType, entityId: "d" }, { ...older, state: older.sequence }, 0)
    yield* journal.delete({ entityType, entityId: "d" })
    yield* say("deleted d")
    yield* append("b", "b2")
    yield* journal.saveSnapshot(
      { entityType, entityId: "a" },
      { ...(yield* journal.load({ entityType, entityId: "a" })), state: 4 },
      1
    )
  })
  yield* work.pipe(Effect.provide(Journal.layer(journalOptions).pipe(Layer.provide(Session))))
  for (const [name, count] of counts) yield* say(`steps ${name} ${count}`)
})

await Effect.runPromise(Effect.provideService(program, References.MinimumLogLevel, "None"))
process.exit(0)
