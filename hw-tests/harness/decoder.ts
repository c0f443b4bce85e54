/**
 * Console bytes to lines: escape sequences and carriage returns removed, UTF-8 where it is some. A line that is too long goes on in
 * the next. The same for any cut of the bytes.
 */

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
    for (;;) {
      const end = this.#partial.indexOf('\n')
      const whole = end >= 0 && end <= MAX_LINE
      if (!whole && this.#partial.length <= MAX_LINE) return lines
      lines.push(plain(this.#partial.slice(0, whole ? end : MAX_LINE)))
      this.#partial = this.#partial.slice(whole ? end + 1 : MAX_LINE)
    }
  }
}

/** Firmware and GRUB draw with escape sequences; the words are what counts. */
function plain(raw: string): string {
  const words = raw.replace(/\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()=>][0-9A-B]?|[\r\0]/g, '')
  return /[\x80-\xff]/.test(words) ? Buffer.from(words, 'latin1').toString('utf8') : words
}
