/**
 * The journal: immutable events of entities, stored in order and for ever, with snapshots of the entities' states.
 *
 * Entities of one type are spread over a fixed number of shards; the events of a shard form one log, in which they count
 * 1, 2, 3 ... without a hole. PROTOCOL.md says how, and what is promised.
 */
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { type SerialConsistency, make as statement } from "@effect-cassandra/session/Statement"
import driver from "cassandra-driver"
import {
  Clock,
  Config,
  Context,
  type Duration,
  Effect,
  type Exit,
  Layer,
  type Option,
  type Schema,
  type Stream
} from "effect"
import type { Encoding } from "./Encoding.ts"
import { cassandraStore, tables } from "./internal/cassandraStore.ts"
import { storeFailure } from "./internal/failure.ts"
import { makeJournal } from "./internal/journal.ts"
import { memoryStore } from "./internal/memoryStore.ts"
import { ClockSkew, JournalError } from "./JournalError.ts"

/** A value that JSON can hold. */
export type Json = Schema.Json

/** Settings of a journal. Those marked "recorded" are fixed when an entity type is first used. */
export interface Options {
  /** Logs per entity type; recorded. Default: 3. Few logs make large blocks: README.md says when to take more. */
  readonly shards?: number | undefined
  /**
   * Who agrees on an append: the replicas of all data centres, or those of the local one, in which case only this data
   * centre may append; recorded. Default: `"SERIAL"`.
   */
  readonly serialConsistency?: SerialConsistency | undefined
  /** Events per bucket of a log; recorded. Default: 10 000. */
  readonly bucketSize?: number | undefined
  /** Characters of JSON per partition of a log, which may be passed by one block; recorded. Default: 32 MiB. */
  readonly partitionSize?: number | undefined
  /** How long an append waits for an answer before it fails with `OutcomeUnknown`. Default: 10 seconds. */
  readonly appendTimeout?: Duration.Input | undefined
  /**
   * How often the index of entities is brought up to date; up to five times as seldom where a thousand of a shard or
   * more have few events each, for then it costs more than the log. Default: 1 second.
   */
  readonly indexInterval?: Duration.Input | undefined
  /**
   * The longest pause between two looks for events of other processes, while nothing happens: one read for all shards of an
   * entity type. Default: 700 milliseconds.
   */
  readonly maxPollInterval?: Duration.Input | undefined
  /** Which commands are known again: those of an entity's newest events, if they are not too old. */
  readonly commandWindow?: CommandWindow | undefined
  /** How payloads are stored from now on. Default: readable JSON. */
  readonly encoding?: Encoding | undefined
  /** Encodings of payloads stored before, beside `encoding`. */
  readonly encodings?: ReadonlyArray<Encoding> | undefined
  /**
   * How blocks of many events stand in the log: `"zstd"` (those of 4096 characters or more; a quarter of the bytes for the
   * network and the replicas) or `"none"`, for logs that other programs read in the database. Both are read, whatever is
   * set. Default: `"zstd"`.
   */
  readonly compression?: Compression | undefined
  /** Characters of JSON that one event may have. Default: 1 MiB. */
  readonly maxEventSize?: number | undefined
}

/** Of the blocks of a log. */
export type Compression = "zstd" | "none"

/** How far back a journal knows commands again. */
export interface CommandWindow {
  /** Events of the entity. Default: 100. */
  readonly events?: number | undefined
  /** Default: 1 day. */
  readonly age?: Duration.Input | undefined
}

/**
 * What is known of an event beside what it says. The named members are the journal's, all others are the user's own.
 */
export interface Metadata {
  /** The command that the event comes from: see `Append.command`. */
  readonly commandId?: string
  /** What belongs together, over all services. */
  readonly correlationId?: string
  /** What led to it: the id of a command or an event. */
  readonly causationId?: string
  /** W3C trace context (https://www.w3.org/TR/trace-context/). */
  readonly traceparent?: string
  readonly [name: string]: Json | undefined
}

/**
 * Metadata for everything that is appended in an effect.
 *
 * **Example**
 *
 * ```ts
 * account.Deposit({ cents: 100 }).pipe(
 *   Effect.provideService(CurrentMetadata, { correlationId: request.id })
 * )
 * ```
 */
export const CurrentMetadata: Context.Reference<Metadata> = Context.Reference(
  "@effect-cassandra/journal/Journal/CurrentMetadata",
  { defaultValue: (): Metadata => ({}) }
)

/** An event of an entity, with its place in the journal. Types that begin with `$` are the journal's own events. */
export interface EventEnvelope {
  readonly entityType: string
  readonly entityId: string
  /** Counts the events of the entity: 1, 2, 3 ... */
  readonly sequence: number
  readonly shard: number
  /** Counts the events of the shard: 1, 2, 3 ... */
  readonly offset: number
  /** Microseconds since the epoch; strictly increasing within the shard, in steps of 10 at least. */
  readonly stamp: number
  readonly type: string
  /** Of the event's schema; 1 where none was given. */
  readonly version: number
  readonly metadata: Metadata
  /** The event as JSON gives it; undefined where it was deleted. */
  readonly payload: unknown
  /** The payload is gone; the event keeps its place, to be passed over. */
  readonly deleted: boolean
}

/** A place in a log, up to where something is included. */
export interface LogPosition {
  readonly entityType: string
  readonly shard: number
  readonly offset: number
}

/** Where an entity stands: its last sequence number, and the offset up to where all its events are included. */
export interface Position {
  readonly sequence: number
  readonly validThrough: number
}

/**
 * What an entity must be like for events to be stored. A position, as `load`, `append` and `confirm` give it: the writer has
 * seen everything up to there, commands included. Or its last sequence number, or without events, or with some, or
 * anything: then the journal looks.
 */
export type Expected = Position | number | "none" | "exists" | "any"

/** An event to store. */
export interface NewEvent {
  /** Does not begin with `$`. */
  readonly type: string
  /** Of the event's schema: a whole number from 1 on. */
  readonly version?: number | undefined
  /** A value that JSON can hold. */
  readonly payload: unknown
  readonly metadata?: Metadata | undefined
}

/** Events to store for one entity, all of them or none. */
export interface Append {
  readonly entityType: string
  readonly entityId: string
  readonly expected: Expected
  readonly events: ReadonlyArray<NewEvent>
  /** For all events, beside `CurrentMetadata` and before each event's own. */
  readonly metadata?: Metadata | undefined
  /**
   * What the events come from. A command whose id is known within the window stores nothing and gets the first answer. If
   * it has no events, an event `$command` is stored to remember it.
   */
  readonly command?: { readonly id: string; readonly answer?: Json | undefined } | undefined
  /**
   * An append of the same entity in this process that comes directly before this one. It need not be stored yet: `expected`
   * is the position after its events, with its own `validThrough`. Of both, the second is stored only if the first is.
   */
  readonly behind?: Queued | undefined
}

/** An append that waits to be stored. */
export interface Queued {
  readonly "~@effect-cassandra/journal/Queued": true
}

/** What became of an append. */
export interface Appended extends Position {
  /** The command was known, so nothing was stored: `sequence` is that of its last event then. */
  readonly repeated: boolean
  /** The first answer to the command. */
  readonly answer: Json | undefined
}

/** A saved state of an entity. */
export interface Snapshot {
  readonly sequence: number
  /** The position of the state in the shard's log. */
  readonly validThrough: number
  /** Of the state's schema. Default: 1. */
  readonly version?: number | undefined
  /** As JSON gives it. */
  readonly state: unknown
}

/** A command that an entity has carried out. */
export interface KnownCommand {
  /** Of its last event. */
  readonly sequence: number
  readonly answer: Json | undefined
}

/** What is stored of an entity: the newest snapshot, and the events after it. */
export interface Loaded extends Position {
  readonly snapshot: Option.Option<Snapshot>
  /** The journal's own and deleted ones included. */
  readonly events: ReadonlyArray<EventEnvelope>
  /** The commands in the window by id, where they were asked for. */
  readonly commands: ReadonlyMap<string, KnownCommand>
  /**
   * From which event on all commands are among them: its sequence number, and the stamp of it; `1` and `0` when those of
   * all events are. A command that may have come before is not known to be new.
   */
  readonly commandsFrom: { readonly sequence: number; readonly stamp: number }
  /** Events up to this sequence number are deleted. */
  readonly deletedThrough: number
}

/** How to load an entity. */
export interface LoadOptions {
  /**
   * Only what came after a position, for those who have the state there: no snapshot, and the commands of these events only.
   * What was stored in the last seconds is in memory. If `deletedThrough` is not 0, the state is out of date, too: load
   * without `after` then.
   */
  readonly after?: Position | undefined
  /** Without snapshots after this sequence number. */
  readonly snapshotsUpTo?: number | undefined
  /** With the commands in the window, also those behind the snapshot. Default: false. */
  readonly commands?: boolean | undefined
}

/** What identifies an entity. */
export interface EntityKey {
  readonly entityType: string
  readonly entityId: string
}

/** One who appends events and says what they are when there is room for them: what waits until then is small. */
export interface Appender {
  readonly entityType: string
  readonly entityId: string
  /** Those of the surroundings. */
  readonly metadata: Metadata
  /**
   * What to store; `expected` must be a position. Undefined where nothing is to be stored any more: then `onExit` is not
   * called. Called once, in the order in which they were given; what it throws is a defect of this append. `own`: for those
   * that come behind it.
   */
  decide(own: Queued): Append | undefined
  /** Called once, at once or later, and must not throw. If `decide` was not called before, nothing was stored. */
  onExit(exit: Exit.Exit<Appended, JournalError>): void
}

/** Stores events. */
export interface AppendFunction {
  (append: Append): Effect.Effect<Appended, JournalError>
  /**
   * The same without a fiber, which counts where hundreds of thousands are stored. Absent where somebody has put a function
   * of his own around `append`.
   */
  readonly unsafe?: (appender: Appender) => void
}

/**
 * The events of a service's entities.
 */
export class Journal extends Context.Service<
  Journal,
  {
    /** Logs per entity type. */
    readonly shards: number
    readonly shardOf: (entityId: string) => number
    /** Counts the restores of older data; stored offsets of another epoch stand for nothing. */
    readonly epoch: (entityType: string) => Effect.Effect<number, JournalError>
    /**
     * Stores events if the entity is as expected, else fails with `SequenceConflict`. Once acknowledged they are there for
     * ever, exactly once.
     */
    readonly append: AppendFunction
    /** What is stored of an entity. */
    readonly load: (entity: EntityKey, options?: LoadOptions) => Effect.Effect<Loaded, JournalError>
    /**
     * Asks the cluster whether a position is still the entity's newest, and gives it brought forward; fails with
     * `SequenceConflict` if it is not. Concurrent calls share one request.
     */
    readonly confirm: (entity: EntityKey, position: Position) => Effect.Effect<Position, JournalError>
    /** Whether this process has seen no event of the entity beyond a position. Nobody is asked. */
    readonly isCurrent: (entity: EntityKey, position: Position) => boolean
    /** The offset of the last event of a shard that this process has seen; 0 where it has not looked yet. Nobody is asked. */
    readonly seen: (entityType: string, shard: number) => number
    /** Saves a state and removes the snapshots at `removeThrough` or before. */
    readonly saveSnapshot: (
      entity: EntityKey,
      snapshot: Snapshot,
      removeThrough: number
    ) => Effect.Effect<void, JournalError>
    /**
     * Deletes the payloads of an entity's events up to a sequence number (all there are, without it), in the log, the index
     * and snapshots that rest on nothing else; the deletion is an event `$deleted` itself. Places and sequence numbers stay.
     * It goes on after a crash, and is complete when this returns. Gives the entity's new position.
     */
    readonly delete: (entity: EntityKey, through?: number) => Effect.Effect<Position, JournalError>
    /** The events of a shard after an offset (0 for all), then those to come. */
    readonly events: (entityType: string, shard: number, after: number) => Stream.Stream<EventEnvelope, JournalError>
    /** The events of a shard after an offset, up to the last one stored now. */
    readonly currentEvents: (
      entityType: string,
      shard: number,
      after: number
    ) => Stream.Stream<EventEnvelope, JournalError>
    /** The offset of the last event stored in a shard; 0 when there is none. */
    readonly head: (entityType: string, shard: number) => Effect.Effect<number, JournalError>
  }
>()("@effect-cassandra/journal/Journal") {
  /** A journal in the session's keyspace; missing tables are created. */
  static readonly layer = (options: Options = {}): Layer.Layer<Journal, JournalError, CassandraSession> =>
    Layer.effect(Journal, makeCassandra(options))

  /** As `layer`, with options from Effect's Config. */
  static readonly layerConfig = (
    options: Config.Wrap<Options>
  ): Layer.Layer<Journal, JournalError | Config.ConfigError, CassandraSession> =>
    Layer.effect(Journal, Effect.flatMap(Config.unwrap(options), makeCassandra))

  /** A journal in the memory of this process, for tests: the same code, another store. */
  static readonly layerMemory = (options: Options = {}): Layer.Layer<Journal, JournalError> =>
    Layer.effect(
      Journal,
      Effect.suspend(() => makeJournal(memoryStore(), options))
    )
}

let warned = false

/** Says what of the servers' settings does not fit the promises, once; gives the data centre that the session uses. */
const checkServers = Effect.fnUntraced(function* (session: CassandraSession["Service"]) {
  const before = yield* Clock.currentTimeMillis
  const [local] = yield* session.execute<{ now: Date; data_center: string }>(
    statement("SELECT toTimestamp(now()) AS now, data_center FROM system.local")
  )
  const after = yield* Clock.currentTimeMillis
  const skew = local === undefined ? 0 : Math.max(before - local.now.getTime(), local.now.getTime() - after)
  if (skew > 60_000) {
    const message = `the clocks of this process and of Cassandra are ${Math.round(skew / 1000)} s apart: set them right`
    return yield* new JournalError({ reason: new ClockSkew({ message }) })
  }
  // Each node has its own settings; one that is away, or that has no such table, is not asked.
  const settings = yield* session
    .use((client) =>
      Promise.all(
        client.hosts.values().map((host) =>
          client
            .execute(
              "SELECT name, value FROM system_views.settings WHERE name IN ('commitlog_sync', 'paxos_variant')",
              [],
              { host, consistency: driver.types.consistencies.one }
            )
            .then(
              ({ rows }) =>
                rows.map((row) => ({ node: host.address, name: String(row.name), value: String(row.value) })),
              () => []
            )
        )
      )
    )
    .pipe(Effect.map((nodes) => nodes.flat()))
  const like = (pattern: RegExp) =>
    settings.filter(({ name, value }) => pattern.test(`${name} ${value}`)).map(({ node }) => node)
  const blind = like(/^paxos_variant .*without_linearizable/i)
  if (blind.length > 0) {
    return yield* Effect.die(
      `paxos_variant at ${blind.join(", ")} is one without linearizable reads, which the journal needs: set v2 (or v1)`
    )
  }
  const periodic = like(/^commitlog_sync periodic/i)
  if (periodic.length > 0 && !warned) {
    warned = true
    yield* Effect.logWarning(
      `commitlog_sync is periodic at ${periodic.join(", ")}: if all replicas are killed at once, what was acknowledged ` +
        "in the last tenth of a second is lost, and if they lose power the last seconds are. Set batch, or group."
    )
  }
  return local?.data_center ?? null
})

const makeCassandra = Effect.fnUntraced(function* (options: Options) {
  const session = yield* CassandraSession
  const dataCenter = yield* Effect.andThen(session.createTables(tables), checkServers(session)).pipe(
    Effect.catchTag("CassandraError", (error) => Effect.fail(storeFailure(error)))
  )
  const serialConsistency = options.serialConsistency ?? "SERIAL"
  return yield* makeJournal(
    cassandraStore(session, serialConsistency, options.compression),
    options,
    {},
    serialConsistency === "LOCAL_SERIAL" ? dataCenter : null
  )
})
