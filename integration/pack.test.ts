import { execFileSync } from "node:child_process"
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { delimiter, join } from "node:path"
import { fileURLToPath } from "node:url"
import { afterAll, assert, describe, it } from "@effect/vitest"

const root = fileURLToPath(new URL("..", import.meta.url))
const scratch = mkdtempSync(join(tmpdir(), "effect-cassandra-pack-"))
const names = ["session", "journal", "entity", "read-side", "testing"]
const env = { ...process.env, PATH: `${join(root, "node_modules", ".bin")}${delimiter}${process.env.PATH}` }

const run = (command: string, args: ReadonlyArray<string>, cwd: string) =>
  execFileSync(command, args, { cwd, env, encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] })

/** What a user writes: an entity on a journal in memory, and something of each other package. */
const program = `
import { Decision, PersistentEntity } from "@effect-cassandra/entity"
import { Journal } from "@effect-cassandra/journal/Journal"
import { Processor } from "@effect-cassandra/read-side"
import { cql } from "@effect-cassandra/session/Statement"
import { CassandraServer } from "@effect-cassandra/testing/CassandraServer"
import { Effect, Layer, Schema } from "effect"
import { Rpc } from "effect/rpc"

const Added = Schema.TaggedStruct("Added", { amount: Schema.Int })
const Counter = PersistentEntity.make("Counter", {
  state: Schema.Int,
  initialState: 0,
  events: [Added],
  commands: [Rpc.make("Add", { payload: { amount: Schema.Int }, success: Schema.Int })]
})
const CounterLive = Counter.layer({
  apply: (total, event) => total + event.amount,
  commands: { Add: (_, { amount }) => Decision.persist(Added.make({ amount }), (total) => total) }
})
const View = Processor.make("view", {
  entityType: Counter.type,
  events: [Added],
  handlers: { Added: (_, { entityId }) => cql\`INSERT INTO t (k) VALUES (\${entityId})\` }
})
const total: number = await Effect.runPromise(
  Effect.flatMap(Counter, (counters) => counters("a").Add({ amount: 42 })).pipe(
    Effect.provide(CounterLive.pipe(Layer.provide(Journal.layerMemory())))
  )
)
console.log(total, View.name, typeof CassandraServer.layer)
`

describe("the packages, packed and installed in another project", () => {
  afterAll(() => rmSync(scratch, { recursive: true, force: true }))

  it("compile and run as a user would use them", { timeout: 180_000 }, () => {
    run(process.execPath, [join(root, "scripts", "build.ts")], root)
    const tarballs = names.map((name) => {
      const [packed] = JSON.parse(
        run("npm", ["pack", "--json", "--pack-destination", scratch], join(root, "packages", name))
      )
      const files = packed.files.map(({ path }: { path: string }) => path)
      for (const file of ["dist/index.js", "dist/index.d.ts", "dist/index.js.map", "README.md", "LICENSE"]) {
        assert.include(files, file, name)
      }
      return [`@effect-cassandra/${name}`, `file:${join(scratch, packed.filename)}`] as const
    })
    const { devDependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"))
    const versions = ["effect", "cassandra-driver", "typescript", "@types/node"].map((name) => [
      name,
      devDependencies[name]
    ])
    writeFileSync(
      join(scratch, "package.json"),
      JSON.stringify({ type: "module", dependencies: Object.fromEntries([...tarballs, ...versions]) })
    )
    run("npm", ["install", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error"], scratch)
    writeFileSync(join(scratch, "user.ts"), program)
    const strict = [
      "--strict",
      "--exactOptionalPropertyTypes",
      "--module",
      "nodenext",
      "--target",
      "es2024",
      "--skipLibCheck"
    ]
    run(
      process.execPath,
      [join(scratch, "node_modules", "typescript", "bin", "tsc"), ...strict, "--noEmit", "user.ts"],
      scratch
    )
    assert.strictEqual(run(process.execPath, ["user.ts"], scratch), "42 view function\n")
  })
})
