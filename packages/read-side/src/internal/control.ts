/**
 * What operators asked of a processor: one document, changed by conditional writes only, so that requests have an order and
 * the last one wins. It stands whether or not the processor exists, or runs anywhere.
 */
import { Schema, Struct } from "effect"
import type { Reached } from "./sink.ts"

/** What a processor, or one of its shards, is to do. */
const Desired = Schema.Literals(["running", "paused", "stopped"])
export type Desired = typeof Desired.Type

/** Where to go on: after an offset, or with the first event at a time (milliseconds since the epoch). */
const Target = Schema.Union([Schema.Struct({ offset: Schema.Finite }), Schema.Struct({ time: Schema.Finite })])
export type Target = typeof Target.Type

/** A request to go on elsewhere. */
const Start = Schema.Struct({
  epoch: Schema.Int,
  to: Target,
  /** One shard only. */
  entityType: Schema.optional(Schema.String),
  shard: Schema.optional(Schema.Int)
})
type Start = typeof Start.Type

const fields = {
  /** Counts the changes. */
  revision: Schema.Int,
  /** Of the last request to go on elsewhere. */
  epoch: Schema.Int,
  /** How many times the tables were emptied. */
  generation: Schema.Int,
  desired: Desired,
  /** What was asked of single shards since the last request for all. */
  shards: Schema.Record(Schema.String, Desired),
  starts: Schema.Array(Start),
  /** Nobody may work: the tables are being emptied. */
  held: Schema.Boolean,
  /** Raised when something was asked about events that were put aside. */
  parked: Schema.Int,
  /** The version that readers use; of the document under the name without a version. */
  active: Schema.Int,
  /** The newest version that readers ever used: they go back from it only when they are told to, and stay. */
  newest: Schema.Int,
  /** The tables are gone, and nobody may work. */
  dropped: Schema.Boolean
}

export interface Control extends Schema.Struct.Type<typeof fields> {}

/** As it is stored: an older process knew less of it. */
export const Stored = Schema.Struct(fields).mapFields(Struct.map(Schema.optionalKey))

export const initial: Control = {
  revision: 0,
  epoch: 0,
  generation: 0,
  desired: "running",
  shards: {},
  starts: [],
  held: false,
  parked: 0,
  active: 1,
  newest: 1,
  dropped: false
}

const shardKey = (entityType: string, shard: number) => `${entityType}/${shard}`

export const desiredOf = (control: Control, entityType: string, shard: number): Desired =>
  control.held || control.dropped ? "stopped" : (control.shards[shardKey(entityType, shard)] ?? control.desired)

/** For all shards, or for one. */
export const withDesired = (
  control: Control,
  desired: Desired,
  place?: { readonly entityType: string; readonly shard: number }
): Control =>
  place === undefined
    ? { ...control, desired, shards: {} }
    : { ...control, shards: { ...control.shards, [shardKey(place.entityType, place.shard)]: desired } }

export const withActive = (control: Control, active: number): Control => ({
  ...control,
  active,
  newest: Math.max(active, control.newest)
})

/** Where the last request for a shard wants it to begin; epoch 0 without one. */
export const startOf = (control: Control, entityType: string, shard: number): Start =>
  control.starts.findLast(
    (start) =>
      (start.entityType === undefined || start.entityType === entityType) &&
      (start.shard === undefined || start.shard === shard)
  ) ?? { epoch: 0, to: { offset: 0 } }

export const withStart = (control: Control, start: Omit<Start, "epoch">): Control => {
  const epoch = control.epoch + 1
  const covered = (older: Start) =>
    start.entityType === undefined
      ? start.shard === undefined || older.shard === start.shard
      : older.entityType === start.entityType && (start.shard === undefined || older.shard === start.shard)
  return {
    ...control,
    epoch,
    starts: [...control.starts.filter((older) => !covered(older)), { ...start, epoch }]
  }
}

/** The later of two places. */
export const later = (a: Reached | undefined, b: Reached | undefined): Reached | undefined =>
  a === undefined ? b : b === undefined || a.epoch > b.epoch || (a.epoch === b.epoch && a.offset >= b.offset) ? a : b
