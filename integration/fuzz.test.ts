/**
 * What comes from outside may be anything: what others have stored, sent or typed. It is read, or refused by an error that
 * is in the type; nothing dies of it, waits for ever, or changes what all objects have in common.
 */
import { NodeServices } from "@effect/platform-node"
import { assert, describe, it, layer } from "@effect/vitest"
import { Decision, PersistentEntity, ReadOnly } from "@effect-cassandra/entity"
import { encrypted, gzip } from "@effect-cassandra/journal/Encoding"
import * as EventCodec from "@effect-cassandra/journal/EventCodec"
import * as EventStream from "@effect-cassandra/journal/EventStream"
import { Journal } from "@effect-cassandra/journal/Journal"
import { JournalAdmin } from "@effect-cassandra/journal/JournalAdmin"
import { command as journalCommand } from "@effect-cassandra/journal/JournalCli"
import * as Processor from "@effect-cassandra/read-side/Processor"
import { ReadSide } from "@effect-cassandra/read-side/ReadSide"
import { command as readSideCommand } from "@effect-cassandra/read-side/ReadSideCli"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import * as CqlType from "@effect-cassandra/session/CqlType"
import { make as statement } from "@effect-cassandra/session/Statement"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import { Cause, Console, Effect, Exit, Layer, Logger, Random, Redacted, Result, Schema, Stream } from "effect"
import { Command } from "effect/cli"
import { Rpc } from "effect/rpc"

const objectKeys = Reflect.ownKeys(Object.prototype).length

/** It ends, by a value or an error of its type, and has left all other objects alone. */
const survives = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>) =>
  Effect.gen(function* () {
    const exit = yield* Effect.exit(
      Effect.timeoutOrElse(effect, { duration: "20 seconds", orElse: () => Effect.die("hangs") })
    )
    if (Exit.isFailure(exit) && !Cause.hasFails(exit.cause)) assert.fail(`${what}: ${Cause.pretty(exit.cause)}`)
    assert.isUndefined(({} as { polluted?: unknown }).polluted, what)
    assert.strictEqual(Reflect.ownKeys(Object.prototype).length, objectKeys, what)
    return exit
  })

const values = [
  "null",
  "-1",
  "1e400",
  '"x"',
  '"__proto__"',
  '"\\u0000\\ud800"',
  "[]",
  '{"__proto__":{"polluted":1}}',
  '{"constructor":{"prototype":{"polluted":1}}}'
]

const deep = `${'{"a":'.repeat(20_000)}1${"}".repeat(20_000)}`

/** No document at all, then the given one with each part replaced by something else, then with some characters changed. */
const damaged = Effect.fnUntraced(function* (document: object, random: number) {
  const texts = [
    "",
    "{",
    "null",
    "0",
    '"x"',
    "[]",
    "[null]",
    "[[]]",
    "{}",
    '{"__proto__":{"polluted":1}}',
    deep,
    "\u0000"
  ]
  const visit = (value: unknown, wrap: (text: string) => string) => {
    if (typeof value !== "object" || value === null) return
    const entries = Object.entries(value)
    const join = (parts: ReadonlyArray<string>) => (Array.isArray(value) ? `[${parts}]` : `{${parts}}`)
    const part = (key: string, text: string) => (Array.isArray(value) ? text : `${JSON.stringify(key)}:${text}`)
    for (const [key, inner] of entries) {
      const around = (text: string) =>
        wrap(join(entries.map(([other, own]) => part(other, other === key ? text : JSON.stringify(own)))))
      for (const text of values) texts.push(around(text))
      texts.push(
        wrap(join(entries.filter(([other]) => other !== key).map(([other, own]) => part(other, JSON.stringify(own)))))
      )
      visit(inner, around)
    }
  }
  visit(document, (text) => text)
  const valid = JSON.stringify(document)
  for (let i = 0; i < random; i++) {
    const at = yield* Random.nextIntBetween(0, valid.length)
    const put = yield* Random.choice(['"', "{", "}", "[", "]", ",", ":", "\\", "-", "e", "9", "\u0000"])
    texts.push(valid.slice(0, at) + put + valid.slice(at + (yield* Random.nextIntBetween(0, 4))))
  }
  return [...new Set(texts)]
})

describe("what is decoded without a database", () => {
  const Bytes = Schema.Uint8Array
  const Happened = Schema.TaggedStruct("Happened", {
    n: Schema.Int,
    at: Schema.DateTimeUtc,
    by: Schema.Record(Schema.String, Schema.BigInt)
  })

  it.prop("offsets of an event feed (Last-Event-ID)", [Schema.String], ([text]) => {
    for (const tried of [text, `1-${text}`, `${text}-1`, "9".repeat(100_000), "1-".repeat(100_000)]) {
      const parsed = EventStream.parseOffset(tried)
      if (Result.isFailure(parsed)) assert.strictEqual(parsed.failure._tag, "InvalidOffset")
    }
  })

  it.prop("payloads of events", [Schema.String, Schema.Json, Schema.Number], ([type, payload, version]) => {
    const codec = EventCodec.make([Happened])
    for (const name of [type, "Happened", "__proto__", "constructor", "toString"]) {
      for (const given of [payload, undefined, { n: payload }, { n: 1, at: payload, by: payload }]) {
        codec.decode(name, given, version)
      }
    }
    assert.isUndefined(({} as { polluted?: unknown }).polluted)
  })

  it.prop(
    "compressed and encrypted payloads: what they throw is an Error",
    [Bytes, Schema.String],
    ([bytes, entityId]) => {
      const entity = { entityType: "T", entityId }
      const keys = new Map([["k", Redacted.make(Buffer.alloc(32).toString("base64"))]])
      for (const encoding of [gzip(), encrypted({ key: "k", keys, of: gzip() })]) {
        try {
          encoding.decode(bytes, entity)
        } catch (error) {
          assert.instanceOf(error, Error)
        }
      }
    }
  )

  const types = Object.entries({
    ...CqlType,
    list: CqlType.list(CqlType.Int),
    set: CqlType.set(CqlType.Uuid),
    map: CqlType.map(CqlType.Text, CqlType.Decimal),
    tuple: CqlType.tuple(CqlType.Int, CqlType.Text),
    udt: CqlType.udt({ __proto__x: CqlType.Int, at: CqlType.Timestamp }),
    vector: CqlType.vector(CqlType.Float, 3)
  }).flatMap(([name, type]) => (Schema.isSchema(type) ? [[name, type as Schema.Codec<unknown>] as const] : []))

  it.each(types)("values of the CQL type %s", (_, type) => {
    const decode = Schema.decodeUnknownResult(type)
    const encode = Schema.encodeUnknownResult(type)
    const strange = [
      undefined,
      Symbol("s"),
      () => 1,
      new Map([[1, 2]]),
      new Proxy({}, {}),
      Object.create(null),
      1n << 200n
    ]
    for (const value of [...values.map((text) => JSON.parse(text)), ...strange]) {
      decode(value)
      decode([value])
      encode(value)
      encode([value])
    }
  })
})

const Counted = Schema.TaggedStruct("Counted", { n: Schema.Int })

const Counter = PersistentEntity.make("Counter", {
  state: Schema.Struct({ n: Schema.Int }),
  initialState: { n: 0 },
  events: [Counted],
  commands: [ReadOnly.fresh(Rpc.make("Get", { success: Schema.Int }))]
})
const CounterLive = Counter.layer(
  Counter.behavior({
    apply: (_, { n }) => ({ n }),
    commands: { Get: ({ n }) => Decision.reply(n) }
  })
)

const cql = (text: string, ...params: ReadonlyArray<unknown>) =>
  Effect.flatMap(CassandraSession, (session) => session.execute<any>(statement(text, params)))

const options = { shards: 1, maxPollInterval: "50 millis", indexInterval: "20 millis" } as const
const JournalLive = Layer.suspend(() => Layer.fresh(Journal.layer(options)))
const key = { entityType: "Counter", entityId: "a" }

/** All ways to what is stored, in a process that knows nothing yet. */
const readAll = (what: string) =>
  Effect.gen(function* () {
    const journal = yield* Journal
    const exits = [
      yield* survives(`${what}: load`, journal.load(key)),
      yield* survives(`${what}: the log`, Stream.runCollect(journal.currentEvents("Counter", 0, 0))),
      yield* survives(
        `${what}: an entity`,
        Effect.flatMap(Counter, (counters) => counters("a").Get()).pipe(Effect.provide(Layer.fresh(CounterLive)))
      ),
      yield* survives(
        `${what}: verification`,
        Effect.flatMap(JournalAdmin, (admin) => admin.verify("Counter")).pipe(Effect.provide(JournalAdmin.layer()))
      )
    ]
    return exits.filter(({ _tag }) => _tag === "Failure").length
  }).pipe(Effect.provide(JournalLive))

layer(TestKeyspace.layer, { excludeTestServices: true, timeout: "2 minutes" })("what is stored", (it) => {
  it.effect(
    "blocks of the log, rows of the index, snapshots",
    () =>
      Effect.gen(function* () {
        yield* Effect.gen(function* () {
          const journal = yield* Journal
          const events = [1, 2].map((n) => ({ type: "Counted", payload: { n } }))
          yield* journal.append({ ...key, expected: "any", events })
          const position = yield* journal.load(key)
          yield* journal.saveSnapshot(key, { ...position, state: { n: 2 } }, 0)
        }).pipe(Effect.provide(JournalLive))
        assert.strictEqual(yield* readAll("nothing damaged"), 0)
        const [block] = (yield* cql("SELECT * FROM event_log")).filter(({ offset }) => offset !== null)
        const [row] = yield* cql("SELECT * FROM entity_events")
        const [snapshot] = yield* cql("SELECT * FROM snapshots")
        const places = [
          [
            "block",
            block.events,
            (text: string) =>
              cql(
                "UPDATE event_log SET events = ? WHERE entity_type = ? AND shard = 0 AND generation = ? AND bucket = ? AND part = ? AND offset = ? IF EXISTS",
                text,
                block.entity_type,
                block.generation,
                block.bucket,
                block.part,
                block.offset
              )
          ],
          [
            "index row",
            row.events,
            (text: string) =>
              cql(
                "UPDATE entity_events USING TIMESTAMP 9000000000000000 SET events = ? WHERE entity_type = ? AND entity_id = ? AND generation = ? AND partition = ? AND sequence = ?",
                text,
                row.entity_type,
                row.entity_id,
                row.generation,
                row.partition,
                row.sequence
              )
          ],
          [
            "snapshot",
            snapshot.state,
            (text: string) =>
              cql(
                "UPDATE snapshots SET state = ? WHERE entity_type = ? AND entity_id = ? AND sequence = ?",
                text,
                snapshot.entity_type,
                snapshot.entity_id,
                snapshot.sequence
              )
          ]
        ] as const
        for (const [name, valid, write] of places) {
          let refused = 0
          for (const text of yield* damaged(JSON.parse(valid), 20)) {
            yield* write(text)
            refused += Math.min(1, yield* readAll(`${name} ${text.slice(0, 100)}`))
          }
          // A snapshot that cannot be read is passed over, for it is no truth of its own.
          if (name === "snapshot") assert.strictEqual(refused, 0)
          else assert.isAbove(refused, 20, name)
          // Equal timestamps are decided by the greater value: an index row is made anew by its own means.
          if (name === "index row") yield* cql("TRUNCATE entity_events")
          else yield* write(valid)
          if (name === "index row") {
            yield* Effect.flatMap(JournalAdmin, (admin) => admin.rebuildIndex("Counter")).pipe(
              Effect.provide(JournalAdmin.layer())
            )
          }
          assert.strictEqual(yield* readAll(`${name} mended`), 0)
        }
      }).pipe(Random.withSeed("fuzz"), Effect.provide(Logger.layer([]))),
    240_000
  )

  it.effect(
    "what processes of the read side tell each other, and states of a fold",
    () =>
      Effect.gen(function* () {
        const Sum = Processor.fold("sum", {
          entityType: "Summed",
          events: [Counted],
          table: "sums",
          state: Schema.Struct({ n: Schema.Int }),
          initial: { n: 0 },
          key: () => "all",
          fold: (_, { n }) => ({ n }),
          merge: (a, b) => ({ n: a.n + b.n })
        })
        const control = {
          revision: 1,
          epoch: 1,
          generation: 0,
          desired: "running",
          shards: { "Summed/0": "running" },
          starts: [{ epoch: 1, to: { offset: 0 }, shard: 0 }],
          held: false,
          parked: 0,
          active: 1,
          newest: 1,
          dropped: false
        }
        const member = {
          id: "m",
          label: "here 1",
          seen: { sum: 1 },
          owns: { sum: { "Summed/0": { offset: 1, head: 1, rate: 0 } } }
        }
        const registration = { name: "sum", version: 1, entityTypes: ["Summed"], tables: ["sums"] }
        yield* Effect.gen(function* () {
          const journal = yield* Journal
          const summed = { entityType: "Summed", entityId: "a" }
          yield* journal.append({ ...summed, expected: "any", events: [{ type: "Counted", payload: { n: 1 } }] })
          const readSide = yield* ReadSide
          const all = Effect.gen(function* () {
            yield* readSide.status
            yield* readSide.pause("sum")
            yield* readSide.resume("sum")
          })
          for (const [kind, name, document] of [
            ["control", "sum", control],
            ["member", "m", member],
            ["processor", "sum", registration]
          ] as const) {
            let refused = 0
            for (const text of yield* damaged(document, 30)) {
              yield* cql(
                "INSERT INTO read_side_cluster (part, kind, name, value) VALUES ('read side', ?, ?, ?)",
                kind,
                name,
                text
              )
              const exit = yield* survives(`${kind} ${text.slice(0, 100)}`, all)
              if (Exit.isFailure(exit)) refused++
            }
            assert.isAbove(refused, 20, kind)
            yield* cql("DELETE FROM read_side_cluster WHERE part = 'read side' AND kind = ? AND name = ?", kind, name)
          }
          for (const text of yield* damaged({ n: 1 }, 30)) {
            yield* cql(
              "INSERT INTO sums (key, entity_type, shard, offset, state) VALUES ('all', 'Summed', 0, 1, ?)",
              text
            )
            yield* survives(`state ${text.slice(0, 100)}`, Sum.stateOf("all"))
          }
        }).pipe(
          Effect.provide(
            ReadSide.layerRequests.pipe(
              // The tables of the processor.
              Layer.provideMerge(Layer.effectDiscard(Effect.provide(Effect.void, ReadSide.layer([Sum])))),
              Layer.provideMerge(JournalLive)
            )
          )
        )
      }).pipe(Random.withSeed("fuzz"), Effect.provide(Logger.layer([]))),
    240_000
  )

  it.effect(
    "identifiers with quotes, and arguments of the command lines",
    () =>
      Effect.gen(function* () {
        const strange = [
          "a'b",
          'a"b',
          "a;DROP TABLE event_log;--",
          "__proto__",
          "constructor",
          "-1",
          "--",
          "\u0000",
          "é\u{1f600}",
          " ",
          "x".repeat(1000)
        ]
        yield* Effect.gen(function* () {
          const journal = yield* Journal
          for (const name of strange) {
            const entity = { entityType: "Named", entityId: name }
            yield* journal.append({ ...entity, expected: "any", events: [{ type: "Counted", payload: { n: 1 } }] })
            assert.strictEqual((yield* journal.load(entity)).events.length, 1, name)
            yield* survives(`type ${name.slice(0, 20)}`, journal.load({ ...entity, entityType: name }))
          }
        }).pipe(Effect.provide(JournalLive))
        const log = () => {}
        const quiet = { ...console, log, error: log } as Console.Console
        for (const name of strange) {
          for (const args of [
            ["history", "Named", name],
            ["history", name, "a", "--after", name],
            ["delete", "Named", name, "--dry-run"],
            ["verify", name],
            [name],
            [`--${name}`]
          ]) {
            yield* survives(
              `journal ${args.join(" ").slice(0, 60)}`,
              journalCommand.pipe(
                Command.provide(Layer.fresh(JournalAdmin.layer())),
                (provided) => Command.runWith(provided, { version: "1" })(args),
                Effect.provide(NodeServices.layer),
                Effect.provideService(Console.Console, quiet)
              )
            )
          }
          for (const args of [["status", name], ["pause", name], ["rewind", name, "--to", name], [name]]) {
            yield* survives(
              `read-side ${args.join(" ").slice(0, 60)}`,
              Command.runWith(readSideCommand, { version: "1" })(args).pipe(
                Effect.provide(ReadSide.layerRequests.pipe(Layer.provide(JournalLive))),
                Effect.provide(NodeServices.layer),
                Effect.provideService(Console.Console, quiet)
              )
            )
          }
        }
        // Nothing was dropped.
        assert.isAbove((yield* cql("SELECT offset FROM event_log")).length, strange.length)
      }),
    240_000
  )
})
