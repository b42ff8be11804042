/**
 * The commands of an entity type between processes: those given here go to the process that has the entity, and those that
 * come from other processes are carried out by the entities here.
 */
import { json } from "@effect-cassandra/journal/EventCodec"
import { CurrentMetadata, type Journal } from "@effect-cassandra/journal/Journal"
import { Cause, type Clock, Context, Effect, Exit, Fiber, Latch, Option, SchemaParser, Tracer } from "effect"
import { CommandTimeout, ConnectionLost, EntityError } from "../EntityError.ts"
import { CurrentCommandIds, CurrentPlace, isOwn, type Place } from "./command.ts"
import type { Entities } from "./entities.ts"
import type { EntityMetrics } from "./metrics.ts"
import type { Command, Model } from "./model.ts"
import type { Settings } from "./options.ts"
import type { More, Outcome, Peer, Request, Response, Waiting } from "./peer.ts"
import type { Executor, Routing } from "./routing.ts"

/** So much later than the process that carries it out, a command is given up by the one that sent it. */
const graceMillis = 1000

const entityError = json(EntityError)
const encodeError = SchemaParser.encodeSync(entityError)
const decodeError = SchemaParser.decodeUnknownExit(entityError)

/** What a router works with. */
export interface Environment<State> {
  readonly entities: Entities<State>
  readonly model: Model<State>
  readonly settings: Settings
  readonly journal: Journal["Service"]
  readonly metrics: EntityMetrics
  readonly clock: Clock.Clock
  /** What commands from elsewhere begin with. */
  readonly services: Context.Context<never>
}

/** A command that another process has. */
class Sent<State> implements Waiting {
  readonly router: Router<State>
  readonly entityId: string
  readonly command: Command<State>
  readonly payload: unknown
  readonly place: Place | undefined
  /** It can be given again, and is carried out once all the same. */
  readonly isRepeatable: boolean
  /** Milliseconds of the clock. */
  readonly since: number
  readonly #resume: (answer: Effect.Effect<unknown, unknown>) => void
  answered = false

  constructor(
    router: Router<State>,
    entityId: string,
    command: Command<State>,
    payload: unknown,
    place: Place | undefined,
    isRepeatable: boolean,
    since: number,
    resume: (answer: Effect.Effect<unknown, unknown>) => void
  ) {
    this.router = router
    this.entityId = entityId
    this.command = command
    this.payload = payload
    this.place = place
    this.isRepeatable = isRepeatable
    this.since = since
    this.#resume = resume
  }

  onAnswer(outcome: Outcome, value: unknown, offset: number | undefined): void {
    if (this.answered) return
    this.router.note(this, offset)
    this.end(this.router.answerOf(this, outcome, value))
  }

  onLost(wasSent: boolean): void {
    if (!this.answered) this.end(this.router.afterLoss(this, wasSent))
  }

  /** Once: what comes later is not wanted. */
  end(answer: Effect.Effect<unknown, unknown> | undefined): void {
    this.answered = true
    this.router.ended()
    if (answer !== undefined) this.#resume(answer)
  }
}

export class Router<State> implements Executor {
  readonly #routing: Routing
  readonly #env: Environment<State>
  readonly #entityType: string
  /** How many commands other processes have. */
  #sent = 0
  /** By shard, the highest offset that an answer from elsewhere rests on. */
  readonly #heard: Array<number> = []
  #closing = false
  readonly #finished = Latch.makeUnsafe(true)

  constructor(routing: Routing, env: Environment<State>) {
    this.#routing = routing
    this.#env = env
    this.#entityType = env.model.entityType
  }

  // ------------------------------------------------------------------------------------------------ sending

  /** Gives a command to its entity, wherever that is. */
  ask(entityId: string, command: Command<State>, payload: unknown): Effect.Effect<unknown, unknown> {
    const { entities, journal } = this.#env
    // It says in words what is wrong.
    if (command.problem(payload) !== undefined) return entities.ask(entityId, command, payload)
    return Effect.withFiber((fiber) => {
      const shard = journal.shardOf(entityId)
      const owner = this.#closing ? undefined : this.#routing.ownerOf(this.#entityType, shard, journal.shards)
      if (owner === undefined) return this.#here(entityId, command, payload)
      if (fiber.getRef(Tracer.Tracer) === Tracer.nativeTracer) {
        return this.#send(owner, shard, entityId, command, payload, undefined)
      }
      const attributes = { "entity.type": this.#entityType, "entity.command": command.tag }
      return Effect.useSpan(`${this.#entityType}.${command.tag} forwarded`, { attributes, kind: "client" }, (span) =>
        this.#send(owner, shard, entityId, command, payload, span)
      )
    })
  }

  /** Carried out by this process; what it reads is not older than what others have answered. */
  #here(entityId: string, command: Command<State>, payload: unknown): Effect.Effect<unknown, unknown> {
    const answer = this.#env.entities.ask(entityId, command, payload)
    if (command.readOnly !== "local") return answer
    const shard = this.#env.journal.shardOf(entityId)
    return this.#after(entityId, shard, this.#heard[shard] ?? 0, answer)
  }

  /** Looks at the head of the log first, where this process has not seen enough of it. */
  #after<A, E>(
    entityId: string,
    shard: number,
    offset: number,
    answer: Effect.Effect<A, E>
  ): Effect.Effect<A, E | EntityError> {
    const { entities, journal } = this.#env
    if (journal.seen(this.#entityType, shard) >= offset) return answer
    return journal.head(this.#entityType, shard).pipe(
      Effect.mapError((error) => entities.journalFailure(entityId, error)),
      Effect.andThen(answer)
    )
  }

  #send(
    owner: Peer,
    shard: number,
    entityId: string,
    command: Command<State>,
    payload: unknown,
    span: Tracer.Span | undefined
  ): Effect.Effect<unknown, unknown> {
    const { metrics } = this.#env
    return Effect.callback((resume) => {
      const { context } = Fiber.getCurrent()!
      const ids = Context.get(context, CurrentCommandIds)
      const metadata = Context.get(context, CurrentMetadata)
      let more: { -readonly [K in keyof More]: More[K] } | undefined
      if (ids !== undefined) {
        const id = ids.of(command.tag)
        // Two commands of one id are found out where both can be seen.
        if (!isOwn(ids, this.#entityType, entityId, id, payload)) return resume(this.#here(entityId, command, payload))
        more = { id: { of: id, strict: ids.strict, since: ids.since } }
      }
      if (Object.keys(metadata).length > 0) more = { ...more, metadata }
      if (span?.sampled) more = { ...more, traceparent: `${span.traceId}-${span.spanId}` }
      if (command.readOnly === "local") {
        const seen = Math.max(this.#heard[shard] ?? 0, this.#env.journal.seen(this.#entityType, shard))
        if (seen > 0) more = { ...more, seen }
      }
      metrics.forwarded++
      const isRepeatable = ids !== undefined || command.readOnly !== undefined
      const place = Context.get(context, CurrentPlace)
      const sent = new Sent(this, entityId, command, payload, place, isRepeatable, this.#now(), resume)
      this.#sent++
      const encoded = command.codecs().payload.encode(payload)
      const number = owner.request(sent, this.#entityType, entityId, command.tag, encoded, more)
      return Effect.sync(() => {
        sent.end(undefined)
        owner.cancel(number)
      })
    })
  }

  note({ entityId, place }: Sent<State>, offset: number | undefined): void {
    if (offset === undefined) return
    const shard = this.#env.journal.shardOf(entityId)
    if (place !== undefined) place.last = { entityType: this.#entityType, shard, offset }
    if (offset > (this.#heard[shard] ?? 0)) this.#heard[shard] = offset
  }

  ended(): void {
    this.#sent--
    if (this.#closing && this.#sent === 0) this.#finished.openUnsafe()
  }

  answerOf(sent: Sent<State>, outcome: Outcome, value: unknown): Effect.Effect<unknown, unknown> {
    const { command, entityId, payload } = sent
    switch (outcome) {
      case "success":
        return Effect.orDie(command.codecs().success.decode(value))
      case "failure":
        return Effect.flatMap(Effect.orDie(command.codecs().error.decode(value)), Effect.fail)
      case "error":
        return Effect.flatMap(Effect.orDie(decodeError(value)), Effect.fail)
      case "defect":
        return Effect.die(new Error(String(value)))
      case "refused":
        return this.#here(entityId, command, payload)
    }
  }

  afterLoss(sent: Sent<State>, wasSent: boolean): Effect.Effect<unknown, unknown> {
    const { command, entityId, isRepeatable, payload } = sent
    if (!wasSent || isRepeatable) return this.#here(entityId, command, payload)
    const names = { entityType: this.#entityType, entityId, command: command.tag }
    const message = `${command.tag} for ${this.#entityType} "${entityId}": the process that has the entity is gone, and what it stored is not known; with an id (withCommandId) the command would have been carried out here`
    return this.#fail(new ConnectionLost({ ...names, stored: "unknown", message }))
  }

  #fail(reason: ConnectionLost | CommandTimeout): Effect.Effect<never, EntityError> {
    this.#env.metrics.failed(reason._tag)
    return Effect.fail(new EntityError({ reason }))
  }

  /** Answers commands that should have been answered by the process that has them. */
  readonly expire: Effect.Effect<void> = Effect.sync(() => {
    const now = this.#now()
    for (const sent of this.#routing.waiting()) {
      if (!(sent instanceof Sent) || sent.router !== this || sent.answered) continue
      const millis = now - sent.since
      if (millis < this.#env.settings.askTimeout + graceMillis) continue
      const { command, entityId } = sent
      const message = `${command.tag} for ${this.#entityType} "${entityId}" was not answered within ${millis} ms (askTimeout) by the process that has the entity`
      const names = { entityType: this.#entityType, entityId, command: command.tag }
      const stored = command.readOnly === undefined ? "unknown" : "no"
      sent.end(this.#fail(new CommandTimeout({ ...names, millis, stored, message })))
    }
  })

  #now(): number {
    return Math.round(Number(this.#env.clock.monotonicTimeNanosUnsafe()) / 1e6)
  }

  // ------------------------------------------------------------------------------------------------ carrying out

  carryOut(request: Request, answer: (...response: Response) => void): () => void {
    const [id, , entityId, tag, payload, more] = request as Extract<Request, readonly [number, string, ...Array<any>]>
    const { entities, journal, model, services } = this.#env
    const command = model.commands.get(tag)
    const decoded = command?.codecs().payload.decode(payload)
    // Of another version of the service.
    const isOther = typeof entityId !== "string" || command === undefined
    if (this.#closing || isOther || decoded === undefined || Exit.isFailure(decoded)) {
      answer(id, "refused")
      return () => {}
    }
    const place: Place = { last: undefined }
    let context = services
    if (more?.metadata !== undefined) context = Context.add(context, CurrentMetadata, { ...more.metadata })
    if (more?.id !== undefined) {
      const { of, since, strict } = more.id
      const ids = { of: () => of, strict, ...(since === undefined ? {} : { since }) }
      context = Context.add(context, CurrentCommandIds, ids)
    }
    if (more?.traceparent !== undefined) {
      const [traceId, spanId] = more.traceparent.split("-") as [string, string]
      context = Context.add(context, Tracer.ParentSpan, Tracer.externalSpan({ traceId, spanId, sampled: true }))
    }
    const tell = (exit: Exit.Exit<unknown, unknown>) => {
      const [outcome, encoded] = this.#outcomeOf(command, exit)
      answer(id, outcome, encoded, place.last?.offset)
    }
    if (more?.seen !== undefined || Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer) {
      const ask = entities.ask(entityId, command, decoded.value)
      const shard = journal.shardOf(entityId)
      const fiber = Effect.runForkWith(Context.add(context, CurrentPlace, place))(
        this.#after(entityId, shard, more?.seen ?? 0, ask)
      )
      fiber.addObserver(tell)
      return () => fiber.interruptUnsafe()
    }
    const withdraw = entities.give(entityId, command, decoded.value, context, place, (answer) => {
      if (Exit.isExit(answer)) tell(answer)
      else Effect.runForkWith(context)(answer).addObserver(tell)
    })
    // Its answer is not wanted, but the sender's number is free from then on only.
    return () => {
      if (withdraw !== undefined) Effect.runForkWith(context)(withdraw)
      answer(id, "refused")
    }
  }

  #outcomeOf({ codecs }: Command<State>, exit: Exit.Exit<unknown, unknown>): readonly [Outcome, value?: unknown] {
    try {
      if (Exit.isSuccess(exit)) return ["success", codecs().success.encode(exit.value)]
      const error = Cause.findErrorOption(exit.cause)
      if (Option.isNone(error)) return ["defect", String(Cause.squash(exit.cause))]
      if (!(error.value instanceof EntityError)) return ["failure", codecs().error.encode(error.value)]
      const { reason } = error.value
      return reason._tag === "EntitiesClosed" && reason.stored === "no"
        ? ["refused"]
        : ["error", encodeError(error.value)]
    } catch (defect) {
      return ["defect", String(defect)]
    }
  }

  // ------------------------------------------------------------------------------------------------ life

  readonly open: Effect.Effect<void> = Effect.sync(() => this.#routing.serve(this.#entityType, this))

  /** Takes no more from others, and waits for what they have. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.#closing = true
    this.#routing.serve(this.#entityType, undefined)
    if (this.#sent > 0) this.#finished.closeUnsafe()
    return Effect.asVoid(Effect.timeoutOption(this.#finished.await, this.#env.settings.shutdownTimeout))
  })
}
