import { threadId } from "node:worker_threads"

/** Tasks of the tests. */
export const add = (a: number, b: number) => a + b

export const thread = () => threadId

export const hold = (millis: number) => {
  const end = performance.now() + millis
  while (performance.now() < end);
  return threadId
}

export const fail = () => {
  throw new Error("as it should")
}

export const forever = () => {
  for (;;);
}
