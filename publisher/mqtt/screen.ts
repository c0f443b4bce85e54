import { printable } from '../../base/printable.ts'

/** Lines that go by, and a table that stays below them, on a terminal. */
export class Screen {
  readonly #write: (text: string) => void
  readonly #columns: () => number
  readonly #rows: () => number
  #table: readonly string[] = []
  #shown = 0

  /** @param write to the terminal @param columns and rows of it, now */
  constructor(write: (text: string) => void, columns: () => number, rows: () => number = () => 24) {
    this.#write = write
    this.#columns = columns
    this.#rows = rows
  }

  line(text: string): void {
    this.#draw(`${printable(text)}\n`)
  }

  /** Shows this table from now on; nothing is written when it is the one that stands there. */
  table(lines: readonly string[]): void {
    if (lines.join('\n') === this.#table.join('\n') && this.#shown > 0) return
    this.#table = lines
    this.#draw('')
  }

  /** All in one write: a terminal does not show half of it. */
  #draw(above: string): void {
    const erased = this.#shown === 0 ? '' : `\x1b[${this.#shown}A\x1b[J`
    // A line that wrapped would be two, and the next table would stand too low; so would one taller than the terminal.
    const width = Math.max(20, this.#columns() - 1)
    const lines = this.#table.slice(0, Math.max(1, this.#rows() - 1))
    this.#write(`${erased}${above}${lines.map((line) => `${printable(line).slice(0, width)}\n`).join('')}`)
    this.#shown = lines.length
  }
}
