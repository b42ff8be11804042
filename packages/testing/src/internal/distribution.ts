import { spawn } from "node:child_process"
import { existsSync, mkdirSync, mkdtempSync, renameSync, rmSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { fileURLToPath } from "node:url"
import { Console, Effect, Schedule } from "effect"
import { CassandraServerError } from "../CassandraServerError.ts"

export const version = "5.0.9"

/** The folder of what this package brings along for the server. */
export const resources = fileURLToPath(new URL("../../cassandra", import.meta.url))

export const fail = (message: string) => Effect.fail(new CassandraServerError({ message }))

/** Runs something slow, and says so. */
export const withProgress = <A, E, R>(what: string, effect: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> => {
  const begin = Date.now()
  return Effect.andThen(
    Console.log(`${what} ...`),
    Effect.raceFirst(
      effect,
      Effect.suspend(() => Console.log(`  still at it, ${Math.round((Date.now() - begin) / 1000)} s`)).pipe(
        Effect.delay("10 seconds"),
        Effect.repeat(Schedule.forever),
        Effect.andThen(Effect.never)
      )
    )
  )
}

/** Runs a command to its end; its output, or the end of it when it failed. */
export const runToEnd = (command: string, args: ReadonlyArray<string>) =>
  Effect.callback<string, CassandraServerError>((resume) => {
    const child = spawn(command, args, { stdio: ["ignore", "pipe", "pipe"] })
    let output = ""
    child.stdout.on("data", (data) => (output += data))
    child.stderr.on("data", (data) => (output += data))
    child.on("error", (error) => resume(fail(`${command} could not be run: ${error.message}`)))
    child.on("exit", (code) =>
      resume(code === 0 ? Effect.succeed(output) : fail(`${command} failed: ${output.trim().slice(-1500)}`))
    )
    return Effect.sync(() => child.kill())
  })

/** Whether Maven can be run. */
export const hasMaven = runToEnd("mvn", ["--version"]).pipe(
  Effect.as(true),
  Effect.catch(() => Effect.succeed(false))
)

/** The folder of Cassandra's jars, fetched once per user. */
export const jars = Effect.gen(function* () {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "effect-cassandra")
  const folder = join(cache, `cassandra-${version}`)
  if (existsSync(folder)) return folder
  mkdirSync(cache, { recursive: true })
  // Under another name until it is whole, so that an interrupted download is never taken for one.
  const part = mkdtempSync(join(cache, "part-"))
  yield* withProgress(
    `Fetching Cassandra ${version} with Maven, 66 MB, once`,
    runToEnd("mvn", [
      "-q",
      "-B",
      "-f",
      join(resources, "pom.xml"),
      "dependency:copy-dependencies",
      "-DincludeScope=runtime",
      `-DoutputDirectory=${part}`
    ])
  )
  try {
    renameSync(part, folder)
  } catch {
    // Another process was first.
    rmSync(part, { recursive: true })
  }
  return folder
})
