/**
 * A network between a program and a server that can fail: it holds back, delays and cuts what passes.
 */
import { connect, createServer, type Socket } from "node:net"
import { Effect, type Scope } from "effect"

/** A TCP proxy on the loopback. */
export interface FaultProxy {
  /** `"127.0.0.1:port"`, to be connected to instead of the server. */
  readonly address: string
  /** Holds back what is sent in both directions, and in those to come. */
  readonly hold: Effect.Effect<void>
  /** Passes on what was held back, in its order. */
  readonly release: Effect.Effect<void>
  /** Passes everything on later by some milliseconds, in its order. */
  readonly delay: (millis: number) => Effect.Effect<void>
  /** Cuts all connections; new ones are made as before. */
  readonly drop: Effect.Effect<void>
  /** Cuts all connections, and every new one at once. */
  readonly refuse: Effect.Effect<void>
  /** Ends `refuse`. */
  readonly accept: Effect.Effect<void>
}

/**
 * Starts a proxy before a server at `"host:port"`, on a free port of 127.0.0.1 unless an address of the loopback is given;
 * it ends with the scope.
 */
export const make = (target: string, address = "127.0.0.1:0"): Effect.Effect<FaultProxy, never, Scope.Scope> =>
  Effect.acquireRelease(
    Effect.callback<{ readonly proxy: FaultProxy; readonly close: () => void }>((resume) => {
      const separator = target.lastIndexOf(":")
      const [host, port] = [target.slice(0, separator), Number(target.slice(separator + 1))]
      const sockets = new Set<Socket>()
      let held = false
      let refused = false
      let millis = 0
      const cut = () => {
        for (const socket of sockets) socket.destroy()
      }
      const server = createServer((client) => {
        if (refused) return void client.destroy()
        const upstream = connect(port, host)
        for (const [from, to] of [
          [client, upstream],
          [upstream, client]
        ] as const) {
          sockets.add(from)
          if (held) from.pause()
          let last = 0
          from.on("data", (data) => {
            const now = performance.now()
            if (millis === 0 && last < now) return void to.write(data)
            // Never at the time of what came before, which another timer could overtake.
            last = Math.max(now + millis, last + 2)
            setTimeout(() => to.write(data), last - now)
          })
          from.on("error", () => to.destroy())
          from.on("close", () => {
            sockets.delete(from)
            to.destroy()
          })
        }
      })
      const [ownHost, ownPort] = address.split(":")
      server.listen(Number(ownPort), ownHost, () =>
        resume(
          Effect.succeed({
            close: () => {
              cut()
              server.close()
            },
            proxy: {
              address: `${ownHost}:${(server.address() as { readonly port: number }).port}`,
              hold: Effect.sync(() => {
                held = true
                for (const socket of sockets) socket.pause()
              }),
              release: Effect.sync(() => {
                held = false
                for (const socket of sockets) socket.resume()
              }),
              delay: (by) =>
                Effect.sync(() => {
                  millis = by
                }),
              drop: Effect.sync(cut),
              refuse: Effect.sync(() => {
                refused = true
                cut()
              }),
              accept: Effect.sync(() => {
                refused = false
              })
            }
          })
        )
      )
    }),
    ({ close }) => Effect.sync(close)
  ).pipe(Effect.map(({ proxy }) => proxy))
