// Loaded into a service before its own code: says on SIGUSR2 how much of its heap is in use once all garbage is gone, also what
// an ordinary collection keeps for a while, such as compiled code.
process.on("SIGUSR2", () => {
  globalThis.gc!({ type: "major", execution: "sync", flavor: "last-resort" } as NodeJS.GCOptions)
  console.log(`resources ${JSON.stringify({ heapMegabytes: Math.round(process.memoryUsage().heapUsed / 2 ** 20) })}`)
})
