import { randomBytes } from "node:crypto"
import { gunzipSync } from "node:zlib"
import { assert, describe, it } from "@effect/vitest"
import { Redacted, Schema } from "effect"
import * as Encoding from "../src/Encoding.ts"

const entity = { entityType: "Account", entityId: "ada" }
const key = () => Redacted.make(randomBytes(32).toString("base64"))
const keys = new Map<string, Encoding.Key>([
  ["2025", key()],
  ["2026", key()]
])
const large = { text: "once upon a time ".repeat(1000) }

const bytesOf = (encoding: Encoding.Encoding, payload: unknown, of = entity): Uint8Array =>
  encoding.encode(payload, of) ?? assert.fail("it stayed JSON")

describe("gzip", () => {
  it("packs large payloads, as any gunzip reads them", () => {
    const bytes = bytesOf(Encoding.gzip(), large)
    assert.isBelow(bytes.length, 200)
    assert.deepStrictEqual(JSON.parse(gunzipSync(bytes).toString()), large)
    assert.deepStrictEqual(Encoding.gzip().decode(bytes, entity), large)
  })

  it("leaves small ones, and what does not become smaller, readable JSON", () => {
    assert.isUndefined(Encoding.gzip().encode({ cents: 1 }, entity))
    assert.isUndefined(Encoding.gzip().encode({ noise: randomBytes(3000).toString("base64") }, entity))
    assert.isDefined(Encoding.gzip({ minBytes: 0 }).encode({ text: "a".repeat(200) }, entity))
  })

  it("refuses to pack or unpack more than its bound", () => {
    const bytes = bytesOf(Encoding.gzip(), large)
    assert.throws(() => Encoding.gzip({ maxBytes: 1000 }).encode(large, entity), /has 17011 bytes of JSON.* takes 1000/)
    assert.throws(() => Encoding.gzip({ maxBytes: 1000 }).decode(bytes, entity), /larger than/)
    assert.throws(() => Encoding.gzip().decode(bytes.subarray(0, 50), entity))
  })
})

describe("encrypted", () => {
  const encoding = Encoding.encrypted({ key: "2026", keys })

  it("shows nothing of the payload, and never the same bytes twice", () => {
    const [a, b] = [bytesOf(encoding, { owner: "Ada" }), bytesOf(encoding, { owner: "Ada" })]
    assert.notInclude(Buffer.from(a).toString("latin1"), "Ada")
    assert.notDeepEqual(a, b)
    assert.deepStrictEqual(encoding.decode(a, entity), { owner: "Ada" })
  })

  it("reads what older keys encrypted, and writes with the one that is named", () => {
    const old = bytesOf(Encoding.encrypted({ key: "2025", keys }), { n: 1 })
    assert.deepStrictEqual(encoding.decode(old, entity), { n: 1 })
    const only2026 = Encoding.encrypted({ key: "2026", keys: new Map([["2026", keys.get("2026")!]]) })
    assert.deepStrictEqual(only2026.decode(bytesOf(encoding, { n: 2 }), entity), { n: 2 })
    assert.throws(
      () => only2026.decode(old, entity),
      /no key "2025" to decrypt with: add it, or declare it "discarded"/
    )
  })

  it("a key per entity that is discarded takes the payloads of this entity with it, and no others", () => {
    const own = new Map<string, Encoding.Key>([
      ["ada", key()],
      ["bob", key()]
    ])
    const perEntity = Encoding.encrypted({ key: ({ entityId }) => entityId, keys: own })
    const bob = { ...entity, entityId: "bob" }
    const [a, b] = [bytesOf(perEntity, { secret: "a" }), bytesOf(perEntity, { secret: "b" }, bob)]
    own.set("ada", "discarded")
    assert.isUndefined(perEntity.decode(a, entity))
    assert.deepStrictEqual(perEntity.decode(b, bob), { secret: "b" })
    assert.throws(() => perEntity.encode({}, entity), /key "ada" was discarded: nothing is encrypted with it/)
    assert.throws(() => perEntity.encode({}, { ...entity, entityId: "cy" }), /no key "cy" to encrypt with/)
  })

  it.each(["", "AAAA", "not base64 at all"])("refuses a key that has not 32 bytes: %j, without showing it", (text) => {
    const wrong = Encoding.encrypted({ key: "k", keys: new Map([["k", Redacted.make(text)]]) })
    assert.throws(() => wrong.encode({}, entity), /^the key "k" has \d+ bytes: AES-256 needs 32/)
  })

  it("finds out what was changed, cut short, put under another entity or encrypted by another key", () => {
    const bytes = bytesOf(encoding, { cents: 100 })
    for (let i = 0; i < bytes.length; i++) {
      const changed = Uint8Array.from(bytes)
      changed[i]! ^= 1
      assert.throws(() => encoding.decode(changed, entity))
      assert.throws(() => encoding.decode(bytes.subarray(0, i), entity))
    }
    for (const other of [
      { ...entity, entityId: "bob" },
      { ...entity, entityType: "Loan" },
      { entityType: "Accoun", entityId: "tada" }
    ]) {
      assert.throws(() => encoding.decode(bytes, other), /belongs to another entity/)
    }
    const another = Encoding.encrypted({ key: "2026", keys: new Map([["2026", key()]]) })
    assert.throws(() => another.decode(bytes, entity), /key "2026" is not the one that encrypted it/)
  })

  it("packs before it encrypts", () => {
    const packed = Encoding.encrypted({ key: "2026", keys, of: Encoding.gzip() })
    assert.strictEqual(packed.name, "aes-256-gcm+gzip")
    assert.isBelow(bytesOf(packed, large).length, 300)
    for (const payload of [large, { small: true }]) {
      assert.deepStrictEqual(packed.decode(bytesOf(packed, payload), entity), payload)
    }
  })
})

describe.each([
  ["gzip", Encoding.gzip({ minBytes: 0 })],
  ["encrypted", Encoding.encrypted({ key: "2026", keys })],
  ["encrypted and packed", Encoding.encrypted({ key: "2026", keys, of: Encoding.gzip({ minBytes: 0 }) })]
])("%s", (_, encoding) => {
  it.prop("any JSON comes back", [Schema.Json, Schema.String], ([payload, entityId]) => {
    const at = { entityType: "Any", entityId }
    const bytes = encoding.encode(payload, at)
    // A part of another buffer, as base64 gives it.
    if (bytes === undefined) return
    const part = Buffer.concat([Buffer.from("before"), bytes, Buffer.from("after")]).subarray(6, 6 + bytes.length)
    assert.deepStrictEqual(encoding.decode(part, at), JSON.parse(JSON.stringify(payload)))
  })
})
