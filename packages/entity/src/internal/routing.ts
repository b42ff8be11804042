/** The process among the others of its service: it says that it is there, takes commands from them, and sends some to them. */
import { randomBytes } from "node:crypto"
import { once } from "node:events"
import { createServer, type Server, type TLSSocket } from "node:tls"
import type { CassandraSession } from "@effect-cassandra/session/CassandraSession"
import { Effect, Latch, Schedule } from "effect"
import { Link } from "./link.ts"
import { assign, type Member, makeMembers } from "./members.ts"
import { Peer, type Request, type Response, security, type Waiting } from "./peer.ts"

const leaseSeconds = 6
const beatMillis = 1000
/** How long a process that closes waits until nobody sends it anything. */
const closeMillis = 2000

/** What carries out the commands of an entity type in this process. */
export interface Executor {
  /** Carries out a command that came from another process; the returned function gives it up. */
  carryOut(request: Request, answer: (...response: Response) => void): () => void
}

export class Routing {
  readonly #members: ReturnType<typeof makeMembers>
  /** How the others reach this process. */
  readonly address: Omit<Member, "types">
  readonly #server: Server
  readonly #executors = new Map<string, Executor>()
  readonly #peers = new Map<string, Peer>()
  /** Connections that others have made. */
  readonly #links = new Set<Link>()
  #known: ReadonlyArray<Member> = []
  #knownAt = Number.NEGATIVE_INFINITY
  /** By entity type. */
  readonly #assigned = new Map<string, ReadonlyArray<Member>>()
  readonly #due = Latch.makeUnsafe(true)

  private constructor(members: ReturnType<typeof makeMembers>, server: Server, address: Omit<Member, "types">) {
    this.#members = members
    this.#server = server
    this.address = address
    server.on("secureConnection", (socket) => this.#accept(socket))
  }

  /** Listens; the Promise fails where it cannot. */
  static async start(
    session: CassandraSession["Service"],
    { host, listen, port }: { readonly host: string; readonly listen: string; readonly port: number }
  ): Promise<Routing> {
    const name = crypto.randomUUID()
    const psk = randomBytes(32)
    const server = createServer({ ...security, pskCallback: (_, identity) => (identity === name ? psk : null) })
    server.listen(port, listen)
    await once(server, "listening")
    const bound = server.address()
    const address = {
      name,
      host,
      port: typeof bound === "object" && bound !== null ? bound.port : port,
      key: psk.toString("hex")
    }
    return new Routing(makeMembers(session, leaseSeconds), server, address)
  }

  /** Lets others know that this process runs entities of a type, or does not any more. */
  serve(entityType: string, executor: Executor | undefined): void {
    if (executor === undefined) this.#executors.delete(entityType)
    else this.#executors.set(entityType, executor)
    this.#due.openUnsafe()
  }

  /** The other process that has the entities of a shard, if it can be reached. */
  ownerOf(entityType: string, shard: number, shards: number): Peer | undefined {
    let assigned = this.#assigned.get(entityType)
    if (assigned === undefined) {
      assigned = assign(entityType, shards, this.#known)
      this.#assigned.set(entityType, assigned)
    }
    const owner = assigned[shard]
    if (owner === undefined || owner.name === this.address.name) return undefined
    let peer = this.#peers.get(owner.name)
    if (peer === undefined) {
      peer = new Peer(owner)
      this.#peers.set(owner.name, peer)
    }
    return peer.isUsable ? peer : undefined
  }

  /** Those who wait for answers from other processes. */
  *waiting(): Generator<Waiting> {
    for (const peer of this.#peers.values()) yield* peer.waiting()
  }

  /** Says that this process is there, and looks who else is, again and again. */
  readonly beat: Effect.Effect<never> = Effect.suspend(() => {
    this.#due.closeUnsafe()
    return Effect.andThen(
      this.#members.write({ ...this.address, types: [...this.#executors.keys()] }),
      this.#members.read
    )
  }).pipe(
    Effect.tap((members) => Effect.sync(() => this.#know(members))),
    Effect.catch((error) =>
      Effect.suspend(() => {
        // Nobody knows of this process any more, and it of nobody.
        if (performance.now() - this.#knownAt > leaseSeconds * 1000) this.#know([])
        return Effect.logWarning(`the other processes are not known, commands stay in this one: ${error.message}`)
      })
    ),
    Effect.andThen(Effect.suspend(() => Effect.timeoutOption(this.#due.await, beatMillis))),
    Effect.forever,
    Effect.withTracerEnabled(false)
  )

  /** Looks after the connections, whatever Cassandra does meanwhile. */
  readonly watch: Effect.Effect<never> = Effect.sync(() => {
    const now = performance.now()
    // A process that was stopped itself has heard nothing, whoever is there.
    const wasStopped = now - this.#watchedAt > 2 * beatMillis
    this.#watchedAt = now
    for (const peer of this.#peers.values()) peer.probe(wasStopped)
  }).pipe(Effect.delay(beatMillis), Effect.forever, Effect.withTracerEnabled(false))
  #watchedAt = performance.now()

  #know(members: ReadonlyArray<Member>): void {
    this.#known = members
    this.#knownAt = performance.now()
    this.#assigned.clear()
    for (const [name, peer] of this.#peers) {
      peer.isGone = !members.some((member) => member.name === name)
      // What it has is waited for.
      if (peer.isGone && peer.endIfIdle()) this.#peers.delete(name)
    }
  }

  #accept(socket: TLSSocket): void {
    /** Commands under way, by the sender's number. */
    const running = new Map<number, () => void>()
    const link: Link = new Link(socket, true, {
      onMessages: (messages) => {
        for (const request of messages as ReadonlyArray<Request>) {
          const [id, entityType] = request
          if (id === undefined) link.send([])
          else if (entityType === undefined) running.get(id)?.()
          else {
            let answered = false
            const giveUp = this.#executors.get(entityType)?.carryOut(request, (...response) => {
              // Once: the number may be another command's by now.
              if (answered) return
              answered = true
              running.delete(id)
              link.send(response)
            })
            if (giveUp === undefined) link.send([id, "refused"] satisfies Response)
            else if (!answered) running.set(id, giveUp)
          }
        }
      },
      onClose: () => {
        this.#links.delete(link)
        for (const giveUp of running.values()) giveUp()
      }
    })
    this.#links.add(link)
  }

  /** Goes from among the others; what they had sent until they knew is answered, by them if need be. */
  readonly close: Effect.Effect<void> = Effect.suspend(() => {
    this.#server.close()
    for (const peer of this.#peers.values()) peer.close()
    for (const link of this.#links) link.send([-1] satisfies Response)
    return Effect.ignore(this.#members.remove(this.address.name))
  }).pipe(
    Effect.andThen(
      Effect.suspend(() => (this.#links.size > 0 ? Effect.fail("not yet") : Effect.void)).pipe(
        Effect.retry({ schedule: Schedule.spaced(5), times: closeMillis / 5 }),
        Effect.ignore
      )
    ),
    Effect.andThen(
      Effect.sync(() => {
        for (const link of this.#links) link.destroy()
      })
    )
  )
}
