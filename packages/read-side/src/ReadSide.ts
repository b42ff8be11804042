/**
 * The read side: runs processors, which follow stored events and keep query views, and puts them into the operator's hand.
 *
 * A view is right whatever happens: statements carry the event's stamp as write timestamp, so executing them twice, or by
 * two processes at once, leaves the same rows, and the offset is stored only after them. Several processes share the shards
 * of all processors by leases in Cassandra; requests are durable, hold for all processes, and the last one wins.
 */
import type { Journal, LogPosition } from "@effect-cassandra/journal/Journal"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Config, Context, type Duration, Effect, Layer } from "effect"
import { makeEngine } from "./internal/engine.ts"
import type { Parked as ParkedEvent } from "./internal/parking.ts"
import { makeRequests } from "./internal/requests.ts"
import type { Processor } from "./Processor.ts"
import type { ReadSideError } from "./ReadSideError.ts"

/** Settings of the read side. */
export interface Options {
  /** How often the offsets are stored. Default: 250 milliseconds. */
  readonly offsetInterval?: Duration.Input | undefined
  /** After how many events the offset of a shard is stored at the latest. Default: 10 000. */
  readonly offsetCount?: number | undefined
  /** Requests in flight for each shard of a processor. Default: 16. */
  readonly concurrency?: number | undefined
  /** Batches that are handled at once, of all processors and shards in this process. Default: 64. */
  readonly maxBatches?: number | undefined
  /**
   * Under load events are collected for up to this long, so that several writes of a row become one; an event that comes
   * alone does not wait. Default: 200 milliseconds.
   */
  readonly maxLinger?: Duration.Input | undefined
  /** The longest pause before an event that failed is tried again. Default: 30 seconds. */
  readonly maxBackOff?: Duration.Input | undefined
  /**
   * How long a process that is not heard of keeps its shards, in whole seconds; it is heard of four times in that time. All
   * processes should have the same. Default: 6 seconds.
   */
  readonly lease?: Duration.Input | undefined
  /** Whether readers use a new version of a processor as soon as it has caught up, or after `switchTo`. Default: `"automatic"`. */
  readonly switching?: "automatic" | "manual" | undefined
}

/** One shard of an entity type. */
export interface Shard {
  /** May be left out where the processor follows one entity type. */
  readonly entityType?: string | undefined
  readonly shard: number
}

/** How a processor is doing in one shard. */
export interface Status {
  /** With its version, if that is not the first: `balances@2`. */
  readonly processor: string
  readonly entityType: string
  readonly shard: number
  /**
   * `waiting`: nobody works on it, because no process runs the processor or it is just changing hands. `failed`: it stands
   * still at an event, and tries again.
   */
  readonly state: "running" | "paused" | "stopped" | "failed" | "waiting"
  /** Events up to here are in the view. */
  readonly offset: number
  /** Offset of the last event that is stored. */
  readonly head: number
  /** Events that are stored and not in the view. */
  readonly lag: number
  /** Age of the first of them, in milliseconds. */
  readonly lagMillis: number
  /** Events a second, of late. */
  readonly rate: number
  /** Seconds until the head is reached at this rate; undefined while it stands. */
  readonly secondsLeft: number | undefined
  /** Events that are put aside. */
  readonly parked: number
  /** Host and process that work on it. */
  readonly owner: string | undefined
  readonly failure: { readonly reason: string; readonly message: string; readonly attempts: number } | undefined
}

/** Where a processor has come to in a shard, as it is stored. */
export interface StoredOffset {
  readonly entityType: string
  readonly shard: number
  readonly offset: number
}

/** An event that was put aside. */
export type Parked = ParkedEvent

/** What names the events that one entity has put aside. */
export interface ParkedEntity {
  readonly entityType: string
  readonly entityId: string
}

/** Where to go on: at the first event, after an offset, or with the first event at a time or later. */
export type RewindTarget = "beginning" | { readonly offset: number } | { readonly time: Date }

/**
 * The processors of a service, whichever process runs them. Those are named by their `id`: the name, and from the second
 * version on `name@version`.
 */
export class ReadSide extends Context.Service<
  ReadSide,
  {
    /** How every shard of every known processor is doing. */
    readonly status: Effect.Effect<ReadonlyArray<Status>, ReadSideError>
    /** Lets a processor rest; it keeps its place. */
    readonly pause: (processor: string) => Effect.Effect<void, ReadSideError>
    readonly resume: (processor: string) => Effect.Effect<void, ReadSideError>
    /** Stops a processor, or one of its shards, until it is started. */
    readonly stop: (processor: string, shard?: Shard) => Effect.Effect<void, ReadSideError>
    readonly start: (processor: string, shard?: Shard) => Effect.Effect<void, ReadSideError>
    /**
     * Goes on elsewhere, in all shards or one. Runners of before are fenced: neither their offsets nor, with `truncate`,
     * their rows can stand against those of after. With the same code it changes nothing in the view. With changed code
     * `truncate` is needed, which empties the processor's tables first; or give it a new version.
     */
    readonly rewind: (
      processor: string,
      to: RewindTarget,
      options?: { readonly shard?: Shard | undefined; readonly truncate?: boolean | undefined }
    ) => Effect.Effect<void, ReadSideError>
    /** The stored offsets of a processor. */
    readonly offsets: (processor: string) => Effect.Effect<ReadonlyArray<StoredOffset>, ReadSideError>
    /** As `rewind` of one shard to an offset. */
    readonly setOffset: (processor: string, shard: Shard, offset: number) => Effect.Effect<void, ReadSideError>
    /** As `rewind` of all shards to the beginning. */
    readonly clearOffsets: (processor: string) => Effect.Effect<void, ReadSideError>
    /**
     * Waits until a view has the events up to a position; fails with `NotProjected` when that takes longer than the
     * timeout, 10 seconds by default.
     */
    readonly awaitProjected: (
      processor: string,
      position: LogPosition,
      timeout?: Duration.Input
    ) => Effect.Effect<void, ReadSideError>
    /** The events that a processor has put aside, by shard and entity, in order. */
    readonly parked: (processor: string) => Effect.Effect<ReadonlyArray<Parked>, ReadSideError>
    /** Tries an entity's events that were put aside again, in order, until one fails. */
    readonly retryParked: (processor: string, entity: ParkedEntity) => Effect.Effect<void, ReadSideError>
    /** Forgets the first of an entity's events that were put aside, and tries the others again. */
    readonly skipParked: (processor: string, entity: ParkedEntity) => Effect.Effect<void, ReadSideError>
    /** The version of a processor that readers are to use: it changes when a newer one has caught up. */
    readonly activeVersion: (name: string) => Effect.Effect<number, ReadSideError>
    /** Lets readers use another version, a newer one or the one before. */
    readonly switchTo: (name: string, version: number) => Effect.Effect<void, ReadSideError>
    /** Ends a version that readers do not use, and drops its tables. */
    readonly drop: (name: string, version: number) => Effect.Effect<void, ReadSideError>
  }
>()("@effect-cassandra/read-side/ReadSide") {
  /**
   * Creates the tables of the processors where they are missing, and takes part in running the processors until the layer
   * is closed.
   */
  static readonly layer = <R = never>(
    processors: ReadonlyArray<Processor<R>>,
    options: Options = {}
  ): Layer.Layer<ReadSide, ReadSideError, Journal | CassandraSession | R> =>
    Layer.effect(
      ReadSide,
      Effect.flatMap(makeEngine(processors, options), (engine) => makeRequests(engine))
    )

  /** As `layer`, with options from Effect's Config. */
  static readonly layerConfig = <R = never>(
    processors: ReadonlyArray<Processor<R>>,
    options: Config.Wrap<Options>
  ): Layer.Layer<ReadSide, ReadSideError | Config.ConfigError, Journal | CassandraSession | R> =>
    Layer.effect(
      ReadSide,
      Effect.flatMap(Config.unwrap(options), (settings) =>
        Effect.flatMap(makeEngine(processors, settings), (engine) => makeRequests(engine))
      )
    )

  /** Runs nothing: for tools, and for processes that only ask. */
  static readonly layerRequests: Layer.Layer<ReadSide, ReadSideError, Journal | CassandraSession> = Layer.effect(
    ReadSide,
    makeRequests(undefined)
  )
}
