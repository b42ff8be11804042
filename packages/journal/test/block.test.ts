import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import {
  BlockBuilder,
  decodeBlock,
  decodeIndexRow,
  encodeBody,
  encodeIndexEvent,
  itemOf,
  stampStep
} from "../src/internal/block.ts"

const Event = Schema.Struct({
  entityId: Schema.String,
  type: Schema.String,
  payload: Schema.Record(Schema.String, Schema.Union([Schema.String, Schema.Int, Schema.Null, Schema.Boolean]))
})

describe("blocks and index rows", () => {
  it.prop(
    "come back as they were written, whatever the names and payloads",
    [Schema.NonEmptyArray(Event)],
    ([events]) => {
      const builder = new BlockBuilder()
      const expected = events.map(({ entityId, payload, type }, i) => {
        const place = { entityId, sequence: i + 7, offset: i + 101, stamp: 1_000_000 + i * stampStep, type }
        const item = {
          t: type,
          p: JSON.parse(JSON.stringify(payload)),
          ...(i % 2 === 0 ? {} : { v: 3, m: { commandId: entityId } })
        }
        builder.add(place.entityId, place.sequence, place.offset, place.stamp, encodeBody(item))
        return { place, item: { n: place.sequence, ...item } }
      })
      const { entries, text } = builder.build()
      const last = expected.at(-1)!.place
      const read = decodeBlock(text, last.offset, last.stamp)
      for (const [i, { item, place }] of expected.entries()) {
        for (const entry of [read[i]!, entries[i]!]) {
          assert.deepInclude(entry, place)
          const { e: _, ...own } = itemOf(entry)
          assert.deepStrictEqual(own, item)
        }
        // The index is written from memory, or from what was read of the log: both say the same.
        for (const entry of [read[i]!, entries[i]!]) {
          const [again] = decodeIndexRow(place.entityId, `[${encodeIndexEvent(entry)}]`)
          assert.deepInclude(again, place)
          assert.deepStrictEqual(again!.item, { ...item, o: place.offset, s: place.stamp })
        }
      }
    }
  )
})
