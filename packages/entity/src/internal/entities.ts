/**
 * The entities of one type in this process: commands take turns at each, are decided, stored and answered.
 */
import type { StoredEvent } from "@effect-cassandra/journal/EventCodec"
import type { Append, Appended, Journal, LogPosition, Queued } from "@effect-cassandra/journal/Journal"
import type { JournalError } from "@effect-cassandra/journal/JournalError"
import {
  Cause,
  type Clock,
  Context,
  Effect,
  Exit,
  Fiber,
  Latch,
  Option,
  PartitionedSemaphore,
  type Scope,
  Tracer
} from "effect"
import {
  CommandIdReused,
  CommandTimeout,
  CommandTooOld,
  EntitiesClosed,
  EntityError,
  JournalFailure,
  MailboxFull,
  MalformedCommand,
  type Reason,
  RecoveryTimeout,
  TooManyConflicts,
  UndecodableAnswer
} from "../EntityError.ts"
import { Ask, Asks, type Next, type Turns } from "./ask.ts"
import { CurrentCommandIds, CurrentPlace, isOwn, type Place } from "./command.ts"
import { Instance, type Loaded } from "./instance.ts"
import type { EntityMetrics } from "./metrics.ts"
import type { AnyDecision, Command, Model } from "./model.ts"
import type { Settings } from "./options.ts"
import { recover } from "./recovery.ts"

const snapshotWrites = 4
/** Entities looked at in one go when room is needed. */
const maxLooks = 100
/** Answers kept in memory for an entity. */
const maxCommands = 10_000

/** What the entities of a type work with. */
export interface Environment<State> {
  readonly model: Model<State>
  readonly settings: Settings
  readonly journal: Journal["Service"]
  readonly metrics: EntityMetrics
  readonly clock: Clock.Clock
  /** What handlers depend on. */
  readonly services: Context.Context<never>
  /** Of what goes on without a caller. */
  readonly scope: Scope.Scope
  /** Runs when an entity has been loaded. */
  readonly recovered: ((state: State, entityId: string) => Effect.Effect<void, never, any>) | undefined
}

type Answer = Effect.Effect<unknown, unknown>

/** A decision to be carried out. */
interface Decided<State> {
  readonly events: ReadonlyArray<StoredEvent>
  readonly next: Next<State>
}

const fail = (reason: Reason) => Effect.fail(new EntityError({ reason }))

export class Entities<State> implements Turns<State> {
  readonly entityType: string
  readonly #env: Environment<State>
  readonly #instances = new Map<string, Instance<State>>()
  /** Commands under way, the oldest first: all have the same time to be answered. */
  readonly #asks = new Asks<State>()
  /** Thousands may wait: a Semaphore would look at all of them each time that one is through. */
  readonly #recovering: PartitionedSemaphore.PartitionedSemaphore<"all">
  readonly #saving = PartitionedSemaphore.makeUnsafe<"all">({ permits: snapshotWrites })
  /** Commands so far. */
  #count = 0
  #closing = false
  readonly #finished = Latch.makeUnsafe(true)

  constructor(env: Environment<State>) {
    this.#env = env
    this.entityType = env.model.entityType
    this.#recovering = PartitionedSemaphore.makeUnsafe({ permits: env.settings.maxRecoveries })
  }

  get active(): number {
    return this.#instances.size
  }

  // ------------------------------------------------------------------------------------------------ asking

  /** Gives a command to its entity, which is brought into memory if it is not there. */
  ask(entityId: string, command: Command<State>, payload: unknown): Answer {
    const problem = command.problem(payload)
    if (problem !== undefined) {
      this.#env.metrics.failed("MalformedCommand")
      const message = `${command.tag} for ${this.entityType} "${entityId}": ${problem}`
      return fail(new MalformedCommand({ ...this.#names(entityId, command), message }))
    }
    if (command.readOnly !== "local") return this.#submit(entityId, command, payload)
    return Effect.withFiber(
      (fiber) => this.#readNow(entityId, command, payload, fiber) ?? this.#submit(entityId, command, payload)
    )
  }

  /** The answer of a local read that has nothing to wait for. */
  #readNow(
    entityId: string,
    command: Command<State>,
    payload: unknown,
    fiber: Fiber.Fiber<unknown, unknown>
  ): Answer | undefined {
    const instance = this.#instances.get(entityId)
    if (instance === undefined || this.#closing) return undefined
    const { loaded } = instance
    if (loaded === undefined || !this.#isCurrent(entityId, loaded)) return undefined
    const decided = command.decide(loaded.state, payload)
    if (Effect.isEffect(decided)) return undefined
    instance.lastUsed = this.#now()
    this.#env.metrics.localReads++
    const place = fiber.getRef(CurrentPlace)
    if (place !== undefined) place.last = this.#placeOf(entityId, loaded.validThrough)
    return answerOf(decided, loaded.state)
  }

  #submit(entityId: string, command: Command<State>, payload: unknown, span?: Tracer.Span): Answer {
    return Effect.callback((resume) => {
      const fiber = Fiber.getCurrent()!
      if (span === undefined && fiber.getRef(Tracer.Tracer) !== Tracer.nativeTracer) {
        return resume(this.#traced(entityId, command, payload))
      }
      const { context } = fiber
      return this.give(entityId, command, payload, context, Context.get(context, CurrentPlace), resume, span)
    })
  }

  /** As `ask`, of a payload that fits its schema, without a fiber. What it returns takes the command back. */
  give(
    entityId: string,
    command: Command<State>,
    payload: unknown,
    context: Context.Context<never>,
    place: Place | undefined,
    resume: (answer: Answer) => void,
    span?: Tracer.Span
  ): Effect.Effect<void> | undefined {
    if (this.#closing) {
      const message = `${command.tag} for ${this.entityType} "${entityId}": the entities of this process are closing`
      resume(fail(new EntitiesClosed({ ...this.#names(entityId, command), stored: "no", message })))
      return undefined
    }
    const instance = this.#instanceOf(entityId)
    const size = command.readOnly === undefined ? instance.behind : instance.reads
    if (size >= this.#env.settings.mailboxSize) {
      resume(this.#refuse(instance, command, size))
      return undefined
    }
    const ask = new Ask(instance, command, payload, context, this.#now(), this.#count++, resume)
    ask.span = span
    ask.ids = Context.get(context, CurrentCommandIds)
    ask.place = place
    this.#asks.add(ask)
    if (command.readOnly !== undefined) this.#startRead(ask)
    else if (instance.waiting === undefined && instance.defects === 0 && this.#canStart(ask)) this.#start(ask)
    else {
      this.#queue(ask)
      this.#drain(instance)
    }
    return ask.answered ? undefined : Effect.suspend(() => this.#withdraw(ask))
  }

  /** Under load most answers may be refusals, so one serves many: an error with its stack takes longer than a command. */
  #refuse(instance: Instance<State>, command: Command<State>, size: number): Answer {
    this.#env.metrics.failed("MailboxFull")
    let { refusal } = instance
    if (refusal === undefined || refusal.command !== command || refusal.size !== size) {
      const message = `${command.tag} for ${this.entityType} "${instance.entityId}": ${size} commands wait already (mailboxSize): try later`
      const answer = fail(new MailboxFull({ ...this.#names(instance.entityId, command), size, message }))
      refusal = { command, size, answer }
      instance.refusal = refusal
    }
    return refusal.answer
  }

  /** A span around a command, where there is a tracer to see it. */
  #traced(entityId: string, command: Command<State>, payload: unknown): Answer {
    const attributes: Record<string, unknown> = { "entity.type": this.entityType, "entity.command": command.tag }
    if (this.#env.settings.spanEntityId) attributes["entity.id"] = entityId
    return Effect.useSpan(`${this.entityType}.${command.tag}`, { attributes }, (span) =>
      Effect.withParentSpan(this.#submit(entityId, command, payload, span), span)
    )
  }

  /** The caller was interrupted: what is not with the journal yet is given up. */
  #withdraw(ask: Ask<State>): Effect.Effect<void> {
    const { fiber, phase } = ask
    ask.answered = true
    if (phase === "waiting") this.#giveUp(ask)
    return phase === "deciding" && fiber !== undefined ? Effect.asVoid(Fiber.interrupt(fiber)) : Effect.void
  }

  // ------------------------------------------------------------------------------------------------ the mailbox

  /** Starts what is next, unless something has its turn, or the entity is to be restarted later. */
  #drain(instance: Instance<State>): void {
    if (instance.draining) return
    instance.draining = true
    while (instance.waiting !== undefined && this.#canStart(instance.waiting[0]!)) {
      const pause = instance.restartAt - this.#now()
      if (pause > 0) {
        const later = Effect.sync(() => {
          instance.draining = false
          this.#drain(instance)
        })
        Fiber.runIn(Effect.runForkWith(this.#env.services)(Effect.delay(later, pause)), this.#env.scope)
        return
      }
      const ask = instance.waiting[0]!
      this.#unqueue(ask)
      if (!ask.answered) this.#start(ask)
    }
    instance.draining = false
    this.#stopIfIdle(instance)
  }

  /** Into the mailbox, behind those that came before. */
  #queue(ask: Ask<State>): void {
    const { instance } = ask
    this.#env.metrics.waiting++
    if (instance.waiting === undefined) {
      instance.waiting = [ask]
      return
    }
    let place = instance.waiting.length
    while (place > 0 && instance.waiting[place - 1]!.order > ask.order) place--
    instance.waiting.splice(place, 0, ask)
  }

  #unqueue(ask: Ask<State>): void {
    const { waiting } = ask.instance
    const place = waiting?.indexOf(ask) ?? -1
    if (place < 0) return
    this.#env.metrics.waiting--
    if (waiting!.length === 1) ask.instance.waiting = undefined
    else waiting!.splice(place, 1)
  }

  /** Leaves a command that was not decided yet. */
  #giveUp(ask: Ask<State>): void {
    const { instance } = ask
    this.#unqueue(ask)
    this.#ended(ask)
    if (instance.running !== ask) return
    instance.running = undefined
    this.#drain(instance)
  }

  /** Whether a command can begin: where others are with the journal, only behind them. */
  #canStart(ask: Ask<State>): boolean {
    const { queued, returned, running } = ask.instance
    return running === undefined && (queued === 0 || (!returned && this.#isQuick(ask)))
  }

  /**
   * Where the state is in memory, a command waits with the journal until there is room for its events in a block, to be
   * decided and stored without a fiber: most commands of a busy process. All else takes the long way, and so does what fails.
   */
  #isQuick({ ids, instance }: Ask<State>): boolean {
    return ids === undefined && instance.loaded !== undefined && this.#env.journal.append.unsafe !== undefined
  }

  #start(ask: Ask<State>): void {
    const { instance } = ask
    instance.lastUsed = ask.since
    if (this.#isQuick(ask)) {
      instance.queued++
      this.#env.journal.append.unsafe!(ask)
    } else this.#runAlone(ask, () => this.#turn(ask))
  }

  /** The commands of an entity that come into one block are decided one after the other, each from the state after the last. */
  decide(ask: Ask<State>, own: Queued): Append | undefined {
    const { instance } = ask
    const { loaded, newest, returned, running } = instance
    if (ask.answered) {
      this.#leave(instance)
      return undefined
    }
    if (running !== undefined || returned) {
      this.#return(ask)
      return undefined
    }
    const from = newest === undefined ? loaded : after(newest)
    const begun = from === undefined ? () => this.#turn(ask) : this.#begin(ask, from, newest)
    if (typeof begun === "function") {
      // What is no event for sure must not rest on one that is not stored yet.
      if (newest !== undefined) this.#return(ask)
      else {
        instance.queued--
        this.#runAlone(ask, begun)
      }
      return undefined
    }
    ask.phase = "storing"
    ask.from = from
    ask.next = begun.next
    ask.append = own
    ask.isBehind = newest !== undefined
    instance.newest = ask
    return begun.request
  }

  appended(ask: Ask<State>, exit: Exit.Exit<Appended, JournalError>): void {
    const { from, instance, next } = ask
    if (instance.newest === ask) instance.newest = undefined
    if (from === undefined || next === undefined || Exit.isFailure(exit)) {
      this.#notAppended(ask, exit as Exit.Failure<Appended, JournalError>)
      return
    }
    const answer = this.#stored(ask, from, next, exit.value)
    instance.defects = 0
    this.#finish(ask, answer)
    this.#leave(instance)
  }

  #notAppended(ask: Ask<State>, exit: Exit.Failure<Appended, JournalError>): void {
    const { from, instance, isBehind, next } = ask
    const { entityId } = instance
    const error = Option.getOrUndefined(Exit.findErrorOption(exit))
    if (error === undefined) {
      this.#endTurn(ask, exit)
    } else if (error.reason._tag === "SequenceConflict" && from !== undefined && next !== undefined) {
      // Its state may never have been: it is decided from the newest one when it is the first. The first one looks for that.
      if (isBehind || instance.running !== undefined) {
        this.#return(ask)
        return
      }
      instance.queued--
      this.#runAlone(ask, () => this.#settle(ask, from, next, exit))
      return
    } else if (from !== undefined || !ask.answered) {
      if (from !== undefined && leavesDoubt(error)) instance.loaded = undefined
      this.#finish(ask, Exit.fail(this.journalFailure(entityId, error)))
    }
    this.#leave(instance)
  }

  /** One less is with the journal. */
  #leave(instance: Instance<State>): void {
    if (--instance.queued > 0) return
    instance.returned = false
    this.#drain(instance)
  }

  /** Back from the journal into the mailbox. */
  #return(ask: Ask<State>): void {
    const { instance } = ask
    ask.phase = "waiting"
    ask.from = undefined
    ask.next = undefined
    instance.returned = true
    if (ask.answered) this.#ended(ask)
    else this.#queue(ask)
    this.#leave(instance)
  }

  /** What a command wants stored; or how its turn goes on, where that is not all. */
  #begin(
    ask: Ask<State>,
    loaded: Loaded<State>,
    newest: Ask<State> | undefined
  ): { readonly next: Next<State>; readonly request: Append } | (() => Answer) {
    try {
      const decision = ask.command.decide(loaded.state, ask.payload)
      if (Effect.isEffect(decision)) return () => this.#decide(ask, loaded, decision)
      const decided = this.#apply(ask, loaded, decision)
      return decided.events.length === 0
        ? () => this.#carryOut(ask, loaded, decided)
        : { next: decided.next, request: this.#append(ask, loaded, decided, newest?.append) }
    } catch (defect) {
      return () => Effect.die(defect)
    }
  }

  #runAlone(ask: Ask<State>, turn: () => Answer): void {
    ask.instance.running = ask
    this.#runTurn(ask, turn)
  }

  #runTurn(ask: Ask<State>, turn: () => Answer): void {
    this.#run(ask, turn, (exit) => this.#endTurn(ask, exit))
  }

  #endTurn(ask: Ask<State>, exit: Exit.Exit<unknown, unknown>): void {
    const { instance } = ask
    if (Exit.isFailure(exit)) {
      const isDefect = Cause.hasDies(exit.cause)
      const { loaded } = instance
      if (isDefect && ask.phase === "deciding" && loaded !== undefined && loaded !== ask.confirmed) {
        this.#runTurn(ask, () => this.#confirmDefect(ask, loaded, exit.cause))
        return
      }
      // An interruption that leaves an append behind, or a defect: the next command loads the entity again.
      if (isDefect) this.#restart(ask, exit.cause)
      else if (!Exit.hasInterrupts(exit)) instance.defects = 0
      else if (ask.phase === "storing") instance.loaded = undefined
    } else instance.defects = 0
    if (instance.running === ask) instance.running = undefined
    this.#finish(ask, exit)
    this.#drain(instance)
  }

  /** A defect that rests on a state which another process has outdated is none: the command is decided anew. */
  #confirmDefect(ask: Ask<State>, loaded: Loaded<State>, cause: Cause.Cause<unknown>): Answer {
    const defect = Effect.suspend(() => {
      ask.confirmed = loaded
      return Effect.failCause(cause)
    })
    return Effect.matchEffect(this.#confirm(ask.instance, loaded), {
      onFailure: (error) => (error.reason._tag === "SequenceConflict" ? this.#onFailure(ask, loaded, error) : defect),
      onSuccess: () => defect
    })
  }

  #startRead(ask: Ask<State>): void {
    const { instance } = ask
    instance.reads++
    instance.lastUsed = ask.since
    this.#run(
      ask,
      () => this.#read(ask),
      (exit) => {
        instance.reads--
        this.#finish(ask, exit)
        this.#stopIfIdle(instance)
      }
    )
  }

  #run(ask: Ask<State>, effect: () => Answer, onExit: (exit: Exit.Exit<unknown, unknown>) => void): void {
    ask.phase = "deciding"
    ask.fiber = Effect.runForkWith(ask.context)(Effect.suspend(effect))
    ask.fiber.addObserver(onExit)
  }

  #ended(ask: Ask<State>): void {
    this.#asks.delete(ask)
    if (this.#closing && this.#asks.size === 0) this.#finished.openUnsafe()
  }

  #finish(ask: Ask<State>, exit: Exit.Exit<unknown, unknown>): void {
    this.#ended(ask)
    const { metrics } = this.#env
    const { span } = ask
    span?.attribute("entity.events", ask.stored)
    span?.attribute("entity.conflicts", ask.conflicts)
    if (Exit.isFailure(exit)) {
      const reason = exit.cause.reasons[0]
      const error = reason?._tag === "Fail" ? reason.error : undefined
      const name = error instanceof EntityError ? error.reason._tag : reason?._tag === "Die" ? "Defect" : undefined
      if (name !== undefined) metrics.failed(name)
      span?.attribute("error.type", name ?? (error as { readonly _tag?: string } | undefined)?._tag ?? reason?._tag)
    }
    metrics.answered((performance.now() - ask.begin) / 1000)
    ask.answer(exit)
  }

  /** Forgets the state, which may be half changed, and lets the entity rest, longer from defect to defect. */
  #restart(ask: Ask<State>, cause: Cause.Cause<unknown>): void {
    const { instance } = ask
    const { maxRestartBackOff, restartBackOff } = this.#env.settings
    instance.loaded = undefined
    instance.recovered = false
    const pause = Math.min(maxRestartBackOff, restartBackOff * 2 ** instance.defects++)
    instance.restartAt = this.#now() + pause
    this.#env.metrics.restarts++
    Effect.runForkWith(ask.context)(
      Effect.logError(
        `${ask.command.tag} for ${this.entityType} "${instance.entityId}" ended with a defect, the entity restarts in ${pause} ms`,
        cause
      )
    )
  }

  // ------------------------------------------------------------------------------------------------ a turn

  /** Decides a command, stores its events, and gives the reply; decides anew when another process was first. */
  #turn(ask: Ask<State>): Answer {
    const { command, ids, instance, payload } = ask
    const { loaded } = instance
    if (loaded === undefined) return Effect.flatMap(this.#load(instance, ids !== undefined), () => this.#turn(ask))
    if (ids !== undefined) {
      if (loaded.commands === undefined) return Effect.flatMap(this.#load(instance, true), () => this.#turn(ask))
      const id = ids.of(command.tag)
      if (!isOwn(ids, this.entityType, instance.entityId, id, payload)) return this.#reused(ask, id)
      const { answers, from } = loaded.commands
      if (answers.has(id)) return this.#repeat(ask, loaded, answers.get(id), id)
      if (ids.since !== undefined && ids.since < from.stamp) return this.#tooOld(ask, id)
    }
    const decided = command.decide(loaded.state, payload)
    return Effect.isEffect(decided)
      ? this.#decide(ask, loaded, decided)
      : this.#carryOut(ask, loaded, this.#apply(ask, loaded, decided))
  }

  #decide(ask: Ask<State>, loaded: Loaded<State>, decided: Effect.Effect<AnyDecision<State>, unknown, any>): Answer {
    return Effect.matchEffect(this.#provide(ask.instance, decided), {
      onFailure: (error) => this.#carryOut(ask, loaded, this.#apply(ask, loaded, { _tag: "Reject", error })),
      onSuccess: (decision) => this.#carryOut(ask, loaded, this.#apply(ask, loaded, decision))
    })
  }

  /** What follows from a decision; before anything is stored, for what throws stores nothing. */
  #apply(ask: Ask<State>, loaded: Loaded<State>, decision: AnyDecision<State>): Decided<State> {
    const { model } = this.#env
    if (decision?._tag !== "Persist" && decision?._tag !== "Reply" && decision?._tag !== "Reject") {
      const what = `the handler of ${ask.command.tag} of ${this.entityType} gave ${decision}`
      throw new TypeError(`${what}, which is no decision: Decision.persist, reply or reject`)
    }
    let { state } = loaded
    const events: Array<StoredEvent> = []
    let snapshotDue = false
    if (decision._tag === "Persist") {
      for (const event of decision.events) {
        state = model.apply(state, event)
        events.push(model.events.encode(event))
        snapshotDue ||= model.snapshotWhen?.(state, event) === true
      }
    }
    return { events, next: { state, count: events.length, snapshotDue, answer: answerOf(decision, state) } }
  }

  /** Stores events; with the id of a command also its answer, even if there are no events. */
  #carryOut(ask: Ask<State>, loaded: Loaded<State>, decided: Decided<State>): Answer {
    const { events, next } = decided
    if (events.length > 0 || ask.ids !== undefined) {
      const append = this.#append(ask, loaded, decided)
      ask.phase = "storing"
      return this.#settle(ask, loaded, next, this.#env.journal.append(append), append.command)
    }
    // A reply without events, and a rejection, must not rest on a state that another process has outdated.
    return Effect.matchEffect(this.#confirm(ask.instance, loaded), {
      onFailure: (error) => this.#onFailure(ask, loaded, error),
      onSuccess: () => {
        if (ask.place !== undefined) ask.place.last = this.#placeOf(ask.instance.entityId, loaded.validThrough)
        return next.answer
      }
    })
  }

  #append(
    { command, ids, instance, payload, span }: Ask<State>,
    loaded: Loaded<State>,
    { events, next }: Decided<State>,
    behind?: Queued
  ): Append {
    return {
      entityType: this.entityType,
      entityId: instance.entityId,
      expected: loaded,
      behind,
      events,
      metadata: span?.sampled ? { traceparent: `00-${span.traceId}-${span.spanId}-01` } : undefined,
      command:
        ids === undefined
          ? undefined
          : {
              id: ids.of(command.tag),
              answer: command.answers.encode(next.answer, ids.strict ? command.answers.digest(payload) : undefined)
            }
    }
  }

  #settle(
    ask: Ask<State>,
    loaded: Loaded<State>,
    next: Next<State>,
    appended: Effect.Effect<Appended, JournalError>,
    command?: Append["command"]
  ): Answer {
    return Effect.matchEffect(appended, {
      onFailure: (error) => this.#onFailure(ask, loaded, error),
      onSuccess: (stored) => this.#stored(ask, loaded, next, stored, command)
    })
  }

  /** Goes on from the state whose events have been stored. */
  #stored(
    ask: Ask<State>,
    loaded: Loaded<State>,
    { answer, count, snapshotDue, state }: Next<State>,
    { sequence, validThrough }: Appended,
    command?: Append["command"]
  ): Exit.Exit<unknown, unknown> {
    const { instance } = ask
    const { commands } = loaded
    if (command !== undefined) commands?.answers.set(command.id, JSON.stringify(command.answer))
    // Asked for again, they are those of the window only.
    const kept = commands !== undefined && commands.answers.size > maxCommands ? undefined : commands
    const stored: Loaded<State> = { state, sequence, validThrough, commands: kept }
    instance.loaded = stored
    ask.stored = count
    if (ask.place !== undefined) ask.place.last = this.#placeOf(instance.entityId, validThrough)
    const { snapshotEvery } = this.#env.settings
    if (snapshotDue || Math.floor(sequence / snapshotEvery) > Math.floor(loaded.sequence / snapshotEvery)) {
      this.#saveSnapshot(instance, stored)
    }
    return answer
  }

  /** The first answer of a command that was carried out before. */
  #repeat(ask: Ask<State>, loaded: Loaded<State>, stored: string | undefined, commandId: string): Answer {
    const { command, ids, instance, payload } = ask
    const { entityId } = instance
    const answer = command.answers.decode(
      stored === undefined ? undefined : JSON.parse(stored),
      ids!.strict ? command.answers.digest(payload) : undefined
    )
    if (ask.place !== undefined) ask.place.last = this.#placeOf(entityId, loaded.validThrough)
    if (typeof answer !== "string") return answer
    if (answer === "reused") return this.#reused(ask, commandId)
    const message = `${command.tag} for ${this.entityType} "${entityId}" with the id "${commandId}" was carried out before, but its answer no longer fits the schemas of the command`
    return fail(new UndecodableAnswer({ ...this.#names(entityId, command), commandId, message }))
  }

  #reused({ command, instance: { entityId } }: Ask<State>, commandId: string): Answer {
    const message = `${command.tag} for ${this.entityType} "${entityId}" with the id "${commandId}": the id was given to another command or payload before; nothing was stored. Give each its own by withCommandId`
    return fail(new CommandIdReused({ ...this.#names(entityId, command), commandId, message }))
  }

  /** Rather not at all than twice. */
  #tooOld({ command, instance: { entityId } }: Ask<State>, commandId: string): Answer {
    const message = `${command.tag} for ${this.entityType} "${entityId}" with the id "${commandId}": the entity has had more events since than its commands are remembered, so it may have been carried out before, and was not now: raise the journal's commandWindow`
    return fail(new CommandTooOld({ ...this.#names(entityId, command), commandId, message }))
  }

  /** After a failure of the journal the state may no longer be the newest. */
  #onFailure(ask: Ask<State>, loaded: Loaded<State>, error: JournalError): Answer {
    const { instance } = ask
    if (error.reason._tag === "SequenceConflict") {
      ask.phase = "deciding"
      this.#env.metrics.conflicts++
      return this.#again(ask, loaded, () => this.#turn(ask))
    }
    if (leavesDoubt(error) && instance.loaded === loaded) instance.loaded = undefined
    return Effect.fail(this.journalFailure(instance.entityId, error))
  }

  /** Adds to a state what others have stored since, and tries again, a bounded number of times. */
  #again(ask: Ask<State>, outdated: Loaded<State>, attempt: () => Answer): Answer {
    const { conflicts, instance } = ask
    const { entityId } = instance
    if (instance.loaded === outdated) instance.loaded = undefined
    if (ask.conflicts++ < this.#env.settings.maxConflicts) {
      return instance.loaded === undefined
        ? Effect.flatMap(this.#load(instance, outdated.commands !== undefined, outdated), attempt)
        : attempt()
    }
    const message = `${this.entityType} "${entityId}": other processes stored events ${conflicts + 1} times while the command was decided, nothing of it was stored`
    return fail(new TooManyConflicts({ entityType: this.entityType, entityId, message }))
  }

  // ------------------------------------------------------------------------------------------------ a read

  /** Answers from a state that is new enough; writes go on meanwhile. */
  #read(ask: Ask<State>): Answer {
    const { command, instance } = ask
    const { loaded } = instance
    // What is loaded is looked at again: the loading may have begun before the command came.
    if (loaded === undefined) return Effect.flatMap(this.#load(instance, false), () => this.#read(ask))
    if (command.readOnly === "local") {
      return this.#isCurrent(instance.entityId, loaded) ? this.#readFrom(ask, loaded) : this.#readAgain(ask, loaded)
    }
    return Effect.matchEffect(this.#confirm(instance, loaded), {
      onFailure: (error) =>
        error.reason._tag === "SequenceConflict"
          ? this.#readAgain(ask, loaded)
          : Effect.fail(this.journalFailure(instance.entityId, error)),
      onSuccess: () => this.#readFrom(ask, loaded)
    })
  }

  #readAgain(ask: Ask<State>, outdated: Loaded<State>): Answer {
    return this.#again(ask, outdated, () => this.#read(ask))
  }

  #readFrom(ask: Ask<State>, { state, validThrough }: Loaded<State>): Answer {
    if (ask.place !== undefined) ask.place.last = this.#placeOf(ask.instance.entityId, validThrough)
    const decided = ask.command.decide(state, ask.payload)
    return Effect.isEffect(decided)
      ? Effect.flatMap(this.#provide(ask.instance, decided), (decision) => answerOf(decision, state))
      : answerOf(decided, state)
  }

  // ------------------------------------------------------------------------------------------------ the journal

  /** Asks the cluster whether the state is still the newest. */
  #confirm({ entityId }: Instance<State>, loaded: Loaded<State>): Effect.Effect<void, JournalError> {
    return Effect.map(this.#env.journal.confirm({ entityType: this.entityType, entityId }, loaded), (position) => {
      if (position.validThrough > loaded.validThrough) loaded.validThrough = position.validThrough
    })
  }

  /** Whether this process has seen no event that is missing in the state. */
  #isCurrent(entityId: string, loaded: Loaded<State>): boolean {
    return this.#env.journal.isCurrent({ entityType: this.entityType, entityId }, loaded)
  }

  /** Loads an entity, or what came after an outdated state, once for all who wait; who is interrupted does not stop it. */
  #load(
    instance: Instance<State>,
    withCommands: boolean,
    outdated?: Loaded<State>
  ): Effect.Effect<Loaded<State>, EntityError> {
    return Effect.suspend(() => {
      if (instance.loading === undefined) {
        const { scope, services } = this.#env
        const fiber = Effect.runForkWith(services)(this.#recover(instance, withCommands, outdated))
        instance.loading = Fiber.runIn(fiber, scope)
        fiber.addObserver((exit) => {
          instance.loading = undefined
          if (Exit.isSuccess(exit)) instance.loaded = newer(instance.loaded, exit.value)
          this.#stopIfIdle(instance)
        })
        return Fiber.join(fiber)
      }
      return Fiber.join(instance.loading)
    })
  }

  #recover(
    instance: Instance<State>,
    withCommands: boolean,
    outdated: Loaded<State> | undefined
  ): Effect.Effect<Loaded<State>, EntityError> {
    const { entityId } = instance
    const { journal, metrics, model, recovered, settings } = this.#env
    return recover(model, journal, entityId, withCommands, outdated).pipe(
      Effect.map((loaded) => newer(outdated, loaded)),
      Effect.timeoutOrElse({
        duration: settings.recoveryTimeout,
        orElse: () => {
          const millis = settings.recoveryTimeout
          const message = `${this.entityType} "${entityId}" could not be loaded within ${millis} ms (recoveryTimeout)`
          return fail(new RecoveryTimeout({ entityType: this.entityType, entityId, millis, message }))
        }
      }),
      this.#recovering.withPermit("all"),
      Effect.tap(({ state }) => {
        metrics.recoveries++
        if (instance.recovered || recovered === undefined) return Effect.void
        return Effect.tap(recovered(state, entityId) as Effect.Effect<void>, () => {
          instance.recovered = true
          return Effect.void
        })
      })
    )
  }

  #saveSnapshot(instance: Instance<State>, loaded: Loaded<State>): void {
    const { journal, metrics, model, services, settings } = this.#env
    const { entityId } = instance
    instance.snapshots ??= []
    instance.snapshots.push(loaded.sequence)
    const removed = instance.snapshots.length > settings.snapshotsKept ? instance.snapshots.shift()! : 0
    const save = Effect.suspend(() =>
      journal.saveSnapshot(
        { entityType: this.entityType, entityId },
        { sequence: loaded.sequence, validThrough: loaded.validThrough, state: model.encodeState(loaded.state) },
        removed
      )
    ).pipe(
      this.#saving.withPermit("all"),
      Effect.tap(() => {
        metrics.snapshots++
        return Effect.void
      }),
      Effect.catchCause((cause) =>
        Effect.logWarning(
          `a snapshot of ${this.entityType} "${entityId}" could not be saved, its events are safe`,
          cause
        )
      )
    )
    Fiber.runIn(Effect.runForkWith(services)(save), this.#env.scope)
  }

  // ------------------------------------------------------------------------------------------------ life

  /** Answers commands whose time is over. */
  readonly expire: Effect.Effect<void> = Effect.sync(() => {
    const now = this.#now()
    for (const ask of this.#asks.all()) {
      const millis = now - ask.since
      if (millis < this.#env.settings.askTimeout) return
      if (ask.answered) continue
      const { command, fiber, instance, phase } = ask
      const message = `${command.tag} for ${this.entityType} "${instance.entityId}" was not answered within ${millis} ms (askTimeout): ${unfinished[phase]}`
      const stored = phase === "storing" ? "unknown" : "no"
      const reason = new CommandTimeout({ ...this.#names(instance.entityId, command), millis, stored, message })
      this.#env.metrics.failed("CommandTimeout")
      ask.answer(Exit.fail(new EntityError({ reason })))
      if (phase === "waiting") this.#giveUp(ask)
      else if (phase === "deciding") fiber?.interruptUnsafe()
    }
  })

  /** Lets entities leave memory that had nothing to do for long. */
  readonly passivateIdle: Effect.Effect<void> = Effect.sync(() => {
    const before = this.#now() - this.#env.settings.passivateAfter
    for (const instance of this.#instances.values()) {
      if (instance.lastUsed <= before && instance.idle) this.#passivate(instance)
    }
  })

  /** Lets one entity leave memory as soon as it has nothing to do. */
  readonly stop = (entityId: string): Effect.Effect<void> =>
    Effect.suspend(() => {
      const instance = this.#instances.get(entityId)
      if (instance === undefined) return Effect.void
      instance.stopping ??= Latch.makeUnsafe(false)
      const { stopping } = instance
      this.#stopIfIdle(instance)
      return stopping.await
    })

  #stopIfIdle(instance: Instance<State>): void {
    if (instance.idle) instance.refusal = undefined
    if (instance.stopping !== undefined && instance.idle) this.#passivate(instance)
    else this.#makeRoom(this.#env.settings.maxEntities)
  }

  /**
   * Lets entities leave memory until so many are left: those that were not used since they were placed, the first one first.
   * Those that were, and busy ones, are placed behind all others; so many of them are looked at in one go.
   */
  #makeRoom(left: number): void {
    for (let looks = 0; this.#instances.size > left && looks < maxLooks; looks++) {
      const first: Instance<State> = this.#instances.values().next().value!
      if (first.idle && first.lastUsed <= first.placed) this.#passivate(first)
      else this.#place(first)
    }
  }

  #place(instance: Instance<State>): void {
    instance.placed = this.#now()
    this.#instances.delete(instance.entityId)
    this.#instances.set(instance.entityId, instance)
  }

  #passivate(instance: Instance<State>): void {
    if (this.#instances.get(instance.entityId) !== instance) return
    this.#instances.delete(instance.entityId)
    instance.stopping?.openUnsafe()
    this.#env.metrics.passivations++
  }

  /** Refuses what comes, and lets what was accepted finish. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.#closing = true
    if (this.#asks.size > 0) this.#finished.closeUnsafe()
    return Effect.timeoutOption(this.#finished.await, this.#env.settings.shutdownTimeout)
  }).pipe(
    Effect.andThen(
      Effect.sync(() => {
        const left = [...this.#asks.all()]
        for (const ask of left) {
          const { command, instance, phase } = ask
          const stored = phase === "storing" ? "unknown" : "no"
          const message = `${command.tag} for ${this.entityType} "${instance.entityId}": the entities closed before it was done, ${unfinished[phase]}`
          const names = this.#names(instance.entityId, command)
          ask.answer(Exit.fail(new EntityError({ reason: new EntitiesClosed({ ...names, stored, message }) })))
        }
        for (const { fiber } of left) fiber?.interruptUnsafe()
        this.#instances.clear()
      })
    )
  )

  // ------------------------------------------------------------------------------------------------ small things

  /** Milliseconds that pass whatever the time of day is set to. */
  #now(): number {
    return Math.round(Number(this.#env.clock.monotonicTimeNanosUnsafe()) / 1e6)
  }

  #instanceOf(entityId: string): Instance<State> {
    let instance = this.#instances.get(entityId)
    if (instance === undefined) {
      this.#makeRoom(this.#env.settings.maxEntities - 1)
      instance = new Instance(this, entityId)
      this.#place(instance)
    }
    return instance
  }

  #placeOf(entityId: string, offset: number): LogPosition {
    return { entityType: this.entityType, shard: this.#env.journal.shardOf(entityId), offset }
  }

  #names(entityId: string, command: Command<State>) {
    return { entityType: this.entityType, entityId, command: command.tag }
  }

  journalFailure(entityId: string, cause: JournalError): EntityError {
    return new EntityError({
      reason: new JournalFailure({ entityType: this.entityType, entityId, message: cause.message, cause })
    })
  }

  /** Gives a handler's effect its services, and its logs the entity's name. */
  #provide<A, E>({ entityId }: Instance<State>, effect: Effect.Effect<A, E, any>): Effect.Effect<A, E> {
    return Effect.annotateLogs(Effect.provideContext(effect as Effect.Effect<A, E>, this.#env.services), {
      "entity.type": this.entityType,
      "entity.id": entityId
    })
  }
}

/** What has become of a command that took too long. */
const unfinished = {
  waiting: "its turn did not come, nothing was stored",
  deciding: "it was not decided, nothing was stored",
  storing: "its events are with the journal, whether they are stored is not known yet"
}

/** Whether what is stored is not known after it. */
const leavesDoubt = ({ reason }: JournalError): boolean =>
  reason._tag !== "StoreFailure" && reason._tag !== "AppendTooLarge"

/** The state after a command whose events are not stored yet. */
const after = <State>({ from, next }: Ask<State>): Loaded<State> => ({
  state: next!.state,
  sequence: from!.sequence + next!.count,
  validThrough: from!.validThrough,
  commands: from!.commands
})

/** What the caller gets. */
const answerOf = <State>(decision: AnyDecision<State>, state: State): Exit.Exit<unknown, unknown> =>
  decision._tag === "Reject"
    ? Exit.fail(decision.error)
    : Exit.succeed(decision._tag === "Reply" ? decision.value : decision.reply(state))

/** The one that reaches further, with the commands that either knows, if the two leave no gap. */
const newer = <State>(before: Loaded<State> | undefined, loaded: Loaded<State>): Loaded<State> => {
  if (before === undefined) return loaded
  const [later, earlier] = before.validThrough <= loaded.validThrough ? [loaded, before] : [before, loaded]
  if (earlier.commands === undefined) return later
  if (later.commands === undefined) {
    if (later.sequence === earlier.sequence) later.commands = earlier.commands
  } else if (later.commands.from.sequence <= earlier.sequence + 1) {
    const [first, second] =
      later.commands.from.sequence <= earlier.commands.from.sequence
        ? [later.commands, earlier.commands]
        : [earlier.commands, later.commands]
    for (const [id, answer] of second.answers) first.answers.set(id, answer)
    later.commands = first
  }
  return later
}
