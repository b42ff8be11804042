/**
 * A command line for operators, with what `JournalAdmin` does. The package has it as `journal`; a service that encrypts its
 * events puts it into a program of its own, with its encodings.
 *
 * **Example**
 *
 * ```ts
 * JournalCli.command.pipe(
 *   Command.provide(JournalAdmin.layer({ encodings: [encrypted] }).pipe(Layer.provide(CassandraSession.layerConfig()))),
 *   Command.run({ version: "1.0.0" }),
 *   Effect.provide(NodeServices.layer),
 *   NodeRuntime.runMain
 * )
 * ```
 */
import { Console, Effect, Option, Schema, Stdio, Stream } from "effect"
import { Argument, Command, Flag, Prompt, TerminalCapabilities } from "effect/cli"
import { bar, table } from "./internal/table.ts"
import type { EventEnvelope } from "./Journal.ts"
import { type Finding, JournalAdmin, type Progress, type TypeState } from "./JournalAdmin.ts"

/** An operation was done, and what it found is not as it should be: the process ends with code 1. */
export class NotClean extends Schema.TaggedError<NotClean>()("NotClean", { message: Schema.String }) {}

const json = Flag.Boolean("json").pipe(Flag.withDescription("Print JSON"), Flag.withDefault(false))
const dryRun = Flag.Boolean("dry-run").pipe(
  Flag.withDescription("Say what would be done, and change nothing"),
  Flag.withDefault(false)
)
const yes = Flag.Boolean("yes").pipe(Flag.withAlias("y"), Flag.withDescription("Do not ask"), Flag.withDefault(false))
const entityType = Argument.String("entity-type")
const entityId = Argument.String("entity-id")

/** Shows how far an operation has come, where somebody watches. */
const progress = Effect.map(
  Effect.all([TerminalCapabilities.TerminalCapabilities, Stdio.Stdio]),
  ([terminal, stdio]) => {
    if (!terminal.canAnimate) return { onProgress: () => Effect.void, end: Effect.void }
    const write = (text: string) =>
      Stream.run(Stream.make(text), stdio.stderr({ endOnDone: false })).pipe(Effect.ignore)
    return {
      onProgress: ({ done, entityType, shard, total, what }: Progress) =>
        write(`\r${bar(`${what} ${entityType} shard ${shard}`, done, total)}`),
      end: write("\r\u001b[K")
    }
  }
)

const withProgress = <A, E, R>(
  use: (onProgress: (progress: Progress) => Effect.Effect<void>) => Effect.Effect<A, E, R>
) => Effect.flatMap(progress, ({ end, onProgress }) => Effect.ensuring(use(onProgress), end))

/** Asks before something is destroyed; without a terminal to ask on, `--yes` must be given. */
const confirmed = (isSure: boolean, question: string) =>
  Effect.gen(function* () {
    if (isSure) return
    const { canPrompt } = yield* TerminalCapabilities.TerminalCapabilities
    const answer = canPrompt ? yield* Prompt.run(Prompt.Confirm({ message: question })) : false
    if (!answer) {
      return yield* new NotClean({
        message: `nothing was changed${canPrompt ? "" : ": give --yes, there is no terminal to ask on"}`
      })
    }
  })

const admin = <A, E, R>(use: (admin: JournalAdmin["Service"]) => Effect.Effect<A, E, R>) =>
  Effect.flatMap(JournalAdmin, use)

const print = (value: unknown) => Console.log(JSON.stringify(value, null, 2))

const plural = (n: number, what: string) => `${n} ${what}${n === 1 ? "" : "s"}`

// ------------------------------------------------------------------------------------------------------- looking

const typeRows = (state: TypeState): ReadonlyArray<Record<string, string | number>> =>
  state.problem !== undefined
    ? [
        {
          type: state.entityType,
          shard: "",
          head: "",
          index: "",
          behind: "",
          "last event": "",
          deletions: "",
          problem: state.problem
        }
      ]
    : state.shards.map(({ head, lastEvent, pendingDeletions, problem, shard, watermark }) => ({
        type: state.entityType,
        shard,
        head,
        index: watermark,
        behind: head - watermark,
        "last event": lastEvent?.toISOString() ?? "",
        deletions: pendingDeletions,
        problem: problem ?? ""
      }))

const list = Command.make("list", { json }, ({ json }) =>
  admin((journal) =>
    Effect.gen(function* () {
      const states = yield* journal.types
      if (json) return yield* print(states)
      yield* Console.log(
        table(
          states.map((state) => ({
            type: state.entityType,
            shards: state.shards.length,
            consistency: state.serialConsistency,
            "bucket size": state.bucketSize,
            "partition size": state.partitionSize,
            epoch: state.epoch,
            index: state.indexGeneration,
            "other indexes": state.otherIndexGenerations.join(" ")
          }))
        )
      )
      yield* Console.log("")
      yield* Console.log(table(states.flatMap(typeRows)))
    })
  )
).pipe(Command.withDescription("The entity types, and how the log of each shard stands"))

const eventRow = (event: EventEnvelope) => {
  const { metadata, offset, payload, sequence, shard, stamp, type, version } = event
  const time = new Date(stamp / 1000).toISOString()
  const extra = Object.keys(metadata).length === 0 ? "" : `  ${JSON.stringify(metadata)}`
  const body = event.deleted ? "(deleted)" : JSON.stringify(payload)
  return `${String(sequence).padStart(6)}  ${time}  ${shard}/${offset}  ${type} v${version}  ${body}${extra}`
}

const history = Command.make(
  "history",
  {
    entityType,
    entityId,
    after: Flag.Int("after").pipe(Flag.withDescription("Only events after this sequence number"), Flag.withDefault(0)),
    follow: Flag.Boolean("follow").pipe(
      Flag.withAlias("f"),
      Flag.withDescription("Go on with the events to come"),
      Flag.withDefault(false)
    ),
    json
  },
  ({ after, entityId, entityType, follow, json }) =>
    admin((journal) =>
      Stream.runForEach(journal.history({ entityType, entityId }, { after, follow }), (event) =>
        Console.log(json ? JSON.stringify(event) : eventRow(event))
      )
    )
).pipe(
  Command.withDescription(
    "The events of an entity: number, time, shard and offset, type, payload, metadata; JSON is one per line"
  )
)

// ----------------------------------------------------------------------------------------------------- verifying

const placeOf = ({ entityId, offset, sequence, shard, table }: Finding) =>
  [
    table,
    shard === undefined ? [] : `shard ${shard}`,
    offset === undefined ? [] : `offset ${offset}`,
    entityId === undefined ? [] : `"${entityId}"`,
    sequence === undefined ? [] : `event ${sequence}`
  ]
    .flat()
    .join(", ")

const verify = Command.make(
  "verify",
  {
    entityType: entityType.pipe(Argument.optional),
    shard: Flag.Int("shard").pipe(Flag.withDescription("This shard only"), Flag.optional),
    json
  },
  ({ entityType, json, shard }) =>
    admin((journal) =>
      Effect.gen(function* () {
        const names = Option.isSome(entityType)
          ? [entityType.value]
          : (yield* journal.types).map((state) => state.entityType)
        const all = yield* withProgress((onProgress) =>
          Effect.forEach(names, (name) => journal.verify(name, { shard: Option.getOrUndefined(shard), onProgress }))
        )
        const count = all.reduce((sum, one) => sum + one.count, 0)
        if (json) yield* print(all)
        else {
          yield* Console.log(
            table(
              all.flatMap(({ entityType, shards }) =>
                shards.map(({ entities, events, head, shard, watermark }) => ({
                  type: entityType,
                  shard,
                  head,
                  events,
                  entities,
                  index: watermark
                }))
              )
            )
          )
          for (const { findings } of all) {
            for (const finding of findings) {
              yield* Console.log(`\n${finding.kind}: ${finding.message}\n  in ${placeOf(finding)}\n  ${finding.remedy}`)
            }
          }
          yield* Console.log(count === 0 ? "\nEverything is as it must be." : `\n${plural(count, "finding")}.`)
        }
        if (count > 0) return yield* new NotClean({ message: plural(count, "finding") })
      })
    )
).pipe(
  Command.withDescription(
    "Reads everything that is stored and names what breaks a rule; ends with code 1 if something does"
  )
)

// ----------------------------------------------------------------------------------------------------- the index

const rebuildIndex = Command.make("rebuild-index", { entityType, json }, ({ entityType, json }) =>
  admin((journal) =>
    Effect.gen(function* () {
      const rebuilt = yield* withProgress((onProgress) => journal.rebuildIndex(entityType, { onProgress }))
      if (json) return yield* print(rebuilt)
      const { events, generation } = rebuilt
      yield* Console.log(
        `index generation ${generation} of ${entityType} was computed from ${plural(events, "event")}; services use it within a minute`
      )
    })
  )
).pipe(Command.withDescription("Computes the index anew from the log, while services append"))

const removeIndexes = Command.make("remove-old-indexes", { entityType, dryRun, yes, json }, (flags) =>
  admin((journal) =>
    Effect.gen(function* () {
      const would = yield* journal.removeOldIndexes(flags.entityType, { dryRun: true })
      const rows = [...would].map(([generation, partitions]) => ({ generation, partitions }))
      const show = flags.json ? print(rows) : Console.log(table(rows))
      if (flags.dryRun || rows.length === 0) return yield* show
      yield* confirmed(flags.yes, `Remove ${plural(rows.length, "index")} of ${flags.entityType}?`)
      yield* journal.removeOldIndexes(flags.entityType)
      yield* show
    })
  )
).pipe(Command.withDescription("Removes the rows of indexes that are out of use"))

// ------------------------------------------------------------------------------------------------------ restores

const acceptRestore = Command.make(
  "accept-restore",
  {
    entityType,
    force: Flag.Boolean("force").pipe(
      Flag.withDescription("Although nothing here shows that something is lost"),
      Flag.withDefault(false)
    ),
    dryRun,
    yes,
    json
  },
  ({ dryRun, entityType, force, json, yes }) =>
    admin((journal) =>
      Effect.gen(function* () {
        const show = (restore: Effect.Success<ReturnType<typeof journal.acceptRestore>>) =>
          json
            ? print(restore)
            : Console.log(
                `${table(
                  restore.shards.map(({ head, shard, watermark }) => ({
                    shard,
                    head,
                    "index said": watermark,
                    "lost at least": Math.max(0, watermark - head)
                  }))
                )}\n\n${entityType} ${dryRun ? "would begin" : "begins"} epoch ${restore.epoch} with index generation ${restore.indexGeneration}`
              )
        const would = yield* journal.acceptRestore(entityType, { dryRun: true, force })
        if (dryRun) return yield* show(would)
        yield* confirmed(
          yes,
          `Are all services of ${entityType} stopped, and is what there is to be the truth from now on?`
        )
        yield* show(yield* withProgress((onProgress) => journal.acceptRestore(entityType, { force, onProgress })))
      })
    )
).pipe(Command.withDescription("Takes logs that an older backup has shortened for the truth, in a new epoch"))

// ----------------------------------------------------------------------------------------------------- deletions

const finishDeletions = Command.make("finish-deletions", { entityType, json }, ({ entityType, json }) =>
  admin((journal) =>
    Effect.flatMap(journal.finishDeletions(entityType), (done) =>
      json
        ? print(done)
        : Console.log(table(done.map(({ entityId, outcome, through }) => ({ entity: entityId, through, outcome }))))
    )
  )
).pipe(Command.withDescription("Goes on with deletions that were begun and not completed"))

const deleteEvents = Command.make(
  "delete",
  {
    entityType,
    entityId,
    through: Flag.Int("through").pipe(Flag.withDescription("Only events up to this sequence number"), Flag.optional),
    dryRun,
    yes,
    json
  },
  ({ dryRun, entityId, entityType, json, through, yes }) =>
    admin((journal) =>
      Effect.gen(function* () {
        const entity = { entityType, entityId }
        const options = { through: Option.getOrUndefined(through) }
        const would = yield* journal.deleteEvents(entity, { ...options, dryRun: true })
        const from = would.firstEvent?.toISOString()
        const to = would.lastEvent?.toISOString()
        const what = `the payloads of ${plural(would.events, "event")}${from === undefined ? "" : `, stored from ${from} to ${to}`}, and ${plural(would.snapshots, "snapshot")}`
        if (dryRun) return yield* json ? print(would) : Console.log(`would go: ${what}`)
        yield* confirmed(yes, `Delete of ${entityType} "${entityId}" ${what}? They cannot be brought back.`)
        const deleted = yield* journal.deleteEvents(entity, options)
        yield* json ? print(deleted) : Console.log(`gone: ${what}`)
      })
    )
).pipe(Command.withDescription("Deletes the payloads of an entity's events, in the log, the index and snapshots"))

/** `journal` with its subcommands. It needs a `JournalAdmin`. */
export const command = Command.make("journal").pipe(
  Command.withDescription("What is stored of event-sourced entities"),
  Command.withSubcommands([
    list,
    history,
    verify,
    rebuildIndex,
    removeIndexes,
    acceptRestore,
    finishDeletions,
    deleteEvents
  ])
)
