// A process that appends events to the entities of others as well, for benchProcesses.ts and processes.test.ts. It is
// started by `startAppender`, works when it is asked to, and ends when its parent does.
import { CommandRouting } from "@effect-cassandra/entity/CommandRouting"
import * as Decision from "@effect-cassandra/entity/Decision"
import * as PersistentEntity from "@effect-cassandra/entity/PersistentEntity"
import { type EntityKey, Journal, type Options, type Position } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Connection } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer, Redacted, Schema } from "effect"
import { Rpc } from "effect/rpc"
import { effectful, note, percentile } from "./benchmark.ts"

/** Of the entities that all processes append to; each also has some that no other one knows. */
export const entityType = "Shared"

/** What an appender is started with. */
export interface Setup {
  readonly name: string
  readonly connection: Omit<Connection, "password"> & { readonly password?: string | undefined }
  readonly keyspace: string
  readonly journal: Options
}

const Deposited = Schema.TaggedStruct("Deposited", { balance: Schema.Int, id: Schema.String, note: Schema.String })

/** The same twice: commands are sent to the process that has the entity, or they are not. */
const definition = {
  state: Schema.Int,
  initialState: 0,
  events: [Deposited],
  commands: [Rpc.make("Deposit", { payload: { id: Schema.String }, success: Schema.Int })]
}
export const Routed = PersistentEntity.make("Routed", definition)
const Unrouted = PersistentEntity.make("Unrouted", definition)
/** The balance is the number of deposits. */
const behavior = Routed.behavior({
  apply: (_, { balance }) => balance,
  commands: {
    Deposit: (balance, { id }) =>
      Decision.persist({ _tag: "Deposited", balance: balance + 1, id, note: note() }, (after) => after)
  }
})

/** Work: so many loops, each of which appends to one entity after the other, of so many. */
export interface Work {
  readonly loops: number
  readonly entities: number
  readonly millis: number
  /** Appends without regard to others', or with a position, which is loaded again after a conflict; or commands. */
  readonly expected: Expected
  /** To entities that no other process appends to. */
  readonly apart?: boolean | undefined
  /** Tells of each append that was acknowledged. */
  readonly tell: boolean
}

/** As an append, or as a command of an entity, which is sent to the process that has it, or is not. */
export type Expected = "any" | "position" | "command" | "routed command"

/** What an appender says. */
export type Answer =
  | { readonly _tag: "ready" }
  | { readonly _tag: "stored"; readonly id: string; readonly entityId: string; readonly sequence: number }
  | {
      readonly _tag: "done"
      readonly perSecond: number
      readonly conflicts: number
      /** Requests that failed otherwise, by reason. */
      readonly failures: Readonly<Record<string, number>>
      readonly p50: number
      readonly p99: number
      /** Cores in use. */
      readonly cpu: number
    }

const say = (answer: Answer) => process.send?.(answer)

const entityOf = (loop: number, { entities, expected }: Work) => `${expected}-${loop % entities}`

const work = Effect.fnUntraced(function* (name: string, work: Work) {
  const journal = yield* Journal
  const entities = { command: yield* Unrouted, "routed command": yield* Routed }
  const ofCommands = { command: Unrouted.type, "routed command": Routed.type }
  const type =
    work.expected === "command" || work.expected === "routed command"
      ? ofCommands[work.expected]
      : work.apart === true
        ? name
        : entityType
  const positions = new Map<string, Position>()
  const failures: Record<string, number> = {}
  let conflicts = 0
  let count = 0
  let stored = 0

  const services = yield* Effect.context<never>()
  const save = (key: EntityKey, { sequence, validThrough }: Position) =>
    Effect.runForkWith(services)(
      Effect.ignore(
        journal.saveSnapshot(key, { sequence, validThrough, state: { balance: sequence } }, Math.max(0, sequence - 200))
      )
    )

  /** Appends once; again after a conflict. */
  const step = (loop: number): Effect.Effect<void> => {
    const entityId = entityOf(loop, work)
    const key = { entityType: type, entityId }
    const id = `${name}-${count++}`
    const append = (expected: Position | "any"): Effect.Effect<void> =>
      Effect.matchEffect(
        journal.append({
          ...key,
          expected,
          events: [{ type: "Deposited", payload: { cents: 100, id, note: note() } }]
        }),
        {
          onSuccess: (position) => {
            stored++
            positions.set(entityId, position)
            // As entities do, so that loading one again reads what came after only.
            if (work.expected === "position" && position.sequence % 100 === 0) save(key, position)
            if (work.tell) say({ _tag: "stored", id, entityId, sequence: position.sequence })
            return Effect.void
          },
          onFailure: ({ reason }) => {
            if (reason._tag === "SequenceConflict") {
              conflicts++
              return load(expected === "any" ? undefined : expected)
            }
            failures[reason._tag] = (failures[reason._tag] ?? 0) + 1
            positions.delete(entityId)
            return Effect.void
          }
        }
      )
    const load = (after: Position | undefined): Effect.Effect<void> =>
      Effect.matchEffect(journal.load(key, { after }), {
        onSuccess: append,
        onFailure: ({ reason }) =>
          Effect.sync(() => {
            failures[reason._tag] = (failures[reason._tag] ?? 0) + 1
          })
      })
    if (work.expected === "command" || work.expected === "routed command") {
      return Effect.matchEffect(entities[work.expected](entityId).Deposit({ id }), {
        onSuccess: (sequence) => {
          stored++
          if (work.tell) say({ _tag: "stored", id, entityId, sequence })
          return Effect.void
        },
        onFailure: ({ reason }) => {
          failures[reason._tag] = (failures[reason._tag] ?? 0) + 1
          return Effect.void
        }
      })
    }
    const known = positions.get(entityId)
    return work.expected === "any" ? append("any") : known === undefined ? load(undefined) : append(known)
  }

  // Everything up to now has been seen by then, as in a process that has been running.
  for (let shard = 0; shard < journal.shards; shard++) yield* Effect.ignore(journal.head(type, shard))
  const begin = performance.now()
  const cpu = process.cpuUsage()
  const { millis } = yield* effectful(work.loops, work.millis, step)
  const used = process.cpuUsage(cpu)
  const seconds = (performance.now() - begin) / 1000
  say({
    _tag: "done",
    perSecond: stored / seconds,
    conflicts,
    failures,
    p50: percentile(millis, 0.5),
    p99: percentile(millis, 0.99),
    cpu: (used.user + used.system) / 1e6 / seconds
  })
})

const program = ({ connection, journal, keyspace, name }: Setup) =>
  Effect.gen(function* () {
    const services = yield* Effect.context<Effect.Services<ReturnType<typeof work>>>()
    process.on("message", (message: Work) => Effect.runForkWith(services)(work(name, message)))
    say({ _tag: "ready" })
    return yield* Effect.callback<void>((resume) => {
      process.on("disconnect", () => resume(Effect.void))
    })
  }).pipe(
    Effect.provide(
      Layer.mergeAll(Unrouted.layer(behavior), Layer.provide(Routed.layer(behavior), CommandRouting.layer())).pipe(
        Layer.provideMerge(Journal.layer(journal)),
        Layer.provide(
          CassandraSession.layer({
            ...connection,
            password: connection.password === undefined ? undefined : Redacted.make(connection.password),
            keyspace,
            development: true
          })
        )
      )
    ),
    Effect.scoped
  )

if (process.send !== undefined && process.argv[2] !== undefined) {
  await Effect.runPromise(program(JSON.parse(process.argv[2]) as Setup))
  process.exit(0)
}
