import { assert, describe, it } from "@effect/vitest"
import type { EventEnvelope } from "@effect-cassandra/journal/Journal"
import {
  type Complaint,
  check,
  type Evidence,
  type Problem,
  type Resources,
  type Sample,
  type View
} from "./checker.ts"
import type { Entry, Value } from "./history.ts"

/** What a bank without faults leaves behind, told by hand. */
class World {
  readonly history: Array<Entry> = []
  readonly logs: Array<Array<EventEnvelope>> = [[], []]
  readonly index = new Map<string, ReadonlyArray<EventEnvelope>>()
  readonly views = new Map<string, View>()
  readonly transfers = new Map<string, string | undefined>()
  readonly resources: Array<{ before: Resources | undefined; after: Resources | undefined }> = [
    { before: { heapMegabytes: 60, handles: 40 }, after: { heapMegabytes: 70, handles: 45 } }
  ]
  readonly complaints: Array<Complaint> = [{ service: 0, at: 10, line: "ERROR: WriteTimeout" }]
  readonly calm = 20
  readonly samples: Array<Sample> = []
  life = 0

  line(process: number, type: Entry["type"], f: Entry["f"], key: string, value: Value = {}) {
    const sequence = this.history.length
    this.history.push({ process, service: 0, life: this.life, type, f, key, value, time: sequence * 1000, sequence })
  }

  eventsOf(key: string) {
    return this.logs.flat().filter(({ entityId }) => entityId === key)
  }

  balance(key: string) {
    return (this.eventsOf(key).at(-1)?.payload as { balance?: number } | undefined)?.balance ?? 0
  }

  store(shard: number, key: string, type: string, cents = 0, transfer?: string) {
    const log = this.logs[shard]!
    const change = type === "Deposited" ? cents : -cents
    const event: EventEnvelope = {
      entityType: "Account",
      entityId: key,
      sequence: this.eventsOf(key).length + 1,
      shard,
      offset: log.length + 1,
      stamp: 1000 + log.length * 10,
      type,
      version: 1,
      metadata: {},
      deleted: false,
      payload:
        type === "Opened"
          ? { owner: "ada" }
          : { cents, balance: this.balance(key) + change, ...(transfer === undefined ? {} : { transfer }) }
    }
    log.push(event)
    this.#derive(key)
  }

  #derive(key: string) {
    const events = this.eventsOf(key)
    this.index.set(key, events)
    const balanceOf = ({ payload }: EventEnvelope) => (payload as { balance?: number }).balance ?? 0
    const lines = events.map((event) => ({ sequence: event.sequence, balance: balanceOf(event) }))
    this.views.set(key, { lines, balance: this.balance(key) })
  }

  /** Changes an event everywhere, as if it had been stored so. */
  change(shard: number, at: number, change: Partial<EventEnvelope>) {
    const log = this.logs[shard]!
    log[at] = { ...log[at]!, ...change }
    this.#derive(log[at].entityId)
  }

  deposit(process: number, shard: number, key: string, cents: number) {
    this.line(process, "invoke", "deposit", key, { cents })
    this.store(shard, key, "Deposited", cents)
    this.line(process, "ok", "deposit", key, { cents, balance: this.balance(key) })
  }

  transfer(transfer: string, cents: number, status?: "completed" | "failed", end: "ok" | "fail" | "info" = "ok") {
    const process = 20 + this.transfers.size
    this.line(process, "invoke", "transfer", "b", { transfer, cents, to: "a" })
    this.line(process, end, "transfer", "b", { transfer, cents, to: "a" })
    this.transfers.set(transfer, status)
  }

  read(process: number, key: string, balance = this.balance(key), f: "read" | "local" = "read") {
    this.line(process, "invoke", f, key)
    this.line(process, "ok", f, key, { balance })
  }
}

/** Measurements once a minute: the heap fills at first, then all goes up and down, and grows by a part of that each time. */
const steadily = (w: World, grows: Partial<Record<"heapMegabytes" | "handles" | "lag", number>>) => {
  const { handles = 0, heapMegabytes = 0, lag = 0 } = grows
  for (let i = 0; i < 40; i++) {
    w.samples.push({
      service: Object.keys(grows).length,
      at: i * 60_000,
      heapMegabytes: Math.min(50 + i, 65) + (i % 3) * 4 + i * heapMegabytes,
      handles: 40 + (i % 2) * 6 + i * handles,
      lag: 30 + (i % 5) * 40 + i * lag
    })
  }
}

/** Two accounts in two shards; deposits, withdrawals, a rejection, unknown outcomes, operations that overlap. */
const world = () => {
  const w = new World()
  w.store(0, "a", "Opened")
  w.store(1, "b", "Opened")
  w.deposit(0, 0, "a", 100)
  w.deposit(1, 1, "b", 50)
  w.read(0, "a")
  w.line(0, "invoke", "withdraw", "a", { cents: 30 })
  w.line(1, "invoke", "read", "a")
  w.store(0, "a", "Withdrawn", 30)
  w.line(1, "ok", "read", "a", { balance: 100 })
  w.line(0, "ok", "withdraw", "a", { cents: 30, balance: 70 })
  w.line(1, "invoke", "withdraw", "a", { cents: 500 })
  w.line(1, "fail", "withdraw", "a", { cents: 500, balance: 70, error: "Overdraft" })
  // Of two unknown ones the first was stored, the second not.
  w.line(2, "invoke", "deposit", "b", { cents: 7 })
  w.store(1, "b", "Deposited", 7)
  w.line(2, "info", "deposit", "b", { cents: 7, error: "unknown" })
  w.line(3, "invoke", "deposit", "b", { cents: 8 })
  w.line(3, "info", "deposit", "b", { cents: 8, error: "BankUnavailable" })
  w.line(4, "invoke", "deposit", "b", { cents: 9 })
  w.line(4, "fail", "deposit", "b", { cents: 9, error: "BankUnavailable" })
  w.read(4, "b")
  w.read(4, "a")
  // What the process has seen so far; another one may know less.
  w.read(4, "a", 70, "local")
  w.life = 1
  w.read(4, "a", 100, "local")
  w.read(4, "a", 70, "local")
  w.life = 0
  steadily(w, {})
  // A caller that never heard anything.
  w.line(5, "invoke", "deposit", "a", { cents: 11 })
  return w
}

/** The same with transfers: one arrives, one comes back, one is declined, one of unknown outcome was never started. */
const worldWithTransfers = () => {
  const w = world()
  w.transfer("t1", 5, "completed")
  w.store(1, "b", "Withdrawn", 5, "t1")
  w.store(0, "a", "Deposited", 5, "t1")
  w.transfer("t2", 6, "failed")
  w.store(1, "b", "Withdrawn", 6, "t2")
  w.store(1, "b", "Deposited", 6, "t2")
  w.transfer("t3", 600, "failed")
  w.transfer("t4", 7, undefined, "info")
  return w
}

const rulesOf = (evidence: Evidence) => new Set(check(evidence).problems.map(({ rule }) => rule))

/** One error each, and the rule that must notice. */
const planted: ReadonlyArray<readonly [string, Problem["rule"], (w: World) => void]> = [
  [
    "an acknowledged event that is not stored",
    "acknowledged events are stored",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.line(9, "ok", "deposit", "a", { cents: 1, balance: 71 })
    }
  ],
  [
    "an event that was said to have failed",
    "what failed is not stored",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.store(0, "a", "Deposited", 1)
      w.line(9, "fail", "deposit", "a", { cents: 1, error: "BankUnavailable" })
    }
  ],
  [
    "an acknowledged event twice",
    "nothing is stored twice",
    (w) => {
      w.deposit(9, 0, "a", 1)
      w.store(0, "a", "Deposited", 1)
    }
  ],
  ["an unknown event twice", "nothing is stored twice", (w) => w.store(1, "b", "Deposited", 7)],
  ["an event of nobody", "nothing is stored that nobody asked for", (w) => w.store(0, "a", "Deposited", 12345)],
  [
    "an answer that is not the balance after the event",
    "answers agree with the events",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.store(0, "a", "Deposited", 1)
      w.line(9, "ok", "deposit", "a", { cents: 1, balance: 70 })
    }
  ],
  [
    "two deposits one after the other, stored the other way round",
    "the order agrees with real time",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.line(9, "ok", "deposit", "a", { cents: 1, balance: 73 })
      w.line(9, "invoke", "deposit", "a", { cents: 2 })
      w.line(9, "ok", "deposit", "a", { cents: 2, balance: 72 })
      w.store(0, "a", "Deposited", 2)
      w.store(0, "a", "Deposited", 1)
    }
  ],
  [
    "an unknown event stored before it was asked for",
    "the order agrees with real time",
    (w) => {
      w.store(0, "a", "Deposited", 1)
      w.store(0, "a", "Deposited", 2)
      w.line(8, "invoke", "deposit", "a", { cents: 2 })
      w.line(8, "ok", "deposit", "a", { cents: 2, balance: 73 })
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.line(9, "info", "deposit", "a", { cents: 1, error: "unknown" })
    }
  ],
  ["a read of a balance that never was", "reads are linearizable", (w) => w.read(9, "a", 71)],
  ["a stale read", "reads are linearizable", (w) => w.read(9, "a", 100)],
  [
    "a read of what was written afterwards only",
    "reads are linearizable",
    (w) => {
      w.read(9, "a", 71)
      w.deposit(9, 0, "a", 1)
    }
  ],
  [
    "two reads during one write, the later one of the older balance",
    "reads are linearizable",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1 })
      w.store(0, "a", "Deposited", 1)
      w.read(8, "a", 71)
      w.read(7, "a", 70)
      w.line(9, "ok", "deposit", "a", { cents: 1, balance: 71 })
    }
  ],
  [
    "a rejection by a stale balance",
    "rejections are linearizable",
    (w) => {
      w.deposit(9, 0, "a", 1000)
      w.line(9, "invoke", "withdraw", "a", { cents: 600 })
      w.line(9, "fail", "withdraw", "a", { cents: 600, balance: 70, error: "Overdraft" })
    }
  ],
  [
    "a rejection that the balance does not justify",
    "rejections are linearizable",
    (w) => {
      w.line(9, "invoke", "withdraw", "a", { cents: 20 })
      w.line(9, "fail", "withdraw", "a", { cents: 20, balance: 70, error: "Overdraft" })
    }
  ],
  [
    "a sequence number that is missing",
    "sequence numbers have no hole and no repeat",
    (w) => w.change(0, 2, { sequence: 4 })
  ],
  ["a sequence number twice", "sequence numbers have no hole and no repeat", (w) => w.change(0, 2, { sequence: 2 })],
  ["an offset that is missing", "offsets have no hole", (w) => w.change(0, 2, { offset: 4 })],
  ["two events of one stamp", "stamps increase", (w) => w.change(0, 2, { stamp: w.logs[0]![1]!.stamp })],
  [
    "an event that was decided by an old balance",
    "balances are the fold of the events",
    (w) => w.change(0, 2, { payload: { cents: 30, balance: 100 } })
  ],
  [
    "an event that the index does not have",
    "the index equals the log",
    (w) => w.index.set("a", w.eventsOf("a").slice(0, -1))
  ],
  [
    "an event that is another one in the index",
    "the index equals the log",
    (w) =>
      w.index.set(
        "a",
        w.eventsOf("a").map((event, i) => (i === 1 ? { ...event, payload: { cents: 101, balance: 100 } } : event))
      )
  ],
  ["an account that only the index has", "the index equals the log", (w) => w.index.set("c", w.eventsOf("a"))],
  [
    "an event that the view does not have",
    "views equal the log",
    (w) => {
      const { balance, lines } = w.views.get("a")!
      w.views.set("a", { balance, lines: lines.slice(0, -1) })
    }
  ],
  ["an account that the view does not have", "views equal the log", (w) => w.views.delete("a")],
  [
    "a view of an older balance",
    "views equal the log",
    (w) => w.views.set("a", { ...w.views.get("a")!, balance: 100 })
  ],
  [
    "money that is gone from a view",
    "the money is all there",
    (w) => w.views.set("a", { ...w.views.get("a")!, balance: 0 })
  ],
  [
    "money that is gone with its event",
    "the money is all there",
    (w) => {
      w.line(9, "invoke", "deposit", "a", { cents: 1000 })
      w.line(9, "ok", "deposit", "a", { cents: 1000, balance: 1070 })
    }
  ],
  [
    "a local read that is older than an earlier one of its process",
    "local reads never go back",
    (w) => {
      w.life = 1
      w.read(9, "a", 100, "local")
    }
  ],
  [
    "a local read that is older than what its process has just stored",
    "local reads never go back",
    (w) => {
      w.life = 2
      w.deposit(9, 0, "a", 1)
      w.read(9, "a", 70, "local")
    }
  ],
  [
    "a local read of what was written afterwards only",
    "local reads never go back",
    (w) => {
      w.life = 2
      w.read(9, "a", 71, "local")
      w.deposit(9, 0, "a", 1)
    }
  ],
  [
    "memory that has grown",
    "memory and handles are back",
    (w) => w.resources.push({ before: w.resources[0]!.before, after: { heapMegabytes: 111, handles: 40 } })
  ],
  [
    "handles that are still open",
    "memory and handles are back",
    (w) => w.resources.push({ before: w.resources[0]!.before, after: { heapMegabytes: 60, handles: 61 } })
  ],
  [
    "a service that is not there",
    "memory and handles are back",
    (w) => w.resources.push({ before: w.resources[0]!.before, after: undefined })
  ],
  [
    "an error of a service with nothing broken",
    "services fail only as they may",
    (w) => w.complaints.push({ service: 0, at: 10_021, line: "ERROR: WriteTimeout" })
  ],
  ["a heap that goes on growing", "nothing grows", (w) => steadily(w, { heapMegabytes: 0.6 })],
  ["handles that are not closed", "nothing grows", (w) => steadily(w, { handles: 0.5 })],
  ["a view that falls behind", "nothing grows", (w) => steadily(w, { lag: 25 })],
  ...[
    "[UnhandledPromiseRejection: This error originated",
    "Uncaught exception",
    "TypeError: Cannot read properties of undefined",
    "RangeError: Maximum call stack size exceeded",
    "FATAL ERROR: Reached heap limit",
    "MaxListenersExceededWarning: Possible EventEmitter memory leak detected",
    "Account shard 0: DataLost: the log ends at 54"
  ].map(
    (line) =>
      [
        `a service that says ${line}`,
        "services fail only as they may",
        (w: World) => w.complaints.push({ service: 0, at: 1, line })
      ] as const
  )
]

const plantedTransfers: typeof planted = [
  ["an acknowledged one that is not there", "acknowledged events are stored", (w) => w.transfer("t9", 1)],
  ["one that was said to have failed", "what failed is not stored", (w) => w.transfer("t9", 7, "failed", "fail")],
  [
    "one that has not arrived",
    "transfers are whole",
    (w) => {
      w.transfer("t9", 1, "completed")
      w.store(1, "b", "Withdrawn", 1, "t9")
    }
  ],
  ["one that is still on its way", "transfers are whole", (w) => w.transfers.set("t1", "sent")],
  ["one that has arrived twice", "transfers are whole", (w) => w.store(0, "a", "Deposited", 5, "t1")],
  [
    "one that has arrived elsewhere",
    "transfers are whole",
    (w) => {
      w.transfer("t9", 1, "completed")
      w.store(1, "b", "Withdrawn", 1, "t9")
      w.store(1, "b", "Deposited", 1, "t9")
    }
  ],
  [
    "one of which only a part arrives",
    "transfers are whole",
    (w) => {
      w.transfer("t9", 2, "completed")
      w.store(1, "b", "Withdrawn", 2, "t9")
      w.store(0, "a", "Deposited", 1, "t9")
    }
  ],
  [
    "one that failed and has not come back",
    "transfers are whole",
    (w) => {
      w.transfer("t9", 1, "failed")
      w.store(1, "b", "Withdrawn", 1, "t9")
    }
  ],
  ["one that came back twice", "transfers are whole", (w) => w.store(1, "b", "Deposited", 6, "t2")],
  ["one that nobody asked for", "nothing is stored that nobody asked for", (w) => w.store(1, "b", "Deposited", 6, "t0")]
]

describe("the checker", () => {
  it("finds nothing where nothing is wrong, and says what it looked at", () => {
    const { looked, problems } = check(world())
    assert.deepStrictEqual(problems, [])
    assert.deepInclude(looked, {
      operations: 15,
      localReads: 3,
      acknowledged: 3,
      rejected: 1,
      failed: 1,
      unknown: 3,
      unknownStored: 1,
      reads: 4,
      accounts: 2,
      shards: 2,
      events: 6
    })
    const more = check(worldWithTransfers())
    assert.deepStrictEqual(more.problems, [])
    assert.deepInclude(more.looked, {
      events: 10,
      transfers: 4,
      completed: 1
    })
  })

  it.each(planted)("notices %s", (_, rule, plant) => {
    const w = world()
    plant(w)
    assert.include([...rulesOf(w)], rule)
  })

  it.each(plantedTransfers)("notices a transfer: %s", (_, rule, plant) => {
    const w = worldWithTransfers()
    plant(w)
    assert.include([...rulesOf(w)], rule)
  })

  it("refuses a history in which a caller does two things at once, or ends what it has not begun", () => {
    const twice = world()
    twice.line(5, "invoke", "read", "a")
    assert.throws(() => check(twice), /process 5 begins at line \d+ before it has ended/)
    const never = world()
    never.line(9, "ok", "read", "a", { balance: 70 })
    assert.throws(() => check(never), /process 9 ends at line \d+ what it has not begun/)
  })
})
