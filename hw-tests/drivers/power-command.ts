import { LabError } from '../harness/lab-error.ts'
import type { Power } from './power.ts'
import { runTool } from './tool.ts'

/** Power by programs of one's own: whatever switches the outlet, `usbrelay` for HID relays among them. */
export interface CommandPower {
  readonly driver: 'command'
  readonly on: readonly string[]
  readonly off: readonly string[]
  /** Prints "on" or "off". */
  readonly state?: readonly string[]
}

export function commandPower(wiring: CommandPower): Power {
  const state = async () => {
    if (wiring.state === undefined) return undefined
    const word = (await runTool(wiring.state)).trim().toLowerCase()
    if (word !== 'on' && word !== 'off')
      throw new LabError(`\`${wiring.state.join(' ')}\` printed "${word.slice(0, 60)}", on or off was wanted`)
    return word === 'on'
  }
  const turn = async (wanted: boolean) => {
    await runTool(wanted ? wiring.on : wiring.off)
    await agrees(state, wanted, 'the power command')
  }
  return { on: () => turn(true), off: () => turn(false), state, close: async () => {} }
}

/** Asks an outlet whether it did what it was told. @throws LabError when it says otherwise */
export async function agrees(state: Power['state'], wanted: boolean, what: string): Promise<void> {
  const found = await state()
  if (found !== undefined && found !== wanted)
    throw new LabError(`${what} was told ${wanted ? 'on' : 'off'} and says that it is ${found ? 'on' : 'off'}`)
}
