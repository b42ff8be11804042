/** Rows as text: columns as wide as what stands in them, numbers to the right. */
export const table = (rows: ReadonlyArray<Readonly<Record<string, string | number>>>): string => {
  const first = rows[0]
  if (first === undefined) return "none"
  const names = Object.keys(first)
  const widths = names.map((name) => Math.max(name.length, ...rows.map((row) => String(row[name]).length)))
  const line = (cells: Readonly<Record<string, string | number>>) =>
    names
      .map((name, i) => {
        const text = String(cells[name])
        return typeof first[name] === "number" ? text.padStart(widths[i]!) : text.padEnd(widths[i]!)
      })
      .join("  ")
      .trimEnd()
  return [line(Object.fromEntries(names.map((name) => [name, name]))), ...rows.map(line)].join("\n")
}

/** How much is done, as a bar that ends with a carriage return so that the next one takes its place. */
export const bar = (what: string, done: number, total: number): string => {
  const share = total === 0 ? 1 : Math.min(1, done / total)
  const width = 30
  const full = Math.round(share * width)
  return `${what} [${"#".repeat(full)}${".".repeat(width - full)}] ${Math.floor(share * 100)} %`
}
