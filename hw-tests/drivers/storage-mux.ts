import { open } from 'node:fs/promises'
import { setTimeout as sleep } from 'node:timers/promises'
import { LabError } from '../harness/lab-error.ts'
import type { Storage } from './storage.ts'
import { runTool } from './tool.ts'

/** An SD card on a multiplexer: SDWire and its kin by `sd-mux-ctrl`, the USB-SD-Mux by `usbsdmux`. */
export interface MuxStorage {
  readonly driver: 'sd-mux-ctrl' | 'usbsdmux'
  /** sd-mux-ctrl: the device's serial; usbsdmux: its control device, "/dev/usb-sd-mux/id-000000000123". */
  readonly mux: string
  /** The card's block device when it is at this machine; name it by /dev/disk/by-id or by-path. */
  readonly device: string
  /** How long the card may take to appear, in milliseconds (10000). */
  readonly appearsMs?: number
}

const SECTOR = 512

type Side = 'host' | 'board' | 'off'

/** The command that moves the card, or undefined where the multiplexer cannot. Pure. */
export function muxCommand({ driver, mux }: MuxStorage, side: Side): readonly string[] | undefined {
  if (driver === 'usbsdmux') return ['usbsdmux', mux, side === 'board' ? 'dut' : side]
  if (side === 'off') return undefined
  return ['sd-mux-ctrl', `--device-serial=${mux}`, side === 'host' ? '--ts' : '--dut']
}

/** The command that tells where the card is, and the side in what it prints. Pure. */
function asked({ driver, mux }: MuxStorage): readonly string[] {
  return driver === 'usbsdmux' ? ['usbsdmux', mux, 'get'] : ['sd-mux-ctrl', `--device-serial=${mux}`, '--status']
}
export function muxSide(printed: string): Side | undefined {
  // usbsdmux prints one word; sd-mux-ctrl "SD connected to: TS".
  const word = /(?:SD connected to:\s*)?\b(host|dut|off|TS|DUT)\b\s*$/.exec(printed.trim())?.[1]?.toLowerCase()
  if (word === undefined) return undefined
  return word === 'ts' || word === 'host' ? 'host' : word === 'dut' ? 'board' : 'off'
}

export function muxStorage(wiring: MuxStorage): Storage {
  const move = async (side: Side) => {
    const command = muxCommand(wiring, side)
    if (command === undefined) throw new LabError(`${wiring.driver} cannot take the card from both sides`)
    await runTool(command)
    const found = muxSide(await runTool(asked(wiring)))
    if (found !== side)
      throw new LabError(`the card of ${wiring.mux} was sent to ${side} and is at ${found ?? 'an unknown side'}`)
  }
  return {
    toHost: async () => {
      await move('host')
      await appears(wiring.device, wiring.appearsMs ?? 10_000)
      return wiring.device
    },
    toBoard: () => move('board'),
    // Where there is no "off", the board loses the card to this machine.
    pull: () => move(wiring.driver === 'usbsdmux' ? 'off' : 'host'),
  }
}

/** Waits for a device node and the medium behind it. @throws LabError */
export async function appears(path: string, timeoutMs: number): Promise<void> {
  const deadline = Date.now() + timeoutMs
  for (;;) {
    const why = await lacks(path)
    if (why === undefined) return
    if (Date.now() > deadline) throw new LabError(`${path} ${why} within ${timeoutMs / 1000} s`)
    await sleep(50)
  }
}

/** The node of a card reader is there without a card, too: it has no first sector then. */
async function lacks(path: string): Promise<string | undefined> {
  try {
    await using file = await open(path, 'r')
    if (!(await file.stat()).isBlockDevice()) return undefined
    const { bytesRead } = await file.read(Buffer.alloc(SECTOR), 0, SECTOR, 0)
    return bytesRead === SECTOR ? undefined : 'had no medium'
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'did not appear'
    return `could not be read (${error instanceof Error ? error.message : ''})`
  }
}
