/** FNV-1a over UTF-16 code units (http://www.isthe.com/chongo/tech/comp/fnv/), with a final mix as in MurmurHash3. */
export const hash = (text: string): number => {
  let h = 0x811c9dc5
  for (let i = 0; i < text.length; i++) h = Math.imul(h ^ text.charCodeAt(i), 0x01000193)
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b)
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35)
  return (h ^ (h >>> 16)) >>> 0
}

/** The shard of an entity. */
export const shardOf = (entityId: string, shards: number): number => hash(entityId) % shards
