import { mkdirSync } from "node:fs"
import { Effect } from "effect"
import { CassandraServerError } from "../CassandraServerError.ts"
import { version, withProgress } from "./distribution.ts"

const image = `cassandra:${version}`

const modules = Effect.tryPromise({
  try: async () => ({
    testcontainers: await import("testcontainers"),
    cassandra: await import("@testcontainers/cassandra")
  }),
  catch: () => new CassandraServerError({ message: "testcontainers and @testcontainers/cassandra are not installed" })
})

/** Whether a Docker engine answers; if not, why. */
export const findDocker = Effect.flatMap(modules, ({ testcontainers }) =>
  Effect.tryPromise({
    try: () => testcontainers.getContainerRuntimeClient(),
    catch: () => new CassandraServerError({ message: "no Docker engine answers" })
  })
).pipe(Effect.asVoid)

/** Starts a container that is removed with the scope; should this process be killed, testcontainers' reaper removes it. */
export const startContainer = Effect.fnUntraced(function* (dataDirectory: string | undefined) {
  const { cassandra } = yield* modules
  class LoopbackContainer extends cassandra.CassandraContainer {
    constructor() {
      super(image)
      this.hostConfig.PortBindings = { "9042/tcp": [{ HostIp: "127.0.0.1", HostPort: "0" }] }
      if (dataDirectory !== undefined) {
        mkdirSync(dataDirectory, { recursive: true })
        this.withBindMounts([{ source: dataDirectory, target: "/var/lib/cassandra", mode: "rw" }])
      }
    }
  }
  const container = yield* Effect.acquireRelease(
    withProgress(
      `Starting Cassandra ${version} in a container, about half a minute (the first time the image is pulled)`,
      Effect.tryPromise({
        try: () => new LoopbackContainer().withEnvironment({ MAX_HEAP_SIZE: "1G", HEAP_NEWSIZE: "200M" }).start(),
        catch: (cause) => new CassandraServerError({ message: `the container ${image} did not start: ${cause}` })
      })
    ),
    (started) => Effect.promise(() => started.stop())
  )
  return { contactPoint: container.getContactPoint(), localDataCenter: container.getDatacenter() }
})
