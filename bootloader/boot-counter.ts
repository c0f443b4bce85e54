import { bootErrors } from './errors.ts'
import type { RunBounded } from './run-bounded.ts'

/**
 * U-Boot's boot counter where it is not in the environment: a register that outlives a reset, an EEPROM, a kernel driver.
 * Programs of the board read it and set it to 0; busybox's devmem is enough for a register.
 */
export interface BootCounter {
  /** Starts that U-Boot counted since it was set to 0. Throws BOOT_COMMAND_FAILED. */
  read(): Promise<number>
  /** Sets it to 0 and reads it back. Throws BOOT_COMMAND_FAILED, BOOT_STATE_NOT_STORED. */
  reset(): Promise<void>
}

type Command = readonly [string, ...string[]]

export interface CounterOptions {
  /** Program and arguments, without a shell; prints the count, or the register's word. */
  readonly read: Command
  readonly reset: Command
  /** Time for one call, milliseconds. */
  readonly timeMs: number
}

/** Upper half of U-Boot's magic (CONFIG_SYS_BOOTCOUNT_MAGIC) where count and magic share one word. */
const MAGIC = 0xb001

/** The count that a text stands for, decimal or hexadecimal with 0x; undefined when it is no number of up to 32 bits. */
export function countIn(text: string): number | undefined {
  const word = text.trim()
  const value = /^(?:\d{1,10}|0x[0-9a-f]{1,8})$/i.test(word) ? Number(word) : Number.NaN
  if (!(value <= 0xffff_ffff)) return undefined
  if (value <= 0xffff) return value
  // A word without the magic is a counter that nothing was ever counted in: U-Boot starts it at 0.
  return Math.floor(value / 0x1_0000) === MAGIC ? value % 0x1_0000 : 0
}

export function commandCounter({ read, reset, timeMs }: CounterOptions, run: RunBounded): BootCounter {
  const call = async (command: Command): Promise<string> => {
    const { exit, out, said } = await run(command, '', timeMs)
    if (exit !== 0) throw bootErrors.BOOT_COMMAND_FAILED(`${command[0]} ended with ${exit ?? 'no exit code'}: ${said}`)
    return out
  }
  const count = async (): Promise<number> => {
    const out = await call(read)
    const found = countIn(out)
    if (found === undefined)
      throw bootErrors.BOOT_COMMAND_FAILED(`${read[0]} gave no boot count: ${JSON.stringify(out.slice(0, 80))}`)
    return found
  }
  return {
    read: count,
    reset: async () => {
      await call(reset)
      const back = await count()
      if (back !== 0) throw bootErrors.BOOT_STATE_NOT_STORED(`${reset[0]} left the boot counter at ${back}`)
    },
  }
}
