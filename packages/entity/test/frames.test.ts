import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import { encodeFrame, FrameReader } from "../src/internal/frames.ts"

const Part = Schema.Int.check(Schema.isBetween({ minimum: 1, maximum: 50 }))

describe("frames", () => {
  it.prop(
    "come back, in whatever parts they arrive",
    [Schema.Array(Schema.Array(Schema.Json)), Schema.NonEmptyArray(Part)],
    ([lists, parts]) => {
      const bytes = Buffer.concat(lists.map(encodeFrame))
      const reader = new FrameReader()
      const read: Array<unknown> = []
      for (let at = 0, i = 0; at < bytes.length; i++) {
        const end = at + parts[i % parts.length]!
        read.push(...reader.read(bytes.subarray(at, end)))
        at = end
      }
      assert.deepStrictEqual(read, JSON.parse(JSON.stringify(lists)).flat())
    }
  )

  it("that cannot be are refused", () => {
    assert.throws(() => new FrameReader().read(Buffer.from("GET / HTTP/1.1\r\n\r\n")), /a frame has 1195725856 bytes/)
    const frame = Buffer.from("____{}")
    frame.writeUInt32BE(2)
    assert.throws(() => new FrameReader().read(frame), /a frame is no list/)
  })
})
