/** Messages on a stream of bytes, many at a time: four bytes of length, then an array of them in JSON. */

/** Bytes of JSON. */
const maxFrame = 64 * 1024 * 1024
const headerBytes = 4

export const encodeFrame = (messages: ReadonlyArray<unknown>): Buffer => {
  const text = JSON.stringify(messages)
  const length = Buffer.byteLength(text)
  const frame = Buffer.allocUnsafe(headerBytes + length)
  frame.writeUInt32BE(length)
  frame.write(text, headerBytes)
  return frame
}

/** Puts frames together from the parts in which they come. */
export class FrameReader {
  #parts: Array<Buffer> = []
  #length = 0
  /** Bytes up to the end of the next header or frame. */
  #needed = headerBytes

  /** The messages of the frames that end in this part; throws where the bytes are no frames. */
  read(part: Buffer): Array<unknown> {
    this.#parts.push(part)
    this.#length += part.length
    const messages: Array<unknown> = []
    if (this.#length < this.#needed) return messages
    const bytes = this.#parts.length === 1 ? part : Buffer.concat(this.#parts)
    let position = 0
    for (;;) {
      this.#needed = headerBytes
      if (bytes.length < position + this.#needed) break
      const length = bytes.readUInt32BE(position)
      if (length > maxFrame) throw new RangeError(`a frame has ${length} bytes`)
      this.#needed += length
      const end = position + this.#needed
      if (bytes.length < end) break
      const frame: unknown = JSON.parse(bytes.toString("utf8", position + headerBytes, end))
      if (!Array.isArray(frame)) throw new TypeError("a frame is no list")
      for (const message of frame) messages.push(message)
      position = end
    }
    this.#length = bytes.length - position
    this.#parts = this.#length === 0 ? [] : [bytes.subarray(position)]
    return messages
  }
}
