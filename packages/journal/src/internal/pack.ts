/** The text of large blocks as Zstandard: it goes over the network and to the disks of each replica several times. */
import { constants, zstdCompressSync, zstdDecompressSync } from "node:zlib"

/** Characters: what is smaller stays as it is, to be read by anybody. */
const minPacked = 4096
const params = { [constants.ZSTD_c_compressionLevel]: 1, [constants.ZSTD_c_checksumFlag]: 1 }
/** What JSON of events is packed to seldom is less than this part of it: most texts come back in one piece. */
const usualRatio = 5

/**
 * The text itself, or its bytes packed: always the same, for a block may have to be sent again. At once, as it takes less time
 * than the text took to be made of its events.
 */
export const pack = (text: string): string | Buffer =>
  text.length < minPacked ? text : zstdCompressSync(text, { params })

/** The text again; of damaged bytes one that is not JSON, and that the error of reading it as such begins with. */
export const unpack = (packed: Uint8Array): string => {
  try {
    return zstdDecompressSync(packed, { chunkSize: Math.max(minPacked, usualRatio * packed.length) }).toString()
  } catch (cause) {
    return `not zstd: ${cause}`
  }
}
