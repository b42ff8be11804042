/** What the text of a statement says about it. */
export interface TextInfo {
  /** In capitals: SELECT, INSERT, CREATE. */
  readonly operation: string
  /** Of the data language: it can be prepared. The driver caches what is prepared. */
  readonly isPreparable: boolean
  readonly isSelect: boolean
  /** Keyword and table, as OpenTelemetry names spans of databases. */
  readonly summary: string
  readonly table: string | undefined
  /** The text without literals in quotes, which may be values. */
  readonly redacted: string
}

const name = String.raw`(?:"(?:[^"]|"")+"|\w+)`
const target = new RegExp(
  String.raw`\b(?:from|into|update|table(?:\s+if\s+(?:not\s+)?exists)?|truncate)\s+(?:${name}\s*\.\s*)?(${name})`,
  "i"
)

const preparable = new Set(["SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN"])

/** Statements in use are few; texts with literals are not, and must not fill the memory. */
const maxKnown = 2000
const known = new Map<string, TextInfo>()

export const textInfo = (text: string): TextInfo => {
  const cached = known.get(text)
  if (cached !== undefined) return cached
  const redacted = text.replaceAll(/'(?:[^']|'')*'|\$\$.*?\$\$/gs, "?")
  const bare = redacted.replaceAll(/--.*|\/\/.*|\/\*.*?\*\//g, " ").trim()
  const operation = /^\w*/.exec(bare)![0].toUpperCase()
  const table = target.exec(bare)?.[1]
  const info: TextInfo = {
    operation,
    isPreparable: preparable.has(operation),
    isSelect: operation === "SELECT",
    summary: table === undefined ? operation : `${operation} ${table}`,
    table,
    redacted
  }
  if (known.size >= maxKnown) known.clear()
  known.set(text, info)
  return info
}

/** How a text gets a time to live: with the place of the value among the others, or why it cannot. */
export type TtlText = { readonly text: string; readonly index: number } | string

const insert = /^\s*insert\b/i
const update = new RegExp(String.raw`^(\s*update\s+${name}(?:\s*\.\s*${name})?)(\s+using)?\b`, "i")

/** The text with `USING TTL ?`, beside a `USING TIMESTAMP` that it has. */
export const withTtl = (text: string): TtlText => {
  const words = text.replaceAll(/'(?:[^']|'')*'|"(?:[^"]|"")*"/g, (quoted) => "_".repeat(quoted.length))
  if (/\busing\b[^?]*\bttl\b/i.test(words)) return "it has a USING TTL already"
  if (insert.test(words)) {
    const bare = text.replace(/[\s;]*$/, "")
    const index = words.split("?").length - 1
    return { text: `${bare} ${/\busing\b/i.test(words) ? "AND" : "USING"} TTL ?`, index }
  }
  if (update.test(text)) {
    return {
      text: text.replace(update, (_, head: string, using?: string) => `${head} USING TTL ?${using ? " AND" : ""}`),
      index: 0
    }
  }
  return "only an INSERT or UPDATE writes with a time to live"
}
