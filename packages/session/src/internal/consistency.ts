import driver from "cassandra-driver"
import type { Consistency } from "../Statement.ts"

/** The codes of the native protocol. */
export const consistencies: Readonly<Record<Consistency, number>> = {
  ANY: driver.types.consistencies.any,
  ONE: driver.types.consistencies.one,
  TWO: driver.types.consistencies.two,
  THREE: driver.types.consistencies.three,
  QUORUM: driver.types.consistencies.quorum,
  ALL: driver.types.consistencies.all,
  LOCAL_QUORUM: driver.types.consistencies.localQuorum,
  EACH_QUORUM: driver.types.consistencies.eachQuorum,
  LOCAL_ONE: driver.types.consistencies.localOne,
  SERIAL: driver.types.consistencies.serial,
  LOCAL_SERIAL: driver.types.consistencies.localSerial
}
