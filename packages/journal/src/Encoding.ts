/**
 * How payloads are stored. By default they are readable JSON in the block that holds the event; an encoding makes bytes
 * of them, which are stored as base64 under the encoding's name.
 */
import { createCipheriv, createDecipheriv, randomBytes } from "node:crypto"
import { gunzipSync, gzipSync } from "node:zlib"
import { Redacted } from "effect"
import type { EntityKey } from "./Journal.ts"

/**
 * Writes payloads as bytes and reads them again. Its name is stored with every payload, so it stands for one format for
 * ever. What `encode` or `decode` throws is reported as the reason why an event could not be stored or read.
 */
export interface Encoding {
  readonly name: string
  /** The payload is a value that JSON can hold. Without bytes it is stored as JSON. */
  readonly encode: (payload: unknown, entity: EntityKey) => Uint8Array | undefined
  /** Gives undefined for what was made unreadable on purpose: the event then counts as deleted. */
  readonly decode: (bytes: Uint8Array, entity: EntityKey) => unknown
}

const toJson = (payload: unknown): Uint8Array => Buffer.from(JSON.stringify(payload) ?? "null")

const fromJson = (bytes: Uint8Array): unknown => JSON.parse(Buffer.from(bytes).toString())

/** Settings of `gzip`. */
export interface GzipOptions {
  /** Payloads whose JSON has fewer bytes stay JSON. Default: 1024. */
  readonly minBytes?: number | undefined
  /** From 1, fast, to 9, small. Default: 6. */
  readonly level?: number | undefined
  /** The most bytes that a payload is unpacked to. Default: 64 MiB. */
  readonly maxBytes?: number | undefined
}

/** Large payloads packed by gzip. What does not become smaller by it, as base64 too, stays JSON. */
export const gzip = (options: GzipOptions = {}): Encoding => {
  const { level = 6, maxBytes = 64 * 1024 * 1024, minBytes = 1024 } = options
  return {
    name: "gzip",
    encode: (payload) => {
      const plain = toJson(payload)
      if (plain.length < minBytes) return undefined
      if (plain.length > maxBytes) {
        throw new Error(`the payload has ${plain.length} bytes of JSON, and gzip takes ${maxBytes} at the most`)
      }
      const packed = gzipSync(plain, { level })
      return (packed.length * 4) / 3 < plain.length ? packed : undefined
    },
    decode: (bytes) => fromJson(gunzipSync(bytes, { maxOutputLength: maxBytes }))
  }
}

/** A key of 32 bytes as base64, or the word that it was thrown away. */
export type Key = Redacted.Redacted<string> | "discarded"

/** Settings of `encrypted`. */
export interface EncryptedOptions {
  /**
   * The name of the key for what is written from now on: one for all, or one for each entity, tenant or person. A key
   * should encrypt no more than four billion payloads.
   */
  readonly key: string | ((entity: EntityKey, payload: unknown) => string)
  /**
   * The keys by their names, a Map or your own store; also those of what is already stored. What a discarded key has
   * encrypted can never be read again, and counts as deleted; a key that is not there is an error.
   */
  readonly keys: { readonly get: (name: string) => Key | undefined }
  /** What the payloads are written in before they are encrypted. Default: JSON. */
  readonly of?: Encoding | undefined
}

const lengthBytes = 4
const ivLength = 12
const authTagLength = 16

/** Bytes with their length before them. */
const sized = (text: string): Buffer => {
  const bytes = Buffer.from(text)
  const length = Buffer.alloc(lengthBytes)
  length.writeUInt32BE(bytes.length)
  return Buffer.concat([length, bytes])
}

const keyBytes = (name: string, key: Redacted.Redacted<string>): Buffer => {
  const bytes = Buffer.from(Redacted.value(key), "base64")
  if (bytes.length === 32) return bytes
  throw new Error(`the key "${name}" has ${bytes.length} bytes: AES-256 needs 32, as base64 (openssl rand -base64 32)`)
}

/**
 * Payloads encrypted by AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce each, and bound to their entity: put
 * under another entity they cannot be read.
 *
 * The bytes: the key's name (its length in four bytes before it), nonce (12), tag (16), cipher text. What is encrypted
 * begins with a byte that says 0 for JSON, 1 for bytes of the encoding `of`.
 *
 * **Example**
 *
 * ```ts
 * const keys = new Map<string, Encoding.Key>([["2025", old], ["2026", current], ["2024", "discarded"]])
 * const encoding = Encoding.encrypted({ key: "2026", keys })
 * ```
 */
export const encrypted = ({ key, keys, of }: EncryptedOptions): Encoding => ({
  name: of === undefined ? "aes-256-gcm" : `aes-256-gcm+${of.name}`,
  encode: (payload, entity) => {
    const name = typeof key === "string" ? key : key(entity, payload)
    const found = keys.get(name)
    if (found === undefined) throw new Error(`there is no key "${name}" to encrypt with`)
    if (found === "discarded") throw new Error(`the key "${name}" was discarded: nothing is encrypted with it any more`)
    const head = sized(name)
    const iv = randomBytes(ivLength)
    const cipher = createCipheriv("aes-256-gcm", keyBytes(name, found), iv, { authTagLength })
    cipher.setAAD(Buffer.concat([head, sized(entity.entityType), sized(entity.entityId)]))
    const inner = of?.encode(payload, entity)
    const body = Buffer.concat([
      cipher.update(Buffer.of(inner === undefined ? 0 : 1)),
      cipher.update(inner ?? toJson(payload)),
      cipher.final()
    ])
    return Buffer.concat([head, iv, cipher.getAuthTag(), body])
  },
  decode: (given, entity) => {
    const bytes = Buffer.from(given.buffer, given.byteOffset, given.length)
    const nameEnd = bytes.length < lengthBytes ? bytes.length : lengthBytes + bytes.readUInt32BE()
    const begin = nameEnd + ivLength + authTagLength
    if (bytes.length < begin + 1) throw new Error(`it has ${bytes.length} bytes, fewer than anything encrypted has`)
    const name = bytes.toString("utf8", lengthBytes, nameEnd)
    const found = keys.get(name)
    if (found === undefined) {
      throw new Error(`there is no key "${name}" to decrypt with: add it, or declare it "discarded"`)
    }
    if (found === "discarded") return undefined
    const iv = bytes.subarray(nameEnd, nameEnd + ivLength)
    const decipher = createDecipheriv("aes-256-gcm", keyBytes(name, found), iv, { authTagLength })
    decipher.setAAD(Buffer.concat([bytes.subarray(0, nameEnd), sized(entity.entityType), sized(entity.entityId)]))
    decipher.setAuthTag(bytes.subarray(nameEnd + ivLength, begin))
    const plain = Buffer.concat([decipher.update(bytes.subarray(begin)), authentic(decipher, name)])
    if (plain[0] === 0) return fromJson(plain.subarray(1))
    if (of === undefined) throw new Error("it was encrypted with `of`, an encoding that this one was made without")
    return of.decode(plain.subarray(1), entity)
  }
})

/** The last bytes; throws where anything was changed. */
const authentic = (decipher: ReturnType<typeof createDecipheriv>, name: string): Buffer => {
  try {
    return decipher.final()
  } catch {
    throw new Error(`it was changed, belongs to another entity, or key "${name}" is not the one that encrypted it`)
  }
}
