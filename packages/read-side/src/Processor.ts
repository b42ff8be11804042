/**
 * A processor follows the events of an entity type and says, event by event, what to write into its tables.
 */
import type { EventSchema } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { Statement } from "@effect-cassandra/session/Statement"

/** Where an event comes from; its payload is the handler's first argument. */
export type Source = Omit<EventEnvelope, "payload">

/** One function for each type of event that the view cares for; the others only move the offset. */
export type Handlers<Event extends { readonly _tag: string }> = {
  readonly [Tag in Event["_tag"]]?: (
    event: Extract<Event, { readonly _tag: Tag }>,
    source: Source
  ) => Statement<unknown> | ReadonlyArray<Statement<unknown>>
}

/** What to follow, and what to do. */
export interface Definition<Event extends EventSchema> {
  readonly entityType: string
  /** The events that have a handler; a stored event of another type is passed over. */
  readonly events: ReadonlyArray<Event>
  /** The tables that the processor fills, as `CREATE TABLE IF NOT EXISTS name (...)`. */
  readonly tables?: ReadonlyArray<string>
  /**
   * Each gives the statements for one event, ten at the most: INSERT, UPDATE and DELETE with all values bound. They are
   * executed with the event's stamp as write timestamp, so that doing it twice leaves the same rows. A row must be fed by
   * one shard only: let its key name the entity.
   */
  readonly handlers: Handlers<Event["Type"]>
}

/** A processor, to be run by `ReadSide`. */
export interface Processor {
  readonly name: string
  readonly definition: Definition<any>
}

/**
 * Defines a processor. Its name stands for its place in the log: with another name it begins at the first event.
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
export const make = <const Event extends EventSchema>(name: string, definition: Definition<Event>): Processor => ({
  name,
  definition
})
