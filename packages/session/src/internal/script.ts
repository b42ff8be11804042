const token =
  /'(?:[^']|'')*'|"(?:[^"]|"")*"|\$\$.*?\$\$|--[^\n]*|\/\/[^\n]*|\/\*.*?\*\/|\bbegin\b|\bapply\s+batch\b|;/gis

/** The statements of a script: parted by semicolons, but not in quotes, comments or batches; without comments. */
export const statementsOf = (script: string): ReadonlyArray<string> => {
  const statements: Array<string> = []
  let current = ""
  let inBatch = false
  let last = 0
  for (const match of script.matchAll(token)) {
    current += script.slice(last, match.index)
    last = match.index + match[0].length
    const text = match[0]
    if (/^(--|\/\/|\/\*)/.test(text)) current += " "
    else if (text === ";" && !inBatch) {
      statements.push(current)
      current = ""
    } else {
      if (/^begin/i.test(text) && current.trim() === "") inBatch = true
      if (/^apply/i.test(text)) inBatch = false
      current += text
    }
  }
  statements.push(current + script.slice(last))
  return statements.map((statement) => statement.trim()).filter((statement) => statement !== "")
}
