/** Processes that append to the same entities: see appender.ts. */
import { type ChildProcess, fork } from "node:child_process"
import { fileURLToPath } from "node:url"
import { Effect } from "effect"
import type { Answer, Setup, Work } from "./appender.ts"

export type Stored = Extract<Answer, { readonly _tag: "stored" }>

export interface Appender {
  readonly child: ChildProcess
  /** Lets it work, until the work is done; dies when the process ends before. */
  readonly work: (work: Work) => Effect.Effect<Extract<Answer, { readonly _tag: "done" }>>
}

/** Starts a process, which ends with the scope. */
export const startAppender = (setup: Setup, onStored: (stored: Stored) => void) =>
  Effect.gen(function* () {
    const child = yield* Effect.acquireRelease(
      Effect.sync(() =>
        fork(fileURLToPath(new URL("appender.ts", import.meta.url)), [JSON.stringify(setup)], {
          execArgv: ["--conditions=@effect-cassandra/source"],
          stdio: ["ignore", "inherit", "inherit", "ipc"]
        })
      ),
      (child) =>
        Effect.callback<void>((resume) => {
          if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
          child.once("exit", () => resume(Effect.void))
          child.kill("SIGCONT")
          if (child.connected) child.disconnect()
        })
    )
    const answer = <Tag extends Answer["_tag"]>(tag: Tag) =>
      Effect.callback<Extract<Answer, { readonly _tag: Tag }>>((resume) => {
        const onMessage = (message: Answer) => {
          if (message._tag === tag) finish(Effect.succeed(message as Extract<Answer, { readonly _tag: Tag }>))
        }
        const onExit = () => finish(Effect.die(new Error(`the process ${setup.name} ended`)))
        const finish = (effect: Effect.Effect<Extract<Answer, { readonly _tag: Tag }>>) => {
          child.off("message", onMessage)
          child.off("exit", onExit)
          resume(effect)
        }
        child.on("message", onMessage)
        child.on("exit", onExit)
      })
    child.on("message", (message: Answer) => {
      if (message._tag === "stored") onStored(message)
    })
    yield* answer("ready")
    const appender: Appender = {
      child,
      work: (work) =>
        Effect.suspend(() => {
          child.send(work)
          return answer("done")
        })
    }
    return appender
  })
