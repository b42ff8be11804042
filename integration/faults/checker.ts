/**
 * Decides whether what callers were told agrees with what is stored, and says what it looked at.
 *
 * The log gives the order of an account's events, so linearizability needs no search: the place of every write is known, and
 * a read or a rejection gets the first place that its balance and the operations before it allow. (Gibbons and Korach,
 * "Testing shared memories", 1997: checking is easy once the order of the writes is known.)
 */
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import type { Entry, Value } from "./history.ts"

/** All that was found at the end. */
export interface Evidence {
  readonly history: ReadonlyArray<Entry>
  /** The log of each shard. */
  readonly logs: ReadonlyArray<ReadonlyArray<EventEnvelope>>
  /** The events of each account, as the index has them. */
  readonly index: ReadonlyMap<string, ReadonlyArray<EventEnvelope>>
  /** The lines of each account's statement, the oldest first, and its balance in the list of its owner. */
  readonly views: ReadonlyMap<string, View>
  /** What each transfer says of itself: `undefined` if it says that it was never started. */
  readonly transfers: ReadonlyMap<string, string | undefined>
  /** What each service held before the first fault and at the end. */
  readonly resources: ReadonlyArray<{ readonly before: Resources | undefined; readonly after: Resources | undefined }>
  /** What the services have written of errors. */
  readonly complaints: ReadonlyArray<Complaint>
  /** What was measured now and then while nothing was broken. */
  readonly samples: ReadonlyArray<Sample>
  /** When everything had been mended, and all services had answered again. */
  readonly calm: number
}

/** What a service process holds, after its garbage was collected. */
export interface Resources {
  readonly heapMegabytes: number
  /** Files and sockets. */
  readonly handles: number
}

/** A measurement of a service. */
export interface Sample extends Resources {
  readonly service: number
  /** Milliseconds since the begin. */
  readonly at: number
  /** Milliseconds from the acknowledgement of an event until it was in the view. */
  readonly lag: number
}

/** A line of a service's log, and when it was written, in milliseconds of `performance.now`. */
export interface Complaint {
  readonly service: number
  readonly at: number
  readonly line: string
}

export interface View {
  readonly lines: ReadonlyArray<{ readonly sequence: number; readonly balance: number }>
  readonly balance: number | undefined
}

/** A rule that is broken, and where. */
export interface Problem {
  readonly rule:
    | "acknowledged events are stored"
    | "what failed is not stored"
    | "nothing is stored twice"
    | "nothing is stored that nobody asked for"
    | "answers agree with the events"
    | "the order agrees with real time"
    | "reads are linearizable"
    | "rejections are linearizable"
    | "sequence numbers have no hole and no repeat"
    | "offsets have no hole"
    | "stamps increase"
    | "balances are the fold of the events"
    | "the index equals the log"
    | "views equal the log"
    | "transfers are whole"
    | "the money is all there"
    | "local reads never go back"
    | "memory and handles are back"
    | "services fail only as they may"
    | "nothing grows"
  readonly message: string
}

export interface Verdict {
  readonly problems: ReadonlyArray<Problem>
  /** What was looked at. */
  readonly looked: Readonly<Record<string, number>>
}

/** An operation from beginning to end. */
interface Operation {
  readonly f: Entry["f"]
  readonly key: string
  /** The process that was asked. */
  readonly asked: string
  readonly type: "ok" | "fail" | "info"
  readonly value: Value
  readonly invoked: number
  /** Never, if it is not known. */
  readonly completed: number
}

const operationsOf = (history: ReadonlyArray<Entry>): ReadonlyArray<Operation> => {
  const begun = new Map<number, Entry>()
  const operations: Array<Operation> = []
  for (const entry of history) {
    const { f, key, life, process, sequence, service, type, value } = entry
    const asked = `service ${service}, start ${life}`
    const start = begun.get(process)
    if (type === "invoke") {
      if (start !== undefined) throw new Error(`process ${process} begins at line ${sequence} before it has ended`)
      begun.set(process, entry)
      continue
    }
    if (start === undefined || start.f !== f || start.key !== key) {
      throw new Error(`process ${process} ends at line ${sequence} what it has not begun`)
    }
    begun.delete(process)
    const completed = type === "info" ? Number.POSITIVE_INFINITY : sequence
    operations.push({ f, key, asked, type, value: { ...start.value, ...value }, invoked: start.sequence, completed })
  }
  for (const { f, key, life, sequence, service, value } of begun.values()) {
    const asked = `service ${service}, start ${life}`
    operations.push({ f, key, asked, type: "info", value, invoked: sequence, completed: Number.POSITIVE_INFINITY })
  }
  return operations.toSorted((one, other) => one.invoked - other.invoked)
}

const eventOf = { deposit: "Deposited", withdraw: "Withdrawn" } as const

/** What a statement has a line for; an account has other events, too, some of them the journal's own. */
const statementTypes = ["Opened", "Deposited", "Withdrawn", "Closed"]

const isWrite = (operation: Operation): operation is Operation & { readonly f: "deposit" | "withdraw" } =>
  operation.f === "deposit" || operation.f === "withdraw"

interface Payload {
  readonly cents?: number
  readonly balance?: number
  readonly transfer?: string
}

/**
 * What grows in the second half of the time, in which caches are full: by the line of least squares, and by more than chance
 * makes of what does not grow. Half of the samples are too few under 8.
 */
const growth = (samples: ReadonlyArray<Sample>) => {
  const end = Math.max(...samples.map(({ at }) => at))
  const half = samples.filter(({ at }) => at >= end / 2)
  const mean = (of: (sample: Sample) => number) => half.reduce((sum, sample) => sum + of(sample), 0) / half.length
  const at = mean((sample) => sample.at)
  const squares = mean((sample) => (sample.at - at) ** 2)
  const span = end - Math.min(...half.map((sample) => sample.at))
  const kinds = [
    { name: "the heap", unit: "MB", of: (sample: Sample) => sample.heapMegabytes, least: 3, share: 0.1 },
    { name: "the number of handles", unit: "", of: (sample: Sample) => sample.handles, least: 4, share: 0.1 },
    { name: "the lag", unit: "ms", of: (sample: Sample) => sample.lag, least: 200, share: 0.5 }
  ]
  return kinds.flatMap(({ least, name, of, share, unit }) => {
    const middle = mean(of)
    const slope = half.length < 8 ? 0 : mean((sample) => (sample.at - at) * (of(sample) - middle)) / squares
    const grown = slope * span
    const begin = middle - grown / 2
    return grown > Math.max(least, begin * share) ? [{ name, unit, grown: grown.toFixed(1), of: begin.toFixed(1) }] : []
  })
}

/** Milliseconds for which a request that was sent before all was mended may still be under way, and then fail. */
const underWay = 10_000

/** What no fault from outside explains: errors of the program itself, and a log that is said to be broken. */
export const isInside = (line: string): boolean =>
  /unhandled|uncaught|\b(Type|Reference|Range|Syntax|Assertion)Error\b|\bdefect\b|\bDie\b|FATAL|out of memory|ListenersExceeded|DataLost|CorruptBlock|Undecodable/i.test(
    line
  )

export const check = (evidence: Evidence): Verdict => {
  const { history, index, logs, transfers, views } = evidence
  const problems: Array<Problem> = []
  const report = (rule: Problem["rule"], message: string) => void problems.push({ rule, message })
  const count = {
    operations: 0,
    acknowledged: 0,
    rejected: 0,
    failed: 0,
    unknown: 0,
    unknownStored: 0,
    reads: 0,
    localReads: 0,
    transfers: 0,
    completed: 0
  }

  // Shards: offsets, stamps.
  const accounts = new Map<string, Array<EventEnvelope>>()
  for (const [shard, log] of logs.entries()) {
    for (const [i, event] of log.entries()) {
      const before = log[i - 1]
      if (event.offset !== i + 1) report("offsets have no hole", `shard ${shard}: ${event.offset} stands at ${i + 1}`)
      if (before !== undefined && event.stamp <= before.stamp) {
        report("stamps increase", `shard ${shard}: ${event.stamp} at ${event.offset} follows ${before.stamp}`)
      }
      const events = accounts.get(event.entityId)
      if (events === undefined) accounts.set(event.entityId, [event])
      else events.push(event)
    }
  }

  const operations = operationsOf(history)
  const byAccount = Map.groupBy(operations, ({ key }) => key)
  for (const key of byAccount.keys()) if (!accounts.has(key)) accounts.set(key, [])

  /** What transfers have moved, by transfer: where from, and where to. */
  const moves = new Map<string, { readonly out: Array<string>; readonly in: Array<string>; cents: Set<number> }>()
  let stored = 0
  let money = 0
  let deposits = 0
  let withdrawals = 0
  for (const [account, events] of accounts) {
    // Events: sequence numbers, balances.
    let balance = 0
    const balances = [0]
    for (const [i, event] of events.entries()) {
      if (event.sequence !== i + 1) {
        report("sequence numbers have no hole and no repeat", `${account}: ${event.sequence} stands at ${i + 1}`)
      }
      const payload = (event.payload ?? {}) as Payload
      if (event.type === "Deposited") {
        balance += payload.cents!
        deposits += payload.cents!
      } else if (event.type === "Withdrawn") {
        balance -= payload.cents!
        withdrawals += payload.cents!
      }
      balances.push(balance)
      const isMove = event.type === "Deposited" || event.type === "Withdrawn"
      if (isMove && payload.balance !== balance) {
        report(
          "balances are the fold of the events",
          `${account}: ${payload.balance} at ${i + 1} instead of ${balance}`
        )
      }
      if (balance < 0) report("balances are the fold of the events", `${account}: ${balance} at ${i + 1}`)
    }
    stored += events.length
    money += balance

    // Which operation stored which event.
    const positions = new Map<string, number>()
    for (const [i, event] of events.entries()) {
      if (event.type !== "Deposited" && event.type !== "Withdrawn") continue
      const { cents, transfer } = event.payload as Payload
      if (transfer !== undefined) {
        const move = moves.get(transfer) ?? { out: [], in: [], cents: new Set() }
        moves.set(transfer, move)
        move[event.type === "Withdrawn" ? "out" : "in"].push(account)
        move.cents.add(cents!)
        continue
      }
      const name = `${event.type} ${cents}`
      if (positions.has(name))
        report("nothing is stored twice", `${account}: ${name} at ${positions.get(name)} and ${i + 1}`)
      else positions.set(name, i + 1)
    }
    const asked = new Set<string>()
    const placed: Array<{ readonly operation: Operation; readonly position: number | undefined }> = []
    for (const operation of byAccount.get(account) ?? []) {
      const { type, value } = operation
      if (operation.f === "transfer") continue
      count.operations++
      if (!isWrite(operation)) {
        placed.push({ operation, position: undefined })
        if (type === "ok") count[operation.f === "local" ? "localReads" : "reads"]++
        continue
      }
      const name = `${eventOf[operation.f]} ${value.cents}`
      asked.add(name)
      const position = positions.get(name)
      if (type === "ok") {
        count.acknowledged++
        if (position === undefined) report("acknowledged events are stored", `${account}: ${name} is not there`)
        else if (balances[position] !== value.balance) {
          report(
            "answers agree with the events",
            `${account}: ${name} was answered with ${value.balance}, and is ${balances[position]} at ${position}`
          )
        }
      } else if (type === "fail") {
        if (value.error === "Overdraft") count.rejected++
        else count.failed++
        if (position !== undefined) report("what failed is not stored", `${account}: ${name} is there, at ${position}`)
      } else {
        count.unknown++
        if (position !== undefined) count.unknownStored++
      }
      placed.push({ operation, position })
    }
    for (const [name, position] of positions) {
      if (!asked.has(name)) report("nothing is stored that nobody asked for", `${account}: ${name} at ${position}`)
    }

    // Real time: what was over before something began has its place before it.
    const ends = placed
      .filter(({ operation, position }) => position !== undefined && operation.type === "ok")
      .map(({ operation, position }) => ({ at: operation.completed, position: position! }))
    const begins = placed
      .filter(({ position }) => position !== undefined)
      .map(({ operation, position }) => ({ at: operation.invoked, position: position! }))
    /** For each line the least place of what begins after it. */
    const ceilings = suffixMinimum(begins)
    const done = new Floors(ends)
    const placeReads = new Floors([])
    /** What each process has seen: the places of its answers. */
    const seen = new Map<string, Floors>()
    for (const { operation, position } of placed) {
      const { asked, completed, f, invoked, type, value } = operation
      const own = seen.get(asked) ?? new Floors([])
      seen.set(asked, own)
      if (f === "local") {
        if (type !== "ok") continue
        const floor = own.before(invoked)
        const ceiling = Math.min(ceilings(completed) - 1, events.length)
        let place = floor
        while (place <= ceiling && balances[place] !== value.balance) place++
        if (place <= ceiling) own.add(completed, place)
        else {
          report(
            "local reads never go back",
            `${account}: ${asked} said ${value.balance} at line ${completed}, which was at no time between places ${floor}, seen by it before, and ${ceiling}`
          )
        }
        continue
      }
      const floor = Math.max(done.before(invoked), placeReads.before(invoked))
      if (position !== undefined) {
        if (type === "ok") own.add(completed, position)
        if (position <= floor) {
          report(
            "the order agrees with real time",
            `${account}: ${f} of ${value.cents} at line ${invoked} has place ${position}, and what was seen before has ${floor}`
          )
        }
        continue
      }
      const isRead = f === "read" && type === "ok"
      const isRejection = type === "fail" && value.error === "Overdraft"
      if (!isRead && !isRejection) continue
      const ceiling = ceilings(completed) - 1
      let place = floor
      while (place <= Math.min(ceiling, events.length) && balances[place] !== value.balance) place++
      if (place > Math.min(ceiling, events.length)) {
        report(
          isRead ? "reads are linearizable" : "rejections are linearizable",
          `${account}: the balance ${value.balance} at line ${completed} was at no time between places ${floor} and ${Math.min(ceiling, events.length)}`
        )
      } else {
        placeReads.add(completed, place)
        own.add(completed, place)
        if (isRejection && value.cents! <= value.balance!) {
          report(
            "rejections are linearizable",
            `${account}: ${value.cents} of ${value.balance} was refused at line ${completed}`
          )
        }
      }
    }

    // Index and views.
    const indexed = index.get(account) ?? []
    const same = (a: EventEnvelope, b: EventEnvelope | undefined) =>
      a.sequence === b?.sequence && a.type === b.type && JSON.stringify(a.payload) === JSON.stringify(b.payload)
    if (indexed.length !== events.length || events.some((event, i) => !same(event, indexed[i]))) {
      report("the index equals the log", `${account}: ${indexed.length} events instead of ${events.length}, or others`)
    }
    if (events.length > 0) {
      const view = views.get(account)
      const lines = view?.lines ?? []
      const shown = events.filter(({ type }) => statementTypes.includes(type))
      const differs = shown.some(
        ({ sequence }, i) => lines[i]?.sequence !== sequence || lines[i].balance !== balances[sequence]
      )
      if (lines.length !== shown.length || differs) {
        report(
          "views equal the log",
          `${account}: the statement has ${lines.length} lines for ${shown.length} events, or others`
        )
      }
      if (view?.balance !== balance) {
        report("views equal the log", `${account}: the list of its owner says ${view?.balance} instead of ${balance}`)
      }
    }
  }
  for (const account of index.keys()) {
    if (!accounts.has(account)) report("the index equals the log", `${account} is not in the log`)
  }

  // Transfers: all of it has arrived, or all of it is back; nothing is on its way any more.
  for (const { f, key, type, value } of operations) {
    if (f !== "transfer") continue
    count.transfers++
    const name = value.transfer!
    const status = transfers.get(name)
    const { cents, in: received, out } = moves.get(name) ?? { out: [], in: [], cents: new Set() }
    const story = `transfer ${name} of ${value.cents} from ${key} to ${value.to} is ${status}: out of [${out}], into [${received}]`
    if (type === "ok" && status === undefined) report("acknowledged events are stored", story)
    if (type === "fail" && status !== undefined) report("what failed is not stored", story)
    if (status === "completed") count.completed++
    const isWhole =
      status === "completed"
        ? out.join() === key && received.join() === value.to
        : status === "failed"
          ? out.length === received.length &&
            [...out, ...received].every((account) => account === key) &&
            out.length < 2
          : status === undefined && out.length + received.length === 0
    if (!isWhole || [...cents].some((moved) => moved !== value.cents)) report("transfers are whole", story)
    moves.delete(name)
  }
  for (const name of moves.keys()) report("nothing is stored that nobody asked for", `transfer ${name}`)

  // Money: what was acknowledged is there, and no more than what may have been done.
  const sum = (f: Entry["f"], types: ReadonlyArray<string>) =>
    operations
      .filter((operation) => operation.f === f && types.includes(operation.type))
      .reduce((total, { value }) => total + value.cents!, 0)
  const least = sum("deposit", ["ok"]) - sum("withdraw", ["ok", "info"])
  const most = sum("deposit", ["ok", "info"]) - sum("withdraw", ["ok"])
  const shown = [...views.values()].reduce((total, { balance }) => total + (balance ?? 0), 0)
  if (money !== deposits - withdrawals || money < least || money > most || shown !== money) {
    report(
      "the money is all there",
      `${money} in the accounts, ${shown} in the views, between ${least} and ${most} by the answers`
    )
  }

  // Services: what they hold, and what they say.
  for (const [service, { after, before }] of evidence.resources.entries()) {
    if (before === undefined || after === undefined) {
      report("memory and handles are back", `service ${service} did not say what it holds`)
      continue
    }
    const story = `service ${service} had ${JSON.stringify(before)}, and has ${JSON.stringify(after)}`
    const isBack = after.heapMegabytes <= before.heapMegabytes * 1.5 + 20 && after.handles <= before.handles + 20
    if (!isBack) report("memory and handles are back", story)
  }
  for (const { at, line, service } of evidence.complaints) {
    const isLate = at > evidence.calm + underWay
    if (isLate || isInside(line)) {
      report("services fail only as they may", `service ${service}${isLate ? ", with nothing broken" : ""}: ${line}`)
    }
  }

  for (const [service, samples] of Map.groupBy(evidence.samples, (sample) => sample.service)) {
    for (const { grown, name, of, unit } of growth(samples)) {
      report("nothing grows", `${name} of service ${service} grew by ${grown} ${unit} in the second half, from ${of}`)
    }
  }

  return {
    problems,
    looked: { ...count, accounts: accounts.size, shards: logs.length, events: stored, cents: money }
  }
}

/** For a line, the least place among what begins after it. */
const suffixMinimum = (begins: ReadonlyArray<{ readonly at: number; readonly position: number }>) => {
  const sorted = begins.toSorted((one, other) => one.at - other.at)
  const least: Array<number> = []
  for (let i = sorted.length - 1; i >= 0; i--) {
    least[i] = Math.min(sorted[i]!.position, least[i + 1] ?? Number.POSITIVE_INFINITY)
  }
  return (line: number) => {
    let low = 0
    let high = sorted.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (sorted[middle]!.at > line) high = middle
      else low = middle + 1
    }
    return least[low] ?? Number.POSITIVE_INFINITY
  }
}

/** For a line, the greatest place among what was over before it; asked with lines that increase. */
class Floors {
  readonly #waiting: Array<{ readonly at: number; readonly position: number }>
  #floor = 0
  constructor(ends: ReadonlyArray<{ readonly at: number; readonly position: number }>) {
    this.#waiting = [...ends]
  }
  add(at: number, position: number) {
    this.#waiting.push({ at, position })
  }
  before(line: number): number {
    for (let i = this.#waiting.length - 1; i >= 0; i--) {
      const { at, position } = this.#waiting[i]!
      if (at >= line) continue
      this.#floor = Math.max(this.#floor, position)
      this.#waiting.splice(i, 1)
    }
    return this.#floor
  }
}
