import { spawn } from 'node:child_process'
import { closeSync, constants, existsSync, mkdtempSync, openSync, rmSync } from 'node:fs'
import type { AddressInfo } from 'node:net'
import { createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { SerialPortMock } from 'serialport'
import { afterAll, describe, expect, it } from 'vitest'
import { Console } from '../harness/console.ts'
import { LabError } from '../harness/lab-error.ts'
import { modemOf, openConsolePort } from './console.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-port-'))
const closing: (() => unknown)[] = []
afterAll(() => {
  for (const close of closing) close()
  rmSync(folder, { recursive: true })
})

const sees = (console: Console, word: string) =>
  console.waitForText((text) => (text.includes(word) ? word : undefined), word, 0, { timeoutMs: 60_000 })

describe('console ports', () => {
  it('a serial port speaks both ways; a pty has no break, which is said; the end of the port is a lab error', async () => {
    const path = join(folder, 'tty')
    const board = spawn('socat', [`PTY,link=${path},rawer,pty-interval=0.01`, 'EXEC:cat'], { stdio: 'ignore' })
    closing.push(() => board.kill('SIGKILL'))
    await expect.poll(() => existsSync(path), { timeout: 60_000 }).toBe(true)
    const { port, modem } = await openConsolePort({ driver: 'serial', path, baudRate: 115200 })
    const console = new Console(port, modem && { modem })
    await console.write('hello\n')
    await sees(console, 'hello')
    await expect(console.modem.sendBreak(1)).rejects.toThrow(LabError)
    await expect(console.modem.set({ dtr: true })).rejects.toThrow(/has no modem lines/)
    // Two readers would each get a part of the bytes.
    await expect(openConsolePort({ driver: 'serial', path, baudRate: 115200 })).rejects.toThrow(/does not open/)
    board.kill('SIGKILL')
    await expect(sees(console, 'never said')).rejects.toThrow(LabError)
    await console.close()
  })

  it('a port whose lines cannot be set is not kept: it can be opened again', async () => {
    const path = join(folder, 'no-lines')
    const board = spawn('socat', [`PTY,link=${path},rawer,pty-interval=0.01,ignoreeof`, 'EXEC:cat'], {
      stdio: 'ignore',
    })
    closing.push(() => board.kill('SIGKILL'))
    await expect.poll(() => existsSync(path), { timeout: 60_000 }).toBe(true)
    const held = openSync(path, constants.O_RDWR | constants.O_NOCTTY)
    const wiring = { driver: 'serial', path, baudRate: 115200 } as const
    await expect(openConsolePort({ ...wiring, lines: { dtr: true } })).rejects.toThrow(/has no modem lines/)
    const { port } = await openConsolePort(wiring)
    port.destroy()
    closeSync(held)
  })

  it('break is held and let go, the modem lines are set', async () => {
    SerialPortMock.binding.createPort('/dev/mock')
    const port = await new Promise<SerialPortMock>((resolve, reject) => {
      const made = new SerialPortMock({ path: '/dev/mock', baudRate: 115200 }, (e) => (e ? reject(e) : resolve(made)))
    })
    const set: object[] = []
    const recorded = new Proxy(port, {
      get: (target, name) =>
        name === 'set'
          ? (lines: object, done: (error: Error | null) => void) => {
              set.push(lines)
              target.set(lines, done)
            }
          : Reflect.get(target, name),
    })
    const modem = modemOf(recorded as never, '/dev/mock')
    await modem.sendBreak(5)
    await modem.set({ dtr: false, rts: true })
    expect(set).toEqual([{ brk: true }, { brk: false }, { dtr: false, rts: true }])
    port.destroy()
  })

  it('a TCP port of a console server; one that hangs up is a lab error', async () => {
    const sockets: Socket[] = []
    const server = createServer((socket) => {
      sockets.push(socket)
      socket.on('error', () => {})
      socket.on('data', (bytes) => socket.write(`echo ${bytes}`))
    }).listen(0, '127.0.0.1')
    closing.push(() => server.close())
    await new Promise((resolve) => server.once('listening', resolve))
    const { port, modem } = await openConsolePort({
      driver: 'tcp',
      host: '127.0.0.1',
      port: (server.address() as AddressInfo).port,
    })
    expect(modem).toBeUndefined()
    const console = new Console(port)
    await console.write('hello\n')
    await sees(console, 'echo hello')
    sockets[0]?.destroy()
    await expect(sees(console, 'never said')).rejects.toThrow(LabError)
    await console.close()
  })

  it('a program that does not start is a lab error, and one that ends closes the console', async () => {
    await expect(openConsolePort({ driver: 'command', argv: ['no-such-program'] })).rejects.toThrow(/does not start/)
    const { port } = await openConsolePort({ driver: 'command', argv: ['sh', '-c', 'echo last words'] })
    const console = new Console(port)
    await sees(console, 'last words')
    await expect(sees(console, 'never said')).rejects.toThrow(LabError)
  })
})
