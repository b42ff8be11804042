/**
 * Makes the driver refuse values that do not fit their column, where it would write another value without a word: 1.5 as
 * an int, 2n ** 70n as a bigint, a date that does not exist, a field that a user-defined type does not have. And its
 * messages do not repeat the value, as its own do.
 */
import { createRequire } from "node:module"
import driver from "cassandra-driver"

const { dataTypes, LocalDate, Tuple, unset } = driver.types

interface TypeInfo {
  readonly code: number
  readonly info?: unknown
}

interface Encoder {
  readonly encodingOptions: { readonly isStrict?: boolean }
  encode(value: unknown, type: unknown): Buffer | null
}

/** A value does not fit its type. */
export class Misfit extends TypeError {
  /** Not to be seen by who prints the error. */
  #value: unknown
  constructor(message: string, value: unknown) {
    super(message)
    this.#value = value
  }
  /** The place of the value among others, or -1. */
  placeIn(values: ReadonlyArray<unknown>): number {
    return values.findIndex((value) => Object.is(value, this.#value))
  }
  /** The value is an element of another one. */
  within(value: unknown): this {
    this.#value = value
    return this
  }
}

const typeNames = new Map(Object.entries(dataTypes).map(([name, code]) => [code as unknown, name]))

const nameOf = ({ code, info }: TypeInfo) =>
  code === dataTypes.custom ? (/(\w+)Type\b/.exec(String(info))?.[1]?.toLowerCase() ?? "custom") : typeNames.get(code)

/** What the driver itself looks for. */
const wanted = new Map<number, string>([
  [dataTypes.blob, "bytes"],
  [dataTypes.date, "a LocalDate, Date or text as 2026-11-23"],
  [dataTypes.decimal, "a BigDecimal of the driver, or its text"],
  [dataTypes.inet, "an InetAddress, or its text"],
  [dataTypes.list, "an array"],
  [dataTypes.map, "a Map"],
  [dataTypes.set, "a Set"],
  [dataTypes.time, "a LocalTime, or text as 13:30:54.123"],
  [dataTypes.timestamp, "a valid Date"],
  [dataTypes.timeuuid, "a TimeUuid, or its text"],
  [dataTypes.uuid, "a Uuid, or its text"]
])

const kindOf = (value: unknown) =>
  typeof value === "object" ? ((value as object).constructor?.name ?? "object") : typeof value

const isNumeric = (value: unknown) =>
  typeof value === "number" || (typeof value === "string" && value.trim() !== "" && !Number.isNaN(Number(value)))

const isWhole = (value: unknown, bits: number) =>
  isNumeric(value) && Number.isInteger(Number(value)) && Math.abs(Number(value) + 0.5) < 2 ** (bits - 1)

const bigintOf = (value: unknown) =>
  typeof value === "bigint" ? value : typeof value === "string" && /^-?\d+$/.test(value) ? BigInt(value) : undefined

const isDay = (value: string) => {
  const { day, month, year } = LocalDate.fromString(value)
  return [year, month, day].join() === value.split("-").map(Number).join()
}

/** Whether the value fits, as far as the driver does not look itself; undefined when it does. */
const misfit = (value: unknown, { code, info }: TypeInfo): string | undefined => {
  switch (code) {
    case dataTypes.tinyint:
      return isWhole(value, 8) ? undefined : "a whole number of 8 bits"
    case dataTypes.smallint:
      return isWhole(value, 16) ? undefined : "a whole number of 16 bits"
    case dataTypes.int:
      return isWhole(value, 32) ? undefined : "a whole number of 32 bits"
    case dataTypes.bigint:
    case dataTypes.counter: {
      const n = bigintOf(value)
      return n !== undefined && BigInt.asIntN(64, n) === n ? undefined : "a bigint of 64 bits"
    }
    case dataTypes.varint:
      return bigintOf(value) === undefined ? "a bigint" : undefined
    case dataTypes.float:
    case dataTypes.double:
      return isNumeric(value) ? undefined : "a number"
    case dataTypes.boolean:
      return typeof value === "boolean" ? undefined : "a boolean"
    case dataTypes.text:
    case dataTypes.varchar:
      return typeof value === "string" && value.isWellFormed()
        ? undefined
        : "a string without halves of surrogate pairs"
    case dataTypes.ascii:
      return typeof value === "string" && /^[\0-\x7f]*$/.test(value) ? undefined : "a string of ASCII"
    case dataTypes.date:
      return typeof value !== "string" || !/^\d{4}-/.test(value) || isDay(value) ? undefined : "a day of the calendar"
    case dataTypes.time:
      return typeof value !== "string" || /^([01]?\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{1,9})?$/.test(value)
        ? undefined
        : "a time"
    case dataTypes.udt: {
      const { fields, name } = info as { readonly name: string; readonly fields: ReadonlyArray<{ name: string }> }
      if (typeof value !== "object" || Array.isArray(value) || value instanceof Map) {
        return `an object with fields of type ${name}`
      }
      const unknown = Object.keys(value as object).find((key) => !fields.some((field) => field.name === key))
      return unknown === undefined ? undefined : `of type ${name}, which has no field "${unknown}"`
    }
    case dataTypes.tuple: {
      const { length } = info as ReadonlyArray<unknown>
      return value instanceof Tuple && value.length === length ? undefined : `a Tuple of ${length} elements`
    }
  }
}

// The driver does not export it, and makes one for each connection.
const { prototype } = createRequire(import.meta.url)("cassandra-driver/lib/encoder.js") as {
  readonly prototype: Encoder
}

const encode = prototype.encode

/** What turns it on, in the `encoding` of a client: other clients of the process keep what they had. */
export const strict = { isStrict: true }

prototype.encode = function (value, type) {
  const isChecked = this.encodingOptions.isStrict === true && typeof type === "object" && type !== null
  if (!isChecked || value == null || value === unset || Buffer.isBuffer(value)) return encode.call(this, value, type)
  const column = type as TypeInfo
  if (column.code === dataTypes.blob && ArrayBuffer.isView(value)) {
    return Buffer.from(value.buffer, value.byteOffset, value.byteLength)
  }
  let expected = misfit(value, column)
  if (expected === undefined) {
    try {
      return encode.call(this, value, type)
    } catch (cause) {
      if (cause instanceof Misfit) throw cause.within(value)
      expected = wanted.get(column.code) ?? "a value of the driver's class of that name"
    }
  }
  throw new Misfit(`${kindOf(value)} does not fit ${nameOf(column)}: it must be ${expected}`, value)
}
