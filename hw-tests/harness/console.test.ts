import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Duplex, PassThrough } from 'node:stream'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { isTrouble, readLine } from './boot-states.ts'
import { Console } from './console.ts'
import { Decoder } from './decoder.ts'
import { Dut } from './dut.ts'
import { DutError, LabError } from './lab-error.ts'
import { ptyShell } from './pty-shell.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-console-test-'))
const closing: (() => void)[] = []
afterAll(() => {
  for (const close of closing) close()
  rmSync(folder, { recursive: true })
})
const WAIT = { timeoutMs: 60_000 }

/** A device whose console is this port. */
async function deviceOn(port: Duplex): Promise<Dut> {
  const nothing = async () => {}
  const dut = new Dut({
    disk: '',
    machine: async () => ({ port, cut: nothing, reset: nothing, plug: nothing, unplug: nothing }),
  })
  await dut.powerOn()
  return dut
}

describe('lines', () => {
  it('are the same however the bytes are cut, also the long ones; none is lost', () => {
    const text = `${'a'.repeat(9000)}\nshort\n${'b'.repeat(4096)}\n${'c'.repeat(4097)}\r\nend\n`
    const linesOf = (cuts: readonly number[]) => {
      const decoder = new Decoder()
      const bounds = [0, ...[...cuts].sort((a, b) => a - b), text.length]
      return bounds.slice(1).flatMap((to, i) => decoder.take(Buffer.from(text.slice(bounds[i], to), 'latin1')))
    }
    const whole = linesOf([])
    expect(whole.join('')).toBe(text.replace(/[\r\n]/g, ''))
    expect(Math.max(...whole.map(({ length }) => length))).toBe(4096)
    fc.assert(
      fc.property(fc.array(fc.nat(text.length), { maxLength: 20 }), (cuts) => {
        expect(linesOf(cuts)).toEqual(whole)
      }),
    )
  })

  it('are UTF-8 where they are some, in the transcript, too', async () => {
    const port = new PassThrough()
    const transcript = join(folder, 'utf8.log')
    const console = new Console(port, { transcript, now: () => 0 })
    const seen = console.waitForText((text) => text.includes('end') || undefined, 'the end', 0, WAIT)
    for (const byte of Buffer.from('Reached target … – größer\nbad \xff end\n', 'utf8')) port.write(Buffer.from([byte]))
    await seen
    await console.close()
    expect(readFileSync(transcript, 'utf8')).toContain('Reached target … – größer\n')
  })
})

describe('a console that breaks', () => {
  it('is a broken lab for whoever waits, writes, or comes later', async () => {
    const port = new PassThrough()
    const console = new Console(port)
    const wait = console.waitForText(() => undefined, 'an answer', 0, WAIT)
    port.destroy(Object.assign(new Error('read ECONNRESET'), { code: 'ECONNRESET' }))
    for (const failure of [wait, console.write('ls\n')]) {
      await expect(failure).rejects.toThrow(LabError)
      await expect(failure).rejects.toThrow(/the console failed: read ECONNRESET/)
    }
  })

  it('takes bytes with an error, or none at all: a broken lab, after a time', async () => {
    const refuses = new Duplex({ read: () => {}, write: (_, __, done) => done(new Error('EIO')) })
    await expect(new Console(refuses).write('ls\n')).rejects.toThrow(LabError)
    const stuck = () => new Duplex({ read: () => {}, write: () => {} })
    const slow = new Console(stuck(), { writeMs: 50 })
    await expect(slow.write('ls\n')).rejects.toThrow(/taken no bytes for 0.05 s/)
    const port = stuck()
    const failure = new Console(port).write('ls\n')
    port.destroy()
    await expect(failure).rejects.toThrow(LabError)
  })

  it('cannot write its transcript: a broken lab, and the process lives', async () => {
    const console = new Console(new PassThrough(), { transcript: join(folder, 'nowhere', 'x.log') })
    const wait = console.waitForText(() => undefined, 'an answer', 0, WAIT)
    await expect(wait).rejects.toThrow(/the transcript: ENOENT/)
  })
})

describe('what a device says', () => {
  it('is found however much comes at once', async () => {
    const port = new PassThrough({ highWaterMark: 1024 * 1024 })
    const dut = await deviceOn(port)
    const seen = dut.sees(/the word/, 60_000)
    port.write(`the word\n${'much more\n'.repeat(5000)}`)
    expect(await seen).toBe('the word')
    // From now on means: not what was said before.
    const again = dut.sees(/the word|another/, 60_000)
    port.write('another\n')
    expect(await again).toBe('another')
    await dut.powerCut()
  })

  it('goes on counting when there was more than is kept', async () => {
    const port = new PassThrough({ highWaterMark: 16 * 1024 * 1024 })
    const console = new Console(port)
    console.watchFor((event) => isTrouble(event, []))
    for (let i = 0; i < 12_000; i++) port.write(`bistable: note n=${i}\n`)
    const last = await console.waitForEvent(({ fields }) => fields['n'] === '11999', 'the last note', 0, WAIT)
    expect([last.next, console.eventCount]).toEqual([12_000, 12_000])
    expect(console.events.length).toBeLessThanOrEqual(10_000)
    const wait = console.waitForEvent(() => false, 'more', last.next, WAIT)
    port.write('Kernel panic - not syncing: VFS\n')
    await expect(wait).rejects.toThrow(/panic while waiting for more/)
  })

  it('ends a command that runs, too, as soon as it is seen; one that only takes too long is told its whole time', async () => {
    const { shell, console, close } = ptyShell(undefined)
    closing.push(close)
    await shell.open(WAIT)
    console.watchFor((event) => isTrouble(event, []))
    const late = shell.run('sleep 60', { timeoutMs: 700 })
    await expect(late).rejects.toThrow(/did not come within 0.7 s/)
    const other = ptyShell(undefined)
    closing.push(other.close)
    await other.shell.open(WAIT)
    other.console.watchFor((event) => isTrouble(event, []))
    const failure = other.shell.run("echo 'Kernel panic - not syncing: VFS' >/dev/tty; sleep 60", { timeoutMs: 50_000 })
    await expect(failure).rejects.toThrow(DutError)
    await expect(failure).rejects.toThrow(/^panic while waiting for the output of/)
  })

  const kind = (line: string) => readLine(line)?.kind
  it('is trouble by the words of kernels, and not by those of programs', () => {
    for (const line of [
      '[ 1.0] BUG: kernel NULL pointer dereference, address: 0000000000000000',
      '[ 1.0] Unable to handle kernel paging request at virtual address ffff',
      '[ 1.0] general protection fault, probably for non-canonical address 0xdead: 0000 [#1] PREEMPT SMP PTI',
      '[ 1.0] Internal error: synchronous external abort: 0000000096000210 [#1] SMP',
      '[ 1.0] Oops: general protection fault, 0000 [#1]',
      '[ 1.0] ------------[ cut here ]------------',
    ])
      expect(kind(line), line).toBe('oops')
    for (const line of ['app: DEBUG: connected', 'nginx: unable to handle the request', 'kern: traps: app[12] trap'])
      expect(kind(line), line).toBeUndefined()
    for (const line of [
      'ALERT!  UUID=1-2 does not exist.  Dropping to a shell!',
      'Entering emergency mode. Exit the shell',
    ])
      expect(kind(line), line).toBe('emergency')
    // Of one that systemd leaves running over an orderly reboot.
    expect(kind('[ 9.0] watchdog: watchdog0: watchdog did not stop!')).toBeUndefined()
  })
})
