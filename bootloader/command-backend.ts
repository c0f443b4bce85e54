import type { BackendReading, BootBackend } from './backend.ts'
import { bootErrors } from './errors.ts'
import { checkState } from './machine.ts'
import { type BootReason, NO_REASON } from './reason.ts'
import type { RunBounded } from './run-bounded.ts'
import { type BootState, MAX_TRIES, SLOTS, type Slot } from './state.ts'

/**
 * A boot state that a program of the board's maker keeps: one JSON object on its standard input, one on its standard
 * output, exit code 0. `docs/backends.md` has the protocol. Nothing it says is believed before it was checked here.
 */

export interface CommandOptions {
  /** Program and arguments, without a shell. */
  readonly command: readonly [string, ...string[]]
  /** Time for one call, milliseconds. */
  readonly timeMs: number
  /** Most tries that its bootloader can count, 1 .. 9. */
  readonly maxTries?: number
}

export function commandBackend({ command, timeMs, maxTries }: CommandOptions, run: RunBounded): BootBackend {
  const [program] = command
  /** Throws BOOT_COMMAND_FAILED. */
  const ask = async (question: object): Promise<Readonly<Record<string, unknown>>> => {
    const { exit, out, said } = await run(command, `${JSON.stringify({ bistable: 1, ...question })}\n`, timeMs)
    if (exit !== 0) throw bootErrors.BOOT_COMMAND_FAILED(`${program} ended with ${exit ?? 'no exit code'}: ${said}`)
    const answer = objectFrom(out)
    if (answer === undefined) throw bootErrors.BOOT_COMMAND_FAILED(`${program} answered with no JSON object`)
    return answer
  }
  const read = async (): Promise<BackendReading> => {
    const answer = await ask({ do: 'read' })
    const state = answer['state'] === null ? undefined : stateFrom(answer['state'], program)
    return { state, torn: answer['torn'] === true }
  }
  return {
    describe: () => ({ name: 'command', place: `kept by ${program}`, maxTries: maxTries ?? MAX_TRIES }),
    read,
    write: async (state) => {
      const before = await read()
      checkState(state)
      if (before.state !== undefined && state.generation <= before.state.generation)
        throw bootErrors.BOOT_STATE_INVALID(
          `generation ${state.generation} is to replace ${before.state.generation}: it must be higher`,
        )
      await ask({ do: 'write', state: plain(state) })
      const back = await read()
      if (JSON.stringify(back.state && plain(back.state)) !== JSON.stringify(plain(state)))
        throw bootErrors.BOOT_STATE_NOT_STORED(`${program} reads back another state than it was given`)
    },
    reason: async () => reasonFrom(await ask({ do: 'reason' })),
    clearReason: async (up) => {
      await ask({ do: 'came-up', slot: up })
    },
    close: async () => undefined,
  }
}

/** JSON has no undefined: no trial is null. */
function plain({ generation, primary, trial, left, spare }: BootState) {
  return { generation, primary, trial: trial ?? null, left, spare }
}

function objectFrom(text: string): Readonly<Record<string, unknown>> | undefined {
  try {
    const value: unknown = JSON.parse(text)
    return typeof value === 'object' && value !== null && !Array.isArray(value) ? { ...value } : undefined
  } catch {
    return undefined
  }
}

function stateFrom(value: unknown, program: string): BootState {
  const given: Record<string, unknown> = typeof value === 'object' && value !== null ? { ...value } : {}
  const primary = slotOf(given['primary'])
  const trial = given['trial'] === null ? undefined : slotOf(given['trial'])
  const { generation, left, spare } = given
  const whole = primary !== undefined && (given['trial'] === null || trial !== undefined)
  if (!whole || typeof generation !== 'number' || typeof left !== 'number' || typeof spare !== 'boolean')
    throw bootErrors.BOOT_COMMAND_FAILED(`${program} gave no boot state: ${JSON.stringify(value)?.slice(0, 200)}`)
  try {
    return checkState({ generation, primary, trial, left, spare })
  } catch (cause) {
    throw bootErrors.BOOT_COMMAND_FAILED(`${program} gave a boot state that cannot be`, { cause })
  }
}

const slotOf = (value: unknown): Slot | undefined => SLOTS.find((slot) => slot === value)

/** A hint: what is not well formed is no reason. */
function reasonFrom(answer: Readonly<Record<string, unknown>>): BootReason {
  const failure: Record<string, unknown> = { ...(answer['failure'] as object | null | undefined) }
  const slot = slotOf(failure['slot'])
  const { stage, text } = failure
  if (slot === undefined || typeof stage !== 'string' || typeof text !== 'string') return NO_REASON
  return { ...NO_REASON, failure: { slot, stage: stage.slice(0, 20), text: text.slice(0, 240) } }
}
