import { assert, describe, it } from "@effect/vitest"
import { Effect, Layer, Schema } from "effect"
import { pack, unpack } from "../src/internal/pack.ts"
import { Journal } from "../src/Journal.ts"

const below = (max: number) => Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: max - 1 }))

/** Some JSON, and how often it is doubled. */
const Text = Schema.Tuple([Schema.Array(Schema.Json), below(15)])

const large = JSON.stringify(Array.from({ length: 1000 }, (_, i) => ({ n: i, p: Math.random() })))
const packed = pack(large) as Buffer

describe("the text of a block", () => {
  it.prop("comes back as it was, and is packed from 4096 characters on", [Text], ([[some, doublings]]) => {
    let text = JSON.stringify(some)
    for (let i = 0; i < doublings && text.length < 2 ** 20; i++) text += text
    const packed = pack(text)
    assert.strictEqual(typeof packed === "string", text.length < 4096)
    assert.strictEqual(typeof packed === "string" ? packed : unpack(packed), text)
    assert.deepStrictEqual(pack(text), packed)
  })

  it("is less than half as large where its events are like one another", () => {
    assert.isBelow(packed.length, large.length / 2)
  })

  it.prop("is not made up where a byte is damaged", [below(packed.length), below(256)], ([at, byte]) => {
    const damaged = Buffer.from(packed)
    damaged[at] = byte
    const text = unpack(damaged)
    // There are bits that mean nothing.
    if (text !== large) assert.throws(() => JSON.parse(text), /not zstd/)
  })

  it.effect("is packed in one way or not at all", () =>
    Effect.gen(function* () {
      const compression = "gzip" as "zstd"
      const defect = yield* Effect.catchDefect(
        Effect.scoped(Layer.build(Journal.layerMemory({ compression }))),
        Effect.succeed
      )
      assert.match(`${defect}`, /RangeError: compression is "gzip", it must be "zstd" or "none"/)
    })
  )

  it("is not made up where bytes are missing", () => {
    for (const length of [0, 1, 100, packed.length - 5, packed.length - 1]) {
      assert.throws(() => JSON.parse(unpack(packed.subarray(0, length))), SyntaxError, undefined, `${length} bytes`)
    }
  })
})
