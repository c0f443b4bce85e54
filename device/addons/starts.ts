import { dirname } from 'node:path'
import { type Files, writeFileDurably } from '../../base/durable.ts'

/**
 * Starts of the system with add-ons over /usr that no agent has answered yet. An add-on that keeps the system from coming up
 * would do so at every start: after a few it is left out, and the agent drops it.
 */
export class AddonStarts {
  readonly #file: string
  readonly #files: Files

  /** @param file "/data/bistable/addons/.starts" */
  constructor(file: string, files: Files) {
    this.#file = file
    this.#files = files
  }

  /** How many; 0 where nothing legible is noted. */
  async unanswered(): Promise<number> {
    const bytes = await this.#files.read(this.#file, 16).catch(() => undefined)
    const text = Buffer.from(bytes ?? '').toString('latin1')
    return /^[0-9]\n$/.test(text) ? Number(text[0]) : 0
  }

  /** One more, on the disk when this returns. */
  async count(): Promise<void> {
    const next = Math.min(9, (await this.unanswered()) + 1)
    await writeFileDurably(this.#file, Buffer.from(`${next}\n`), this.#files)
  }

  /** The agent came up, with all that is over /usr. */
  async answer(): Promise<void> {
    if ((await this.#files.read(this.#file, 16).catch(() => undefined)) === undefined) return
    await this.#files.remove(this.#file)
    await this.#files.syncDir(dirname(this.#file))
  }
}

/** From so many on, add-ons wait for the agent. Fewer than a bootloader takes to give a slot up. */
export const MOST_STARTS = 3
