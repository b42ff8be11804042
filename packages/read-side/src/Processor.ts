/**
 * A processor follows the events of one or several entity types and keeps something up to date by them: tables, by the
 * statements that it gives for each event; a state per key; or whatever an Effect does.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import type { Migrations } from "@effect-cassandra/session/CassandraMigrator"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import type { Statement } from "@effect-cassandra/session/Statement"
import type { Duration, Effect, Result, Schema } from "effect"
import { refusedTable } from "./internal/analysis.ts"
import { openEffects, openGroups } from "./internal/effects.ts"
import { type FoldTable, openFold, readFold, tableOf } from "./internal/fold.ts"
import { type Open, validName } from "./internal/sink.ts"
import { statements } from "./internal/statements.ts"
import type { Write } from "./internal/writer.ts"
import type { ReadSideError } from "./ReadSideError.ts"

/** What is done with an event that cannot be handled. */
export type FailurePolicy =
  /** The shard stands still, says so, and tries again with growing pauses; the other shards go on. */
  | "retry"
  /**
   * After some tries the event is put aside with its error, and the later events of its entity behind it, in order; the
   * other entities go on. What is put aside can be listed, tried again and skipped. A failure of Cassandra that may pass is
   * tried again for ever.
   */
  | { readonly park: { readonly attempts: number } }

/** What all processors have in common. */
export interface Common {
  /** The type of the entities, or several types. */
  readonly entityType: string | ReadonlyArray<string>
  /** The tables that the processor fills, as `CREATE TABLE IF NOT EXISTS name (...)`; created where they are missing. */
  readonly tables?: ReadonlyArray<string> | undefined
  /**
   * Later changes of the tables, by numbers of the processor's own, as `CassandraMigrator` has them: each is executed once
   * in the cluster, in order, after the tables were created and before anything runs.
   */
  readonly migrations?: Migrations | undefined
  /**
   * Raise it to fill new tables from the first event while the version before keeps serving; see `ReadSide.activeVersion`.
   * Default: 1.
   */
  readonly version?: number | undefined
}

/** A processor, to be run by `ReadSide`. `R` is what its handlers need. */
export interface Processor<out R = never> {
  /** Stands for its place in the logs: under another name it begins at the first event. */
  readonly name: string
  readonly version: number
  /** The name with the version, by which it is controlled: `balances`, from the second version on `balances@2`. */
  readonly id: string
  readonly entityTypes: ReadonlyArray<string>
  readonly events: ReadonlyArray<EventSchema>
  readonly tables: ReadonlyArray<string>
  readonly migrations: Migrations | undefined
  /** Whether it empties its tables by itself, which are not in Cassandra. */
  readonly truncates: boolean
  readonly onFailure: FailurePolicy
  readonly open: Open<R>
}

/** Of a type of event, those that have a handler; the others only move the offset. */
export type Handlers<Event extends { readonly _tag: string }, A> = {
  readonly [Tag in Event["_tag"]]?: (event: Extract<Event, { readonly _tag: Tag }>, envelope: EventEnvelope) => A
} & {
  /** The payloads of the entity's events up to a sequence number were deleted: what a view has of them should go, too. */
  readonly $deleted?: (event: { readonly through: number }, envelope: EventEnvelope) => A
}

/** What the Effects of some handlers need. */
export type ServicesOf<H> = {
  [Tag in keyof H]: H[Tag] extends (...args: any) => Effect.Effect<any, any, infer R> ? R : never
}[keyof H]

/** Statements for one event, ten at the most. */
export type Statements = Statement<unknown> | ReadonlyArray<Statement<unknown>>

/** A processor of a kind of its own: what `open` gives is handed the events of one shard. */
export const define = <R>(
  name: string,
  {
    entityType,
    events,
    migrations,
    tables = [],
    version = 1
  }: Common & { readonly events: ReadonlyArray<EventSchema> },
  onFailure: FailurePolicy | undefined,
  open: Open<R>
): Processor<R> => {
  const entityTypes = typeof entityType === "string" ? [entityType] : entityType
  validName(name)
  if (entityTypes.length === 0) throw new Error(`processor "${name}" follows no entity type: give one at least`)
  if (!Number.isSafeInteger(version) || version < 1) {
    throw new Error(`processor "${name}" has version ${version}: versions are 1, 2, 3 ...`)
  }
  for (const entityType of entityTypes) {
    if (
      typeof entityType !== "string" ||
      entityType === "" ||
      entityTypes.filter((one) => one === entityType).length > 1
    ) {
      throw new Error(
        `processor "${name}" follows ${JSON.stringify(entityTypes)}: give names of entity types, each once`
      )
    }
  }
  for (const table of tables) {
    const refused = refusedTable(tableOf(table))
    if (refused !== undefined) throw new Error(`processor "${name}" cannot have its table: ${refused}`)
  }
  if (typeof onFailure === "object" && !(Number.isInteger(onFailure.park?.attempts) && onFailure.park.attempts > 0)) {
    throw new Error(`processor "${name}" parks events after ${onFailure.park?.attempts} attempts: give 1 or more`)
  }
  return {
    name,
    version,
    id: version === 1 ? name : `${name}@${version}`,
    entityTypes,
    events,
    tables,
    migrations,
    truncates: false,
    onFailure: onFailure ?? "retry",
    open
  }
}

/** A processor that gives statements, which can be seen without a database; `ProcessorTest` does. */
export interface StatementProcessor extends Processor {
  /** What it writes for an event, or why it cannot. */
  readonly writes: (envelope: EventEnvelope) => Result.Result<ReadonlyArray<Write>, ReadSideError>
}

/**
 * Keeps tables by statements, effectively once: INSERT, UPDATE and DELETE with all values bound, executed with the event's
 * stamp as write timestamp, so that executing them twice, or by two processes, leaves the same rows. A row must be fed by
 * one shard only: let its key name the entity.
 *
 * **Example**
 *
 * ```ts
 * const Balances = Processor.make("balances", {
 *   entityType: "Account",
 *   events: [Deposited],
 *   tables: ["CREATE TABLE IF NOT EXISTS balances (account text PRIMARY KEY, balance bigint)"],
 *   handlers: {
 *     Deposited: ({ balance }, { entityId }) =>
 *       cql`INSERT INTO balances (account, balance) VALUES (${entityId}, ${BigInt(balance)})`
 *   }
 * })
 * ```
 */
export const make = <const Event extends EventSchema>(
  name: string,
  definition: Common & {
    /** The events that have a handler; a stored event of another type is passed over. */
    readonly events: ReadonlyArray<Event>
    readonly handlers: Handlers<Event["Type"], Statements>
    /**
     * What the keys of rows are made of. `"entity"`: each holds the id of the event's entity, so that one shard feeds the
     * row; a statement whose key does not is refused. `"own"`: they are something else that belongs to one entity, such as
     * an order's number, or a row that several shards give different columns. Default: `"entity"`.
     */
    readonly keys?: "entity" | "own" | undefined
    /** Default: `"retry"`. */
    readonly onFailure?: FailurePolicy | undefined
  }
): StatementProcessor => {
  const { open, writes } = statements(name, definition)
  return { ...define(name, definition, definition.onFailure, open), writes }
}

/** Whether an event may be handled twice or not at all when a process dies. */
export type Delivery =
  /** The offset is stored after the handler: after a crash some events are handled again. */
  | "at-least-once"
  /** The offset is stored before the handler: after a crash, or when it fails, an event is not handled again. */
  | "at-most-once"

/**
 * Runs an Effect for each event, one after another within a shard.
 *
 * **Example**
 *
 * ```ts
 * const Mails = Processor.effect("mails", {
 *   entityType: "Order",
 *   events: [Shipped],
 *   handlers: {
 *     Shipped: ({ address }, { entityId }) => Effect.flatMap(Mailer, (mailer) => mailer.send(address, entityId))
 *   }
 * })
 * ```
 */
export const effect = <
  const Event extends EventSchema,
  const H extends Handlers<Event["Type"], Effect.Effect<unknown, unknown, any>>
>(
  name: string,
  definition: Common & {
    readonly events: ReadonlyArray<Event>
    readonly handlers: H
    /** Default: `"at-least-once"`. */
    readonly delivery?: Delivery | undefined
    readonly onFailure?: FailurePolicy | undefined
  }
): Processor<ServicesOf<H>> =>
  define(name, definition, definition.onFailure, openEffects<ServicesOf<H>>(name, definition))

/** An event with its place, for a handler that takes several. */
export interface Received<Event> {
  readonly event: Event
  readonly envelope: EventEnvelope
}

/**
 * Runs an Effect for groups of events of one shard, in order, at least once.
 *
 * **Example**
 *
 * ```ts
 * const Search = Processor.grouped("search", {
 *   entityType: "Product",
 *   events: [Described],
 *   size: 500,
 *   within: "1 second",
 *   handle: (events) => Effect.flatMap(SearchIndex, (index) => index.put(events.map(({ event }) => event)))
 * })
 * ```
 */
export const grouped = <const Event extends EventSchema, R = never>(
  name: string,
  definition: Common & {
    readonly events: ReadonlyArray<Event>
    readonly handle: (events: ReadonlyArray<Received<Event["Type"]>>) => Effect.Effect<unknown, unknown, R>
    /** Events of a group at the most. Default: 100. */
    readonly size?: number | undefined
    /** How long events wait for others to come. Default: 1 second. */
    readonly within?: Duration.Input | undefined
    /** With `park`, a group that fails is handled event by event, to find the one that is at fault. Default: `"retry"`. */
    readonly onFailure?: FailurePolicy | undefined
  }
): Processor<R> => define(name, definition, definition.onFailure, openGroups(name, definition))

/** A processor with a state for each key, which `stateOf` reads. */
export interface Fold<State> extends Processor {
  /** The state of a key, of all shards together; the initial one where there is none. */
  readonly stateOf: (key: string) => Effect.Effect<State, CassandraError, CassandraSession>
}

/**
 * Keeps a state for each key, such as a count or a sum over many entities, exactly: each shard keeps its own part, and
 * they are merged when the state is read.
 *
 * **Example**
 *
 * ```ts
 * const Spending = Processor.fold("spending", {
 *   entityType: "Order",
 *   events: [Placed],
 *   table: "spending",
 *   state: Schema.Struct({ orders: Schema.Int, cents: Schema.Int }),
 *   initial: { orders: 0, cents: 0 },
 *   key: ({ customer }) => customer,
 *   fold: (state, { cents }) => ({ orders: state.orders + 1, cents: state.cents + cents }),
 *   merge: (a, b) => ({ orders: a.orders + b.orders, cents: a.cents + b.cents })
 * })
 * ```
 */
export const fold = <const Event extends EventSchema, State>(
  name: string,
  definition: Omit<Common, "tables" | "migrations"> & {
    readonly events: ReadonlyArray<Event>
    /** The name of the table; it has the columns `key`, `entity_type`, `shard`, `offset`, `state` as JSON, and some more. */
    readonly table: string
    readonly state: Schema.Codec<State, any>
    readonly initial: State
    /** The key whose state an event changes; undefined passes it over. */
    readonly key: (event: Event["Type"], envelope: EventEnvelope) => string | undefined
    readonly fold: (state: State, event: Event["Type"], envelope: EventEnvelope) => State
    /** Joins the states of two shards; with `initial` it leaves the other as it is. */
    readonly merge: (a: State, b: State) => State
    /** Default: `"retry"`. */
    readonly onFailure?: FailurePolicy | undefined
  }
): Fold<State> => {
  const table: FoldTable<State> = { ...definition, name }
  if (!/^(\w+|"\w+")$/.test(table.table)) {
    throw new Error(`processor "${name}" cannot have a table called ${table.table}: use letters, digits and "_"`)
  }
  return Object.assign(
    define(name, { ...definition, tables: [readFold.table(definition.table)] }, definition.onFailure, openFold(table)),
    { stateOf: readFold.of(table) }
  )
}
