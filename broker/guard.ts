/**
 * Watches MQTT bytes go by and tells when a packet announces more than is allowed, before its body is read: MQTT lets
 * the other side announce 256 MiB (fixed header, MQTT 3.1.1 section 2.2.3), and a parser would keep all of it.
 */
export class PacketGuard {
  readonly #limit: number
  /** Bytes of the present packet's body still to come. */
  #body = 0
  /** Within a fixed header: its bytes so far, and the length read so far. */
  #header = 0
  #length = 0

  /** @param limit bytes of a packet's body */
  constructor(limit: number) {
    this.#limit = limit
  }

  /** @returns the announced bytes of the first packet that is too large or malformed; undefined while all is well */
  check(bytes: Uint8Array): number | undefined {
    let at = 0
    while (at < bytes.length) {
      if (this.#body > 0) {
        const step = Math.min(this.#body, bytes.length - at)
        this.#body -= step
        at += step
        continue
      }
      const byte = bytes[at++] ?? 0
      if (this.#header++ === 0) continue
      this.#length += (byte & 0x7f) * 128 ** (this.#header - 2)
      if (this.#length > this.#limit) return this.#length
      if ((byte & 0x80) !== 0) {
        // At most four bytes of length.
        if (this.#header === 5) return Number.POSITIVE_INFINITY
        continue
      }
      this.#body = this.#length
      this.#header = 0
      this.#length = 0
    }
    return undefined
  }
}
