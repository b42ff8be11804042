export * as Decision from "./Decision.ts"
export * as EntityError from "./EntityError.ts"
export * as PersistentEntity from "./PersistentEntity.ts"
export * as ReadOnly from "./ReadOnly.ts"
