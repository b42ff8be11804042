/**
 * What operators do with a journal beside the services that use it: look at it, verify it, compute its index anew, accept a
 * restored backup, delete. `JournalCli` is the same as a command line.
 */
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make as statement } from "@effect-cassandra/session/Statement"
import { Context, type Duration, Effect, Layer, type Scope, type Stream } from "effect"
import type { Encoding } from "./Encoding.ts"
import { makeAdmin } from "./internal/admin.ts"
import { tables } from "./internal/cassandraStore.ts"
import { storeFailure } from "./internal/failure.ts"
import type { EntityKey, EventEnvelope, Position } from "./Journal.ts"
import { JournalError, OperationRefused } from "./JournalError.ts"

/** Settings of the operations. */
export interface Options {
  /** Encodings of stored payloads, for who looks at them. */
  readonly encodings?: ReadonlyArray<Encoding> | undefined
}

/** How a shard's log stands. */
export interface ShardState {
  readonly shard: number
  /** Offset of the last event; 0 when there is none. */
  readonly head: number
  /** When the last event was stored. */
  readonly lastEvent: Date | undefined
  /** The offset up to where the index is complete. */
  readonly watermark: number
  /** Deletions that have begun and are not known to be complete. */
  readonly pendingDeletions: number
  /** Why it cannot be said, or why the shard does not serve. */
  readonly problem: string | undefined
}

/** An entity type with its record. */
export interface TypeState {
  readonly entityType: string
  readonly serialConsistency: string
  readonly bucketSize: number
  readonly partitionSize: number
  /** Counts the restores that were accepted. */
  readonly epoch: number
  /** Counts the rebuilds of the index; this one is in use. */
  readonly indexGeneration: number
  /** Those that are there too: out of use, or not complete. */
  readonly otherIndexGenerations: ReadonlyArray<number>
  readonly shards: ReadonlyArray<ShardState>
  /** What is wrong with the record, if so: then nothing else is known. */
  readonly problem: string | undefined
}

/** Something that is not as it must be, where it is, and what to do. */
export interface Finding {
  /**
   * `record`: the record of an entity type is damaged or missing. `unreadable`: what is there is not what belongs there.
   * `missing`: events are not there. `doubled`: there are two where one must be. `order`: stamps do not increase.
   * `misplaced`: it belongs somewhere else. `different`: index and log, or head and blocks, do not say the same. `ahead`: it
   * goes beyond the log. `deletion`: one that is not finished.
   */
  readonly kind:
    | "record"
    | "unreadable"
    | "missing"
    | "doubled"
    | "order"
    | "misplaced"
    | "different"
    | "ahead"
    | "deletion"
  readonly table:
    | "entity_types"
    | "event_log"
    | "entity_events"
    | "index_watermarks"
    | "log_heads"
    | "snapshots"
    | "deletions"
  readonly entityType: string
  readonly shard?: number
  readonly offset?: number
  readonly entityId?: string
  readonly sequence?: number
  readonly message: string
  readonly remedy: string
}

/** How far an operation has come, in offsets of a shard. */
export interface Progress {
  readonly what: "verify" | "index"
  readonly entityType: string
  readonly shard: number
  readonly done: number
  readonly total: number
}

/** What `verify` has looked at, and what it found. */
export interface Verification {
  readonly entityType: string
  readonly shards: ReadonlyArray<{
    readonly shard: number
    readonly head: number
    readonly watermark: number
    readonly events: number
    readonly entities: number
  }>
  /** The first ones, at most `maxFindings`. */
  readonly findings: ReadonlyArray<Finding>
  /** How many there were. */
  readonly count: number
}

/** For operations that go through whole logs. */
export interface ProgressOptions {
  readonly onProgress?: ((progress: Progress) => Effect.Effect<void>) | undefined
}

/** How to verify. */
export interface VerifyOptions extends ProgressOptions {
  /** Only this shard. */
  readonly shard?: number | undefined
  /** Default: 1000. */
  readonly maxFindings?: number | undefined
  /** Entities that are remembered at once; with more the log is read several times. Default: 250 000. */
  readonly maxEntities?: number | undefined
}

/** What a rebuild of the index has done. */
export interface Rebuilt {
  readonly generation: number
  /** Events that were read. */
  readonly events: number
}

/** What a restore means for an entity type. */
export interface Restore {
  /** From now on, or as it would be. */
  readonly epoch: number
  readonly indexGeneration: number
  readonly shards: ReadonlyArray<{
    readonly shard: number
    readonly head: number
    /** The offset up to where the index says that there were events. */
    readonly watermark: number
  }>
}

/** A deletion that some process had begun, and what became of it. */
export interface FinishedDeletion {
  readonly entityId: string
  readonly through: number
  /** `not logged`: it is under way in another process, or was never carried out. `void`: another event came first. */
  readonly outcome: "finished" | "not logged" | "void"
}

/** What a deletion takes, or would take. */
export interface Deleted {
  /** Events that lose their payload. */
  readonly events: number
  readonly firstEvent: Date | undefined
  readonly lastEvent: Date | undefined
  readonly snapshots: number
  /** The entity's position after it; undefined in a dry run. */
  readonly position: Position | undefined
}

/**
 * The operations on a journal. They find the settings of each entity type in its record.
 */
export class JournalAdmin extends Context.Service<
  JournalAdmin,
  {
    /** The entity types with their shards. */
    readonly types: Effect.Effect<ReadonlyArray<TypeState>, JournalError>
    /**
     * The events of an entity after a sequence number, deleted ones and the journal's own included; with `follow` also
     * those to come.
     */
    readonly history: (
      entity: EntityKey,
      options?: { readonly after?: number | undefined; readonly follow?: boolean | undefined }
    ) => Stream.Stream<EventEnvelope, JournalError>
    /**
     * Reads everything that is stored of an entity type and names what breaks a rule, also while services append. What is
     * in memory grows with `maxEntities`, not with the log.
     */
    readonly verify: (entityType: string, options?: VerifyOptions) => Effect.Effect<Verification, JournalError>
    /**
     * Computes the index anew from the log as a new generation, while services append; they use it within a minute after
     * it is complete. One that was broken off goes on where it was.
     */
    readonly rebuildIndex: (entityType: string, options?: ProgressOptions) => Effect.Effect<Rebuilt, JournalError>
    /**
     * Removes the rows of indexes that are out of use. Refused as long as a process may still read one: until the one in
     * use was taken into use `minAge` ago (10 minutes). Gives the number of partitions per generation.
     */
    readonly removeOldIndexes: (
      entityType: string,
      options?: { readonly dryRun?: boolean | undefined; readonly minAge?: Duration.Input | undefined }
    ) => Effect.Effect<ReadonlyMap<number, number>, JournalError>
    /**
     * Takes logs that have become less, by a restored backup, for the truth: begins a new epoch, in which snapshots and
     * offsets of the one before count for nothing, with an index of its own. All services of the keyspace must be stopped.
     * Refused where nothing is lost, unless `force` says that it is known from somewhere else.
     */
    readonly acceptRestore: (
      entityType: string,
      options?: ProgressOptions & { readonly dryRun?: boolean | undefined; readonly force?: boolean | undefined }
    ) => Effect.Effect<Restore, JournalError>
    /** Goes on with deletions that were begun and not completed. */
    readonly finishDeletions: (entityType: string) => Effect.Effect<ReadonlyArray<FinishedDeletion>, JournalError>
    /** As `Journal.delete`, or what it would do. */
    readonly deleteEvents: (
      entity: EntityKey,
      options?: { readonly through?: number | undefined; readonly dryRun?: boolean | undefined }
    ) => Effect.Effect<Deleted, JournalError>
  }
>()("@effect-cassandra/journal/JournalAdmin") {
  /** The operations on the journal in the session's keyspace. */
  static readonly layer = (options: Options = {}): Layer.Layer<JournalAdmin, JournalError, CassandraSession> =>
    Layer.effect(JournalAdmin, makeCassandra(options))
}

const makeCassandra = Effect.fnUntraced(function* (
  options: Options
): Effect.fn.Return<JournalAdmin["Service"], JournalError, CassandraSession | Scope.Scope> {
  const session = yield* CassandraSession
  const present = yield* session
    .execute<{ table_name: string }>(
      statement("SELECT table_name FROM system_schema.tables WHERE keyspace_name = ?", [session.keyspace])
    )
    .pipe(Effect.mapError(storeFailure))
  const names = new Set(present.map(({ table_name }) => table_name))
  const missing = tables
    .map((text) => /CREATE TABLE IF NOT EXISTS (\w+)/.exec(text)![1]!)
    .filter((name) => !names.has(name))
  if (missing.length > 0) {
    const message = `the keyspace "${session.keyspace}" holds no journal: it lacks the tables ${missing.join(", ")}`
    return yield* new JournalError({ reason: new OperationRefused({ message }) })
  }
  return makeAdmin(session, options)
})
