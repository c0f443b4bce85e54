import { appendFile, mkdir, rename, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { MiB } from '../../base/bytes.ts'

/**
 * What devices reported, kept as JSON lines: `devices.jsonl` and, before it, `devices.1.jsonl`. At most twice
 * `MAX_BYTES` stand on the disk, and at most `MAX_WAITING` lines wait for it; what comes faster is counted and left out.
 */

const MAX_BYTES = 16 * MiB
const MAX_WAITING = 5000

export interface KeptReport {
  /** "2026-11-21T12:00:00.000Z", by the publisher's clock. */
  readonly at: string
  readonly device: string
  readonly [field: string]: unknown
}

export class ReportLog {
  readonly #folder: string
  readonly #maxBytes: number
  #waiting: string[] = []
  #dropped = 0
  #writing: Promise<void> = Promise.resolve()

  constructor(folder: string, maxBytes = MAX_BYTES) {
    this.#folder = folder
    this.#maxBytes = maxBytes
  }

  add(report: KeptReport): void {
    if (this.#waiting.length >= MAX_WAITING) {
      this.#dropped++
      return
    }
    this.#waiting.push(JSON.stringify(report))
  }

  /** Writes what waits. @throws the system's error; what could not be written is given up */
  flush(): Promise<void> {
    this.#writing = this.#writing.catch(() => undefined).then(() => this.#write())
    return this.#writing
  }

  async #write(): Promise<void> {
    if (this.#dropped > 0) this.#waiting.push(JSON.stringify({ at: new Date().toISOString(), dropped: this.#dropped }))
    const text = this.#waiting.map((line) => `${line}\n`).join('')
    this.#waiting = []
    this.#dropped = 0
    if (text === '') return
    await mkdir(this.#folder, { recursive: true, mode: 0o750 })
    const path = join(this.#folder, 'devices.jsonl')
    const size = await stat(path).then(
      (found) => found.size,
      () => 0,
    )
    if (size > 0 && size + text.length > this.#maxBytes) await rename(path, join(this.#folder, 'devices.1.jsonl'))
    await appendFile(path, text, { mode: 0o640 })
  }
}
