/**
 * Processors that keep a state per key. Each shard has a row of its own for a key, with the offset of the last event in it,
 * so that an event is never folded twice; a row's write timestamp is that event's stamp, so that of two owners of a shard,
 * who fold the same, the one who came further wins.
 */
import { type EventSchema, json } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { CassandraError } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make } from "@effect-cassandra/session/Statement"
import { Effect, Result, type Schema, SchemaParser } from "effect"
import { HandlerFailure, ReadSideError, UndecodableState } from "../ReadSideError.ts"
import { makeDecode } from "./events.ts"
import { storeFailure } from "./failures.ts"
import type { Open, Outcome } from "./sink.ts"
import { stampOf } from "./statements.ts"

export interface FoldTable<State> {
  readonly name: string
  readonly events: ReadonlyArray<EventSchema>
  readonly table: string
  readonly state: Schema.Codec<State, any>
  readonly initial: State
  readonly key: (event: any, envelope: EventEnvelope) => string | undefined
  readonly fold: (state: State, event: any, envelope: EventEnvelope) => State
  readonly merge: (a: State, b: State) => State
}

/** Keys whose state is remembered, for each shard. */
const rememberedKeys = 10_000

/** The name of the table that a CREATE TABLE makes. */
export const tableOf = (text: string): string => {
  const name = /^\s*create\s+table\s+if\s+not\s+exists\s+("?)(\w+)\1[\s(]/i.exec(text)
  if (name === null) throw new Error(`not of the form CREATE TABLE IF NOT EXISTS name (...): ${text}`)
  return name[1] === "" ? name[2]!.toLowerCase() : name[2]!
}

export const readFold = {
  table: (name: string): string =>
    `CREATE TABLE IF NOT EXISTS ${name} (
       key text, entity_type text, shard int, offset bigint, state text, PRIMARY KEY (key, entity_type, shard))`,

  of: <State>({ initial, merge, state, table }: FoldTable<State>) => {
    const decode = SchemaParser.decodeUnknownSync(json(state))
    return Effect.fnUntraced(function* (key: string): Effect.fn.Return<State, CassandraError, CassandraSession> {
      const session = yield* CassandraSession
      const rows = yield* session.execute<{ state: string }>(make(`SELECT state FROM ${table} WHERE key = ?`, [key]))
      return rows.reduce((merged, row) => merge(merged, decode(JSON.parse(row.state))), initial)
    })
  }
}

interface Kept<State> {
  readonly state: State
  readonly offset: number
  readonly stamp: bigint
}

export const openFold = <State>({
  events: schemas,
  fold,
  initial,
  key: keyOf,
  name,
  state,
  table
}: FoldTable<State>): Open => {
  const decodeEvent = makeDecode(name, schemas)
  const encode = SchemaParser.encodeSync(json(state))
  const decode = SchemaParser.decodeUnknownResult(json(state))
  const select = `SELECT offset, state FROM ${table} WHERE key = ? AND entity_type = ? AND shard = ?`
  const insert = `INSERT INTO ${table} (key, entity_type, shard, offset, state) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?`

  return ({ concurrency, generation, place, session }) => {
    const { entityType, shard } = place
    let kept = new Map<string, Kept<State>>()
    let older = kept

    const remember = (key: string, value: Kept<State>) => {
      if (kept.size >= rememberedKeys) {
        older = kept
        kept = new Map()
      }
      kept.set(key, value)
    }

    const load = Effect.fnUntraced(function* (key: string) {
      const [row] = yield* Effect.mapError(
        session.execute<{ offset: bigint; state: string }>(make(select, [key, entityType, shard])),
        storeFailure
      )
      if (row === undefined) return { state: initial, offset: 0, stamp: 0n }
      const decoded = decode(JSON.parse(row.state))
      if (Result.isSuccess(decoded)) return { state: decoded.success, offset: Number(row.offset), stamp: 0n }
      const message = `the state of key "${key}" in ${table} does not fit the schema of processor "${name}": give the processor a new version, or rewind it with truncate`
      return yield* Effect.fail(new ReadSideError({ reason: new UndecodableState({ processor: name, message }) }))
    })

    const handle: (events: ReadonlyArray<EventEnvelope>) => Effect.Effect<Outcome, ReadSideError> = Effect.fnUntraced(
      function* (events) {
        let done = events[0]!.offset - 1
        let failure: Outcome["failure"]
        const steps: Array<readonly [key: string, event: unknown, envelope: EventEnvelope]> = []
        const threw = (envelope: EventEnvelope, cause: unknown) => {
          const { entityId, sequence, type } = envelope
          const message = `processor "${name}" threw at event ${sequence} of "${entityId}", a ${type}: ${cause}`
          const reason = new HandlerFailure({ processor: name, entityId, eventType: type, message, cause })
          return { error: new ReadSideError({ reason }), event: envelope }
        }
        for (const envelope of events) {
          const decoded = decodeEvent(envelope)
          if (Result.isFailure(decoded)) {
            failure = { error: decoded.failure, event: envelope }
            break
          }
          try {
            for (const event of decoded.success) {
              const key = keyOf(event, envelope)
              if (key !== undefined) steps.push([key, event, envelope])
            }
          } catch (cause) {
            failure = threw(envelope, cause)
            break
          }
          done = envelope.offset
        }
        const missing = new Set<string>()
        for (const [key] of steps) {
          const old = kept.get(key) ?? older.get(key)
          if (old === undefined) missing.add(key)
          else if (!kept.has(key)) remember(key, old)
        }
        const states = new Map<string, Kept<State>>()
        yield* Effect.forEach(missing, (key) => Effect.map(load(key), (loaded) => void states.set(key, loaded)), {
          concurrency,
          discard: true
        })
        const changed = new Set<string>()
        for (const [key, event, envelope] of steps) {
          const now = states.get(key) ?? kept.get(key) ?? older.get(key)!
          // Events of one stored event share its offset; the row with that offset has all of them.
          if (envelope.offset < now.offset || (envelope.offset === now.offset && !changed.has(key))) continue
          try {
            const state = fold(now.state, event, envelope)
            states.set(key, { state, offset: envelope.offset, stamp: stampOf(envelope, generation) })
            changed.add(key)
          } catch (cause) {
            // Nothing of these states is kept: the events before this one are folded again, without it.
            const good = events.filter(({ offset }) => offset < envelope.offset)
            const outcome = good.length === 0 ? { done: envelope.offset - 1, written: 0 } : yield* handle(good)
            return { ...outcome, failure: outcome.failure ?? threw(envelope, cause) }
          }
        }
        yield* Effect.forEach(
          changed,
          (key) => {
            const { offset, stamp, state } = states.get(key)!
            const values = [key, entityType, shard, BigInt(offset), JSON.stringify(encode(state)), stamp]
            return session.execute(make(insert, values, { idempotent: true }))
          },
          { concurrency, discard: true }
        ).pipe(Effect.mapError(storeFailure))
        for (const [key, value] of states) remember(key, value)
        return { done, written: changed.size, failure }
      }
    )

    return Effect.succeed({
      handle: (events) =>
        Effect.catch(handle(events), (error) =>
          Effect.succeed({ done: events[0]!.offset - 1, written: 0, failure: { error, event: undefined } })
        ),
      coalesces: true
    })
  }
}
