export * as Processor from "./Processor.ts"
export * as ReadSide from "./ReadSide.ts"
export * as ReadSideError from "./ReadSideError.ts"
