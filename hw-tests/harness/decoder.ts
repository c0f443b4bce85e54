/** Console bytes to lines: escape sequences and carriage returns removed, length bounded. The same for any cut of the bytes. */

const MAX_LINE = 4096

export class Decoder {
  #partial = ''

  /** What came after the last line end. */
  get partial(): string {
    return this.#partial
  }

  /** The lines that these bytes complete. */
  take(bytes: Buffer): string[] {
    const lines: string[] = []
    this.#partial += bytes.toString('latin1')
    let end = this.#partial.indexOf('\n')
    while (end >= 0) {
      lines.push(plain(this.#partial.slice(0, end)))
      this.#partial = this.#partial.slice(end + 1)
      end = this.#partial.indexOf('\n')
    }
    if (this.#partial.length > MAX_LINE) {
      lines.push(plain(this.#partial))
      this.#partial = ''
    }
    return lines
  }
}

/** Firmware and GRUB draw with escape sequences; the words are what counts. */
function plain(raw: string): string {
  return raw.replace(/\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()=>][0-9A-B]?|[\r\0]/g, '').slice(0, MAX_LINE)
}
