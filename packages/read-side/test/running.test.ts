import { assert, layer } from "@effect/vitest"
import { Journal } from "@effect-cassandra/journal/Journal"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { cql, identifier } from "@effect-cassandra/session/Statement"
import { Effect, Exit, Fiber, Layer, Schema, Scope, Stream } from "effect"
import * as Processor from "../src/Processor.ts"
import { type Options, ReadSide } from "../src/ReadSide.ts"
import type { ReadSideError } from "../src/ReadSideError.ts"
import { Added, added, append, eventually, Live, lines, linesOf, oneOfEachShard } from "./fixture.ts"

const quick: Options = { lease: "2 seconds", offsetInterval: "20 millis" }

/** A process of its own, as far as the read side can tell. */
const join = Effect.fnUntraced(function* (processors: ReadonlyArray<Processor.Processor>, options: Options = quick) {
  const scope = yield* Scope.make()
  const context = yield* Layer.buildWithScope(Layer.fresh(ReadSide.layer(processors, options)), scope)
  const readSide = yield* Effect.provide(ReadSide, context)
  yield* Effect.addFinalizer(() => Scope.close(scope, Exit.void))
  return { readSide, leave: Scope.close(scope, Exit.void) }
})

/** Rows of the partition in which members say what they work on. */
const members = Effect.gen(function* () {
  const session = yield* CassandraSession
  const rows = yield* session.execute<{ value: string }>(
    cql`SELECT value FROM read_side_cluster WHERE part = 'read side' AND kind = 'member'`
  )
  return rows.map(({ value }) => JSON.parse(value) as { id: string; owns: Record<string, Record<string, unknown>> })
})

/** How many shards of a processor each member has; fails while one has none, or two. */
const shares = (processor: string, shards: number) =>
  Effect.gen(function* () {
    const owned = (yield* members).map(({ owns }) => Object.keys(owns[processor] ?? {}))
    assert.strictEqual(new Set(owned.flat()).size, shards)
    assert.strictEqual(owned.flat().length, shards)
    return owned.map(({ length }) => length).sort()
  })

layer(Live, { excludeTestServices: true, timeout: "2 minutes" })("running", (it) => {
  it.effect("processes share the shards, evenly when one joins, and take over when one leaves", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const processors = [lines("shared", "Shared"), lines("shared-too", "Shared")]
      const first = yield* join(processors)
      assert.deepStrictEqual(yield* shares("shared", 3), [3])
      const second = yield* join(processors)
      yield* eventually(Effect.map(shares("shared", 3), (found) => assert.deepStrictEqual(found, [1, 2])))
      const third = yield* join(processors)
      yield* eventually(Effect.map(shares("shared", 3), (found) => assert.deepStrictEqual(found, [1, 1, 1])))
      yield* eventually(Effect.map(shares("shared-too", 3), (found) => assert.deepStrictEqual(found, [1, 1, 1])))
      for (const id of ids) yield* append("Shared", id, added(1))
      for (const id of ids)
        yield* eventually(Effect.map(linesOf("shared", id), (rows) => assert.deepStrictEqual(rows, [[1, 1]])))
      yield* first.leave
      yield* second.leave
      for (const id of ids) yield* append("Shared", id, added(2))
      for (const id of ids) {
        yield* eventually(
          Effect.map(linesOf("shared", id), (rows) =>
            assert.deepStrictEqual(rows, [
              [1, 1],
              [2, 2]
            ])
          )
        )
      }
      assert.deepStrictEqual(yield* shares("shared", 3), [3])
      yield* third.leave
      assert.deepStrictEqual(yield* members, [])
    }).pipe(Effect.scoped)
  )

  it.effect("a shard of a process that is not heard of any more moves when its lease ends", () =>
    Effect.gen(function* () {
      const session = yield* CassandraSession
      const owns = {
        silent: { "Silent/0": { offset: 0, head: 0, rate: 0 }, "Silent/1": { offset: 0, head: 0, rate: 0 } }
      }
      yield* Effect.scoped(join([lines("silent", "Silent")]))
      yield* session.execute(
        cql`INSERT INTO read_side_cluster (part, kind, name, value)
            VALUES ('read side', 'member', 'dead', ${JSON.stringify({ id: "dead", label: "dead", seen: {}, owns })}) USING TTL 2`
      )
      const { readSide } = yield* join([lines("silent", "Silent")])
      const states = Effect.map(readSide.status, (all) =>
        all.filter(({ processor }) => processor === "silent").map(({ owner }) => owner === "dead")
      )
      assert.deepStrictEqual(yield* states, [true, true, false])
      yield* eventually(
        Effect.map(states, (found) => assert.deepStrictEqual(found, [false, false, false])),
        6
      )
    }).pipe(Effect.scoped)
  )

  it.effect("ten processors on one entity type read its log once", () =>
    Effect.gen(function* () {
      const session = yield* CassandraSession
      const ids = yield* oneOfEachShard
      for (const id of ids) for (let i = 0; i < 30; i++) yield* append("Popular", id, added(i))
      let reads = 0
      const counting = Layer.succeed(CassandraSession, {
        ...session,
        execute: ((statement) => {
          if (/FROM event_log/.test(statement.text) && /offset >/.test(statement.text)) reads++
          return session.execute(statement)
        }) as typeof session.execute
      })
      const run = (count: number) =>
        Effect.gen(function* () {
          reads = 0
          const names = Array.from({ length: count }, (_, i) => `popular-${count}-${i}`)
          yield* Effect.gen(function* () {
            for (const name of names) {
              for (const id of ids) {
                yield* eventually(Effect.map(linesOf(name, id), (rows) => assert.strictEqual(rows.length, 30)))
              }
            }
          }).pipe(
            Effect.provide(
              ReadSide.layer(names.map((name) => lines(name, "Popular"))).pipe(
                Layer.provide(Layer.fresh(Journal.layer({ shards: 3 }))),
                Layer.provide(counting)
              )
            )
          )
          return reads
        })
      const one = yield* run(1)
      const ten = yield* run(10)
      // Each by itself would take ten times as many; a few more come of looking at the end for longer.
      assert.isBelow(ten, 3 * one, `${one} reads by one processor, ${ten} by ten`)
    })
  )

  it.effect("requests are durable, hold for all processes, and the last one wins", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const states = (readSide: ReadSide["Service"], name: string) =>
        Effect.map(readSide.status, (all) =>
          all.filter(({ processor }) => processor === name).map(({ state }) => state)
        )
      const expectStates = (readSide: ReadSide["Service"], name: string, expected: ReadonlyArray<string>) =>
        eventually(Effect.map(states(readSide, name), (found) => assert.deepStrictEqual(found, [...expected])))

      // Before the processor exists.
      const tool = yield* Effect.provide(ReadSide, ReadSide.layerRequests)
      yield* tool.pause("controlled")
      yield* append("Controlled", ids[0]!, added(1))
      const one = yield* join([lines("controlled", "Controlled")])
      const two = yield* join([lines("controlled", "Controlled")])
      yield* expectStates(tool, "controlled", ["paused", "paused", "paused"])
      assert.deepStrictEqual(yield* linesOf("controlled", ids[0]!), [])

      yield* two.readSide.resume("controlled")
      yield* expectStates(tool, "controlled", ["running", "running", "running"])
      yield* eventually(Effect.map(linesOf("controlled", ids[0]!), (rows) => assert.deepStrictEqual(rows, [[1, 1]])))

      yield* one.readSide.stop("controlled", { shard: 1 })
      yield* expectStates(tool, "controlled", ["running", "stopped", "running"])
      yield* append("Controlled", ids[1]!, added(5))
      yield* append("Controlled", ids[2]!, added(6))
      yield* eventually(Effect.map(linesOf("controlled", ids[2]!), (rows) => assert.deepStrictEqual(rows, [[1, 6]])))
      assert.deepStrictEqual(yield* linesOf("controlled", ids[1]!), [])
      const stopped = (yield* tool.status).find(({ processor, shard }) => processor === "controlled" && shard === 1)!
      assert.deepInclude(stopped, { offset: 0, head: 1, lag: 1, failure: undefined })
      assert.isAbove(stopped.lagMillis, 0)

      yield* tool.start("controlled", { shard: 1 })
      yield* eventually(Effect.map(linesOf("controlled", ids[1]!), (rows) => assert.deepStrictEqual(rows, [[1, 5]])))
      yield* tool.pause("controlled")
      yield* tool.stop("controlled", { shard: 0 })
      yield* tool.resume("controlled")
      yield* expectStates(tool, "controlled", ["running", "running", "running"])

      const error = yield* Effect.flip(tool.stop("controlled", { shard: 3 }))
      assert.match(error.message, /there is no shard 3: there are 0 to 2/)
      const unknown = yield* Effect.flip(tool.stop("nobody", { shard: 0 }))
      assert.match(unknown.message, /there is no processor "nobody": known are .*controlled/)
    }).pipe(Effect.scoped)
  )

  it.effect("offsets are read, set and cleared, and a rewind to a time begins with its first event", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const handled: Array<number> = []
      const counting = Processor.effect("rewound", {
        entityType: "Rewound",
        events: [Added],
        handlers: { Added: ({ amount }) => Effect.sync(() => handled.push(amount)) }
      })
      for (let i = 1; i <= 5; i++) yield* append("Rewound", "a", added(i))
      const { events } = yield* journal.load({ entityType: "Rewound", entityId: "a" })
      const shard = journal.shardOf("a")
      const handledSince = (expected: ReadonlyArray<number>) =>
        eventually(Effect.sync(() => assert.deepStrictEqual(handled.splice(0), [...expected])))
      const { readSide } = yield* join([counting])
      yield* eventually(Effect.sync(() => assert.strictEqual(handled.length, 5)))
      handled.length = 0
      yield* eventually(
        Effect.map(readSide.offsets("rewound"), (offsets) =>
          assert.deepStrictEqual(
            offsets.find((one) => one.shard === shard),
            { entityType: "Rewound", shard, offset: 5 }
          )
        )
      )
      const after = (expected: ReadonlyArray<number>) =>
        Effect.andThen(
          eventually(Effect.sync(() => assert.strictEqual(handled.length, expected.length))),
          handledSince(expected)
        )
      yield* readSide.setOffset("rewound", { shard }, 3)
      yield* after([4, 5])
      yield* readSide.rewind("rewound", { time: new Date(Math.floor(events[1]!.stamp / 1000)) }, { shard: { shard } })
      yield* after([2, 3, 4, 5])
      yield* readSide.clearOffsets("rewound")
      yield* after([1, 2, 3, 4, 5])
      const error = yield* Effect.flip(readSide.rewind("rewound", { offset: -1 }))
      assert.match(error.message, /give an offset of 0 or more/)
      const partial = yield* Effect.flip(readSide.rewind("rewound", { offset: 3 }, { truncate: true }))
      assert.match(partial.message, /to the beginning only/)
    }).pipe(Effect.scoped)
  )

  it.effect("a rewind with changed code under traffic leaves the rows of the new code only", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const times = (factor: number) =>
        Processor.make("changed", {
          entityType: "Changed",
          events: [Added],
          tables: [
            "CREATE TABLE IF NOT EXISTS changed (id text, sequence bigint, amount int, PRIMARY KEY (id, sequence))"
          ],
          handlers: {
            Added: ({ amount }, { entityId, sequence }) =>
              cql`INSERT INTO changed (id, sequence, amount) VALUES (${entityId}, ${BigInt(sequence)}, ${amount * factor})`
          }
        })
      const traffic = yield* Effect.gen(function* () {
        for (const id of ids) yield* append("Changed", id, added(1))
      }).pipe(Effect.repeat({ times: 60 }), Effect.forkChild)
      const session = yield* CassandraSession
      const rows = (id: string) => session.execute<{ amount: number }>(cql`SELECT amount FROM changed WHERE id = ${id}`)
      const old = yield* join([times(1)])
      yield* eventually(Effect.map(rows(ids[0]!), (found) => assert.isAbove(found.length, 5)))
      // Old and new code run side by side for a while; what was written by the old one must not stand against the new one.
      const young = yield* join([times(10)])
      yield* old.leave
      yield* young.readSide.rewind("changed", "beginning", { truncate: true })
      yield* Fiber.join(traffic)
      for (const id of ids) {
        yield* eventually(
          Effect.map(rows(id), (found) => {
            assert.strictEqual(found.length, 61)
            assert.isTrue(found.every(({ amount }) => amount === 10))
          })
        )
      }
    }).pipe(Effect.scoped)
  )

  it.effect("who has a position waits until the view has it, in this process and in another", () =>
    Effect.gen(function* () {
      const { readSide } = yield* join([lines("awaited", "Awaited")])
      const elsewhere = yield* Effect.provide(ReadSide, ReadSide.layerRequests)
      for (let i = 1; i <= 5; i++) {
        const position = yield* append("Awaited", "a", added(i))
        yield* (i % 2 === 0 ? elsewhere : readSide).awaitProjected("awaited", position)
        assert.strictEqual((yield* linesOf("awaited", "a")).length, i)
      }
      const late = yield* Effect.flip(
        readSide.awaitProjected("awaited", { entityType: "Awaited", shard: 0, offset: 1000 }, "50 millis")
      )
      assert.strictEqual(late.reason._tag, "NotProjected")
      assert.match(late.message, /does not have event 1000 of Awaited shard 0 after 50 ms: it is running at offset/)
      const wrong = yield* Effect.flip(readSide.awaitProjected("awaited", { entityType: "Other", shard: 0, offset: 1 }))
      assert.match(wrong.message, /follows Awaited, and not Other/)
    }).pipe(Effect.scoped)
  )

  it.effect("an event that cannot be handled is put aside with those behind it, listed, retried and skipped", () =>
    Effect.gen(function* () {
      const journal = yield* Journal
      const ids = yield* oneOfEachShard
      // Another entity of the same shard goes on.
      let neighbour = "n0"
      for (let i = 1; journal.shardOf(neighbour) !== 0; i++) neighbour = `n${i}`
      const handled: Array<string> = []
      let broken = true
      const parking = Processor.effect("parking", {
        entityType: "Parking",
        events: [Added],
        onFailure: { park: { attempts: 3 } },
        handlers: {
          Added: ({ amount }, { entityId }) =>
            Effect.suspend(() => {
              if ((amount === 2 || amount === 7) && broken) return Effect.fail(`no ${amount}`)
              handled.push(`${entityId} ${amount}`)
              return Effect.void
            })
        }
      })
      const bad = ids[0]!
      const { readSide } = yield* join([parking], { ...quick, maxBackOff: "20 millis" })
      yield* append("Parking", bad, added(1), added(2), added(3))
      yield* append("Parking", neighbour, added(4))
      yield* append("Parking", bad, added(5))
      const parked = Effect.map(readSide.parked("parking"), (all) =>
        all.map(({ attempts, entityId, error, sequence }) => [entityId, sequence, attempts, error?.split(": ").at(-1)])
      )
      yield* eventually(
        Effect.map(parked, (found) =>
          assert.deepStrictEqual(found, [
            [bad, 2, 3, "no 2"],
            [bad, 3, 0, undefined],
            [bad, 4, 0, undefined]
          ])
        )
      )
      yield* eventually(Effect.sync(() => assert.deepStrictEqual(handled, [`${bad} 1`, `${neighbour} 4`])))
      assert.strictEqual(
        (yield* readSide.status).find(({ processor, shard }) => processor === "parking" && shard === 0)?.parked,
        3
      )

      // In vain.
      yield* readSide.retryParked("parking", { entityType: "Parking", entityId: bad })
      yield* eventually(Effect.map(parked, (found) => assert.deepStrictEqual(found[0], [bad, 2, 4, "no 2"])))
      broken = false
      yield* readSide.retryParked("parking", { entityType: "Parking", entityId: bad })
      yield* eventually(Effect.map(parked, (found) => assert.deepStrictEqual(found, [])))
      assert.deepStrictEqual(handled.slice(2), [`${bad} 2`, `${bad} 3`, `${bad} 5`])

      broken = true
      yield* append("Parking", bad, added(7), added(8))
      yield* eventually(Effect.map(parked, (found) => assert.strictEqual(found.length, 2)))
      yield* readSide.skipParked("parking", { entityType: "Parking", entityId: bad })
      yield* eventually(Effect.map(parked, (found) => assert.deepStrictEqual(found, [])))
      yield* append("Parking", bad, added(9))
      yield* eventually(Effect.sync(() => assert.deepStrictEqual(handled.slice(5), [`${bad} 8`, `${bad} 9`])))
      const error = yield* Effect.flip(readSide.retryParked("parking", { entityType: "Parking", entityId: bad }))
      assert.match(error.message, /has put no event of Parking/)
    }).pipe(Effect.scoped)
  )

  it.effect("requests that cannot be followed are refused, and say what there is", () =>
    Effect.gen(function* () {
      const { readSide } = yield* join([lines("asked", "Asked")])
      const { offset, shard } = yield* append("Asked", "a", added(1))
      const refused = <A>(request: Effect.Effect<A, ReadSideError>, expected: RegExp) =>
        Effect.map(Effect.flip(request), ({ message }) => assert.match(message, expected))
      yield* refused(readSide.pause("no name"), /no processor can be called "no name"/)
      yield* refused(readSide.stop("asked", { entityType: "Other", shard: 0 }), /follows Asked, and not Other/)
      yield* refused(
        readSide.rewind("asked", { offset: 1 }),
        /shard \d ends at 0, so that "asked" cannot go on after 1/
      )
      yield* refused(readSide.rewind("asked", { offset: -1 }), /give an offset of 0 or more/)
      yield* refused(readSide.rewind("asked", { offset: 1 }, { truncate: true }), /to the beginning only/)
      yield* refused(readSide.offsets("unasked"), /there is no processor "unasked": known are .*asked/)
      yield* refused(readSide.retryParked("asked", { entityType: "Other", entityId: "a" }), /and not Other/)
      yield* refused(readSide.awaitProjected("asked", { entityType: "Asked", shard: 9, offset }), /there is no shard 9/)
      yield* refused(
        readSide.awaitProjected("asked", { entityType: "Asked", shard, offset: Number.NaN }),
        /no offset NaN/
      )
      // Before the first event, and when nothing has happened yet.
      yield* readSide.rewind("asked", { time: new Date(0) })
      yield* readSide.awaitProjected("asked", yield* append("Asked", "a", added(2)))
      yield* readSide.rewind("asked", { time: new Date("2100-01-01") })
      yield* readSide.awaitProjected("asked", yield* append("Asked", "a", added(3)))
    }).pipe(Effect.scoped)
  )

  it.effect("a state per key leaves a failing event out, takes it late once, and a group finds the one at fault", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const journal = yield* Journal
      const [bad, neighbour] = Array.from({ length: 100 }, (_, i) => `n${i}`).filter((id) => journal.shardOf(id) === 0)
      let broken = true
      const State = Schema.Struct({ sum: Schema.Int, last: Schema.String })
      const Sums = Processor.fold("late-sums", {
        entityType: "Late",
        events: [Added],
        table: "late_sums",
        onFailure: { park: { attempts: 2 } },
        state: State,
        initial: { sum: 0, last: "" },
        key: () => "all",
        fold: ({ sum }, { amount }, { entityId }) => {
          if (broken && amount === 2) throw new Error("no 2")
          // What the schema refuses is that event's fault, too.
          return { sum: broken && amount === 3 ? 0.5 : sum + amount, last: entityId }
        },
        merge: (a, b) => ({ sum: a.sum + b.sum, last: a.last + b.last })
      })
      const groups: Array<ReadonlyArray<number>> = []
      const Groups = Processor.grouped("late-groups", {
        entityType: "Late",
        events: [Added],
        size: 10,
        within: "50 millis",
        onFailure: { park: { attempts: 2 } },
        handle: (events) =>
          Effect.suspend(() => {
            const amounts = events.map(({ event }) => event.amount)
            if (broken && amounts.some((amount) => amount === 2 || amount === 3)) return Effect.fail("no 2")
            groups.push(amounts)
            return Effect.void
          })
      })
      yield* append("Late", bad!, added(1), added(2), added(10))
      yield* append("Late", neighbour!, added(3), added(20))
      yield* append("Late", ids[1]!, added(100))
      const { readSide } = yield* join([Sums, Groups], { ...quick, maxBackOff: "20 millis" })
      const parked = (name: string) =>
        Effect.map(readSide.parked(name), (all) => all.map(({ entityId, sequence }) => [entityId, sequence]))
      for (const name of ["late-sums", "late-groups"]) {
        yield* eventually(
          Effect.map(parked(name), (found) =>
            assert.sameDeepMembers(found, [
              [bad, 2],
              [bad, 3],
              [neighbour, 1],
              [neighbour, 2]
            ])
          )
        )
      }
      const position = yield* append("Late", ids[0] === bad || ids[0] === neighbour ? "other" : ids[0]!, added(1000))
      for (const name of ["late-sums", "late-groups"]) yield* readSide.awaitProjected(name, position)
      yield* eventually(Effect.map(Sums.stateOf("all"), ({ sum }) => assert.strictEqual(sum, 1101)))
      assert.sameMembers(groups.flat(), [1, 100, 1000])

      broken = false
      const retry = (name: string) =>
        Effect.forEach([bad!, neighbour!], (entityId) =>
          readSide.retryParked(name, { entityType: "Late", entityId }).pipe(
            // It was asked for, and done, together with the other one.
            Effect.catch(() => Effect.void)
          )
        )
      yield* retry("late-sums")
      yield* retry("late-groups")
      for (const name of ["late-sums", "late-groups"]) {
        yield* eventually(Effect.map(parked(name), (found) => assert.deepStrictEqual(found, [])))
      }
      assert.strictEqual((yield* Sums.stateOf("all")).sum, 1136)
      assert.sameMembers(groups.flat(), [1, 100, 1000, 2, 10, 3, 20])
      // As after a crash before it was noted that the last one has been taken.
      const [last] = yield* journal.currentEvents("Late", 0, 4).pipe(Stream.take(1), Stream.runCollect)
      assert.deepStrictEqual([last!.entityId, last!.sequence], [neighbour, 2])
      const sink = yield* Sums.open({
        place: { processor: "late-sums", entityType: "Late", shard: 0 },
        shards: 3,
        session: yield* CassandraSession,
        concurrency: 1,
        generation: 0,
        epoch: 0
      })
      assert.strictEqual((yield* sink.handle([last!], true)).written, 0)
      // What comes next stands above what came late; and from the beginning again all are there already.
      yield* readSide.awaitProjected("late-sums", yield* append("Late", bad!, added(10_000)))
      assert.strictEqual((yield* Sums.stateOf("all")).sum, 11_136)
      yield* readSide.rewind("late-sums", "beginning")
      yield* readSide.awaitProjected("late-sums", yield* append("Late", bad!, added(100_000)))
      assert.strictEqual((yield* Sums.stateOf("all")).sum, 111_136)
    }).pipe(Effect.scoped)
  )

  it.effect("an undecodable event in a group does not take those before it along", () =>
    Effect.gen(function* () {
      const id = (yield* oneOfEachShard)[0]!
      const handled: Array<number> = []
      const grouped = Processor.grouped("careful-groups", {
        entityType: "Careful",
        events: [Added],
        size: 10,
        within: "1 second",
        onFailure: { park: { attempts: 1 } },
        handle: (events) => Effect.sync(() => void handled.push(...events.map(({ event }) => event.amount)))
      })
      yield* append("Careful", id, added(1), added(2), { type: "Added", payload: {} })
      yield* append("Careful", "other", added(3))
      const { readSide } = yield* join([grouped])
      yield* eventually(
        Effect.gen(function* () {
          assert.strictEqual((yield* readSide.parked("careful-groups")).length, 1)
          assert.sameMembers(handled, [1, 2, 3])
        })
      )
    }).pipe(Effect.scoped)
  )

  it.effect("a new version is filled while the old one serves, and readers switch when it has caught up", () =>
    Effect.gen(function* () {
      const ids = yield* oneOfEachShard
      const version = (n: number) =>
        Processor.make("versioned", {
          entityType: "Versioned",
          events: [Added],
          version: n,
          tables: [
            `CREATE TABLE IF NOT EXISTS versioned_${n} (id text, sequence bigint, writer int, PRIMARY KEY (id, sequence))`
          ],
          handlers: {
            Added: (_, { entityId, sequence }) =>
              cql`INSERT INTO ${identifier(`versioned_${n}`)} (id, sequence, writer) VALUES (${entityId}, ${BigInt(sequence)}, ${n})`
          }
        })
      const session = yield* CassandraSession
      let stored = 0
      let stop = false
      const seen = new Set<number>()
      const old = yield* join([version(1)])
      for (let i = 0; i < 20; i++) {
        for (const id of ids) yield* append("Versioned", id, added(i))
        stored++
      }
      const traffic = yield* Effect.gen(function* () {
        for (const id of ids) yield* append("Versioned", id, added(0))
        stored++
      }).pipe(Effect.repeat({ while: () => !stop }), Effect.forkChild)
      yield* eventually(
        Effect.map(session.execute(cql`SELECT id FROM versioned_1 WHERE id = ${ids[0]}`), (rows) =>
          assert.isAbove(rows.length, 19)
        )
      )
      const both = yield* join([version(1), version(2)])
      yield* old.leave
      /** What a reader sees is whole, whichever version it uses: it never becomes less. */
      let most = 0
      const reader = yield* Effect.gen(function* () {
        const active = yield* both.readSide.activeVersion("versioned")
        seen.add(active)
        const rows = yield* session.execute<{ writer: number }>(
          cql`SELECT writer FROM ${identifier(`versioned_${active}`)} WHERE id = ${ids[0]}`
        )
        assert.isTrue(
          rows.every(({ writer }) => writer === active),
          "a mixed view"
        )
        assert.isAtLeast(rows.length, most - 60, "a view that is not filled yet")
        most = Math.max(most, rows.length)
      }).pipe(Effect.repeat({ until: () => seen.has(2) && most > 30 }), Effect.forkChild)
      yield* Fiber.join(reader)
      stop = true
      yield* Fiber.join(traffic)
      assert.deepStrictEqual([...seen], [1, 2])
      for (const id of ids) {
        yield* eventually(
          Effect.map(session.execute(cql`SELECT id FROM versioned_2 WHERE id = ${id}`), (rows) =>
            assert.strictEqual(rows.length, stored)
          )
        )
      }
      const inUse = yield* Effect.flip(both.readSide.drop("versioned", 2))
      assert.match(inUse.message, /readers use version 2/)
      yield* both.readSide.switchTo("versioned", 1)
      assert.strictEqual(yield* both.readSide.activeVersion("versioned"), 1)
      yield* both.readSide.switchTo("versioned", 2)
      yield* both.readSide.drop("versioned", 1)
      const gone = yield* Effect.flip(session.execute(cql`SELECT * FROM versioned_1`))
      assert.strictEqual(gone.reason._tag, "InvalidStatement")
      assert.isFalse((yield* both.readSide.status).some(({ processor }) => processor === "versioned"))
    }).pipe(Effect.scoped)
  )
})
