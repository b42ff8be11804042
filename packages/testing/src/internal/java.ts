import { execFile } from "node:child_process"
import { existsSync, readdirSync } from "node:fs"
import { delimiter, join } from "node:path"
import { promisify } from "node:util"
import { Effect } from "effect"
import { fail, hasMaven } from "./distribution.ts"

/** A Java that can run Cassandra 5. */
export interface Java {
  readonly path: string
  readonly version: number
}

const run = promisify(execFile)

const folders = (parent: string, ...rest: ReadonlyArray<string>) =>
  existsSync(parent) ? readdirSync(parent).map((name) => join(parent, name, ...rest)) : []

/** Where a Java may be, in the order in which they are tried. */
const candidates = (env: NodeJS.ProcessEnv): ReadonlyArray<string> => [
  ...(env.JAVA_HOME ? [join(env.JAVA_HOME, "bin", "java")] : []),
  ...(env.PATH ?? "").split(delimiter).map((folder) => join(folder, "java")),
  ...folders("/usr/lib/jvm", "bin", "java"),
  ...folders("/opt/java", "bin", "java"),
  ...folders("/Library/Java/JavaVirtualMachines", "Contents", "Home", "bin", "java"),
  ...(env.HOME ? folders(join(env.HOME, ".sdkman", "candidates", "java"), "bin", "java") : [])
]

/** The major version in the output of `java -version`. */
export const parseVersion = (output: string): number | undefined => {
  const version = /version "(?:1\.)?(\d+)/.exec(output)?.[1]
  return version === undefined ? undefined : Number(version)
}

/** The first Java 17, else the first Java 11; with what was found instead. */
export const findJava = Effect.fnUntraced(function* (env: NodeJS.ProcessEnv) {
  const found: Array<Java> = []
  for (const path of new Set(candidates(env))) {
    if (!existsSync(path)) continue
    const output = yield* Effect.promise(() =>
      run(path, ["-version"]).then(
        ({ stderr, stdout }) => stderr + stdout,
        () => ""
      )
    )
    const version = parseVersion(output)
    if (version === undefined) continue
    found.push({ path, version })
    if (version === 17) break
  }
  return { java: found.find(({ version }) => version === 17) ?? found.find(({ version }) => version === 11), found }
})

/** A Java, and Maven to fetch Cassandra with; or what there is instead. */
export const requireJava = Effect.gen(function* () {
  const { found, java } = yield* findJava(process.env)
  if (java === undefined) {
    const others = found.map(({ path, version }) => `Java ${version} at ${path}`).join(", ")
    return yield* fail(
      `no Java 17 or 11 at JAVA_HOME, on the PATH or in the usual folders${others === "" ? "" : `, only ${others}, which Cassandra 5 does not run on`}`
    )
  }
  if (!(yield* hasMaven))
    return yield* fail(`there is Java ${java.version} at ${java.path}, but no Maven (mvn) on the PATH`)
  return java
})
