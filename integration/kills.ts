import type { Options } from "@effect-cassandra/journal/Journal"

/** Small partitions; the index is written when a deletion needs it, and at the end. */
export const journalOptions: Options = { shards: 1, bucketSize: 4, partitionSize: 300, indexInterval: "1 hour" }

const steps: ReadonlyArray<readonly [name: string, text: RegExp]> = [
  ["record", /^INSERT INTO entity_types/],
  ["append", /^UPDATE event_log SET head/],
  ["redaction", /^UPDATE event_log SET events/],
  ["index", /^INSERT INTO entity_events/],
  ["watermark", /^INSERT INTO index_watermarks/],
  ["snapshot", /^INSERT INTO snapshots/],
  ["removal of snapshots", /^DELETE FROM snapshots/],
  ["beginning of a deletion", /^INSERT INTO deletions/],
  ["end of a deletion", /^DELETE FROM deletions/],
  ["look for a watermark", /^SELECT offset FROM index_watermarks/],
  ["look for a head", /^SELECT head FROM event_log/],
  ["look for deletions", /^SELECT .* FROM deletions/],
  ["look at the log", /^SELECT .* FROM event_log/]
]

/** The step of the journal's protocol that a statement is. */
export const stepOf = (text: string): string | undefined =>
  steps.find(([, pattern]) => pattern.test(text.trim().replaceAll(/\s+/g, " ")))?.[0]
