/** The events of a shard as streams: from the memory of this process where it reaches back far enough, else from the store. */
import { Effect, Option, Stream } from "effect"
import type { EventEnvelope } from "../Journal.ts"
import type { JournalError } from "../JournalError.ts"
import { attempt, type EventFormat } from "./events.ts"
import { corrupt } from "./failure.ts"
import type { Heads } from "./heads.ts"
import type { Block, Cursor } from "./logReader.ts"
import type { ShardLog } from "./shardLog.ts"

/** Events per page from memory. */
const maxPage = 5000

/** A reader's place: after an offset, with the cursor that the last page gave, if it came from the store. */
interface State {
  readonly after: number
  readonly cursor: Cursor | undefined
}

export const makeStreams = (format: EventFormat) => {
  /** Waits until the head is past an offset. */
  const moved = Effect.fnUntraced(function* (log: ShardLog, heads: Heads, after: number) {
    while (log.head <= after) {
      if (log.failure !== undefined) return yield* log.failure
      yield* Effect.raceFirst(
        Effect.callback<void>((resume) => {
          const off = log.onHead(() => {
            off()
            resume(Effect.void)
          })
          return Effect.sync(off)
        }),
        heads.listen(log)
      )
    }
  })

  const stored = Effect.fnUntraced(function* (log: ShardLog, { after, cursor }: State) {
    if (cursor?.after === after) return yield* log.reader.demand(cursor, log.head)
    const found = (yield* log.reader.locate(after)) ?? (yield* log.reader.locate(after, true))
    return found === undefined
      ? yield* corrupt(log.log, `event ${after} is missing, the head is ${log.head}`)
      : yield* log.reader.demand(found, log.head)
  })

  const envelopes = (log: ShardLog, blocks: ReadonlyArray<Block>, after: number, through: number) =>
    attempt(() => {
      const { entityType, shard } = log.log
      const events: Array<EventEnvelope> = []
      for (const block of blocks) {
        for (const entry of block.entries) {
          if (entry.offset > after && entry.offset <= through) events.push(format.envelope(entityType, shard, entry))
        }
      }
      return events
    })

  /** The next events after a place that the head is past, `through` at the most. */
  const next = (
    log: ShardLog,
    state: State,
    through: number
  ): Effect.Effect<readonly [ReadonlyArray<EventEnvelope>, State], JournalError> => {
    const { after } = state
    const tail = log.tail(after)
    if (tail === undefined) {
      return Effect.flatMap(stored(log, state), ({ blocks, cursor }) =>
        Effect.map(
          envelopes(log, blocks, after, through),
          (events) => [events, { after: events.at(-1)?.offset ?? after, cursor }] as const
        )
      )
    }
    let count = 0
    const blocks = tail.filter(({ entries }) => {
      const taken = count < maxPage
      count += entries.length
      return taken
    })
    return Effect.map(
      envelopes(log, blocks, after, through),
      (events) => [events, { after: events.at(-1)?.offset ?? after, cursor: undefined }] as const
    )
  }

  const live = (log: ShardLog, heads: Heads, after: number): Stream.Stream<EventEnvelope, JournalError> =>
    Stream.paginate<State, EventEnvelope, JournalError>({ after, cursor: undefined }, (state) =>
      Effect.andThen(
        moved(log, heads, state.after),
        Effect.map(
          Effect.suspend(() => next(log, state, Number.MAX_SAFE_INTEGER)),
          ([events, state]) => [events, Option.some(state)] as const
        )
      )
    )

  const current = (log: ShardLog, after: number): Stream.Stream<EventEnvelope, JournalError> =>
    Stream.unwrap(
      Effect.map(log.sync, () => {
        const through = log.head
        return Stream.paginate<State, EventEnvelope, JournalError>({ after, cursor: undefined }, (state) =>
          state.after >= through
            ? Effect.succeed([[], Option.none()] as const)
            : Effect.map(next(log, state, through), ([events, state]) => [events, Option.some(state)] as const)
        )
      })
    )

  return { live, current }
}
