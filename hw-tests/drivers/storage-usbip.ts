import { LabError } from '../harness/lab-error.ts'
import type { Storage } from './storage.ts'
import { appears } from './storage-mux.ts'
import { runTool } from './tool.ts'

/** A stick or card reader on another computer of the lab, brought here over the network by USB/IP while this machine writes it. */
export interface UsbipStorage {
  readonly driver: 'usbip'
  /** The computer that exports the device. */
  readonly host: string
  /** As `usbip list -r HOST` prints it: "1-1.2". */
  readonly bus: string
  /** The block device that appears here; name it by /dev/disk/by-id. */
  readonly device: string
  /** Run on this machine to give the medium to the board and to take it back, where a switch at the far end does so. */
  readonly switch?: {
    readonly toHost: readonly string[]
    readonly toBoard: readonly string[]
    readonly off?: readonly string[]
  }
}

/** Number of the local port that a far device is attached to, from `usbip port`. Pure. */
export function attachedPort({ host, bus }: Pick<UsbipStorage, 'host' | 'bus'>, printed: string): number | undefined {
  // "Port 00: <Port in Use> ..." and, two lines on, "  3-1 -> usbip://lab-3:3240/1-1.2"
  let port: number | undefined
  for (const line of printed.split('\n')) {
    const number = /^Port (\d+):/.exec(line)?.[1]
    if (number !== undefined) port = Number(number)
    const far = /usbip:\/\/([^\s/:]+)(?::\d+)?\/(\S+)/.exec(line)
    if (far !== null && far[1] === host && far[2] === bus) return port
  }
  return undefined
}

export function usbipStorage(wiring: UsbipStorage): Storage {
  const { host, bus, device } = wiring
  const attached = async () => attachedPort(wiring, await runTool(['usbip', 'port']))
  const detach = async () => {
    const port = await attached()
    if (port === undefined) return
    await runTool(['usbip', 'detach', '--port', String(port)])
    if ((await attached()) !== undefined) throw new LabError(`usbip still has ${bus} of ${host} attached`)
  }
  return {
    toHost: async () => {
      if (wiring.switch !== undefined) await runTool(wiring.switch.toHost)
      if ((await attached()) === undefined) await runTool(['usbip', 'attach', '--remote', host, '--busid', bus])
      if ((await attached()) === undefined) throw new LabError(`usbip did not attach ${bus} of ${host}`)
      await appears(device, 20_000)
      return device
    },
    toBoard: async () => {
      await detach()
      if (wiring.switch !== undefined) await runTool(wiring.switch.toBoard)
    },
    pull: async () => {
      await detach()
      const { off } = wiring.switch ?? {}
      if (off !== undefined) await runTool(off)
    },
  }
}
