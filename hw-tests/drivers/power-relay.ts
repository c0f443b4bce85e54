import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialPort } from 'serialport'
import { LabError } from '../harness/lab-error.ts'
import { openSerial } from './console.ts'
import type { Power } from './power.ts'
import { agrees } from './power-command.ts'

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
}

interface Protocol {
  readonly baudRate: number
  /** Sent once before the first order; `reply` bytes are taken off the line. */
  readonly hello?: readonly { readonly send: Buffer; readonly reply: number }[]
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
  /** KMTronic: FF, channel, 0 or 1; 3 asks, and the answer is FF, channel, state. */
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
  /** Numato: text lines ended by CR, echoed; "relay read 0" answers "on" or "off" before the prompt. */
  numato: {
    baudRate: 19200,
    order: (channel, on) => Buffer.from(`relay ${on ? 'on' : 'off'} ${numatoName(channel)}\r`),
    ask: (channel) => Buffer.from(`relay read ${numatoName(channel)}\r`),
    answer: (_, bytes) => wordIn(bytes, /relay read \w+\s*[\r\n]+\s*(on|off)\s*[\r\n]+>/),
  },
  /** ICStation (ICSE012A to 014A): 50 wakes it up, 51 starts it, then one byte sets all relays, a 0 bit closing one. Cannot tell. */
  icstation: {
    baudRate: 9600,
    hello: [
      { send: Buffer.from([0x50]), reply: 1 },
      { send: Buffer.from([0x51]), reply: 0 },
    ],
    order: (channel, on, before) => {
      let mask = 0xff
      for (const [other, closed] of new Map([...before, [channel, on]])) if (closed) mask &= ~(1 << (other - 1)) & 0xff
      return Buffer.from([mask])
    },
  },
} satisfies Readonly<Record<string, Protocol>>

const ANSWER_MS = 3_000

export function relayPower(wiring: RelayPower): Power {
  const protocol: Protocol = PROTOCOLS[wiring.speaks]
  const { channel, path } = wiring
  const told = new Map<number, boolean>()
  const closedIs = wiring.normallyClosed !== true
  let port: SerialPort | undefined
  let got = Buffer.alloc(0)

  const open = async (): Promise<SerialPort> => {
    if (port?.isOpen === true) return port
    const opened = await openSerial(path, protocol.baudRate)
    opened.on('data', (bytes: Buffer) => {
      got = Buffer.concat([got, bytes]).subarray(-4096)
    })
    opened.on('error', () => {})
    port = opened
    for (const { send, reply } of protocol.hello ?? []) {
      got = Buffer.alloc(0)
      await write(opened, path, send)
      await waitFor(
        () => (got.length >= reply ? true : undefined),
        `the relay board on ${path} does not answer to its start`,
      )
    }
    return opened
  }
  const state = async () => {
    if (protocol.ask === undefined || protocol.answer === undefined) {
      const closed = told.get(channel)
      return closed === undefined ? undefined : closed === closedIs
    }
    const { ask, answer } = protocol
    const opened = await open()
    got = Buffer.alloc(0)
    await write(opened, path, ask(channel))
    const closed = await waitFor(
      () => answer(channel, got),
      `the relay board on ${path} does not tell the state of channel ${channel}`,
    )
    return closed === closedIs
  }
  const turn = async (wanted: boolean) => {
    const opened = await open()
    await write(opened, path, protocol.order(channel, wanted === closedIs, told))
    told.set(channel, wanted === closedIs)
    await agrees(state, wanted, `channel ${channel} of the relay board on ${path}`)
  }
  return {
    on: () => turn(true),
    off: () => turn(false),
    state,
    close: () => new Promise((resolve) => (port?.isOpen === true ? port.close(() => resolve()) : resolve())),
  }
}

function write(port: SerialPort, path: string, bytes: Buffer): Promise<void> {
  return new Promise((resolve, reject) => {
    port.write(bytes, (error) => {
      if (error) return reject(new LabError(`the relay board on ${path} takes no bytes: ${error.message}`))
      port.drain((e) => (e ? reject(new LabError(`the relay board on ${path}: ${e.message}`)) : resolve()))
    })
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
