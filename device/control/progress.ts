import { humanBytes } from '../../base/bytes.ts'
import type { Terminal } from '../../base/cli.ts'

/** Progress of an install: a bar on a terminal, a line per tenth elsewhere. */

interface Progress {
  readonly phase: string
  readonly image?: string
  readonly done: number
  readonly total: number
  readonly fetched: number
}

const WORDS: Readonly<Record<string, string>> = {
  check: 'checking the file',
  scan: 'looking at what is there',
  fill: 'writing',
  verify: 'reading back',
  finish: 'finishing',
}
const WIDTH = 30

export function progressBar(terminal: Terminal) {
  let last = ''
  let open = false
  return {
    show(value: unknown): void {
      const progress = value as Progress
      const part = progress.total > 0 ? Math.min(1, progress.done / progress.total) : 0
      const name = `${WORDS[progress.phase] ?? progress.phase} ${progress.image ?? ''}`.trim()
      const fetched = progress.fetched > 0 ? `  ${humanBytes(progress.fetched)} fetched` : ''
      const step = terminal.interactive ? Math.floor(part * 100) : Math.floor(part * 10) * 10
      const key = `${name} ${step}`
      if (key === last) return
      last = key
      if (!terminal.interactive) {
        terminal.err(`${name} ${step}%${fetched}`)
        return
      }
      const full = Math.round(part * WIDTH)
      process.stderr.write(
        `\r\x1b[2K${name.padEnd(32)} [${'#'.repeat(full)}${'.'.repeat(WIDTH - full)}] ${step}%${fetched}`,
      )
      open = true
    },
    end(): void {
      if (open) process.stderr.write('\n')
      open = false
    },
  }
}
