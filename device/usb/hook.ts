import type { Processes } from '../agent/ports.ts'

/** A light, a buzzer, a display: told by a command what goes on with a stick. */

export type StickEvent = 'found' | 'checking' | 'installing' | 'armed' | 'applied' | 'nothing' | 'refused'

/** A hook that takes longer is ended; it can delay nothing but itself. */
const HOOK_MS = 10_000

/**
 * Runs `COMMAND EVENT PERCENT CODE`, one at a time. While one runs only the newest news waits, so a slow hook sees fewer
 * steps and never an old one last. Its failure is nobody's.
 */
export class StickHook {
  readonly #processes: Processes
  readonly #command: string | undefined
  #running: Promise<void> | undefined
  #waiting: readonly string[] | undefined
  #last = ''

  constructor(processes: Processes, command: string | undefined) {
    this.#processes = processes
    this.#command = command
  }

  tell(event: StickEvent, percent = 0, code = 'OK'): void {
    const words = [event, String(Math.max(0, Math.min(100, Math.floor(percent)))), code]
    if (this.#command === undefined || words.join(' ') === this.#last) return
    this.#last = words.join(' ')
    this.#waiting = words
    this.#running ??= this.#run(this.#command)
  }

  /** When everything was told. */
  async settled(): Promise<void> {
    await this.#running
  }

  async #run(command: string): Promise<void> {
    for (let words = this.#waiting; words !== undefined; words = this.#waiting) {
      this.#waiting = undefined
      await this.#processes.run([command, ...words], HOOK_MS)
    }
    this.#running = undefined
  }
}
