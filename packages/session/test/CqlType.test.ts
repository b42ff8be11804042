import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Arbitrary, BigDecimal, Effect, Layer, Schema } from "effect"
import { SqlSchema } from "effect/sql"
import { CassandraSession } from "../src/CassandraSession.ts"
import * as CqlType from "../src/CqlType.ts"
import { cql, make, withSchema } from "../src/Statement.ts"

/** Each type with its name in CQL. */
const columns = {
  v_text: ["text", CqlType.Text],
  v_ascii: ["ascii", CqlType.Ascii],
  v_boolean: ["boolean", CqlType.Boolean],
  v_tinyint: ["tinyint", CqlType.TinyInt],
  v_smallint: ["smallint", CqlType.SmallInt],
  v_int: ["int", CqlType.Int],
  v_bigint: ["bigint", CqlType.BigInt],
  v_varint: ["varint", CqlType.VarInt],
  v_float: ["float", CqlType.Float],
  v_double: ["double", CqlType.Double],
  v_decimal: ["decimal", CqlType.Decimal],
  v_timestamp: ["timestamp", CqlType.Timestamp],
  v_date: ["date", CqlType.Date],
  v_time: ["time", CqlType.Time],
  v_duration: ["duration", CqlType.Duration],
  v_uuid: ["uuid", CqlType.Uuid],
  v_timeuuid: ["timeuuid", CqlType.TimeUuid],
  v_blob: ["blob", CqlType.Blob],
  v_list: ["list<bigint>", CqlType.list(CqlType.BigInt)],
  v_set: ["set<uuid>", CqlType.set(CqlType.Uuid)],
  v_map: ["map<int, text>", CqlType.map(CqlType.Int, CqlType.Text)],
  v_frozen: ["frozen<list<frozen<set<int>>>>", CqlType.list(CqlType.set(CqlType.Int))],
  v_tuple: ["tuple<int, text>", CqlType.tuple(CqlType.Int, CqlType.Text)],
  v_udt: [
    "frozen<point>",
    CqlType.udt({ x: CqlType.Int, label: Schema.NullOr(CqlType.Text), at: Schema.NullOr(CqlType.Timestamp) })
  ],
  v_vector: ["vector<float, 3>", CqlType.vector(CqlType.Float, 3)],
  v_vector_text: ["vector<text, 2>", CqlType.vector(CqlType.Text, 2)]
} as const

type Columns = typeof columns
const fields = Object.fromEntries(Object.entries(columns).map(([name, [, schema]]) => [name, schema])) as {
  readonly [K in keyof Columns]: Columns[K][1]
}
const names = Object.keys(columns)
const Values = Schema.Struct(fields)

/** Those that chance alone would hardly hit. */
const float = Arbitrary.map(Arbitrary.schema(Schema.Number), Math.fround)
const arbitraries = {
  v_float: float,
  // The driver writes an empty collection as null, which the server refuses within another one.
  v_frozen: Arbitrary.map(Arbitrary.schema(Schema.Array(Schema.Array(CqlType.Int))), (lists) =>
    lists.map((numbers) => new Set([0, ...numbers]))
  ),
  v_vector: Arbitrary.all([float, float, float]),
  v_duration: Arbitrary.map(
    Arbitrary.all([
      Arbitrary.schema(Schema.Boolean),
      ...[31, 31, 63].map((bits) =>
        Arbitrary.schema(Schema.BigInt.check(Schema.isBetweenBigInt({ minimum: 0n, maximum: 2n ** BigInt(bits) - 1n })))
      )
    ]),
    ([negative, months, days, nanoseconds]: any) => ({
      months: Number(negative ? -months : months),
      days: Number(negative ? -days : days),
      nanoseconds: negative ? -nanoseconds : nanoseconds
    })
  )
}
const arbitraryValues = Arbitrary.all(
  Object.fromEntries(
    names.map((name) => [
      name,
      arbitraries[name as keyof typeof arbitraries] ??
        Arbitrary.schema(fields[name as keyof Columns] as Schema.Codec<any>)
    ])
  )
) as Arbitrary.Arbitrary<unknown> as Arbitrary.Arbitrary<typeof Values.Type>

const tables = Layer.effectDiscard(
  Effect.gen(function* () {
    yield* cql`CREATE TYPE point (x int, label text, at timestamp)`
    const session = yield* CassandraSession
    const definitions = Object.entries(columns).map(([name, [type]]) => `${name} ${type}`)
    yield* session.createTables([
      `CREATE TABLE IF NOT EXISTS every_type (id int PRIMARY KEY, ${definitions.join(", ")})`,
      "CREATE TABLE IF NOT EXISTS hosts (name text PRIMARY KEY, address inet, amount decimal, visits int)"
    ])
  })
)

layer(tables.pipe(Layer.provideMerge(TestKeyspace.layer)), { excludeTestServices: true, timeout: "2 minutes" })(
  "CqlType",
  (it) => {
    it.effect.prop(
      "every type comes back from the server as it was written",
      [arbitraryValues],
      ([values]) =>
        Effect.gen(function* () {
          const encoded = yield* Schema.encodeEffect(Values)(values)
          yield* make(
            `INSERT INTO every_type (id, ${names}) VALUES (1, ${names.map(() => "?")})`,
            Object.values(encoded)
          )
          const read = yield* make(`SELECT ${names} FROM every_type WHERE id = 1`).pipe(withSchema(Values)).one
          // Sets come back in the order of Cassandra.
          const plain = (value: typeof Values.Type) => ({
            ...value,
            v_decimal: BigDecimal.format(BigDecimal.normalize(value.v_decimal)),
            v_set: [...value.v_set].toSorted(),
            v_map: [...value.v_map].toSorted(([a], [b]) => a - b),
            v_frozen: value.v_frozen.map((numbers) => [...numbers].toSorted((a, b) => a - b))
          })
          assert.deepStrictEqual(plain(read), plain(values))
        }),
      { timeout: 60_000 }
    )

    it.effect("addresses of both versions", () =>
      Effect.gen(function* () {
        const Host = Schema.Struct({ name: CqlType.Text, address: CqlType.Inet })
        for (const address of ["127.0.0.1", "::1", "2001:db8::ff00:42:8329", "fe80::1:2:3:4"]) {
          const { address: bound } = yield* Schema.encodeEffect(Host)({ name: "x", address })
          yield* cql`INSERT INTO hosts (name, address) VALUES ('x', ${bound})`
          const read = yield* cql`SELECT name, address FROM hosts WHERE name = 'x'`.pipe(withSchema(Host)).one
          assert.strictEqual(read.address, address)
        }
      })
    )

    it.effect("a field that a user-defined type got later is null in what was written before", () =>
      Effect.gen(function* () {
        yield* cql`CREATE TYPE grown (x int)`
        const session = yield* CassandraSession
        yield* session.createTables(["CREATE TABLE IF NOT EXISTS growing (id int PRIMARY KEY, v frozen<grown>)"])
        yield* cql`INSERT INTO growing (id, v) VALUES (1, ${{ x: 1 }})`
        yield* cql`ALTER TYPE grown ADD y text`
        const Grown = Schema.Struct({ v: CqlType.udt({ x: CqlType.Int, y: Schema.NullOr(CqlType.Text) }) })
        assert.deepStrictEqual(yield* cql`SELECT v FROM growing WHERE id = 1`.pipe(withSchema(Grown)).one, {
          v: { x: 1, y: null }
        })
      })
    )

    it.effect("a value without a schema is refused where the driver would write another", () =>
      Effect.gen(function* () {
        const write = (column: string, value: unknown) =>
          make(`INSERT INTO every_type (id, ${column}) VALUES (?, ?)`, [3, value])
        for (const [column, wrong] of [
          ["v_int", 1.5],
          ["v_int", ""],
          ["v_int", 2 ** 31],
          ["v_tinyint", 128],
          ["v_bigint", 2n ** 63n],
          ["v_bigint", 5],
          ["v_varint", ""],
          ["v_double", "1.5 or so"],
          ["v_boolean", "false"],
          ["v_text", "\ud800"],
          ["v_ascii", "é"],
          ["v_date", "2026-02-30"],
          ["v_time", "half past ten"],
          ["v_timestamp", new Date(Number.NaN)],
          ["v_udt", "a point"],
          ["v_udt", { x: 1, z: 2 }],
          ["v_tuple", { 0: 1 }],
          ["v_list", [1n, 2n ** 64n]],
          ["v_map", new Map([[1.5, "x"]])],
          ["v_vector", [1, 2, 3]],
          ["v_duration", "5 minutes"]
        ] as const) {
          const { message, reason } = yield* Effect.flip(write(column, wrong))
          assert.strictEqual(reason._tag, "InvalidStatement", message)
          assert.match(message, /parameter 2 of "INSERT INTO every_type .* does not fit \w+: it must be/)
        }
        for (const [column, right, read] of [
          ["v_int", -(2 ** 31), undefined],
          ["v_int", "12", 12],
          ["v_tinyint", -128, undefined],
          ["v_bigint", -(2n ** 63n), undefined],
          ["v_double", "1.5", 1.5],
          ["v_blob", new Uint8Array([1, 2]), Buffer.from([1, 2])],
          ["v_text", null, undefined]
        ] as const) {
          yield* write(column, right)
          const row = yield* make(`SELECT ${column} AS v FROM every_type WHERE id = 3`).one
          assert.deepStrictEqual(row.v, read ?? right)
        }
      })
    )

    it.effect("an empty collection and a missing one are the same", () =>
      Effect.gen(function* () {
        yield* cql`INSERT INTO every_type (id, v_list) VALUES (2, ${[]})`
        const Collections = Schema.Struct({ v_list: fields.v_list, v_set: fields.v_set, v_map: fields.v_map })
        const row = yield* cql`SELECT v_list, v_set, v_map FROM every_type WHERE id = 2`.pipe(withSchema(Collections))
          .one
        assert.deepStrictEqual(row, { v_list: [], v_set: new Set<string>(), v_map: new Map() })
      })
    )

    it.effect("what does not fit is refused before it is sent, and says where", () =>
      Effect.gen(function* () {
        for (const [schema, value] of [
          [CqlType.TinyInt, 128],
          [CqlType.Int, 1.5],
          [CqlType.BigInt, 2n ** 63n],
          [CqlType.Float, 0.1],
          [CqlType.Date, "2026-02-30"],
          [CqlType.Time, "24:00:00"],
          [CqlType.Inet, "127.0.0.256"],
          [CqlType.Uuid, "not-a-uuid"],
          [CqlType.Duration, { months: 1, days: -1, nanoseconds: 0n }],
          [CqlType.vector(CqlType.Float, 2), [1]]
        ] as const) {
          const exit = yield* Effect.exit(Schema.encodeEffect(schema as Schema.Codec<unknown>)(value))
          assert.strictEqual(exit._tag, "Failure", String(value))
        }
      })
    )

    it.effect("a row that does not fit its schema says the column and what was expected, not the value", () =>
      Effect.gen(function* () {
        yield* cql`INSERT INTO hosts (name, visits) VALUES ('secret-name', 1)`
        const Wrong = Schema.Struct({ name: CqlType.Text, visits: CqlType.Text })
        const error = yield* Effect.flip(
          cql`SELECT name, visits FROM hosts WHERE name = ${"secret-name"}`.pipe(withSchema(Wrong)).first
        )
        assert.strictEqual(error.reason._tag, "RowMismatch")
        assert.match(error.message, /SELECT name, visits.*Expected string[\s\S]*visits/)
        assert.notInclude(error.message, "secret-name")
      })
    )

    it.effect("SqlSchema finds, encodes and decodes", () =>
      Effect.gen(function* () {
        const Host = Schema.Struct({ name: CqlType.Text, amount: CqlType.Decimal })
        const save = SqlSchema.void({
          Request: Host,
          execute: ({ amount, name }) => cql`INSERT INTO hosts (name, amount) VALUES (${name}, ${amount})`
        })
        const options = {
          Request: CqlType.Text,
          Result: Host,
          execute: (name: string) => cql`SELECT name, amount FROM hosts WHERE name = ${name}`
        }
        const amount = BigDecimal.fromStringUnsafe("12.50")
        yield* save({ name: "sql", amount })
        assert.strictEqual((yield* SqlSchema.findAll(options)("sql")).length, 1)
        assert.isTrue(BigDecimal.equals((yield* SqlSchema.findOne(options)("sql")).amount, amount))
        assert.strictEqual((yield* SqlSchema.findOneOption(options)("nobody"))._tag, "None")
      })
    )
  }
)
