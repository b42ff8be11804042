/** What the text of a statement says about it. */
export interface TextInfo {
  /** In capitals: SELECT, INSERT, CREATE. */
  readonly operation: string
  /** Of the data language: it can be prepared. The driver caches what is prepared. */
  readonly isPreparable: boolean
  readonly isSelect: boolean
  /** A write with an IF. */
  readonly isConditional: boolean
  /** Keyword and table, as OpenTelemetry names spans of databases. */
  readonly summary: string
  readonly table: string | undefined
  /** The text without comments and literals, which may be values. */
  readonly redacted: string
}

const token = new RegExp(
  [
    String.raw`(?<comment>--.*|\/\/.*|\/\*[^]*?\*\/)`,
    String.raw`(?<string>'(?:[^']|'')*'|\$\$[^]*?\$\$)`,
    `(?<identifier>"(?:[^"]|"")*")`,
    String.raw`(?<![\w.])(?:0x[0-9a-f]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?!\w)`
  ].join("|"),
  "gi"
)

interface Token {
  readonly comment?: string
  readonly string?: string
  readonly identifier?: string
}

const replaceTokens = (text: string, replacement: (token: string, kind: Token) => string) =>
  text.replaceAll(token, (match, ...rest) => replacement(match, rest.at(-1) as Token))

/** The text with what is in quotes or a comment made blank, at its length. */
const blank = (text: string) =>
  replaceTokens(text, (match, { comment, identifier, string }) =>
    comment !== undefined
      ? " ".repeat(match.length)
      : identifier !== undefined || string !== undefined
        ? "_".repeat(match.length)
        : match
  )

/** The literals of a text in quotes. */
export const literalsOf = (text: string): ReadonlyArray<string> => {
  const literals: Array<string> = []
  replaceTokens(text, (match, { string }) => {
    if (string !== undefined) literals.push(match.startsWith("'") ? match.slice(1, -1) : match.slice(2, -2))
    return match
  })
  return literals
}

const name = String.raw`(?:"(?:[^"]|"")+"|\w+)`
const target = new RegExp(
  String.raw`\b(?:from|into|update|(?:truncate\s+)?table(?:\s+if\s+(?:not\s+)?exists)?|truncate)\s+(?:${name}\s*\.\s*)?(${name})`,
  "i"
)

const preparable = new Set(["SELECT", "INSERT", "UPDATE", "DELETE", "BEGIN"])

/** Statements in use are few; texts with literals are not, and must not fill the memory. */
const maxKnown = 2000
const known = new Map<string, TextInfo>()

export const textInfo = (text: string): TextInfo => {
  const cached = known.get(text)
  if (cached !== undefined) return cached
  const redacted = replaceTokens(text, (match, { comment, identifier }) =>
    comment !== undefined ? " " : identifier !== undefined ? match : "?"
  ).trim()
  const operation = /^\w*/.exec(redacted)![0].toUpperCase()
  const table = target.exec(redacted)?.[1]
  const info: TextInfo = {
    operation,
    isPreparable: preparable.has(operation),
    isSelect: operation === "SELECT",
    isConditional: operation !== "SELECT" && preparable.has(operation) && /\bif\b/i.test(blank(text)),
    summary: table === undefined ? operation : `${operation} ${table}`,
    table,
    redacted
  }
  if (known.size >= maxKnown) known.clear()
  known.set(text, info)
  return info
}

/** How a text gets a time to live: with the place of the value among the others, or why it cannot. */
type TtlText = { readonly text: string; readonly index: number } | string

const update = /^(\s*update\s+\w+(?:\s*\.\s*\w+)?)(\s+using)?\b/i

const makeTtl = (text: string): TtlText => {
  const words = blank(text)
  if (/\busing\s+(?:timestamp\s+\S+\s+and\s+)?ttl\b/i.test(words)) return "it has a USING TTL already"
  if (/^\s*insert\b/i.test(words)) {
    const end = /[\s;]*$/.exec(words)!.index
    return {
      text: `${text.slice(0, end)} ${/\busing\b/i.test(words) ? "AND" : "USING"} TTL ?`,
      index: words.split("?").length - 1
    }
  }
  const head = update.exec(words)
  if (head === null) return "only an INSERT or UPDATE writes with a time to live"
  const [matched, before, using] = head
  return {
    text: `${text.slice(0, before!.length)} USING TTL ?${using === undefined ? "" : " AND"}${text.slice(matched.length)}`,
    index: 0
  }
}

const ttlTexts = new Map<string, TtlText>()

/** The text with `USING TTL ?`, beside a `USING TIMESTAMP` that it has. */
export const withTtl = (text: string): TtlText => {
  const cached = ttlTexts.get(text)
  if (cached !== undefined) return cached
  const made = makeTtl(text)
  if (ttlTexts.size >= maxKnown) ttlTexts.clear()
  ttlTexts.set(text, made)
  return made
}
