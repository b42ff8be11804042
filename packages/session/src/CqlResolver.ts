/**
 * Reads of single rows that many fibers ask for at once, sent together.
 */
import { Context, Effect, MutableHashMap, type Option, Request, RequestResolver } from "effect"
import type { CassandraError } from "./CassandraError.ts"
import { CassandraSession } from "./CassandraSession.ts"
import type { Statement } from "./Statement.ts"

/**
 * A function that reads the row of a key. What is asked in the same moment, of any fiber, goes out together: each key once,
 * by a statement of its own (which finds the node that has the row, as an IN cannot), at most `concurrency` of them under
 * way; default 32. Keys are compared by Effect's `Equal`.
 *
 * **Example**
 *
 * ```ts
 * const userById = CqlResolver.byKey((id: string) => cql`SELECT id, name FROM users WHERE id = ${id}`)
 * const users = Effect.forEach(ids, userById, { concurrency: "unbounded" })
 * ```
 */
export const byKey = <Key, A>(
  statement: (key: Key) => Statement<A>,
  options?: { readonly concurrency?: number }
): ((key: Key) => Effect.Effect<Option.Option<A>, CassandraError, CassandraSession>) => {
  class Find extends Request.Class<{ readonly key: Key }, Option.Option<A>, CassandraError, CassandraSession> {}
  const resolver = RequestResolver.makeGrouped<Find, CassandraSession["Service"]>({
    key: ({ context }) => CassandraSession.of(Context.get(context, CassandraSession)),
    resolver: (entries, session) => {
      const asked = MutableHashMap.empty<Key, Array<Request.Entry<Find>>>()
      for (const entry of entries) {
        const { key } = entry.request
        const others = MutableHashMap.get(asked, key)
        if (others._tag === "Some") others.value.push(entry)
        else MutableHashMap.set(asked, key, [entry])
      }
      return Effect.forEach(
        asked,
        ([key, waiting]) =>
          Effect.map(Effect.exit(session.first(statement(key))), (exit) => {
            for (const entry of waiting) entry.completeUnsafe(exit)
          }),
        { concurrency: options?.concurrency ?? 32, discard: true }
      )
    }
  })
  return (key) => Effect.request(new Find({ key } as never), resolver)
}
