import { printable } from '../../base/printable.ts'

/** Lines that go by, and a table that stays below them, on a terminal. */
export class Screen {
  readonly #write: (text: string) => void
  readonly #columns: () => number
  #table: readonly string[] = []
  #shown = 0

  /** @param write to the terminal @param columns of it, now */
  constructor(write: (text: string) => void, columns: () => number) {
    this.#write = write
    this.#columns = columns
  }

  line(text: string): void {
    this.#write(`${this.#erased()}${printable(text)}\n`)
    this.#shown = 0
    this.#draw()
  }

  /** Shows this table from now on; nothing is written when it is the one that stands there. */
  table(lines: readonly string[]): void {
    if (lines.join('\n') === this.#table.join('\n') && this.#shown > 0) return
    this.#write(this.#erased())
    this.#shown = 0
    this.#table = lines
    this.#draw()
  }

  #erased(): string {
    return this.#shown === 0 ? '' : `\x1b[${this.#shown}A\x1b[J`
  }

  #draw(): void {
    // A line that wrapped would be two, and the next table would stand too low.
    const width = Math.max(20, this.#columns() - 1)
    for (const line of this.#table) this.#write(`${printable(line).slice(0, width)}\n`)
    this.#shown = this.#table.length
  }
}
