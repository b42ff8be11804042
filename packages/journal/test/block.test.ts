import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import {
  BlockBuilder,
  decodeBlock,
  decodeIndexRow,
  encodeBody,
  encodeIndexEvent,
  payloadOf,
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
        const entry = { entityId, sequence: i + 7, offset: i + 101, stamp: 1_000_000 + i * stampStep, type }
        builder.add(entry.entityId, entry.sequence, entry.offset, entry.stamp, type, encodeBody(type, payload))
        return { ...entry, payload: JSON.parse(JSON.stringify(payload)) }
      })
      const { entries, text } = builder.build()
      const last = expected.at(-1)!
      assert.deepStrictEqual(
        decodeBlock(text, last.offset, last.stamp).map((entry) => ({ ...entry })),
        expected
      )
      for (const [i, entry] of entries.entries()) {
        assert.deepStrictEqual(payloadOf(entry), expected[i]!.payload)
        // The index is written from memory, or from what was read of the log: both are the same text.
        const row = `[${encodeIndexEvent(entry)}]`
        assert.strictEqual(row, `[${encodeIndexEvent(expected[i]!)}]`)
        assert.deepStrictEqual(decodeIndexRow(entry.entityId, row), [expected[i]!])
      }
    }
  )
})
