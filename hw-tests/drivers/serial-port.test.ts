import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { closeSync, constants, existsSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { SerialPort } from 'serialport'
import { afterAll, describe, expect, it, onTestFinished } from 'vitest'
import { openSerial } from './serial-port.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-serial-'))
afterAll(() => rmSync(folder, { recursive: true }))

/** A pty with a program behind it that says back what it hears. */
async function openPty(name: string): Promise<{ port: SerialPort; end: string; far: ChildProcess }> {
  const path = join(folder, name)
  const far = spawn('socat', [`PTY,link=${path},rawer,pty-interval=0.01`, 'EXEC:cat'], { stdio: 'ignore' })
  onTestFinished(() => void far.kill('SIGKILL'))
  await expect.poll(() => existsSync(path), { timeout: 60_000 }).toBe(true)
  const end = readlinkSync(path)
  return { port: await openSerial(path, 115200), end, far }
}

/** Whether this process has it open, deleted or not. */
const isHeld = (path: string): boolean =>
  readdirSync('/proc/self/fd').some((fd) => {
    try {
      return readlinkSync(join('/proc/self/fd', fd)).split(' ')[0] === path
    } catch {
      return false
    }
  })

describe('a serial port', () => {
  it('closes when the line hangs up, whoever notices it late', async () => {
    const { port, end, far } = await openPty('gone')
    const closed = once(port, 'close')
    port.resume()
    port.write('there?')
    await once(port, 'data')
    // Nothing of this process runs until the line has hung up: the first read behind that gives no bytes, and no error.
    execFileSync('sh', ['-c', `kill -9 ${far.pid}; while [ -e "$0" ]; do sleep 0.01; done`, end])
    expect(isHeld(end)).toBe(true)
    await closed
    expect(port.isOpen).toBe(false)
    expect(isHeld(end)).toBe(false)
  })

  it('is closed in the middle of an answer, again and again, as between the orders to a relay board', async () => {
    const { port: first, end } = await openPty('answers')
    // Else the pty would be gone with its first user.
    const held = openSync(end, constants.O_RDWR | constants.O_NOCTTY)
    onTestFinished(() => closeSync(held))
    // A read that is under way keeps the lock a moment longer.
    const openAgain = async (): Promise<SerialPort> => {
      const port = await openSerial(end, 9600).catch(() => undefined)
      return port ?? sleep(5).then(openAgain)
    }
    let port = first
    for (let i = 0; i < 100; i++) {
      port.resume()
      await new Promise<void>((done) => port.write('x', () => port.drain(() => done())))
      await new Promise<void>((done) => port.close(() => done()))
      port = await openAgain()
    }
    port.destroy()
  })

  it('is closed by destroy, at rest and with bytes under way', async () => {
    for (const said of ['', 'x'.repeat(2000)]) {
      const { port, end } = await openPty(`destroyed${said.length}`)
      port.resume()
      if (said !== '') port.write(said)
      const closed = once(port, 'close')
      port.destroy()
      await closed
      expect(isHeld(end)).toBe(false)
    }
  })
})
