// `npm run audit`: whether what the packages depend on has known vulnerabilities. CI runs it. Where the registry cannot be
// asked, it says so and lets the build pass: a build must not depend on a service that is away.
import { spawnSync } from "node:child_process"
import { pathToFileURL } from "node:url"

/** What to make of the JSON that `npm audit` prints. */
export const verdict = (output: string): { readonly code: 0 | 1; readonly message: string } => {
  let report: { readonly metadata?: { readonly vulnerabilities?: Record<string, number> }; readonly message?: string }
  try {
    report = JSON.parse(output)
  } catch {
    report = { message: output.trim().slice(0, 300) }
  }
  const found = report.metadata?.vulnerabilities
  if (found === undefined)
    return { code: 0, message: `Not audited, the registry could not be asked: ${report.message}` }
  const { critical = 0, high = 0, low = 0, moderate = 0 } = found
  const message = `Known vulnerabilities: ${critical} critical, ${high} high, ${moderate} moderate, ${low} low`
  return critical + high === 0
    ? { code: 0, message }
    : { code: 1, message: `${message}. npm audit --omit=dev names them` }
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? "").href) {
  const { stdout } = spawnSync("npm", ["audit", "--omit=dev", "--json", "--fetch-retries=1", "--fetch-timeout=20000"], {
    encoding: "utf8"
  })
  const { code, message } = verdict(stdout)
  console.log(message)
  process.exitCode = code
}
