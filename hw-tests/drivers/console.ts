import { spawn } from 'node:child_process'
import { createConnection } from 'node:net'
import { Duplex } from 'node:stream'
import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialPort } from 'serialport'
import { LabError } from '../harness/lab-error.ts'
import type { Modem } from '../harness/machine.ts'
import { openSerial } from './serial-port.ts'

/** A board's console: a serial port of this machine, a raw TCP port (ser2net, a console server), or a program's stdio. */
export type ConsoleWiring =
  | {
      readonly driver: 'serial'
      /** Name it by /dev/serial/by-id: other names change. */
      readonly path: string
      readonly baudRate: number
      /** Levels of the modem lines once the port is open; some adapters reset the board by one of them. */
      readonly lines?: { readonly dtr?: boolean; readonly rts?: boolean }
    }
  | { readonly driver: 'tcp'; readonly host: string; readonly port: number }
  | { readonly driver: 'command'; readonly argv: readonly string[] }

export interface ConsolePort {
  readonly port: Duplex
  readonly modem?: Modem
}

const CONNECT_MS = 10_000

/** Opens it; bytes that come before anybody listens wait in the port. @throws LabError */
export async function openConsolePort(wiring: ConsoleWiring): Promise<ConsolePort> {
  const opened = await open(wiring)
  // Whoever reads hears of an end by `close`; an error that nobody listens for would end the process.
  opened.port.on('error', () => {})
  return opened
}

async function open(wiring: ConsoleWiring): Promise<ConsolePort> {
  switch (wiring.driver) {
    case 'serial': {
      const port = await openSerial(wiring.path, wiring.baudRate)
      const modem = modemOf(port, wiring.path)
      try {
        if (wiring.lines !== undefined) await modem.set(wiring.lines)
      } catch (error) {
        // Locked as long as it is open.
        await new Promise<void>((resolve) => port.close(() => resolve()))
        throw error
      }
      return { port, modem }
    }
    case 'tcp':
      return { port: await openTcp(wiring.host, wiring.port) }
    case 'command':
      return { port: await openCommand(wiring.argv) }
  }
}

/** Break and the modem lines. A pty has none, which is said as a lab error when one is asked for. */
export function modemOf(port: SerialPort, path: string): Modem {
  const set = (lines: { dtr?: boolean; rts?: boolean; brk?: boolean }) =>
    new Promise<void>((resolve, reject) => {
      port.set(lines, (error) =>
        error ? reject(new LabError(`${path} has no modem lines to set: ${error.message}`)) : resolve(),
      )
    })
  return {
    set,
    sendBreak: async (ms) => {
      await set({ brk: true })
      await sleep(ms)
      await set({ brk: false })
    },
  }
}

function openTcp(host: string, port: number): Promise<Duplex> {
  return new Promise((resolve, reject) => {
    const socket = createConnection({ host, port, timeout: CONNECT_MS })
    const fail = (why: string) => {
      socket.destroy()
      reject(new LabError(`no console at ${host}:${port}: ${why}`))
    }
    socket.once('error', (error) => fail(error.message))
    socket.once('timeout', () => fail(`no answer within ${CONNECT_MS / 1000} s`))
    socket.once('connect', () => {
      socket.setTimeout(0)
      // A server that is switched off says nothing, as a silent board does.
      socket.setKeepAlive(true, CONNECT_MS)
      socket.removeAllListeners('error')
      socket.on('error', () => {})
      resolve(socket)
    })
  })
}

async function openCommand(argv: readonly string[]): Promise<Duplex> {
  const [program = '', ...args] = argv
  const child = spawn(program, args, { stdio: ['pipe', 'pipe', 'ignore'] })
  await new Promise<void>((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', (error) => reject(new LabError(`\`${argv.join(' ')}\` does not start: ${error.message}`)))
  })
  child.stdin.on('error', () => {})
  // Not Duplex.from: that ends as soon as the program's input is closed, with its last words unread.
  const port = new Duplex({
    read: () => child.stdout.resume(),
    write: (bytes, _, done) => child.stdin.write(bytes, () => done()),
    final: (done) => child.stdin.end(() => done()),
    destroy: (error, done) => {
      child.kill('SIGTERM')
      done(error)
    },
  })
  child.stdout.on('data', (bytes: Buffer) => {
    if (!port.push(bytes)) child.stdout.pause()
  })
  child.stdout.on('end', () => port.push(null))
  // Everything it said has been read.
  port.on('end', () => port.destroy())
  return port
}
