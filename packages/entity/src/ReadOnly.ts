/**
 * Marks commands that only read. They do not wait behind writes, and their handlers cannot store anything.
 */
import { Context } from "effect"
import type { Rpc } from "effect/rpc"

/** How new the state is that a read-only command sees. */
export type Freshness =
  /** It includes everything that was acknowledged anywhere before the call: the log is asked, once for all who wait. */
  | "fresh"
  /** It includes everything that this process has seen, and nobody is asked: a matter of microseconds in memory. */
  | "local"

/** The type of a command that only reads. */
export interface ReadOnly {
  readonly "~@effect-cassandra/entity/ReadOnly": Freshness
}

/** The annotation of a command that only reads. */
export const Annotation = Context.Reference<Freshness | undefined>("@effect-cassandra/entity/ReadOnly", {
  defaultValue: () => undefined
})

const mark =
  (freshness: Freshness) =>
  <C extends Rpc.AnyWithProps>(command: C): C & ReadOnly =>
    (command as unknown as Rpc.Rpc<string>).annotate(Annotation, freshness) as unknown as C & ReadOnly

/**
 * A command that reads the newest state there is, as if it had waited for all commands acknowledged before.
 *
 * **Example**
 *
 * ```ts
 * ReadOnly.fresh(Rpc.make("Balance", { success: Schema.Int }))
 * ```
 */
export const fresh = mark("fresh")

/** A command that reads the state in memory: never older than what this process has seen of the entity. */
export const local = mark("local")
