/**
 * A Schema for each type of CQL: on its encoded side what the driver binds and gives back, on the other what TypeScript
 * users work with. A column without a value is null: wrap its schema in `Schema.NullOr`, but for collections, which
 * Cassandra cannot tell from empty ones. An empty collection within another one cannot be written: the driver makes it
 * null, which the server refuses.
 */
import { isIP } from "node:net"
import driver from "cassandra-driver"
import { BigDecimal, Schema, SchemaTransformation } from "effect"

const { types } = driver

const between = (minimum: number, maximum: number) => Schema.Int.check(Schema.isBetween({ minimum, maximum }))
const bits = (n: bigint) =>
  Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: -(2n ** (n - 1n)), maximum: 2n ** (n - 1n) - 1n }))

/** `text` and `varchar`: string. One with half of a surrogate pair is refused, as UTF-8 would silently replace it. */
export const Text = Schema.String.check(
  Schema.makeFilter((text) => text.isWellFormed(), { expected: "a string without halves of surrogate pairs" })
)

/** `ascii`: string of characters up to U+007F. */
export const Ascii = Schema.String.check(Schema.isPattern(/^[\0-\x7f]*$/))

/** `boolean`. */
export const Boolean = Schema.Boolean

/** `tinyint`: whole number of 8 bits. */
export const TinyInt = between(-128, 127)

/** `smallint`: whole number of 16 bits. */
export const SmallInt = between(-32_768, 32_767)

/** `int`: whole number of 32 bits. */
export const Int = between(-2_147_483_648, 2_147_483_647)

/** `bigint`, and `counter` when read: bigint of 64 bits. */
export const BigInt = bits(64n)

/** `varint`: bigint of any size. */
export const VarInt = Schema.BigInt

/** `float`: number that 32 bits hold. */
export const Float = Schema.Number.check(
  Schema.makeFilter((n) => Object.is(Math.fround(n), n), { expected: "a number of 32 bits" })
)

/** `double`: number. */
export const Double = Schema.Number

/** `timestamp`: Date, in milliseconds. */
export const Timestamp = Schema.Date

const driverType = <A>(constructor: abstract new (...args: Array<any>) => A, name: string): Schema.declare<A> =>
  Schema.declare((value): value is A => value instanceof constructor, { expected: `a ${name} of the driver` })

const text = <A extends { toString(): string }>(
  encoded: Schema.declare<A>,
  type: Schema.Codec<string>,
  encode: (text: string) => A
): Schema.Codec<string, A> =>
  encoded.pipe(Schema.decodeTo(type, SchemaTransformation.transform({ decode: (value) => value.toString(), encode })))

/** `uuid`: string in lower case. */
export const Uuid: Schema.Codec<string, driver.types.Uuid> = text(
  driverType(types.Uuid, "Uuid"),
  Schema.String.check(Schema.isPattern(/^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$/)),
  types.Uuid.fromString
)

/** `timeuuid`: string in lower case, of version 1. */
export const TimeUuid: Schema.Codec<string, driver.types.TimeUuid> = text(
  driverType(types.TimeUuid, "TimeUuid"),
  Schema.String.check(Schema.isPattern(/^[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)),
  types.TimeUuid.fromString
)

/** `date`: string `2026-11-23`, of the years 1 to 9999. */
export const Date: Schema.Codec<string, driver.types.LocalDate> = driverType(types.LocalDate, "LocalDate").pipe(
  Schema.decodeTo(
    Schema.String.check(
      Schema.isPattern(/^\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])$/),
      Schema.makeFilter(
        (day) => {
          const date = new globalThis.Date(day)
          return !day.startsWith("0000") && !Number.isNaN(date.getTime()) && date.toISOString().startsWith(day)
        },
        { expected: "a day of the calendar" }
      )
    ),
    SchemaTransformation.transform({
      // By its parts, for the driver writes no zeros before a year up to 999.
      decode: ({ day, month, year }) =>
        [`${year}`.padStart(4, "0"), `${month}`.padStart(2, "0"), `${day}`.padStart(2, "0")].join("-"),
      encode: (text) => {
        const [year, month, day] = text.split("-").map(Number)
        return new types.LocalDate(year!, month!, day!)
      }
    })
  )
)

/** `time`: string `13:30:54.123456789`, without zeros at the end of the fraction. */
export const Time: Schema.Codec<string, driver.types.LocalTime> = text(
  driverType(types.LocalTime, "LocalTime"),
  Schema.String.check(Schema.isPattern(/^([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d{0,8}[1-9])?$/)),
  types.LocalTime.fromString
)

/** `inet`: string, an address of IP version 4 or 6. */
export const Inet: Schema.Codec<string, driver.types.InetAddress> = text(
  driverType(types.InetAddress, "InetAddress"),
  Schema.String.check(Schema.makeFilter((address) => isIP(address) !== 0, { expected: "an IP address" })),
  types.InetAddress.fromString
)

/** `decimal`: Effect's BigDecimal. */
export const Decimal: Schema.Codec<BigDecimal.BigDecimal, driver.types.BigDecimal> = driverType(
  types.BigDecimal,
  "BigDecimal"
).pipe(
  Schema.decodeTo(
    Schema.BigDecimal,
    SchemaTransformation.transform({
      // Its parts, for its text of many digits is slow, and they are private only to the types.
      decode: (decimal) => {
        const { _intVal, _scale } = decimal as unknown as { readonly _intVal: object; readonly _scale: number }
        return BigDecimal.make(globalThis.BigInt(_intVal.toString()), _scale)
      },
      encode: ({ scale, value }) =>
        new types.BigDecimal(types.Integer.fromString(value.toString()) as unknown as number, scale)
    })
  )
)

/** `duration`: months, days and nanoseconds, which are not of a fixed length to each other; all of one sign. */
export const Duration: Schema.Codec<
  { readonly months: number; readonly days: number; readonly nanoseconds: bigint },
  driver.types.Duration
> = driverType(types.Duration, "Duration").pipe(
  Schema.decodeTo(
    Schema.Struct({ months: Int, days: Int, nanoseconds: BigInt }).check(
      Schema.makeFilter(
        ({ days, months, nanoseconds }) => {
          const signs = new Set([Math.sign(months), Math.sign(days), Math.sign(Number(nanoseconds))])
          return !(signs.has(1) && signs.has(-1))
        },
        { expected: "parts of one sign" }
      )
    ),
    SchemaTransformation.transform({
      decode: (duration) => {
        const { days, months, nanoseconds } = duration as unknown as {
          readonly months: number
          readonly days: number
          readonly nanoseconds: driver.types.Long
        }
        return { months, days, nanoseconds: globalThis.BigInt(nanoseconds.toString()) }
      },
      encode: ({ days, months, nanoseconds }) =>
        new types.Duration(months, days, types.Long.fromString(nanoseconds.toString()))
    })
  )
)

/** `blob`: bytes. */
export const Blob: Schema.Codec<Uint8Array, Buffer> = driverType(Buffer, "Buffer").pipe(
  Schema.decodeTo(
    Schema.Uint8Array,
    SchemaTransformation.transform({
      // A copy, for the driver's Buffer is a part of the whole answer and would keep it in memory.
      decode: (buffer): Uint8Array => Uint8Array.from(buffer),
      encode: (bytes: Uint8Array) => Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength) as Buffer
    })
  )
)

/** An empty collection is a column without a value. */
const nullIsEmpty = <A, I>(schema: Schema.Codec<A, I>, empty: I): Schema.Codec<A, I | null> =>
  Schema.NullOr(Schema.toEncoded(schema)).pipe(
    Schema.decodeTo(
      schema,
      SchemaTransformation.transform<I, I | null>({ decode: (value) => value ?? empty, encode: (value) => value })
    )
  )

/** `list<A>`, frozen or not: array. */
export const list = <A, I>(element: Schema.Codec<A, I>): Schema.Codec<ReadonlyArray<A>, ReadonlyArray<I> | null> =>
  nullIsEmpty(Schema.Array(element), [])

/** `set<A>`, frozen or not: Set. */
export const set = <A, I>(element: Schema.Codec<A, I>): Schema.Codec<ReadonlySet<A>, ReadonlySet<I> | null> =>
  nullIsEmpty(Schema.ReadonlySet(element), new Set<I>())

/** `map<K, V>`, frozen or not: Map. */
export const map = <K, KI, V, VI>(
  key: Schema.Codec<K, KI>,
  value: Schema.Codec<V, VI>
): Schema.Codec<ReadonlyMap<K, V>, ReadonlyMap<KI, VI> | null> =>
  nullIsEmpty(Schema.ReadonlyMap(key, value), new Map<KI, VI>())

/** `tuple<A, B, ...>`: array of that length. */
export const tuple = <const Elements extends ReadonlyArray<Schema.Codec<any, any>>>(
  ...elements: Elements
): Schema.Codec<{ readonly [K in keyof Elements]: Elements[K]["Type"] }, driver.types.Tuple> => {
  const array = Schema.Tuple(elements)
  return driverType(types.Tuple, "Tuple").pipe(
    Schema.decodeTo(
      array,
      SchemaTransformation.transform({
        decode: (value): any => value.values(),
        encode: (values) => types.Tuple.fromArray([...values])
      })
    )
  ) as any
}

/**
 * A user-defined type, frozen or not: object. A field that was added to the type later, and is missing in what was written
 * before, is null.
 */
export const udt = <const Fields extends Readonly<Record<string, Schema.Codec<any, any>>>>(
  fields: Fields
): Schema.Codec<
  { readonly [K in keyof Fields]: Fields[K]["Type"] },
  { readonly [K in keyof Fields]: Fields[K]["Encoded"] }
> => {
  const struct = Schema.Struct(fields)
  const names = Object.keys(fields)
  return Schema.Record(Schema.String, Schema.Any).pipe(
    Schema.decodeTo(
      struct,
      SchemaTransformation.transform({
        decode: (value): any => Object.fromEntries(names.map((name) => [name, value[name] ?? null])),
        encode: (value) => value as Readonly<Record<string, any>>
      })
    )
  ) as any
}

/** `vector<A, n>`: array of `n` elements. */
export const vector = <A, I>(
  element: Schema.Codec<A, I>,
  length: number
): Schema.Codec<ReadonlyArray<A>, driver.types.Vector> =>
  driverType(types.Vector, "Vector").pipe(
    Schema.decodeTo(
      Schema.Array(element).check(Schema.isMinLength(length), Schema.isMaxLength(length)),
      SchemaTransformation.transform<ReadonlyArray<I>, driver.types.Vector>({
        decode: (value) => [...(value.elements as Array<I>)],
        encode: (values) => new types.Vector([...values])
      })
    )
  )
