export * as Journal from "./Journal.ts"
export * as JournalError from "./JournalError.ts"
