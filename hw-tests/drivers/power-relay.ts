import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialPort } from 'serialport'
import { LabError } from '../harness/lab-error.ts'
import type { Power } from './power.ts'
import { agrees } from './power-command.ts'
import { openSerial } from './serial-port.ts'

/** Power by a USB relay board that shows up as a serial port. */
export interface RelayPower {
  readonly driver: 'usb-relay'
  readonly speaks: keyof typeof PROTOCOLS
  /** Name it by /dev/serial/by-id: other names change. */
  readonly path: string
  /** As printed on the board: from 1; Numato counts from 0. */
  readonly channel: number
  /** The board hangs on the contact that is closed at rest: off means relay on. */
  readonly normallyClosed?: boolean
  /** It cannot tell its state, as most boards with one relay: what it was told last is taken for it. */
  readonly blind?: boolean
}

interface Protocol {
  readonly baudRate: number
  /**
   * `ask` is answered by a byte until `go` has started the board; from then on there is no way back but its power, and `ask` is taken
   * for an order.
   */
  readonly start?: { readonly ask: Buffer; readonly go: Buffer }
  /** `before`: what the channels of the board were told so far, the asked one included. */
  order(channel: number, on: boolean, before: ReadonlyMap<number, boolean>): Buffer
  readonly ask?: (channel: number) => Buffer
  /** The relay's state as soon as the answer is whole. */
  readonly answer?: (channel: number, bytes: Buffer) => boolean | undefined
}

/** The protocols of the relay boards that are sold most. Pure. */
export const PROTOCOLS = {
  /** LCUS-1 to LCUS-8 (CH340): A0, channel, 0 or 1, sum. FF asks for all: "CH1: ON\r\nCH2: OFF\r\n". */
  lcus: {
    baudRate: 9600,
    order: (channel, on) => Buffer.from([0xa0, channel, Number(on), (0xa0 + channel + Number(on)) & 0xff]),
    ask: () => Buffer.from([0xff]),
    answer: (channel, bytes) => wordIn(bytes, new RegExp(`CH${channel}: ?(ON|OFF)\\s*\\r\\n`)),
  },
  /** KMTronic with one or two relays: FF, channel, 0 or 1; 3 asks, and the answer is FF, channel, state. */
  kmtronic: {
    baudRate: 9600,
    order: (channel, on) => Buffer.from([0xff, channel, Number(on)]),
    ask: (channel) => Buffer.from([0xff, channel, 3]),
    answer: (channel, bytes) => {
      const at = bytes.indexOf(Buffer.from([0xff, channel]))
      const state = at < 0 ? undefined : bytes[at + 2]
      return state === undefined ? undefined : state === 1
    },
  },
  /** KMTronic with four or eight: FF 09 00 asks, and the answer is a byte for each. */
  'kmtronic-8': {
    baudRate: 9600,
    order: (channel, on) => Buffer.from([0xff, channel, Number(on)]),
    ask: () => Buffer.from([0xff, 9, 0]),
    answer: (channel, bytes) => (bytes.length < channel ? undefined : bytes[channel - 1] === 1),
  },
  /** Numato: text lines ended by CR, echoed; "relay read 0" answers "on" or "off" before the prompt. */
  numato: {
    baudRate: 19200,
    order: (channel, on) => Buffer.from(`relay ${on ? 'on' : 'off'} ${numatoName(channel)}\r`),
    ask: (channel) => Buffer.from(`relay read ${numatoName(channel)}\r`),
    answer: (_, bytes) => wordIn(bytes, /relay read \w+\s*[\r\n]+\s*(on|off)\s*[\r\n]+>/),
  },
  /**
   * ICStation (ICSE012A to 014A): 50 asks for its model, 51 starts it, then one byte sets all relays, a 0 bit closing one. Cannot tell.
   * To find out whether it was started before, 50 must be sent, which then closes relays 1 to 4, 6 and 8 until the first order behind
   * it, which opens those that this run has not closed: no board for more than one device.
   */
  icstation: {
    baudRate: 9600,
    start: { ask: Buffer.from([0x50]), go: Buffer.from([0x51]) },
    order: (channel, on, before) => {
      let mask = 0xff
      for (const [other, closed] of new Map([...before, [channel, on]])) if (closed) mask &= ~(1 << (other - 1)) & 0xff
      return Buffer.from([mask])
    },
  },
} satisfies Readonly<Record<string, Protocol>>

const ANSWER_MS = 3_000
/** A board that was not started answers at once; what starts it needs a moment. */
const START_MS = 1_000
const STARTED_MS = 500
/** How long another run may have the port, for an order to another channel. */
const LOCKED_MS = 5_000

export function relayPower(wiring: RelayPower): Power {
  const protocol: Protocol = PROTOCOLS[wiring.speaks]
  const { channel, path } = wiring
  const told = new Map<number, boolean>()
  const closedIs = wiring.normallyClosed !== true
  let port: SerialPort | undefined
  let got = Buffer.alloc(0)

  const close = () => new Promise<void>((resolve) => (port?.isOpen === true ? port.close(() => resolve()) : resolve()))
  const open = async (): Promise<SerialPort> => {
    if (port?.isOpen === true) return port
    const opened = await openFree(path, protocol.baudRate)
    opened.on('data', (bytes: Buffer) => {
      got = Buffer.concat([got, bytes]).subarray(-4096)
    })
    opened.on('error', () => {})
    port = opened
    if (protocol.start !== undefined) await start(opened, protocol.start)
    return opened
  }
  const start = async (opened: SerialPort, { ask, go }: NonNullable<Protocol['start']>) => {
    got = Buffer.alloc(0)
    await write(opened, path, ask)
    const deadline = Date.now() + START_MS
    while (got.length === 0 && Date.now() < deadline) await sleep(5)
    // It was started before.
    if (got.length === 0) return
    await write(opened, path, go)
    await sleep(STARTED_MS)
  }
  /** The port is another run's between orders, for other channels of the board; one that must be started is kept. */
  const using = async <T>(act: (opened: SerialPort) => Promise<T>): Promise<T> => {
    try {
      return await act(await open())
    } finally {
      if (protocol.start === undefined) await close()
    }
  }
  const { ask, answer } = wiring.blind === true ? {} : protocol
  const read = async (opened: SerialPort) => {
    if (ask === undefined || answer === undefined) return undefined
    got = Buffer.alloc(0)
    await write(opened, path, ask(channel))
    const closed = await waitFor(
      () => answer(channel, got),
      `the relay board on ${path} does not tell the state of channel ${channel}; for one that cannot there is \`blind\``,
    )
    return closed === closedIs
  }
  const state = async () => {
    if (ask !== undefined) return using(read)
    const closed = told.get(channel)
    return closed === undefined ? undefined : closed === closedIs
  }
  const turn = (wanted: boolean) =>
    using(async (opened) => {
      await write(opened, path, protocol.order(channel, wanted === closedIs, told))
      told.set(channel, wanted === closedIs)
      await agrees(() => read(opened), wanted, `channel ${channel} of the relay board on ${path}`)
    })
  return { on: () => turn(true), off: () => turn(false), state, close }
}

/** Opens the port of a board that other runs may use for its other channels. @throws LabError */
async function openFree(path: string, baudRate: number): Promise<SerialPort> {
  const deadline = Date.now() + LOCKED_MS
  for (;;) {
    try {
      return await openSerial(path, baudRate)
    } catch (error) {
      if (!(error instanceof LabError && /lock/i.test(error.message)) || Date.now() > deadline) throw error
      await sleep(50)
    }
  }
}

function write(port: SerialPort, path: string, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (why: string) => reject(new LabError(`the relay board on ${path} takes no bytes: ${why}`))
    const clock = setTimeout(() => fail(`not within ${ANSWER_MS / 1000} s`), ANSWER_MS)
    const settle = (error: Error | null | undefined) => {
      clearTimeout(clock)
      if (error) fail(error.message)
      else resolve()
    }
    port.write(bytes, (error) => (error ? settle(error) : port.drain(settle)))
  })
}

async function waitFor<T>(poll: () => T | undefined, otherwise: string): Promise<T> {
  const deadline = Date.now() + ANSWER_MS
  for (;;) {
    const found = poll()
    if (found !== undefined) return found
    if (Date.now() > deadline) throw new LabError(otherwise)
    await sleep(5)
  }
}

function wordIn(bytes: Buffer, pattern: RegExp): boolean | undefined {
  const word = pattern.exec(bytes.toString('latin1'))?.[1]
  return word === undefined ? undefined : word.toLowerCase() === 'on'
}

/** 0 to 9, then A to V. */
function numatoName(channel: number): string {
  return channel.toString(32).toUpperCase()
}
