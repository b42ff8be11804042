/**
 * Processors that keep a state per key. Each shard has a row of its own for a key, with the offset of the last event in it,
 * so that an event is never folded twice; a row's write timestamp is that event's stamp, so that of two owners of a shard,
 * who fold the same, the one who came further wins. An event that was put aside is folded late: the row counts those, and
 * knows the last, and its write timestamps move on by one with each.
 */
import { describeIssue, type EventSchema, json } from "@effect-cassandra/journal/EventCodec"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import { CassandraError, RowMismatch } from "@effect-cassandra/session/CassandraError"
import { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { make, type Statement } from "@effect-cassandra/session/Statement"
import { Effect, Result, Schema, SchemaParser } from "effect"
import { HandlerFailure, ReadSideError, UndecodableState } from "../ReadSideError.ts"
import { makeDecode } from "./events.ts"
import { storeFailure } from "./failures.ts"
import type { Failure, Open, Outcome } from "./sink.ts"
import { generationStart } from "./statements.ts"

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
       key text, entity_type text, shard int, offset bigint, late int, last_late bigint, state text, PRIMARY KEY (key, entity_type, shard))`,

  of: <State>({ initial, merge, state, table }: FoldTable<State>) => {
    const decode = SchemaParser.decodeUnknownResult(Schema.fromJsonString(json(state)))
    return Effect.fnUntraced(function* (key: string): Effect.fn.Return<State, CassandraError, CassandraSession> {
      const session = yield* CassandraSession
      const rows = yield* session.execute<{ state: string }>(make(`SELECT state FROM ${table} WHERE key = ?`, [key]))
      let merged = initial
      for (const row of rows) {
        const decoded = Result.mapError(decode(row.state), (issue) => {
          const message = `the state of key "${key}" in ${table} does not fit its schema: ${describeIssue(issue)}`
          return new CassandraError({ reason: new RowMismatch({ message, cause: undefined }) })
        })
        merged = merge(merged, yield* Effect.fromResult(decoded))
      }
      return merged
    })
  }
}

interface Kept<State> {
  readonly state: State
  /** Of the last event that came in its turn, and its stamp in microseconds. */
  readonly offset: number
  readonly stamp: number
  /** How many events came late, and the offset of the last. */
  readonly late: number
  readonly lastLate: number
}

interface Row {
  readonly offset: bigint
  readonly late: number
  readonly last_late: bigint
  readonly state: string
  readonly written: bigint
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
  const decode = SchemaParser.decodeUnknownResult(Schema.fromJsonString(json(state)))
  const select = `SELECT offset, late, last_late, state, WRITETIME(state) AS written FROM ${table}
    WHERE key = ? AND entity_type = ? AND shard = ?`
  const insert = `INSERT INTO ${table} (key, entity_type, shard, offset, late, last_late, state)
    VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ?`

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

    const writeTime = ({ late, stamp }: Kept<State>) => generationStart(generation) + BigInt(stamp + late)

    const load = Effect.fnUntraced(function* (key: string): Effect.fn.Return<Kept<State>, ReadSideError> {
      const [row] = yield* Effect.mapError(session.execute<Row>(make(select, [key, entityType, shard])), storeFailure)
      if (row === undefined) return { state: initial, offset: 0, stamp: 0, late: 0, lastLate: 0 }
      const { late, written } = row
      const decoded = decode(row.state)
      if (Result.isSuccess(decoded)) {
        return {
          state: decoded.success,
          offset: Number(row.offset),
          stamp: Number(written - generationStart(generation)) - late,
          late,
          lastLate: Number(row.last_late)
        }
      }
      const message = `the state of key "${key}" in ${table} does not fit the schema of processor "${name}": give the processor a new version, or rewind it with truncate`
      return yield* Effect.fail(new ReadSideError({ reason: new UndecodableState({ processor: name, message }) }))
    })

    const threw = ({ entityId, sequence, type }: EventEnvelope, cause: unknown) => {
      const message = `processor "${name}" threw at event ${sequence} of "${entityId}", a ${type}: ${cause}`
      const reason = new HandlerFailure({ processor: name, entityId, eventType: type, message, cause })
      return new ReadSideError({ reason })
    }

    /** The state after an event; undefined where it has the event already. */
    const after = (
      now: Kept<State>,
      event: unknown,
      envelope: EventEnvelope,
      retried: boolean,
      /** Events of one stored event share its offset; a row with that offset has all of them. */
      begun: boolean
    ): Kept<State> | undefined => {
      const { offset, stamp } = envelope
      if (offset > now.offset || (offset === now.offset && begun)) {
        return { ...now, state: fold(now.state, event, envelope), offset, stamp }
      }
      return retried && offset < now.offset && (offset !== now.lastLate || begun)
        ? { ...now, state: fold(now.state, event, envelope), late: now.late + 1, lastLate: offset }
        : undefined
    }

    const handle: (events: ReadonlyArray<EventEnvelope>, retried: boolean) => Effect.Effect<Outcome, ReadSideError> =
      Effect.fnUntraced(function* (events, retried) {
        let done = events[0]!.offset - 1
        let failure: Failure | undefined
        const steps: Array<readonly [key: string, event: unknown, envelope: EventEnvelope]> = []
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
            failure = { error: threw(envelope, cause), event: envelope }
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
        /** By key, the last event that has changed it. */
        const changed = new Map<string, EventEnvelope>()
        /** Nothing of these states is kept: the events before one are folded again, without it. */
        const without = (envelope: EventEnvelope, cause: unknown) => {
          const good = events.filter(({ offset }) => offset < envelope.offset)
          const failed = { error: threw(envelope, cause), event: envelope }
          return good.length === 0
            ? Effect.succeed({ done: envelope.offset - 1, written: 0, failure: failed })
            : Effect.map(handle(good, retried), (outcome) => ({ ...outcome, failure: outcome.failure ?? failed }))
        }
        for (const [key, event, envelope] of steps) {
          const now = states.get(key) ?? kept.get(key) ?? older.get(key)!
          try {
            const next = after(now, event, envelope, retried, changed.get(key) === envelope)
            if (next === undefined) continue
            states.set(key, next)
            changed.set(key, envelope)
          } catch (cause) {
            return yield* without(envelope, cause)
          }
        }
        const writes: Array<Statement<unknown>> = []
        for (const [key, envelope] of changed) {
          const now = states.get(key)!
          const { lastLate, late, offset, state } = now
          try {
            const values = [
              key,
              entityType,
              shard,
              BigInt(offset),
              late,
              BigInt(lastLate),
              JSON.stringify(encode(state))
            ]
            writes.push(make(insert, [...values, writeTime(now)], { idempotent: true }))
          } catch (cause) {
            return yield* without(envelope, cause)
          }
        }
        yield* Effect.forEach(writes, (write) => session.execute(write), { concurrency, discard: true }).pipe(
          Effect.mapError(storeFailure)
        )
        for (const [key, value] of states) remember(key, value)
        return { done, written: writes.length, failure }
      })

    return Effect.succeed({
      handle: (events, retried) =>
        Effect.catch(handle(events, retried), (error) =>
          Effect.succeed({ done: events[0]!.offset - 1, written: 0, failure: { error, event: undefined } })
        ),
      coalesces: true
    })
  }
}
