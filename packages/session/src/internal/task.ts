/** What runs in a thread of a pool: one function of the user's module. */
export default async ({
  args,
  module,
  name
}: {
  readonly module: string
  readonly name: string
  readonly args: ReadonlyArray<unknown>
}): Promise<unknown> => {
  const task = (await import(module))[name]
  if (typeof task !== "function") throw new Error(`no such task: ${name}`)
  return task(...args)
}
