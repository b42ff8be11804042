/**
 * Who works on which shards. Every process decides for itself, by what all have said that they work on: it lets go of what
 * it has too much, and takes of what nobody has its part. Nothing is taken that another still names as its own, so that a
 * shard has one owner, and moves when its owner has let go of it or is gone.
 */

/** A process, and the shards that it works on. */
export interface Holder {
  readonly id: string
  readonly owns: ReadonlySet<string>
}

export interface Decision {
  readonly release: ReadonlyArray<string>
  readonly claim: ReadonlyArray<string>
}

/** FNV-1a (http://www.isthe.com/chongo/tech/comp/fnv/), to spread what does not come out even. */
const hash = (text: string) => {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  return h >>> 0
}

/**
 * What `me` releases and claims of one group of shards (those of a processor), among the holders that run the processor.
 * When all of them decide from the same, no two claim the same shard.
 */
export const decide = (
  me: string,
  holders: ReadonlyArray<Holder>,
  group: string,
  shards: ReadonlyArray<string>
): Decision => {
  const ranked = [...holders].sort((a, b) => hash(group + a.id) - hash(group + b.id) || (a.id < b.id ? -1 : 1))
  const least = Math.floor(shards.length / ranked.length)
  const more = shards.length % ranked.length
  // The ones that have more already are those that may.
  const held = new Map(ranked.map(({ id, owns }) => [id, shards.filter((shard) => owns.has(shard))]))
  const byHeld = [...ranked].sort((a, b) => held.get(b.id)!.length - held.get(a.id)!.length)
  const quota = new Map(byHeld.map(({ id }, i) => [id, least + (i < more ? 1 : 0)]))
  const mine = held.get(me)!
  const release = mine.slice(quota.get(me)!)

  const taken = new Set(ranked.flatMap(({ id }) => held.get(id)!))
  const free = shards.filter((shard) => !taken.has(shard))
  const claim: Array<string> = []
  const wanting = ranked.map(({ id }) => ({ id, wants: quota.get(id)! - held.get(id)!.length }))
  for (let turn = 0; free.length > 0 && wanting.some(({ wants }) => wants > 0); turn++) {
    const next = wanting[turn % wanting.length]!
    if (next.wants <= 0) continue
    next.wants--
    const shard = free.shift()!
    if (next.id === me) claim.push(shard)
  }
  return { release, claim }
}
