/** The story as a person follows it: one line per event, seconds since the start, who did it. */

export type Who = 'demo' | 'publisher' | 'server' | 'device'

export class Timeline {
  readonly #start = Date.now()

  say(who: Who, line: string): void {
    const at = ((Date.now() - this.#start) / 1000).toFixed(1).padStart(6)
    console.log(`[${at} s] ${who.padEnd(9)} ${line}`)
  }

  /** A heading for the next chapter. */
  chapter(title: string): void {
    console.log(`\n--- ${title}`)
  }

  seconds(): number {
    return (Date.now() - this.#start) / 1000
  }
}

/** Rows as an aligned table. */
export function table(head: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = head.map((name, column) => Math.max(name.length, ...rows.map((row) => (row[column] ?? '').length)))
  const line = (cells: readonly string[]) =>
    cells
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd()
  return [line(head), widths.map((w) => '-'.repeat(w)).join('  '), ...rows.map(line)].join('\n')
}
