/** What the benchmarks share: both sides of a comparison run in one process, on one server, in turn. */
import { totalmem } from "node:os"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { CassandraServer, type Connection } from "@effect-cassandra/testing/CassandraServer"
import driver from "cassandra-driver"
import { Effect, Layer, Schema } from "effect"

const words =
  "account annual bonus books building by card coffee contract customer dinner energy february flight for from grocery hotel insurance internet invoice market monthly north number office order payment phone reference refund rent salary savings shipping south standing street supplier taxi thanks the ticket to train transfer water with your".split(
    " "
  )
const word = () =>
  Math.random() < 0.2 ? Math.floor(Math.random() * 100_000) : words[Math.floor(Math.random() * words.length)]
const notes = Array.from({ length: 10_000 }, () =>
  `${crypto.randomUUID()} ${Array.from({ length: 40 }, word).join(" ")}`.slice(0, 150)
)

let next = 0

/**
 * 150 characters, each time other ones: an event is about 200 bytes of JSON, as in the figures of other toolkits, and no more
 * like its neighbours than real ones are.
 */
export const note = (): string => notes[next++ % notes.length]!

/** The event of the comparisons. */
export const Deposited = Schema.TaggedStruct("Deposited", {
  cents: Schema.Int,
  balance: Schema.Int,
  note: Schema.String
})

/** Options of `parseArgs` for how long is measured: seconds of each figure, rounds, and seconds of warming up before. */
export const timing = (warm: string) =>
  ({
    seconds: { type: "string", default: "3" },
    rounds: { type: "string", default: "3" },
    warm: { type: "string", default: warm }
  }) as const

export const median = (numbers: ReadonlyArray<number>) =>
  numbers.toSorted((a, b) => a - b)[Math.floor(numbers.length / 2)]!

export const percentile = (numbers: ReadonlyArray<number>, share: number) =>
  numbers.toSorted((a, b) => a - b)[Math.floor((numbers.length - 1) * share)]!

/** How many steps were done in how many seconds, and how long each took where there are few. */
export interface Measured {
  readonly perSecond: number
  readonly millis: ReadonlyArray<number>
}

const keptTimes = 20_000

/** Repeats a step in `count` loops at once; nothing of Effect stands between the driver and its figure. */
export const bare = async (count: number, millis: number, step: (loop: number) => Promise<unknown>) => {
  const times: Array<number> = []
  let done = 0
  const begin = performance.now()
  const end = begin + millis
  await Promise.all(
    Array.from({ length: count }, async (_, loop) => {
      for (let now = performance.now(); now < end; ) {
        await step(loop)
        const then = now
        now = performance.now()
        if (done++ < keptTimes) times.push(now - then)
      }
    })
  )
  return { perSecond: done / ((performance.now() - begin) / 1000), millis: times } satisfies Measured
}

/** As `bare`, with effects. */
export const effectful = <E, R>(count: number, millis: number, step: (loop: number) => Effect.Effect<unknown, E, R>) =>
  Effect.suspend(() => {
    const times: Array<number> = []
    let done = 0
    const begin = performance.now()
    const end = begin + millis
    const loop = (i: number, then: number): Effect.Effect<void, E, R> =>
      Effect.flatMap(step(i), () => {
        const now = performance.now()
        if (done++ < keptTimes) times.push(now - then)
        return now < end ? loop(i, now) : Effect.void
      })
    return Effect.map(
      Effect.forEach(
        Array.from({ length: count }, (_, i) => i),
        (i) => loop(i, performance.now()),
        { concurrency: "unbounded", discard: true }
      ),
      (): Measured => ({ perSecond: done / ((performance.now() - begin) / 1000), millis: times })
    )
  })

/** Three nodes on two cores answer a thousand INSERTs at once too late at times: who wants them stored sends them again. */
class AgainPolicy extends driver.policies.retry.RetryPolicy {
  override onWriteTimeout(_: unknown, consistency: driver.types.consistencies) {
    return this.retryResult(consistency)
  }
}

/** The driver without anything around it, connected as the session is. */
export const bareClient = (
  { addresses = {}, contactPoints, localDataCenter = "datacenter1" }: Connection,
  keyspace: string
) =>
  Effect.acquireRelease(
    Effect.promise(async () => {
      const client = new driver.Client({
        contactPoints: [...contactPoints!],
        localDataCenter,
        keyspace,
        protocolOptions: { port: Number(contactPoints![0]!.split(":")[1] ?? 9042) },
        policies: {
          retry: new AgainPolicy(),
          // The driver's types do not know that this is a class.
          addressResolution: Object.assign(
            new (
              driver.policies.addressResolution as unknown as { AddressTranslator: new () => object }
            ).AddressTranslator(),
            {
              translate: (address: string, port: number, callback: (endpoint: string) => void) =>
                callback(addresses[address] ?? `${address}:${port}`)
            }
          )
        },
        // At its default bound of 2048 it fails with 10,000 loops.
        pooling: { maxRequestsPerConnection: 32_768 },
        queryOptions: { consistency: driver.types.consistencies.localQuorum, prepare: true }
      })
      await client.connect()
      return client
    }),
    (client) => Effect.promise(() => client.shutdown())
  )

/** A plain INSERT for each event of `count` entities at once. */
export const plainInsert = Effect.fnUntraced(function* (connection: Connection) {
  const session = yield* CassandraSession
  const client = yield* bareClient(connection, session.keyspace)
  yield* session.createTables([
    "CREATE TABLE IF NOT EXISTS plain_events (entity_id text, sequence bigint, event text, PRIMARY KEY (entity_id, sequence))"
  ])
  const insert = "INSERT INTO plain_events (entity_id, sequence, event) VALUES (?, ?, ?)"
  let sequence = 0
  return (count: number, millis: number) =>
    Effect.promise(() =>
      bare(count, millis, (loop) => {
        const event = JSON.stringify({ _tag: "Deposited", cents: 100, balance: sequence, note: note() })
        return client.execute(insert, [`account-${loop}`, driver.types.Long.fromNumber(sequence++), event], {
          prepare: true,
          isIdempotent: true
        })
      })
    )
})

/** A conditional update for each event, which expects the one before: what one append costs the server. */
export const conditionalUpdate = Effect.fnUntraced(function* (connection: Connection) {
  const session = yield* CassandraSession
  const client = yield* bareClient(connection, session.keyspace)
  yield* session.createTables([
    "CREATE TABLE IF NOT EXISTS conditional_events (entity_id text, head bigint STATIC, sequence bigint, event text, PRIMARY KEY (entity_id, sequence))"
  ])
  const update = "UPDATE conditional_events SET head = ?, event = ? WHERE entity_id = ? AND sequence = ? IF head = ?"
  const heads: Array<number> = []
  const { Long } = driver.types
  return (count: number, millis: number) =>
    Effect.promise(() =>
      bare(count, millis, async (loop) => {
        const head = heads[loop] ?? 0
        const event = JSON.stringify({ _tag: "Deposited", cents: 100, balance: head, note: note() })
        const next = Long.fromNumber(head + 1)
        const expected = head === 0 ? null : Long.fromNumber(head)
        const result = await client.execute(update, [next, event, `account-${loop}`, next, expected], {
          prepare: true,
          serialConsistency: driver.types.consistencies.serial
        })
        if (!result.wasApplied()) throw new Error(`account-${loop} has another head than ${head}`)
        heads[loop] = head + 1
      })
    )
})

export const collectGarbage = () => (globalThis as { gc?: () => void }).gc?.()

/** A session in a keyspace of its own. */
export const sessionLayer = (connection: Connection, copies = 1) =>
  CassandraSession.layer({
    ...connection,
    keyspace: `bench_${crypto.randomUUID().replaceAll("-", "")}`,
    replication: { [connection.localDataCenter ?? "datacenter1"]: copies },
    development: true
  })

const mebibytes = totalmem() / 2 ** 20

/** The server that is found, or one with the heap that Cassandra's own start script would give it on this machine. */
export const ServerLive = CassandraServer.layer({
  heap: `${Math.round(Math.max(Math.min(mebibytes / 2, 1024), Math.min(mebibytes / 4, 8192)))}M`
})

/** A session on the server that is found. */
export const SessionLive = Layer.unwrap(Effect.map(CassandraServer, ({ connection }) => sessionLayer(connection)))
