/**
 * What happened, as the callers saw it: one line of JSON for each beginning and end of an operation.
 */
import { appendFileSync, readFileSync, writeFileSync } from "node:fs"

/** `"info"`: it is not known whether it was done. */
export type Type = "invoke" | "ok" | "fail" | "info"

/** One line. */
export interface Entry {
  /** A caller, who does one thing after the other. After an unknown outcome it goes on under another number. */
  readonly process: number
  readonly type: Type
  /** `"local"`: a read of what the service has in memory. */
  readonly f: "deposit" | "withdraw" | "read" | "local" | "transfer"
  /** The account; of a transfer, the one that the money leaves. */
  readonly key: string
  readonly value: Value
  /** Nanoseconds of a clock that never goes back, the same for all callers. */
  readonly time: number
  /** The number of the line. */
  readonly sequence: number
  /** The service that was asked. */
  readonly service: number
  /** How often the service had been started before: another number, another process and memory. */
  readonly life: number
}

/** Amount, and what was answered. Amounts of an account's deposits occur once, those of its withdrawals too. */
export interface Value {
  readonly cents?: number
  readonly balance?: number
  /** Of a transfer: its name, and the account where the money goes. */
  readonly transfer?: string
  readonly to?: string
  readonly error?: string
}

/** Collects lines, and writes them to a file now and then. */
export class History {
  readonly entries: Array<Entry> = []
  readonly #file: string | undefined
  #written = 0
  #processes = 0

  constructor(file?: string) {
    this.#file = file
    if (file !== undefined) writeFileSync(file, "")
  }

  newProcess(): number {
    return this.#processes++
  }

  add(entry: Omit<Entry, "time" | "sequence">) {
    this.entries.push({ ...entry, time: Math.round(performance.now() * 1e6), sequence: this.entries.length })
    if (this.entries.length - this.#written >= 1000) this.flush()
  }

  /** Commands that were acknowledged. */
  acknowledged(): number {
    return this.entries.filter(({ f, type }) => type === "ok" && f !== "read" && f !== "local").length
  }

  flush() {
    if (this.#file === undefined) return
    const lines = this.entries.slice(this.#written).map((entry) => `${JSON.stringify(entry)}\n`)
    appendFileSync(this.#file, lines.join(""))
    this.#written = this.entries.length
  }
}

/** Reads a file of lines. */
export const readHistory = (file: string): ReadonlyArray<Entry> =>
  readFileSync(file, "utf8")
    .split("\n")
    .filter((line) => line !== "")
    .map((line) => JSON.parse(line) as Entry)
