import { writeFileSync } from "node:fs"
import { createServer as createHttpsServer } from "node:https"
import { type AddressInfo, connect as connectTcp } from "node:net"
import { join } from "node:path"
import { createServer, type TlsOptions } from "node:tls"
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, layer } from "@effect/vitest"
import { TestKeyspace } from "@effect-cassandra/testing/TestKeyspace"
import AdmZip from "adm-zip"
import { Context, Effect, Layer } from "effect"
import { FileSystem } from "effect/FileSystem"
import { generate } from "selfsigned"
import { make, type Options } from "../src/CassandraSession.ts"
import { cql } from "../src/Statement.ts"

const named = (value: string) => [{ name: "commonName", value }]

const authority = () =>
  generate(named("Test authority"), {
    algorithm: "sha256",
    extensions: [
      { name: "basicConstraints", cA: true, critical: true },
      { name: "keyUsage", keyCertSign: true, critical: true }
    ]
  })

class Certificates extends Context.Service<Certificates>()("Certificates", {
  make: Effect.promise(async () => {
    const ca = await authority()
    const signed = (name: string, ip: string) =>
      generate(named(name), {
        algorithm: "sha256",
        ca: { key: ca.private, cert: ca.cert },
        extensions: [
          {
            name: "subjectAltName",
            altNames: [
              { type: 7, ip },
              { type: 2, value: ip }
            ]
          },
          { name: "extKeyUsage", serverAuth: true, clientAuth: true }
        ]
      })
    return {
      ca: ca.cert,
      server: await signed("cassandra", "127.0.0.1"),
      elsewhere: await signed("cassandra", "10.1.2.3"),
      client: await signed("client", "127.0.0.1"),
      stranger: await generate(named("stranger"), { algorithm: "sha256" })
    }
  })
}) {
  static readonly layer = Layer.effect(Certificates, Certificates.make)
}

const listening = <A extends { readonly address: () => unknown; readonly close: () => unknown }>(server: A) =>
  Effect.map(
    Effect.acquireRelease(Effect.succeed(server), () => Effect.sync(() => server.close())),
    () => (server.address() as AddressInfo).port
  )

/** Speaks TLS before the server of the test run, and says what name each connection asked for. */
const terminator = Effect.fnUntraced(function* (settings: TlsOptions) {
  const { contactPoints } = yield* TestKeyspace
  const [host, port] = contactPoints![0]!.split(":")
  const names: Array<string> = []
  const server = createServer(settings, (socket) => {
    if (socket.servername) names.push(socket.servername)
    const upstream = connectTcp(Number(port), host)
    socket.pipe(upstream).pipe(socket)
    for (const one of [socket, upstream]) {
      one.on("error", () => {})
      one.on("close", () => {
        socket.destroy()
        upstream.destroy()
      })
    }
  })
  server.on("tlsClientError", () => {})
  yield* Effect.callback<void>((resume) => void server.listen(0, "127.0.0.1", () => resume(Effect.void)))
  return { names, address: `127.0.0.1:${yield* listening(server)}` }
})

const opened = (changed: Partial<Options>) =>
  Effect.gen(function* () {
    const session = yield* make({ ...(yield* TestKeyspace), ...changed })
    return yield* session.execute(cql`SELECT key FROM system.local`)
  }).pipe(Effect.scoped)

/** Without waiting for a cluster that could not be better later. */
const refused = (changed: Partial<Options>, message: RegExp) =>
  Effect.gen(function* () {
    const begin = performance.now()
    const error = yield* Effect.flip(opened(changed))
    assert.strictEqual(error.reason._tag, "InvalidOptions", error.message)
    assert.match(error.message, message)
    assert.isBelow(performance.now() - begin, 15_000)
  })

layer(Layer.mergeAll(TestKeyspace.layer, Certificates.layer, NodeFileSystem.layer), {
  excludeTestServices: true,
  timeout: "2 minutes"
})("TLS", (it) => {
  it.effect("connects to a server whose certificate is signed by an authority that is given", () =>
    Effect.gen(function* () {
      const { ca, server } = yield* Certificates
      const { address } = yield* terminator({ key: server.private, cert: server.cert })
      assert.strictEqual((yield* opened({ contactPoints: [address], tls: { ca } })).length, 1)
    })
  )

  it.effect("refuses a certificate of an unknown authority, or for another address", () =>
    Effect.gen(function* () {
      const { ca, elsewhere, server, stranger } = yield* Certificates
      const good = yield* terminator({ key: server.private, cert: server.cert })
      yield* refused({ contactPoints: [good.address], tls: true }, /certificate/)
      const alone = yield* terminator({ key: stranger.private, cert: stranger.cert })
      yield* refused({ contactPoints: [alone.address], tls: true }, /self-signed certificate/)
      const other = yield* terminator({ key: elsewhere.private, cert: elsewhere.cert })
      yield* refused({ contactPoints: [other.address], tls: { ca } }, /127\.0\.0\.1.*cert/)
      // Only who asks for it goes without.
      yield* opened({ contactPoints: [good.address], tls: { rejectUnauthorized: false } })
    })
  )

  it.effect("shows its own certificate to a server that asks for one", () =>
    Effect.gen(function* () {
      const { ca, client, server } = yield* Certificates
      const { address } = yield* terminator({
        key: server.private,
        cert: server.cert,
        ca,
        requestCert: true,
        rejectUnauthorized: true
      })
      yield* opened({ contactPoints: [address], tls: { ca, cert: client.cert, key: client.private } })
      yield* refused({ contactPoints: [address], tls: { ca } }, /certificate required/)
    })
  )

  it.effect("a server without TLS, a key that is none", () =>
    Effect.gen(function* () {
      const { ca } = yield* Certificates
      yield* refused({ tls: { ca } }, /SSL|TLS/i)
      yield* refused({ tls: { ca, cert: "x", key: "s3cret" } }, /no TLS/)
    })
  )

  it.effect("a secure connect bundle gives addresses and certificates; a missing or wrong one is named", () =>
    Effect.gen(function* () {
      const { ca, client, server } = yield* Certificates
      const { contactPoints: _, localDataCenter, ...options } = yield* TestKeyspace
      const session = yield* make(yield* TestKeyspace)
      const [local] = yield* session.execute(cql`SELECT host_id FROM system.local`)
      const tls = { key: server.private, cert: server.cert, ca, requestCert: true, rejectUnauthorized: true }
      const { address, names } = yield* terminator(tls)
      const service = createHttpsServer(tls, (_, response) =>
        response.end(
          JSON.stringify({
            contact_info: {
              contact_points: [String(local!.host_id)],
              local_dc: localDataCenter ?? "datacenter1",
              sni_proxy_address: address
            }
          })
        )
      )
      yield* Effect.callback<void>((resume) => void service.listen(0, "127.0.0.1", () => resume(Effect.void)))
      const port = yield* listening(service)
      const folder = yield* Effect.flatMap(FileSystem, (fs) => fs.makeTempDirectoryScoped())
      const zip = new AdmZip()
      zip.addFile("config.json", Buffer.from(JSON.stringify({ host: "127.0.0.1", port })))
      zip.addFile("ca.crt", Buffer.from(ca))
      zip.addFile("cert", Buffer.from(client.cert))
      zip.addFile("key", Buffer.from(client.private))
      const secureConnectBundle = join(folder, "bundle.zip")
      writeFileSync(secureConnectBundle, zip.toBuffer())
      const cloud = yield* make({ ...options, secureConnectBundle })
      assert.strictEqual((yield* cloud.execute(cql`SELECT key FROM system.local`)).length, 1)
      assert.include(names, String(local!.host_id))

      const wrong = { contactPoints: undefined, localDataCenter: undefined }
      yield* refused({ ...wrong, secureConnectBundle: join(folder, "none.zip") }, /none\.zip: .*no such file/)
      writeFileSync(join(folder, "text.zip"), "not a zip file")
      yield* refused({ ...wrong, secureConnectBundle: join(folder, "text.zip") }, /text\.zip/)
      yield* refused({ secureConnectBundle }, /leave out contactPoints/)
    })
  )
})
