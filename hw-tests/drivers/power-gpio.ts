import { gpioLine } from './gpio.ts'
import type { Power } from './power.ts'

/** Power by a relay on a GPIO line of this machine (libgpiod). */
export interface GpioPower {
  readonly driver: 'gpio'
  /** "gpiochip0" or its path. */
  readonly chip: string
  readonly line: number
  /** The level that gives power; 1 unless told. */
  readonly on?: 0 | 1
  /** Path of `gpioset`, when it is not in $PATH. */
  readonly program?: string
}

export function gpioPower(wiring: GpioPower): Power {
  const line = gpioLine(wiring.chip, wiring.line, wiring.program)
  const on = wiring.on ?? 1
  return {
    on: () => line.set(on),
    off: () => line.set(on === 1 ? 0 : 1),
    state: async () => (line.level() === undefined ? undefined : line.level() === on),
    close: () => line.release(),
  }
}
