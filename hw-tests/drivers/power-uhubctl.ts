import { LabError } from '../harness/lab-error.ts'
import type { Power } from './power.ts'
import { agrees } from './power-command.ts'
import { runTool } from './tool.ts'

/** Power by a USB hub that can switch its ports one by one (`uhubctl`). */
export interface UhubctlPower {
  readonly driver: 'uhubctl'
  /** As `uhubctl` prints it: "1-1.4". */
  readonly hub: string
  readonly port: number
}

/** Whether a port has power, from what `uhubctl -l HUB -p PORT` printed. Pure. @throws LabError */
export function portPower({ hub, port }: UhubctlPower, printed: string): boolean {
  // "Current status for hub 1-1 [...]" and then "  Port 2: 0503 power highspeed enable connect"
  let here = false
  for (const line of printed.split('\n')) {
    const status = /status for hub (\S+)/.exec(line)?.[1]
    if (status !== undefined) here = status === hub
    const found = here ? /^\s+Port (\d+): [0-9a-f]{4}(.*)$/.exec(line) : null
    if (found !== null && Number(found[1]) === port) return /\bpower\b/.test(found[2] ?? '')
  }
  throw new LabError(`uhubctl shows no port ${port} of hub ${hub}: ${printed.trim().slice(0, 300)}`)
}

export function uhubctlPower(wiring: UhubctlPower): Power {
  const where = ['uhubctl', '-l', wiring.hub, '-p', String(wiring.port)]
  const state = async () => portPower(wiring, await runTool(where))
  const turn = async (wanted: boolean) => {
    await runTool([...where, '-a', wanted ? 'on' : 'off'])
    await agrees(state, wanted, `port ${wiring.port} of hub ${wiring.hub}`)
  }
  return { on: () => turn(true), off: () => turn(false), state, close: async () => {} }
}
