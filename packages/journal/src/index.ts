export * as Encoding from "./Encoding.ts"
export * as EventCodec from "./EventCodec.ts"
export * as Journal from "./Journal.ts"
export * as JournalError from "./JournalError.ts"
