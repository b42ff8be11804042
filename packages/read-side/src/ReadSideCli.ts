/**
 * A command line for operators, with the verbs of `ReadSide`: status, requests, offsets, events that were put aside,
 * versions.
 *
 * **Example**
 *
 * ```ts
 * Command.run(ReadSideCli.command, { version: "1.0.0" }).pipe(
 *   Effect.provide(ReadSide.layerRequests),
 *   Effect.provide(Layer.merge(Journal.layer(), NodeServices.layer).pipe(Layer.provideMerge(CassandraSession.layerConfig()))),
 *   NodeRuntime.runMain
 * )
 * ```
 */
import { Console, Effect, Option, Schedule } from "effect"
import { Argument, Command, Flag } from "effect/cli"
import { ReadSide, type Status } from "./ReadSide.ts"
import { ReadSideError, RequestRefused, Unknown } from "./ReadSideError.ts"

/** Columns as wide as what stands in them; numbers to the right. */
const table = (rows: ReadonlyArray<Readonly<Record<string, string | number>>>): string => {
  if (rows.length === 0) return "none"
  const names = Object.keys(rows[0]!)
  const texts = rows.map((row) => names.map((name) => String(row[name])))
  const widths = names.map((name, i) => Math.max(name.length, ...texts.map((text) => text[i]!.length)))
  const line = (cells: ReadonlyArray<string>, row?: Readonly<Record<string, string | number>>) =>
    cells
      .map((cell, i) =>
        typeof (row ?? rows[0]!)[names[i]!] === "number" ? cell.padStart(widths[i]!) : cell.padEnd(widths[i]!)
      )
      .join("  ")
      .trimEnd()
  return [line(names), ...texts.map((text, i) => line(text, rows[i]))].join("\n")
}

const print = <A extends object>(
  json: boolean,
  rows: ReadonlyArray<A>,
  row: (one: A) => Record<string, string | number>
) => Console.log(json ? JSON.stringify(rows, null, 2) : table(rows.map(row)))

const duration = (millis: number) =>
  millis < 1000
    ? `${Math.round(millis)} ms`
    : millis < 60_000
      ? `${(millis / 1000).toFixed(1)} s`
      : millis < 3_600_000
        ? `${Math.round(millis / 60_000)} min`
        : `${(millis / 3_600_000).toFixed(1)} h`

const statusRow = (one: Status) => ({
  processor: one.processor,
  entities: one.entityType,
  shard: one.shard,
  state: one.state,
  offset: one.offset,
  behind: one.lag,
  age: one.lag === 0 ? "" : duration(one.lagMillis),
  "events/s": one.rate,
  left: one.lag === 0 ? "" : one.secondsLeft === undefined ? "?" : duration(one.secondsLeft * 1000),
  parked: one.parked,
  owner: one.owner ?? "",
  failure:
    one.failure === undefined ? "" : `${one.failure.reason} (try ${one.failure.attempts}): ${one.failure.message}`
})

const json = Flag.Boolean("json").pipe(Flag.withDescription("Print JSON"), Flag.withDefault(false))
const processor = Argument.String("processor").pipe(
  Argument.withDescription("Its name; from the second version on name@version")
)
const shard = {
  shard: Flag.Int("shard").pipe(Flag.withDescription("This shard only"), Flag.optional),
  entityType: Flag.String("entity-type").pipe(
    Flag.withDescription("Of which the shard is, where the processor follows several"),
    Flag.optional
  )
}

const shardOf = (flags: { readonly shard: Option.Option<number>; readonly entityType: Option.Option<string> }) =>
  Option.isNone(flags.shard)
    ? undefined
    : { shard: flags.shard.value, entityType: Option.getOrUndefined(flags.entityType) }

/** Says that a request is known, and what to make of it where nobody has heard of the processor. */
const asked = Effect.fnUntraced(function* (verb: string, processor: string) {
  const known = new Set((yield* (yield* ReadSide).status).map((one) => one.processor))
  yield* Console.log(
    known.has(processor)
      ? `${verb} ${processor}: asked for, and followed within seconds by all processes`
      : `${verb} ${processor}: asked for, and followed when there is such a processor; now there are ${[...known].join(", ") || "none"}`
  )
})

const status = Command.make(
  "status",
  {
    processor: processor.pipe(Argument.optional),
    watch: Flag.Boolean("watch").pipe(Flag.withDescription("Print it anew every second"), Flag.withDefault(false)),
    json
  },
  ({ json, processor, watch }) => {
    const show = Effect.gen(function* () {
      const all = yield* (yield* ReadSide).status
      const chosen = all.filter((one) => Option.isNone(processor) || one.processor === processor.value)
      if (chosen.length === 0 && Option.isSome(processor)) {
        const message = `there is no processor "${processor.value}": known are ${[...new Set(all.map((one) => one.processor))].join(", ") || "none"}`
        return yield* Effect.fail(new ReadSideError({ reason: new Unknown({ message }) }))
      }
      if (!watch) return yield* print(json, chosen, statusRow)
      // For who reads it line by line.
      if (json) return yield* Console.log(JSON.stringify(chosen))
      yield* Console.log(`\u001b[2J\u001b[H${table(chosen.map(statusRow))}`)
    })
    if (!watch) return show
    // A cluster that is away for a while comes back.
    const told = Effect.catchReasons(show, "ReadSideError", {
      StoreFailure: ({ message }) => Console.error(message),
      JournalFailure: ({ message }) => Console.error(message)
    })
    return Effect.repeat(told, Schedule.spaced("1 second"))
  }
).pipe(Command.withDescription("How each shard of each processor is doing"))

const verb = (name: "pause" | "resume", description: string) =>
  Command.make(name, { processor }, ({ processor }) =>
    Effect.flatMap(ReadSide, (readSide) => Effect.andThen(readSide[name](processor), asked(name, processor)))
  ).pipe(Command.withDescription(description))

const shardVerb = (name: "stop" | "start", description: string) =>
  Command.make(name, { processor, ...shard }, ({ processor, ...flags }) =>
    Effect.flatMap(ReadSide, (readSide) =>
      Effect.andThen(readSide[name](processor, shardOf(flags)), asked(name, processor))
    )
  ).pipe(Command.withDescription(description))

const rewind = Command.make(
  "rewind",
  {
    processor,
    offset: Flag.Int("offset").pipe(Flag.withDescription("Go on after this offset"), Flag.optional),
    time: Flag.Date("time").pipe(
      Flag.withDescription("Go on with the first event at this time or later"),
      Flag.optional
    ),
    truncate: Flag.Boolean("truncate").pipe(
      Flag.withDescription("Empty the processor's tables first, after a change of its code"),
      Flag.withDefault(false)
    ),
    ...shard
  },
  ({ offset, processor, time, truncate, ...flags }) =>
    Effect.gen(function* () {
      if (Option.isSome(offset) && Option.isSome(time)) {
        const message = "give --offset or --time, not both"
        return yield* Effect.fail(new ReadSideError({ reason: new RequestRefused({ message }) }))
      }
      const to = Option.isSome(offset)
        ? { offset: offset.value }
        : Option.isSome(time)
          ? { time: time.value }
          : ("beginning" as const)
      yield* (yield* ReadSide).rewind(processor, to, { shard: shardOf(flags), truncate })
      yield* asked("rewind", processor)
    })
).pipe(Command.withDescription("Goes on elsewhere; without an offset or a time at the beginning"))

const offsets = Command.make("offsets", { processor, json }, ({ json, processor }) =>
  Effect.gen(function* () {
    const stored = yield* (yield* ReadSide).offsets(processor)
    yield* print(json, stored, ({ entityType, offset, shard }) => ({ entities: entityType, shard, offset }))
  })
).pipe(Command.withDescription("The stored offsets"))

const parked = Command.make("parked", { processor, json }, ({ json, processor }) =>
  Effect.gen(function* () {
    const found = yield* (yield* ReadSide).parked(processor)
    yield* print(json, found, (one) => ({
      entities: one.entityType,
      entity: one.entityId,
      event: one.sequence,
      type: one.eventType,
      since: one.parkedAt.toISOString(),
      attempts: one.attempts,
      request: one.request ?? "",
      error: one.error ?? "behind the one before"
    }))
  })
).pipe(Command.withDescription("The events that were put aside"))

const entity = {
  processor,
  entityType: Argument.String("entity-type"),
  entityId: Argument.String("entity-id")
}

const parkedVerb = (name: "retry" | "skip", description: string) =>
  Command.make(name, entity, ({ processor, ...entity }) =>
    Effect.flatMap(ReadSide, (readSide) =>
      Effect.andThen(
        (name === "retry" ? readSide.retryParked : readSide.skipParked)(processor, entity),
        Console.log(`${name} ${entity.entityType} ${entity.entityId}: asked for, and done within seconds`)
      )
    )
  ).pipe(Command.withDescription(description))

const versioned = { name: Argument.String("name"), version: Argument.Int("version") }

const active = Command.make("active", { name: versioned.name }, ({ name }) =>
  Effect.flatMap(ReadSide, (readSide) =>
    Effect.flatMap(readSide.activeVersion(name), (version) => Console.log(String(version)))
  )
).pipe(Command.withDescription("The version that readers use"))

const switchTo = Command.make("switch", versioned, ({ name, version }) =>
  Effect.flatMap(ReadSide, (readSide) =>
    Effect.andThen(readSide.switchTo(name, version), Console.log(`readers use version ${version} of ${name}`))
  )
).pipe(Command.withDescription("Lets readers use another version"))

const drop = Command.make("drop", versioned, ({ name, version }) =>
  Effect.flatMap(ReadSide, (readSide) =>
    Effect.andThen(readSide.drop(name, version), Console.log(`version ${version} of ${name} is gone`))
  )
).pipe(Command.withDescription("Ends a version that readers do not use, and drops its tables"))

/** `read-side` with its subcommands. It needs a `ReadSide`: `ReadSide.layerRequests` is enough. */
export const command = Command.make("read-side").pipe(
  Command.withDescription("The processors of a service, whichever process runs them"),
  Command.withSubcommands([
    status,
    verb("pause", "Lets a processor rest"),
    verb("resume", "Ends a pause"),
    shardVerb("stop", "Stops a processor, or one of its shards"),
    shardVerb("start", "Starts it again"),
    rewind,
    offsets,
    parked,
    parkedVerb("retry", "Tries the events of an entity that were put aside again"),
    parkedVerb("skip", "Forgets the first of them, and tries the others again"),
    active,
    switchTo,
    drop
  ])
)
