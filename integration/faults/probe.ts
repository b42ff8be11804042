// Loaded into a service before its own code: says on SIGUSR2 how much of its heap is in use once the garbage is gone.
process.on("SIGUSR2", () => {
  globalThis.gc!()
  console.log(`resources ${JSON.stringify({ heapMegabytes: Math.round(process.memoryUsage().heapUsed / 2 ** 20) })}`)
})
