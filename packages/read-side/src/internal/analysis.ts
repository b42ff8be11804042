/**
 * What the read side must know of a statement: that it may be executed twice, which row it writes, and how to give it a
 * write timestamp of its own.
 */

/** A statement that may be executed twice. */
export interface Analysis {
  readonly table: string
  /** The text with `USING TIMESTAMP ?`. */
  readonly timestamped: string
  /** Place of the timestamp among the values. */
  readonly timestampIndex: number
  /** Columns with the place of the value that they are set to or compared with. */
  readonly columns: ReadonlyMap<string, number>
  /** Columns that are set, those of the key included where it is an INSERT; undefined for a DELETE. */
  readonly sets: ReadonlyArray<string> | undefined
  /** Whether a later execution with the same key leaves nothing of an earlier one. */
  readonly replaces: boolean
}

const name = String.raw`(?:"(?:[^"]|"")+"|\w+)`
const insert = new RegExp(String.raw`^\s*insert\s+into\s+(${name})\s*\(([^)]*)\)\s*values\s*\((.*)\)\s*;?\s*$`, "is")
const update = new RegExp(String.raw`^\s*update\s+(${name})\s+set\s+(.*?)\s+where\s+(.*?)\s*;?\s*$`, "is")
const deletion = new RegExp(String.raw`^\s*delete\s+(.*?)\bfrom\s+(${name})\s+where\s+(.*?)\s*;?\s*$`, "is")

const columnName = (text: string) => {
  const trimmed = text.trim()
  return trimmed.startsWith('"') ? trimmed.slice(1, -1).replaceAll('""', '"') : trimmed.toLowerCase()
}

const markers = (text: string) => text.split("?").length - 1

/** `a = ? AND b = ?` as columns with the places of their values. */
const comparisons = (text: string, first: number, into: Map<string, number>) => {
  let index = first
  for (const part of text.split(/\s+and\s+/i)) {
    const equality = /^\s*("(?:[^"]|"")+"|\w+)\s*=\s*\?\s*$/.exec(part)
    if (equality !== null) into.set(columnName(equality[1]!), index)
    index += markers(part)
  }
}

/** Tables of a keyspace that the packages have made for themselves. */
const reserved =
  /^(read_side_\w+|event_log|entity_types|entity_events|index_watermarks|log_heads|turn_claims|snapshots|deletions|schema_migrations|owned_migrations|keyspace_records)$/

/** Why a processor may not have a table of this name. */
export const refusedTable = (table: string): string | undefined =>
  reserved.test(table)
    ? `${table} is a table of the journal, the read side or the session: give the processor tables of its own`
    : undefined

/** The analysis of a statement, or why it is refused. */
export const analyse = (text: string): Analysis | string => {
  const analysis = analyseText(text)
  return typeof analysis === "string" ? analysis : (refusedTable(analysis.table) ?? analysis)
}

const analyseText = (text: string): Analysis | string => {
  if (/'/.test(text)) return "it contains a literal in quotes: bind every value"
  const words = text.replaceAll(/"(?:[^"]|"")*"/g, '"q"')
  if (/\bif\b/i.test(words)) return "it is conditional (IF), so that a repetition may be decided otherwise"
  if (/\busing\b/i.test(words)) return "it has a USING clause: the write timestamp is that of the event"
  const volatile = /\b(now|uuid|current_?\w*)\s*\(/i.exec(words)
  if (volatile !== null) return `${volatile[1]}() gives another value each time: take it from the event`
  if (/^\s*(begin|truncate)\b/i.test(words)) return "it is not an INSERT, UPDATE or DELETE: give single statements"

  if (/^\s*(insert\s+into|update|delete\b.*?\bfrom)\s+("(?:[^"]|"")+"|\w+)\s*\./is.test(text)) {
    return "it names a keyspace: a processor writes into tables of its own service only"
  }

  const columns = new Map<string, number>()
  const inserted = insert.exec(text)
  if (inserted !== null) {
    const [, table, names, values] = inserted
    let index = 0
    const list = values!.split(",")
    const columnNames = names!.split(",")
    if (list.length !== columnNames.length) return "every value must be bound: one ? for each column"
    const sets = columnNames.map(columnName)
    for (let i = 0; i < list.length; i++) {
      if (list[i]!.trim() === "?") columns.set(sets[i]!, index)
      index += markers(list[i]!)
    }
    const bare = text.replace(/\s*;?\s*$/, "")
    return {
      table: columnName(table!),
      timestamped: `${bare} USING TIMESTAMP ?`,
      timestampIndex: index,
      columns,
      sets,
      replaces: true
    }
  }
  const updated = update.exec(text)
  if (updated !== null) {
    const [, table, assignments, where] = updated
    const sets: Array<string> = []
    for (const part of assignments!.split(",")) {
      if (!/^\s*("(?:[^"]|"")+"|\w+)\s*=\s*\?\s*$/.test(part)) {
        return `"${part.trim()}" is not of the form column = ?: what adds to a value (a counter, a list) counts twice when repeated`
      }
      sets.push(columnName(part.split("=")[0]!))
    }
    comparisons(where!, markers(assignments!), columns)
    return {
      table: columnName(table!),
      timestamped: text.replace(/\s+set\s+/i, " USING TIMESTAMP ? SET "),
      timestampIndex: 0,
      columns,
      sets,
      replaces: true
    }
  }
  const deleted = deletion.exec(text)
  if (deleted !== null) {
    const [, what, table, where] = deleted
    const index = markers(what!)
    comparisons(where!, index, columns)
    return {
      table: columnName(table!),
      timestamped: text.replace(/\s+where\s+/i, " USING TIMESTAMP ? WHERE "),
      timestampIndex: index,
      columns,
      sets: undefined,
      replaces: false
    }
  }
  return "it is not an INSERT, UPDATE or DELETE of the usual form"
}
