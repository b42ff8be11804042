/**
 * Clocks that are wrong: of processes that a test starts, set off and back while they run.
 */
import { existsSync, mkdirSync, mkdtempSync, readdirSync, renameSync, rmSync, writeFileSync } from "node:fs"
import { homedir } from "node:os"
import { join } from "node:path"
import { Effect, type Scope } from "effect"
import type { CassandraServerError } from "./CassandraServerError.ts"
import { fail, runToEnd } from "./internal/distribution.ts"
import { temporaryFolder } from "./internal/localProcess.ts"

/** A clock of the system for the processes that are started with it. */
export interface SkewedClock {
  /** What their environment must hold. */
  readonly environment: Readonly<Record<string, string>>
  /** Sets it off from the true time by some milliseconds, before it or behind; at once. Elapsed time stays what it is. */
  readonly shift: (millis: number) => Effect.Effect<void>
  /** Removes what a process leaves in the memory of the system when it is killed; to be called with its number at its end. */
  readonly forget: (pid: number) => void
}

/** Where Debian's package has it. */
const inPackage = (root: string): string | undefined => {
  const libraries = join(root, "usr", "lib")
  if (!existsSync(libraries)) return undefined
  return readdirSync(libraries)
    .map((name) => join(libraries, name, "faketime", "libfaketimeMT.so.1"))
    .find((path) => existsSync(path))
}

/** libfaketime: of this system, or fetched once per user from Debian's packages, without being installed. */
const library = Effect.gen(function* () {
  const cache = join(process.env.XDG_CACHE_HOME || join(homedir(), ".cache"), "effect-cassandra")
  const folder = join(cache, "libfaketime")
  const found = inPackage("/") ?? inPackage(folder)
  if (found !== undefined) return found
  mkdirSync(cache, { recursive: true })
  const part = mkdtempSync(join(cache, "part-"))
  const fetch = runToEnd("sh", [
    "-c",
    'cd "$0" && { apt-get download libfaketime || { apt-get update && apt-get download libfaketime; }; } && dpkg-deb -x libfaketime_*.deb .',
    part
  ])
  return yield* fetch.pipe(
    Effect.mapError(({ message }) => message),
    Effect.catch((message) =>
      fail(
        `libfaketime, which sets clocks off, is not there (apt install libfaketime), and cannot be fetched: ${message}`
      )
    ),
    Effect.tap(() =>
      Effect.sync(() => {
        // Another process may have been first.
        if (inPackage(folder) === undefined) renameSync(part, folder)
      })
    ),
    Effect.ensuring(Effect.sync(() => rmSync(part, { recursive: true, force: true }))),
    Effect.map(() => inPackage(folder)),
    Effect.filterOrElse(
      (path) => path !== undefined,
      () => fail("the package libfaketime has no libfaketimeMT.so.1")
    )
  )
})

/** Whether there is what it needs, for tests that are skipped elsewhere. */
export const isPossible: Effect.Effect<boolean> = Effect.isSuccess(library)

/** A clock, true at first, for Node and other programs (not for Java, whose waits libfaketime disturbs). Needs Linux. */
export const make: Effect.Effect<SkewedClock, CassandraServerError, Scope.Scope> = Effect.gen(function* () {
  const path = yield* library
  const file = join(yield* temporaryFolder, "clock")
  const write = (millis: number) => {
    // Renamed into its place, so that nobody reads half of it.
    writeFileSync(`${file}.new`, `${millis < 0 ? "" : "+"}${millis / 1000}\n`)
    renameSync(`${file}.new`, file)
  }
  write(0)
  return {
    environment: {
      LD_PRELOAD: path,
      FAKETIME_TIMESTAMP_FILE: file,
      FAKETIME_NO_CACHE: "1",
      FAKETIME_DONT_FAKE_MONOTONIC: "1"
    },
    shift: (millis) => Effect.sync(() => write(millis)),
    forget: (pid) => {
      for (const name of [`faketime_shm_${pid}`, `sem.faketime_sem_${pid}`])
        rmSync(join("/dev/shm", name), { force: true })
    }
  }
})
