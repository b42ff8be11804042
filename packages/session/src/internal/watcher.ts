// The thread of EventLoopWatch: it counts on the beats of the main thread, and looks where that is when they stop.
import { Session } from "node:inspector"
import { parentPort, workerData } from "node:worker_threads"

const { beats, period, threshold } = workerData as {
  readonly beats: Int32Array
  readonly period: number
  readonly threshold: number
}

interface Place {
  readonly span: string | undefined
  readonly stack: ReadonlyArray<string>
}

/** Stops the main thread, unless it goes on by itself, to see where it is. */
const look = (beat: number): Promise<Place> =>
  new Promise((resolve) => {
    const session = new Session()
    let over = false
    const end = (place: Place) => {
      if (over) return
      over = true
      const finish = () => {
        clearTimeout(timer)
        session.disconnect()
        resolve(place)
      }
      // The answer may be lost with what the main thread does meanwhile, and the watch must go on.
      const timer = setTimeout(finish, 1000)
      session.post("Debugger.disable", finish)
    }
    session.connectToMainThread()
    const files = new Map<string, string>()
    session.on("Debugger.scriptParsed", ({ params: { scriptId, url } }) => {
      files.set(scriptId, url.slice(url.lastIndexOf("/") + 1))
    })
    session.on("Debugger.paused", ({ params: { callFrames } }) => {
      if (Atomics.load(beats, 0) !== beat) return end({ span: undefined, stack: [] })
      const stack = callFrames.map(
        ({ functionName, location: { lineNumber, scriptId } }) =>
          `${functionName || "(anonymous)"} (${files.get(scriptId)}:${lineNumber + 1})`
      )
      session.post(
        "Debugger.evaluateOnCallFrame",
        {
          callFrameId: callFrames[0]!.callFrameId,
          // Where Effect keeps the fiber that runs.
          expression: `globalThis["~effect/Fiber/currentFiber"]?.cache.span?.name`,
          returnByValue: true,
          silent: true
        },
        (_, answer) => end({ span: answer?.result.value, stack })
      )
    })
    session.post("Debugger.enable", () => session.post("Debugger.pause"))
    // Code of the system may hold it, which cannot be stopped.
    const wait = () => {
      if (over) return
      if (Atomics.load(beats, 0) !== beat) end({ span: undefined, stack: [] })
      else setTimeout(wait, period)
    }
    wait()
  })

let beat = Atomics.load(beats, 0)
let since = performance.now()

const watch = async () => {
  const now = Atomics.load(beats, 0)
  if (now !== beat) {
    beat = now
    since = performance.now()
  } else if (performance.now() - since > threshold) {
    const place = await look(beat)
    while (Atomics.load(beats, 0) === beat) await new Promise((resolve) => setTimeout(resolve, period / 2))
    parentPort!.postMessage({ ...place, millis: performance.now() - since })
    beat = Atomics.load(beats, 0)
    since = performance.now()
  }
  setTimeout(watch, period)
}

await watch()
