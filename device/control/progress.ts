import { humanBytes } from '../../base/bytes.ts'
import type { Terminal } from '../../base/cli.ts'

/** Progress of an install: a bar on a terminal, a line per tenth elsewhere. */

interface Progress {
  readonly phase: string
  readonly image?: string | undefined
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

/** @param write to the terminal, for the bar; lines go the terminal's own way */
export function progressBar(
  terminal: Terminal,
  write: (text: string) => void = (text) => void process.stderr.write(text),
) {
  let last: { readonly phase: string; readonly image?: string | undefined; readonly step: number } = {
    phase: '',
    step: 0,
  }
  let open = false
  const erase = (): void => {
    if (open) write('\r\x1b[2K')
    open = false
  }
  return {
    /** Makes room for a line: the bar comes back below it. */
    aside(): void {
      erase()
      last = { phase: '', step: 0 }
    },
    show(value: unknown): void {
      const progress = value as Progress
      const { phase, image } = progress
      const part = progress.total > 0 ? Math.min(1, progress.done / progress.total) : 0
      const step = terminal.interactive ? Math.floor(part * 100) : Math.floor(part * 10) * 10
      // Comes with every chunk: nothing is made that is not shown.
      if (step === last.step && phase === last.phase && image === last.image) return
      last = { phase, image, step }
      const name = `${WORDS[phase] ?? phase} ${image ?? ''}`.trim()
      const fetched = progress.fetched > 0 ? `  ${humanBytes(progress.fetched)} fetched` : ''
      if (!terminal.interactive) {
        terminal.err(`${name} ${step}%${fetched}`)
        return
      }
      const full = Math.round(part * WIDTH)
      write(`\r\x1b[2K${name.padEnd(32)} [${'#'.repeat(full)}${'.'.repeat(WIDTH - full)}] ${step}%${fetched}`)
      open = true
    },
    /** What became of it follows: a bar that stopped somewhere would say something else. */
    end: erase,
  }
}
