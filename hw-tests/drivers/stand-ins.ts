import { spawn } from 'node:child_process'
import { closeSync, constants, existsSync, openSync } from 'node:fs'
import { chmod, writeFile } from 'node:fs/promises'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, createServer as createTcpServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** Devices of a lab, played faithfully enough for the drivers' contract tests. */

export interface RelayBoard {
  /** Path of its serial port. */
  readonly path: string
  /** State of each channel. */
  readonly channels: Map<number, boolean>
  /** True: it takes bytes and does nothing. */
  stuck: boolean
  close(): void
}

/** A relay board behind a pty. `react` gets the bytes that are not used up and returns how many it used, and an answer. */
export async function relayBoard(
  folder: string,
  react: (
    got: Buffer,
    channels: Map<number, boolean>,
    stuck: boolean,
  ) => { readonly used: number; readonly answer?: Buffer },
): Promise<RelayBoard> {
  let pending = Buffer.alloc(0)
  const server = createTcpServer((socket) => {
    socket.on('error', () => {})
    socket.on('data', (bytes: Buffer) => {
      pending = Buffer.concat([pending, bytes])
      for (;;) {
        const { used, answer } = react(pending, board.channels, board.stuck)
        if (used === 0) return
        pending = pending.subarray(used)
        // In pieces: an answer may come in any number of reads.
        for (const byte of answer ?? []) socket.write(Buffer.from([byte]))
      }
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const path = join(folder, `relay-${(server.address() as AddressInfo).port}`)
  const bridge = spawn(
    'socat',
    [`PTY,link=${path},rawer,pty-interval=0.01`, `TCP:127.0.0.1:${(server.address() as AddressInfo).port}`],
    { stdio: 'ignore' },
  )
  let held: number | undefined
  const board: RelayBoard = {
    path,
    channels: new Map(),
    stuck: false,
    close: () => {
      if (held !== undefined) closeSync(held)
      bridge.kill('SIGKILL')
      server.close()
    },
  }
  while (!existsSync(path)) await sleep(10)
  // A port stays when its user goes; a pty would not.
  held = openSync(path, constants.O_RDWR | constants.O_NOCTTY)
  return board
}

/** With one relay: it cannot tell. */
export function lcus1Board(folder: string): Promise<RelayBoard> {
  return relayBoard(folder, (got, channels) => {
    if (got.length < 4) return { used: 0 }
    const [start, channel = 0, on = 0, sum] = got
    if (start === 0xa0 && sum === ((0xa0 + channel + on) & 0xff)) channels.set(channel, on === 1)
    return { used: 4 }
  })
}

export function kmtronic8Board(folder: string): Promise<RelayBoard> {
  return relayBoard(folder, (got, channels, stuck) => {
    if (got.length < 3) return { used: 0 }
    const [start, channel = 0, order] = got
    if (start !== 0xff) return { used: 1 }
    if (channel === 9 && order === 0)
      return { used: 3, answer: Buffer.from(Array.from({ length: 8 }, (_, i) => Number(channels.get(i + 1) === true))) }
    // It knows no other question.
    if (!stuck && (order === 0 || order === 1)) channels.set(channel, order === 1)
    return { used: 3 }
  })
}

export function lcusBoard(folder: string, count = 2): Promise<RelayBoard> {
  return relayBoard(folder, (got, channels, stuck) => {
    if (got[0] === 0xff) {
      const lines = Array.from(
        { length: count },
        (_, i) => `CH${i + 1}: ${channels.get(i + 1) === true ? 'ON' : 'OFF'}\r\n`,
      )
      return { used: 1, answer: Buffer.from(lines.join('')) }
    }
    if (got.length < 4) return { used: 0 }
    const [start, channel = 0, on = 0, sum] = got
    // Like the board, which ignores a frame whose sum is wrong.
    if (start === 0xa0 && sum === ((0xa0 + channel + on) & 0xff) && !stuck) channels.set(channel, on === 1)
    return { used: 4 }
  })
}

export function kmtronicBoard(folder: string): Promise<RelayBoard> {
  return relayBoard(folder, (got, channels, stuck) => {
    if (got.length < 3) return { used: 0 }
    const [start, channel = 0, order] = got
    if (start !== 0xff) return { used: 1 }
    if (order === 3) return { used: 3, answer: Buffer.from([0xff, channel, Number(channels.get(channel) === true)]) }
    if (!stuck) channels.set(channel, order === 1)
    return { used: 3 }
  })
}

export function numatoBoard(folder: string): Promise<RelayBoard> {
  return relayBoard(folder, (got, channels, stuck) => {
    const end = got.indexOf('\r')
    if (end < 0) return { used: 0 }
    const line = got.toString('latin1', 0, end)
    const [, verb, name] = /^relay (on|off|read) ([0-9A-V])$/.exec(line) ?? []
    const channel = Number.parseInt(name ?? '0', 32)
    if ((verb === 'on' || verb === 'off') && !stuck) channels.set(channel, verb === 'on')
    const value = verb === 'read' ? `${channels.get(channel) === true ? 'on' : 'off'}\n\r` : ''
    return { used: end + 1, answer: Buffer.from(`${line}\n\r${value}>`) }
  })
}

export function icstationBoard(folder: string): Promise<RelayBoard> {
  let started = false
  return relayBoard(folder, (got, channels) => {
    const [byte] = got
    if (byte === undefined) return { used: 0 }
    if (!started) {
      if (byte === 0x51) started = true
      return byte === 0x50 ? { used: 1, answer: Buffer.from([0xad]) } : { used: 1 }
    }
    for (let bit = 0; bit < 8; bit++) channels.set(bit + 1, (byte & (1 << bit)) === 0)
    return { used: 1 }
  })
}

export interface Plug {
  readonly address: string
  readonly outlets: Map<number, boolean>
  stuck: boolean
  readonly asked: string[]
  close(): Promise<void>
}

/** Answers like a plug's web server, one relay or several. */
export async function plug(answer: (url: URL, plug: Plug) => { status?: number; body: string }): Promise<Plug> {
  const server: Server = createServer((request, response) => {
    const url = new URL(request.url ?? '/', 'http://plug')
    made.asked.push(request.url ?? '')
    const { status = 200, body } = answer(url, made)
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(body)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const made: Plug = {
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    outlets: new Map(),
    stuck: false,
    asked: [],
    close: () =>
      new Promise((resolve) => {
        server.closeAllConnections()
        server.close(() => resolve())
      }),
  }
  return made
}

export function tasmota(password?: string): Promise<Plug> {
  return plug((url, { outlets, stuck }) => {
    if (password !== undefined && url.searchParams.get('password') !== password)
      return { status: 401, body: '{"WARNING":"Need user=<username>&password=<password>"}' }
    const [, digits, word] = /^Power(\d*)(?: (On|Off))?$/.exec(url.searchParams.get('cmnd') ?? '') ?? []
    if (digits === undefined) return { body: '{"Command":"Unknown"}' }
    const outlet = Number(digits === '' ? '1' : digits)
    if (word !== undefined && !stuck) outlets.set(outlet, word === 'On')
    return { body: JSON.stringify({ [`POWER${digits}`]: outlets.get(outlet) === true ? 'ON' : 'OFF' }) }
  })
}

export function shelly(generation: 1 | 2): Promise<Plug> {
  return plug((url, { outlets, stuck }) => {
    const id = Number(generation === 1 ? url.pathname.split('/').at(-1) : url.searchParams.get('id'))
    const was = outlets.get(id) === true
    const order = generation === 1 ? url.searchParams.get('turn') : url.searchParams.get('on')
    if (order !== null && !stuck) outlets.set(id, order === 'on' || order === 'true')
    if (generation === 1) return { body: JSON.stringify({ ison: outlets.get(id) === true, has_timer: false }) }
    if (url.pathname === '/rpc/Switch.Set') return { body: JSON.stringify({ was_on: was }) }
    return { body: JSON.stringify({ id, source: 'HTTP_in', output: outlets.get(id) === true, apower: 0 }) }
  })
}

/** A program in `folder/bin`, as a shell script; its state is a file beside it, `$STATE`. */
export async function program(folder: string, name: string, script: string): Promise<string> {
  const path = join(folder, name)
  await writeFile(path, `#!/bin/sh\nSTATE='${join(folder, `${name}.state`)}'\necho "$*" >>"$STATE.log"\n${script}\n`)
  await chmod(path, 0o755)
  return path
}
