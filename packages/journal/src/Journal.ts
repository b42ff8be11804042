/**
 * The journal: immutable events of entities, stored in order and for ever, with snapshots of the entities' states.
 *
 * Entities of one type are spread over a fixed number of shards; the events of a shard form one log, in which they count
 * 1, 2, 3 ... without a hole. PROTOCOL.md says how, and what is promised.
 */
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { type SerialConsistency, make as statement } from "@effect-cassandra/session/Statement"
import { Clock, Config, Context, type Duration, Effect, Layer, type Option, type Stream } from "effect"
import { cassandraStore, tables } from "./internal/cassandraStore.ts"
import { makeJournal } from "./internal/journal.ts"
import { memoryStore } from "./internal/memoryStore.ts"
import { storeFailure } from "./internal/shardLog.ts"
import { ClockSkew, JournalError } from "./JournalError.ts"

/** Settings of a journal. Those marked "recorded" are fixed when an entity type is first used. */
export interface Options {
  /** Logs per entity type; recorded. Default: 10. */
  readonly shards?: number | undefined
  /**
   * Who agrees on an append: the replicas of all data centres, or those of the local one, in which case only this data
   * centre may append; recorded. Default: `"SERIAL"`.
   */
  readonly serialConsistency?: SerialConsistency | undefined
  /** Events per partition of a log; recorded. Default: 10 000. */
  readonly bucketSize?: number | undefined
  /** How long an append waits for an answer before it fails with `OutcomeUnknown`. Default: 10 seconds. */
  readonly appendTimeout?: Duration.Input | undefined
  /** How often the index of entities is brought up to date. Default: 1 second. */
  readonly indexInterval?: Duration.Input | undefined
  /** The longest pause between two looks for events of other processes, while nothing happens. Default: 1 second. */
  readonly maxPollInterval?: Duration.Input | undefined
}

/** An event of an entity, with its place in the journal. */
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
  /** The event as JSON gives it. */
  readonly payload: unknown
}

/** Events to store for one entity, all of them or none. */
export interface Append {
  readonly entityType: string
  readonly entityId: string
  /** The entity's last sequence number as the writer knows it; 0 when it has no events. */
  readonly sequence: number
  /** As `load`, `append` or `confirm` gave it with that sequence number. */
  readonly validThrough: number
  /** Payloads are values that JSON can hold. */
  readonly events: ReadonlyArray<{ readonly type: string; readonly payload: unknown }>
}

/** Where an entity stands: its last sequence number, and the offset up to where all its events are included. */
export interface Position {
  readonly sequence: number
  readonly validThrough: number
}

/** A saved state of an entity. */
export interface Snapshot {
  readonly sequence: number
  /** The position of the state in the shard's log. */
  readonly validThrough: number
  /** As JSON gives it. */
  readonly state: unknown
}

/** What is stored of an entity: the newest snapshot, and the events after it. */
export interface Loaded extends Position {
  readonly snapshot: Option.Option<Snapshot>
  readonly events: ReadonlyArray<EventEnvelope>
}

/** What identifies an entity. */
export interface EntityKey {
  readonly entityType: string
  readonly entityId: string
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
    /**
     * Stores events if the entity has no others than the writer knows, else fails with `SequenceConflict`. Once
     * acknowledged they are there for ever, exactly once.
     */
    readonly append: (append: Append) => Effect.Effect<Position, JournalError>
    /** What is stored of an entity; with `snapshotsUpTo`, without snapshots after that sequence number. */
    readonly load: (
      entity: EntityKey,
      options?: { readonly snapshotsUpTo?: number }
    ) => Effect.Effect<Loaded, JournalError>
    /**
     * Asks the cluster whether a position is still the entity's newest, and gives it brought forward; fails with
     * `SequenceConflict` if it is not. Concurrent calls share one request.
     */
    readonly confirm: (entity: EntityKey, position: Position) => Effect.Effect<Position, JournalError>
    /** Whether this process has seen no event of the entity beyond a position. Nobody is asked. */
    readonly isCurrent: (entity: EntityKey, position: Position) => boolean
    /** Saves a state and removes the snapshots at `removeThrough` or before. */
    readonly saveSnapshot: (
      entity: EntityKey,
      snapshot: Snapshot,
      removeThrough: number
    ) => Effect.Effect<void, JournalError>
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

/** Says what of the server's settings does not fit the promises, once. */
const checkServer = Effect.fnUntraced(function* (session: CassandraSession["Service"]) {
  const before = yield* Clock.currentTimeMillis
  const [clock] = yield* session.execute<{ now: Date }>(statement("SELECT toTimestamp(now()) AS now FROM system.local"))
  const after = yield* Clock.currentTimeMillis
  const skew = clock === undefined ? 0 : Math.max(before - clock.now.getTime(), clock.now.getTime() - after)
  if (skew > 60_000) {
    const message = `the clocks of this process and of Cassandra are ${Math.round(skew / 1000)} s apart: set them right`
    return yield* new JournalError({ reason: new ClockSkew({ message }) })
  }
  const settings = yield* session
    .execute<{ name: string; value: string }>(
      statement("SELECT name, value FROM system_views.settings WHERE name IN ('commitlog_sync', 'paxos_variant')")
    )
    .pipe(Effect.orElseSucceed(() => []))
  const { commitlog_sync, paxos_variant } = Object.fromEntries(settings.map(({ name, value }) => [name, value]))
  if (/without_linearizable/i.test(paxos_variant ?? "")) {
    return yield* Effect.die(`paxos_variant is ${paxos_variant}: the journal needs linearizable reads, set v2 (or v1)`)
  }
  if (/periodic/i.test(commitlog_sync ?? "") && !warned) {
    warned = true
    yield* Effect.logWarning(
      "commitlog_sync is periodic: if all replicas lose power at once, the last acknowledged seconds are lost. Set group or batch."
    )
  }
})

const makeCassandra = Effect.fnUntraced(function* (options: Options) {
  const session = yield* CassandraSession
  yield* Effect.andThen(session.createTables(tables), checkServer(session)).pipe(
    Effect.catchTag("CassandraError", (error) => Effect.fail(storeFailure(error)))
  )
  return yield* makeJournal(cassandraStore(session, options.serialConsistency ?? "SERIAL"), options)
})
