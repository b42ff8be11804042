import driver from "cassandra-driver"
import * as E from "../CassandraError.ts"
import { Misfit } from "./encoding.ts"
import type { Query } from "./operations.ts"
import { literalsOf, textInfo } from "./text.ts"

const codes = driver.types.responseErrorCodes

/** What `ResponseError` carries at run time beside its code; missing in the driver's types. */
interface ResponseDetails {
  readonly code: number
  readonly consistencies?: number
  readonly required?: number
  readonly alive?: number
  readonly received?: number
  readonly blockFor?: number
  readonly failures?: number
  readonly writeType?: string
  readonly keyspace?: string
  readonly table?: string
}

const consistencyName = new Map(Object.entries(driver.types.consistencies).map(([name, code]) => [code, name]))

const answered = (details: ResponseDetails, received: number | undefined) => {
  const consistency = consistencyName
    .get(details.consistencies as never)
    ?.replace(/[A-Z]/g, (c) => `_${c}`)
    .toUpperCase()
  const required = details.required ?? details.blockFor
  return {
    ...(consistency === undefined ? {} : { consistency }),
    ...(required === undefined ? {} : { required }),
    ...(received === undefined ? {} : { received }),
    ...(details.writeType === undefined ? {} : { writeType: details.writeType })
  }
}

const missingKeyspace = /[Kk]eyspace '?"?([^'" ]+)"?'? does not exist/

const fromResponse = (error: Error & ResponseDetails): E.Reason => {
  const base = { message: error.message, cause: error }
  switch (error.code) {
    case codes.badCredentials:
      return new E.AuthenticationFailed(base)
    case codes.unauthorized:
      return new E.Unauthorized(base)
    case codes.unavailableException:
      return new E.Unavailable({ ...base, ...answered(error, error.alive) })
    case codes.readTimeout:
      return new E.ReadTimeout({ ...base, ...answered(error, error.received) })
    case codes.writeTimeout:
      return new E.WriteTimeout({ ...base, ...answered(error, error.received) })
    case codes.overloaded:
      return new E.Overloaded(base)
    case codes.alreadyExists:
      return new E.AlreadyExists({ ...base, keyspace: error.keyspace ?? "", table: error.table ?? "" })
    case codes.protocolError:
      return /paging state/.test(error.message) ? new E.InvalidStatement(base) : new E.ServerFailure(base)
    case codes.invalid: {
      const keyspace = missingKeyspace.exec(error.message)?.[1]
      return keyspace === undefined ? new E.InvalidStatement(base) : new E.KeyspaceMissing({ ...base, keyspace })
    }
    case codes.syntaxError:
    case codes.configError:
    case codes.functionFailure:
      return new E.InvalidStatement(base)
    default:
      return new E.ServerFailure({
        ...base,
        ...answered(error, error.received),
        code: error.code,
        ...(error.failures === undefined ? {} : { failures: error.failures })
      })
  }
}

/** The errors of the hosts that were tried; a host that was known to be down stands with a text. */
const innerErrors = (
  error: driver.errors.NoHostAvailableError
): ReadonlyArray<readonly [host: string, cause: unknown]> =>
  Object.entries((error.innerErrors ?? {}) as Record<string, unknown>)

const describeHost = ([host, cause]: readonly [string, unknown]) =>
  `${host}: ${cause instanceof Error ? cause.message : (cause ?? "no connection")}`

/** Gives an error of the driver its reason. */
export const toReason = (cause: unknown): E.Reason => {
  if (!(cause instanceof Error)) return new E.ServerFailure({ message: String(cause), cause })
  // The driver adds the text, whose literals may be values.
  if ("query" in cause && typeof cause.query === "string") cause.query = textInfo(cause.query).redacted
  const base = { message: cause.message, cause }
  if (cause instanceof driver.errors.ResponseError) return fromResponse(cause as Error & ResponseDetails)
  if (cause instanceof driver.errors.OperationTimedOutError) return new E.RequestTimeout(base)
  if (cause instanceof driver.errors.AuthenticationError) return new E.AuthenticationFailed(base)
  if (cause instanceof driver.errors.NoHostAvailableError) {
    // What a host answered is the reason, not that there was no further host to try.
    const tried = innerErrors(cause)
    const answer = tried.find(
      ([, error]) =>
        error instanceof driver.errors.ResponseError ||
        error instanceof driver.errors.AuthenticationError ||
        error instanceof driver.errors.ArgumentError
    )
    if (answer !== undefined) return toReason(answer[1])
    if (tried.some(([, error]) => error instanceof driver.errors.BusyConnectionError)) {
      return new E.Overloaded({ message: tried.map(describeHost).join(", "), cause })
    }
    const message = tried.length === 0 ? cause.message : tried.map(describeHost).join(", ")
    return new E.NoHostAvailable({ message, cause })
  }
  if (cause instanceof driver.errors.ArgumentError) return new E.InvalidOptions(base)
  if (cause instanceof TypeError || cause instanceof RangeError) return new E.InvalidStatement(base)
  const isOfNetwork = cause instanceof driver.errors.DriverError || "isSocketError" in cause || "code" in cause
  return isOfNetwork ? new E.ConnectionLost(base) : new E.UnknownError(base)
}

const collectTexts = (value: unknown, texts: Array<string>): void => {
  if (typeof value === "string") texts.push(value)
  else if (value instanceof Map) for (const [key, item] of value) collectTexts([key, item], texts)
  else if (Array.isArray(value) || value instanceof Set) for (const item of value) collectTexts(item, texts)
  else if (typeof value === "object" && value !== null && Object.getPrototypeOf(value) === Object.prototype) {
    for (const item of Object.values(value)) collectTexts(item, texts)
  }
}

/** What is shorter is found by chance within a word. */
const minLength = 3

/** A message of the server without the values and literals of the statements, which it may repeat in part. */
export const withoutValues = (message: string, queries: ReadonlyArray<Query>): string => {
  const values: Array<string> = []
  for (const { params, text } of queries) {
    for (const param of params) collectTexts(param, values)
    values.push(...literalsOf(text))
  }
  // What stands in the text itself tells nothing, and is needed to understand the message.
  const isKnown = (value: string) => queries.some(({ text }) => textInfo(text).redacted.includes(value))
  const secrets = values.filter((value) => value !== "" && !isKnown(value)).toSorted((a, b) => b.length - a.length)
  return secrets
    .reduce((text, secret) => (secret.length < minLength ? text : text.replaceAll(secret, "?")), message)
    .replaceAll(/'([^']+)'|"([^"]+)"/g, (quoted, one?: string, two?: string) => {
      const piece = (one ?? two)!
      return secrets.some((secret) => secret.includes(piece)) ? quoted.replace(piece, "?") : quoted
    })
}

/** Takes the values out of an error of the driver, and says which of them does not fit. */
export const hideValues = (cause: unknown, queries: ReadonlyArray<Query>): void => {
  if (!(cause instanceof Error)) return
  const { message } = cause
  if (cause instanceof Misfit) {
    for (const { params, text } of queries) {
      const place = cause.placeIn(params)
      if (place >= 0) cause.message = `parameter ${place + 1} of "${textInfo(text).redacted}": ${message}`
    }
  } else cause.message = withoutValues(message, queries)
  // V8 has put the message into it.
  if (cause.stack !== undefined) cause.stack = cause.stack.replace(message, () => cause.message)
  if (cause instanceof driver.errors.NoHostAvailableError) {
    for (const [, inner] of innerErrors(cause)) hideValues(inner, queries)
  }
}

/** Reasons that come before the statement reaches a replica, so that a conditional write has certainly not happened. */
const notExecuted: ReadonlySet<E.Reason["_tag"]> = new Set([
  "InvalidOptions",
  "NoHostAvailable",
  "AuthenticationFailed",
  "Unauthorized",
  "KeyspaceMissing",
  "InvalidStatement",
  "AlreadyExists"
])

/** As {@link toReason}, for a conditional write: whatever is not known to have been refused is of unknown outcome. */
export const toConditionalReason = (cause: unknown): E.Reason => {
  const reason = toReason(cause)
  const details = cause instanceof driver.errors.ResponseError ? (cause as Error & ResponseDetails) : undefined
  const notSent = reason._tag === "Overloaded" && details === undefined
  if (notSent || notExecuted.has(reason._tag)) return reason
  return new E.OutcomeUnknown({
    message: reason.message,
    cause,
    ...(details === undefined ? {} : answered(details, details.received))
  })
}
