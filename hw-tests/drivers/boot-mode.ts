import { LabError } from '../harness/lab-error.ts'
import { gpioLine } from './gpio.ts'
import { runTool } from './tool.ts'

/** What a board boots from, set by its boot-mode pins before power comes: GPIO lines at the straps, or a command. */
export interface BootMode {
  /** Takes effect at the next power-on. */
  set(mode: string): Promise<void>
  close(): Promise<void>
}

export interface StrapBootMode {
  readonly driver: 'gpio'
  readonly chip: string
  readonly lines: readonly number[]
  /** Level of each line, in the order of `lines`: `{ sd: [1, 0], emmc: [0, 0] }`. */
  readonly modes: Readonly<Record<string, readonly (0 | 1)[]>>
  readonly program?: string
}

export interface CommandBootMode {
  readonly driver: 'command'
  readonly modes: Readonly<Record<string, readonly string[]>>
}

export type BootModeWiring = StrapBootMode | CommandBootMode

export function openBootMode(wiring: BootModeWiring): BootMode {
  const known = <T>(modes: Readonly<Record<string, T>>, mode: string): T => {
    const found = modes[mode]
    if (found === undefined)
      throw new LabError(`there is no boot mode ${mode}; there are: ${Object.keys(modes).join(', ')}`)
    return found
  }
  if (wiring.driver === 'command')
    return {
      set: async (mode) => {
        await runTool(known(wiring.modes, mode))
      },
      close: async () => {},
    }
  const lines = wiring.lines.map((line) => gpioLine(wiring.chip, line, wiring.program))
  return {
    set: async (mode) => {
      const levels = known(wiring.modes, mode)
      if (levels.length !== lines.length)
        throw new LabError(`boot mode ${mode} names ${levels.length} levels for ${lines.length} lines`)
      for (const [index, line] of lines.entries()) await line.set(levels[index] ?? 0)
    },
    close: async () => {
      for (const line of lines) await line.release()
    },
  }
}
