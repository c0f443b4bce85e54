import type { PowerWiring } from '../drivers/power.ts'
import type { StorageWiring } from '../drivers/storage.ts'
import type { BoardPlace } from './index.ts'

/**
 * Templates of boards: what is the same for every board of a kind. What differs from bench to bench (which outlet, which adapter) is
 * given. None of these was tried on metal yet; see docs/hil.md.
 */

export interface Bench {
  /** The serial adapter, as /dev/serial/by-id/…. */
  readonly console: string
  readonly power: PowerWiring
  readonly storage?: StorageWiring
  readonly stick?: StorageWiring
  /** The address of this machine in the board's network: "192.168.7.1". */
  readonly host: string
}

function board(
  bench: Bench,
  more: Pick<BoardPlace, 'tools'> & { readonly baudRate: number; readonly offMs: number },
): BoardPlace {
  const { console: path, power, storage, stick, host } = bench
  return {
    kind: 'board',
    console: { driver: 'serial', path, baudRate: more.baudRate },
    power,
    offMs: more.offMs,
    ...(storage && { storage }),
    ...(stick && { stick }),
    tools: [...more.tools, 'flock', 'dd', 'cmp'],
    serverAddress: `http://${host}`,
    serverListen: host,
    features: [...(storage ? (['medium'] as const) : []), ...(stick ? (['stick'] as const) : [])],
  }
}

/**
 * Raspberry Pi 4: PL011 or mini UART on pins 8 and 10 (3.3 V), `enable_uart=1` in config.txt; U-Boot as its kernel. The firmware prints
 * nothing there unless `uart_2ndstage=1`. Cut the 5 V of the USB-C plug; its capacitors hold up for about a second.
 */
export function raspberryPi4(bench: Bench): BoardPlace {
  return board(bench, { baudRate: 115200, offMs: 3000, tools: [] })
}

/** Raspberry Pi 5: the three-pin debug connector, not pins 8 and 10. It boots by itself when power comes. */
export function raspberryPi5(bench: Bench): BoardPlace {
  return board(bench, { baudRate: 115200, offMs: 3000, tools: [] })
}

/**
 * BeagleBone Black: six-pin header J1 (3.3 V). With something in its eMMC it boots from there unless the button S2 is held while power
 * comes: wire S2 to a GPIO line as a boot mode, or erase the eMMC's first blocks.
 */
export function beagleBone(bench: Bench, s2?: { readonly chip: string; readonly line: number }): BoardPlace {
  const place = board(bench, { baudRate: 115200, offMs: 2000, tools: [] })
  if (s2 === undefined) return place
  // Pressed is low.
  const modes = { sd: [0], emmc: [1] } as const
  return {
    ...place,
    bootMode: { driver: 'gpio', chip: s2.chip, lines: [s2.line], modes },
    mode: 'sd',
    tools: [...place.tools, 'gpioset'],
  }
}

/**
 * A PC with a null-modem cable on its first serial port: switch serial console redirection on in the firmware, and "power on after power
 * loss". A supply's capacitors hold up for long: measure, and raise `offMs`.
 */
export function x86Box(bench: Bench): BoardPlace {
  return { ...board(bench, { baudRate: 115200, offMs: 10_000, tools: [] }) }
}
