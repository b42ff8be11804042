import { assert, describe, it } from "@effect/vitest"
import { Result, Schema } from "effect"
import * as EventCodec from "../src/EventCodec.ts"

const Deposited = Schema.TaggedStruct("Deposited", { cents: Schema.Int, currency: Schema.String }).annotate(
  EventCodec.history({
    version: 3,
    upcasters: {
      1: ({ amount, ...rest }: { amount: number }) => ({ ...rest, cents: Math.round(amount * 100) }),
      2: (deposited) => ({ ...deposited, currency: "EUR" })
    },
    formerly: ["MoneyPaidIn"]
  })
)
class Renamed extends Schema.TaggedClass<Renamed>()(
  "Renamed",
  { first: Schema.String, last: Schema.String, at: Schema.Date },
  EventCodec.history({
    version: 3,
    upcasters: {
      // A field that nobody needs is dropped, one field becomes two, and flat ones are put together.
      1: ({ clerk: _, name, ...rest }) => ({ ...rest, first: name.split(" ")[0], last: name.split(" ")[1] ?? "" }),
      2: ({ day, month, year, ...rest }) => ({ ...rest, at: new Date(Date.UTC(year, month - 1, day)).toISOString() })
    }
  })
) {}
const FeeCharged = Schema.TaggedStruct("FeeCharged", { cents: Schema.Int })
const Withdrawn = Schema.TaggedStruct("Withdrawn", { cents: Schema.Int }).annotate(
  EventCodec.history({
    version: 2,
    upcasters: {
      1: ({ cents, fee }) => [
        { type: "Withdrawn", version: 2, payload: { cents } },
        ...(fee > 0 ? [{ type: "FeeCharged", payload: { cents: fee } }] : [])
      ]
    }
  })
)
const Audited = EventCodec.retired("Audited")
const Exchanged = EventCodec.retired("Exchanged", ({ paid, received }, version) => [
  { type: "Withdrawn", version: 1, payload: { cents: paid, fee: 0 } },
  { type: "MoneyPaidIn", version: 1, payload: { amount: version === 1 ? received / 100 : received } }
])

const account = [Deposited, Renamed, FeeCharged, Withdrawn, Audited, Exchanged]
const codec = EventCodec.make(account)

/** What three releases of a service have stored, one after the other, as JSON. */
const stored = `[
  { "type": "MoneyPaidIn", "version": 1, "payload": { "amount": 12.34 } },
  { "type": "Renamed",     "version": 1, "payload": { "name": "Ada Byron", "clerk": 7, "day": 10, "month": 12, "year": 1815 } },
  { "type": "Withdrawn",   "version": 1, "payload": { "cents": 500, "fee": 25 } },
  { "type": "Audited",     "version": 1, "payload": { "by": "Cy" } },
  { "type": "Exchanged",   "version": 1, "payload": { "paid": 100, "received": 120 } },
  { "type": "Deposited",   "version": 2, "payload": { "cents": 77 } },
  { "type": "Renamed",     "version": 2, "payload": { "first": "Ada", "last": "King", "day": 8, "month": 7, "year": 1835 } },
  { "type": "Withdrawn",   "version": 2, "payload": { "cents": 8 } },
  { "type": "Exchanged",   "version": 2, "payload": { "paid": 300, "received": 3.5 } },
  { "type": "Deposited",   "version": 3, "payload": { "cents": 9, "currency": "USD" } },
  { "type": "Renamed",     "version": 3, "payload": { "first": "Ada", "last": "Lovelace", "at": "1838-06-30T00:00:00.000Z" } },
  { "type": "FeeCharged",  "version": 1, "payload": { "cents": 1 } }
]`

const rows = JSON.parse(stored) as ReadonlyArray<Required<EventCodec.StoredEvent>>

const read = <Event>(reader: EventCodec.EventCodec<Event>) =>
  rows.flatMap(({ payload, type, version }) => [...Result.getOrThrow(reader.decode(type, payload, version))])

describe("EventCodec", () => {
  it("writes the type, the newest version and the payload as JSON", () => {
    assert.deepStrictEqual(codec.encode(Deposited.make({ cents: 5, currency: "EUR" })), {
      type: "Deposited",
      version: 3,
      payload: { cents: 5, currency: "EUR" }
    })
    assert.deepStrictEqual(codec.encode(new Renamed({ first: "A", last: "B", at: new Date(0) })).payload as unknown, {
      first: "A",
      last: "B",
      at: "1970-01-01T00:00:00.000Z"
    })
    assert.deepStrictEqual(EventCodec.make([FeeCharged]).encode(FeeCharged.make({ cents: 1 })), {
      type: "FeeCharged",
      version: 1,
      payload: { cents: 1 }
    })
    assert.deepStrictEqual(codec.types, ["Deposited", "Renamed", "FeeCharged", "Withdrawn"])
  })

  it("reads a history of three versions: renamed, split, dropped, in other shapes, retired", () => {
    assert.deepStrictEqual(read(codec), [
      Deposited.make({ cents: 1234, currency: "EUR" }),
      new Renamed({ first: "Ada", last: "Byron", at: new Date("1815-12-10") }),
      Withdrawn.make({ cents: 500 }),
      FeeCharged.make({ cents: 25 }),
      Withdrawn.make({ cents: 100 }),
      Deposited.make({ cents: 120, currency: "EUR" }),
      Deposited.make({ cents: 77, currency: "EUR" }),
      new Renamed({ first: "Ada", last: "King", at: new Date("1835-07-08") }),
      Withdrawn.make({ cents: 8 }),
      Withdrawn.make({ cents: 300 }),
      Deposited.make({ cents: 350, currency: "EUR" }),
      Deposited.make({ cents: 9, currency: "USD" }),
      new Renamed({ first: "Ada", last: "Lovelace", at: new Date("1838-06-30") }),
      FeeCharged.make({ cents: 1 })
    ])
  })

  it("with `only` passes over all others, also those that nothing is known of", () => {
    const reader = EventCodec.make(account, { only: ["FeeCharged"] })
    assert.deepStrictEqual(read(reader), [FeeCharged.make({ cents: 25 }), FeeCharged.make({ cents: 1 })])
    for (const [type, payload, version] of [
      ["Unheard", {}, 1],
      ["Deposited", {}, 4],
      ["Deposited", { cents: "no number" }, 3]
    ] as const) {
      assert.deepStrictEqual(reader.decode(type, payload, version), Result.succeed([]))
    }
    assert.isTrue(Result.isFailure(reader.decode("FeeCharged", {}, 2)))
  })

  it("finds the history of a schema to which checks and a transformation were added", () => {
    class Money extends Schema.Class<Money>("Money")({
      _tag: Schema.tag("Deposited"),
      cents: Schema.Int,
      currency: Schema.String
    }) {}
    const { decode } = EventCodec.make([
      Deposited.check(Schema.makeFilter(({ cents }) => cents > 0)).pipe(Schema.decodeTo(Money))
    ])
    assert.deepStrictEqual(
      decode("MoneyPaidIn", { amount: 1 }, 1),
      Result.succeed([new Money({ cents: 100, currency: "EUR" })])
    )
  })

  it("reads a newer version through declared downcasters, one after the other", () => {
    const previous = EventCodec.make([
      Schema.TaggedStruct("Deposited", { amount: Schema.Number }).annotate(
        EventCodec.history({
          version: 1,
          downcasters: {
            2: ({ cents }) => ({ amount: cents / 100 }),
            3: ({ currency, ...rest }) => (currency === "EUR" ? rest : [])
          }
        })
      )
    ])
    const { payload, version } = codec.encode(Deposited.make({ cents: 250, currency: "EUR" }))
    assert.deepStrictEqual(
      previous.decode("Deposited", payload, version),
      Result.succeed([{ _tag: "Deposited", amount: 2.5 }])
    )
    assert.deepStrictEqual(previous.decode("Deposited", { cents: 1, currency: "USD" }, 3), Result.succeed([]))
    assert.match(reason(previous.decode("Deposited", payload, 4)), /stored in version 4.* knows none after 1: deploy/)
  })

  it.each<[string, ReadonlyArray<EventCodec.EventSchema>, EventCodec.StoredEvent, RegExp]>([
    [
      "a type without a schema",
      account,
      { type: "Closed", payload: {} },
      /no schema for it among Deposited, .*retired/
    ],
    [
      "a newer version",
      account,
      { type: "Deposited", version: 4, payload: {} },
      /version 4.* none after 3: deploy the newer code here, or declare a downcaster from version 4/
    ],
    ["a version that is none", account, { type: "Deposited", version: 0, payload: {} }, /its version is 0/],
    [
      "a payload that is no object",
      account,
      { type: "FeeCharged", payload: [1] },
      /its payload is not an object, but \[1\]/
    ],
    ["a payload of null", account, { type: "Deposited", payload: null }, /not an object, but null/],
    ["what does not fit", account, { type: "FeeCharged", payload: { cents: "1" } }, /does not fit its schema.*cents/s],
    [
      "an upcaster that throws",
      account,
      { type: "Renamed", payload: {} },
      /its upcaster from version 1 threw: TypeError/
    ],
    [
      "an upcaster that gives no payload",
      [FeeCharged.annotate(EventCodec.history({ version: 2, upcasters: { 1: () => 7 as never } }))],
      { type: "FeeCharged", payload: {} },
      /its upcaster from version 1 gave 7 instead of a payload or a list of events/
    ],
    [
      "a retired event that becomes one of an unknown type",
      [EventCodec.retired("Old", () => [{ type: "New", payload: {} }])],
      { type: "Old", payload: {} },
      /its upcaster made it a New of version 1: there is no schema/
    ],
    [
      "a retired event that does not become a list",
      [EventCodec.retired("Old", () => ({}) as never)],
      { type: "Old", payload: {} },
      /its upcaster gave {} instead of a list of events/
    ],
    [
      "a retired event that becomes what is none",
      [EventCodec.retired("Old", () => [null as never])],
      { type: "Old", payload: {} },
      /its upcaster gave null among its events, which has no type/
    ],
    [
      "types that become each other",
      [
        EventCodec.retired("Hen", (payload) => [{ type: "Egg", payload }]),
        EventCodec.retired("Egg", (payload) => [{ type: "Hen", payload }])
      ],
      { type: "Hen", payload: {} },
      /leads in a circle, back to Hen/
    ],
    [
      "a version that becomes itself",
      [
        FeeCharged.annotate(
          EventCodec.history({
            version: 2,
            upcasters: { 1: (payload) => [{ type: "FeeCharged", version: 1, payload }] }
          })
        )
      ],
      { type: "FeeCharged", payload: {} },
      /its upcaster from version 1 leads in a circle, back to FeeCharged 1/
    ]
  ])("says why it cannot read %s", (_, events, { payload, type, version }, expected) => {
    assert.match(reason(EventCodec.make(events).decode(type, payload, version)), expected)
  })

  it.each<[string, ReadonlyArray<EventCodec.EventSchema>, RegExp]>([
    ["two schemas of one type", [FeeCharged, FeeCharged], /two events claim what is stored as "FeeCharged"/],
    [
      "a former type that is in use",
      [Deposited, Schema.TaggedStruct("MoneyPaidIn", {})],
      /stored as "MoneyPaidIn": Deposited and MoneyPaidIn/
    ],
    [
      "a former type that is retired",
      [EventCodec.retired("MoneyPaidIn"), Deposited],
      /MoneyPaidIn, which is retired, and Deposited/
    ],
    [
      "a version that is none",
      [FeeCharged.annotate(EventCodec.history({ version: 1.5 }))],
      /has version 1.5: versions are 1, 2/
    ],
    [
      "a missing upcaster",
      [FeeCharged.annotate(EventCodec.history({ version: 3, upcasters: { 2: (payload) => payload } }))],
      /"FeeCharged" needs an upcaster from each version before 3: from 1, 2, and has them from 2/
    ],
    [
      "an upcaster from the newest version",
      [FeeCharged.annotate(EventCodec.history({ version: 1, upcasters: { 1: (payload) => payload } }))],
      /from none, and has them from 1/
    ],
    [
      "a downcaster that cannot be reached",
      [FeeCharged.annotate(EventCodec.history({ version: 1, downcasters: { 3: (payload) => payload } }))],
      /has downcasters from 3: they begin at version 2/
    ],
    ["a type of the journal", [Schema.TaggedStruct("$deleted", {})], /types that begin with \$ belong to the journal/],
    ["a schema without a tag", [Schema.Struct({ a: Schema.Int }) as never], /needs a literal _tag/]
  ])("refuses %s", (_, events, expected) => {
    assert.throws(() => EventCodec.make(events), expected)
  })

  it("refuses to write an event that is none of its own, or no longer", () => {
    for (const _tag of ["Closed", "Audited", "MoneyPaidIn"]) {
      assert.throws(() => codec.encode({ _tag }), `there is no event "${_tag}" among Deposited`)
    }
    const wrong = { _tag: "Deposited", cents: "five", currency: "EUR" }
    assert.throws(() => codec.encode(wrong), /an event "Deposited" does not fit its schema: .*cents/s)
  })
})

const reason = (result: Result.Result<unknown, string>): string =>
  Result.isFailure(result) ? result.failure : assert.fail(`read as ${JSON.stringify(result.success)}`)

/** What JSON knows, and what it does not. */
class Everything extends Schema.TaggedClass<Everything>()("Everything", {
  text: Schema.String,
  number: Schema.Finite,
  date: Schema.Date,
  big: Schema.BigInt,
  bytes: Schema.Uint8Array,
  option: Schema.Option(Schema.Int),
  optional: Schema.optionalKey(Schema.Boolean),
  nullable: Schema.NullOr(Schema.String),
  map: Schema.ReadonlyMap(Schema.String, Schema.BigInt),
  nested: Schema.Array(Schema.Struct({ _tag: Schema.Literals(["a", "b"]), at: Schema.Date })),
  either: Schema.Union([Schema.Date, Schema.Int])
}) {}
const Empty = Schema.TaggedStruct("Empty", {})
const everything = EventCodec.make([Everything, Empty, Deposited])
const Event = Schema.Union([Everything, Empty, Deposited])
const same = Schema.toEquivalence(Event)

/** Through the text that is stored. */
const through = (event: { readonly _tag: string }) => {
  const { payload, type, version } = everything.encode(event)
  return everything.decode(type, JSON.parse(JSON.stringify(payload)), version)
}

describe("round trips", () => {
  it.prop("what is written is read again, whatever it consists of", [Event], ([event]) => {
    const again = Result.getOrThrow(through(event))
    // JSON has one zero only, and so has this equality.
    return again.length === 1 && same(again[0]!, event)
  })

  it.prop(
    "an old version is read as what was meant by it",
    [Schema.Struct({ cents: Schema.Int.check(Schema.isBetween({ minimum: 0, maximum: 1_000_000_000 })) })],
    ([{ cents }]) => {
      const expected = Result.succeed([Deposited.make({ cents, currency: "EUR" })])
      assert.deepStrictEqual(codec.decode("MoneyPaidIn", { amount: cents / 100 }), expected)
      assert.deepStrictEqual(codec.decode("Deposited", { cents }, 2), expected)
    }
  )

  it.prop(
    "no JSON makes it throw",
    [
      Schema.Struct({
        type: Schema.Literals(["Deposited", "Renamed", "Withdrawn", "Exchanged", "Audited", "x"]),
        payload: Schema.Json,
        version: Schema.Finite
      })
    ],
    ([{ payload, type, version }]) => {
      for (const at of [version, 1, 2, 3, 4]) codec.decode(type, payload, at)
    }
  )
})
