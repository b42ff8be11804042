/**
 * The answer to a command as it is stored with the command's id, so that the same command gets the same answer again.
 */
import { createHash } from "node:crypto"
import { describeIssue, json } from "@effect-cassandra/journal/EventCodec"
import type { Json } from "@effect-cassandra/journal/Journal"
import { Cause, Effect, Exit, Result, Schema, SchemaParser } from "effect"
import type { Rpc } from "effect/rpc"

const Stored = Schema.Struct({
  command: Schema.String,
  /** A digest of the payload, where the id must come with the same one again. */
  payload: Schema.optionalKey(Schema.String),
  success: Schema.optionalKey(Schema.Json),
  failure: Schema.optionalKey(Schema.Json)
})

const readStored = Schema.decodeUnknownOption(Stored)

/** The payload and the answers of a command as JSON. */
export interface Codecs {
  readonly payload: Codec
  readonly success: Codec
  readonly error: Codec
}

interface Codec {
  readonly decode: (encoded: unknown) => Exit.Exit<unknown, unknown>
  /** Throws where the value does not fit the schema. */
  readonly encode: (value: unknown) => Json
}

/** Few commands have ids or come from elsewhere: what these need is made when the first one comes. */
export const makeCodecs = (command: Rpc.AnyWithProps): (() => Codecs) => {
  let made: Codecs | undefined
  const codec = (what: string, schema: Schema.Top): Codec => {
    const asJson = json(schema as Schema.Codec<unknown>)
    const encode = SchemaParser.encodeUnknownResult(asJson)
    return {
      decode: SchemaParser.decodeUnknownExit(asJson),
      encode: (value) => {
        const encoded = encode(value)
        if (Result.isSuccess(encoded)) return encoded.success
        throw new Error(`the ${what} of ${command._tag} does not fit its schema: ${describeIssue(encoded.failure)}`)
      }
    }
  }
  return () =>
    (made ??= {
      payload: codec("payload", command.payloadSchema),
      success: codec("reply", command.successSchema),
      error: codec("error", command.errorSchema)
    })
}

/** Answers to one command. */
export interface Answers {
  readonly digest: (payload: unknown) => string
  readonly encode: (answer: Exit.Exit<unknown, unknown>, digest: string | undefined) => Json
  /** The answer; or what stands in the way: another command, or an answer that is not readable. */
  readonly decode: (
    stored: Json | undefined,
    digest: string | undefined
  ) => Effect.Effect<unknown, unknown> | "reused" | "undecodable"
}

export const makeAnswers = (tag: string, codecs: () => Codecs): Answers => {
  return {
    digest: (payload) =>
      createHash("sha256")
        .update(JSON.stringify(codecs().payload.encode(payload)) ?? "")
        .digest("base64url")
        .slice(0, 16),
    encode: (answer, digest) => ({
      command: tag,
      ...(digest === undefined ? {} : { payload: digest }),
      ...(Exit.isSuccess(answer)
        ? { success: codecs().success.encode(answer.value) }
        : { failure: codecs().error.encode(Cause.squash(answer.cause)) })
    }),
    decode: (stored, digest) => {
      const read = readStored(stored)
      if (read._tag === "None") return "undecodable"
      const { command, failure, payload, success } = read.value
      if (command !== tag || (digest !== undefined && payload !== undefined && payload !== digest)) return "reused"
      const decoded = "failure" in read.value ? codecs().error.decode(failure) : codecs().success.decode(success)
      if (Exit.isFailure(decoded)) return "undecodable"
      return "failure" in read.value ? Effect.fail(decoded.value) : decoded
    }
  }
}
