import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { isTrouble, nextState, readLine } from './boot-states.ts'
import { Console } from './console.ts'
import { DutError, LabError } from './lab-error.ts'

const BOOT = [
  'BdsDxe: loading Boot0001 "UEFI Misc Device" from PciRoot(0x0)/Pci(0x2,0x0)',
  'bistable: boot slot=b boot=try left=2 why=ok',
  '[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org)',
  'bistable-init: stage=verity slot=b',
  'bistable: state=trying slot=b release=1.2',
  'bistable: committed slot=b release=1.2',
]

/** A console fed with `text` in pieces cut at the given places. */
function consoleOf(text: string, cuts: readonly number[]): Console {
  const port = new PassThrough()
  const console = new Console(port, { now: () => 0 })
  let at = 0
  for (const cut of [...cuts, text.length].sort((a, b) => a - b)) {
    port.emit('data', Buffer.from(text.slice(at, cut), 'latin1'))
    at = cut
  }
  return console
}

describe('boot states', () => {
  it('follows a boot from firmware to commit', () => {
    const events = BOOT.map(readLine)
    expect(events.map((e) => e?.kind)).toEqual(['firmware', 'boot', 'kernel', 'initramfs', 'trying', 'committed'])
    expect(events[1]?.fields).toEqual({ slot: 'b', boot: 'try', left: '2', why: 'ok' })
    let state: Parameters<typeof nextState>[0] = 'off'
    for (const event of events) if (event !== undefined) state = nextState(state, event)
    expect(state).toBe('userspace')
  })

  it('sees trouble inside other text', () => {
    expect(readLine('l[ 21.72] Kernel panic - not syncing: Attempted to kill init! ogin:')?.kind).toBe('panic')
    expect(readLine('bistable-init: fail stage=verity reason=data-corrupt')?.kind).toBe('initramfs-failed')
    expect(readLine('[ 1.0] EXT4-fs error (device vda7)')?.kind).toBe('filesystem-error')
    expect(readLine('[ 9.1] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!')?.kind).toBe('watchdog')
    expect(readLine('[ 0.5] NMI watchdog: Perf NMI watchdog permanently disabled')).toBeUndefined()
    expect(readLine('systemd[1]: Started something ordinary.')).toBeUndefined()
  })

  it('gives the same events however the bytes are cut, colours and carriage returns included', () => {
    const text = `\x1b[2J\x1b[01;01H${BOOT.join('\r\n')}\r\n`
    const whole = consoleOf(text, []).events
    expect(whole).toHaveLength(BOOT.length)
    fc.assert(
      fc.property(fc.array(fc.nat(text.length), { maxLength: 40 }), (cuts) => {
        expect(consoleOf(text, cuts).events).toEqual(whole)
      }),
    )
  })

  it('a panic ends a wait at once and shows the last lines; a console that dies is a lab error', async () => {
    const port = new PassThrough()
    const console = new Console(port, { now: () => 1234 })
    const wait = console.waitForEvent((e) => e.kind === 'committed', 'a commit', 0, {
      timeoutMs: 60_000,
      fatal: ['panic'],
    })
    port.write('[1.0] Kernel panic - not syncing: VFS\n')
    await expect(wait).rejects.toThrow(DutError)
    await expect(wait).rejects.toThrow(/panic while waiting for a commit[\s\S]*VFS/)
    const second = console.waitForEvent((e) => e.kind === 'committed', 'a commit', 1, { timeoutMs: 60_000 })
    port.destroy()
    await expect(second).rejects.toThrow(LabError)
  })
})

/** What each recorded boot tells, without repetitions. Recorded on the emulated PC with real firmware, GRUB, kernel and agent. */
const RECORDED: Readonly<Record<string, string>> = {
  'grub-first-boot.txt': 'firmware boot kernel initramfs running',
  'grub-dm-verity-refuses.txt': 'firmware boot kernel initramfs filesystem-error initramfs-failed firmware boot',
  'grub-init-panics.txt': 'firmware boot kernel initramfs panic firmware boot kernel initramfs fell-back',
  'grub-unhealthy.txt':
    'agent armed agent firmware boot kernel initramfs trying agent refused agent firmware boot kernel initramfs fell-back',
}

describe('recorded boots', () => {
  const folder = join(import.meta.dirname, '..', 'fixtures', 'boots')

  it('are all named here', () => {
    expect(readdirSync(folder).sort()).toEqual(Object.keys(RECORDED).sort())
  })

  for (const [name, told] of Object.entries(RECORDED)) {
    const text = readFileSync(join(folder, name), 'utf8').replaceAll('\n', '\r\n')

    it(`${name} tells its story`, () => {
      const kinds = consoleOf(text, []).events.map(({ kind }) => kind)
      expect(kinds.filter((kind, i) => kind !== kinds[i - 1]).join(' ')).toBe(told)
    })

    it(`${name} tells the same however its bytes are cut`, () => {
      const whole = consoleOf(text, [])
      fc.assert(
        fc.property(fc.array(fc.nat(text.length), { maxLength: 200 }), (cuts) => {
          const cut = consoleOf(text, cuts)
          expect([cut.events, cut.state]).toEqual([whole.events, whole.state])
        }),
        { numRuns: 30 },
      )
    })
  }
})

describe('watchers', () => {
  it('end a wait for anything else, and leave one for that very event alone', async () => {
    const port = new PassThrough()
    const console = new Console(port, { now: () => 0 })
    console.watchFor((event) => isTrouble(event, ['oops']))
    const options = { timeoutMs: 60_000 }
    const text = console.waitForText(() => undefined, 'an answer', 0, options)
    const oops = console.waitForEvent((e) => e.kind === 'oops', 'an oops', 0, options)
    const panic = console.waitForEvent((e) => e.kind === 'panic', 'a panic', 0, options)
    port.write('[1.0] BUG: unable to handle page fault\n')
    expect((await oops).kind).toBe('oops')
    port.write('[1.1] Kernel panic - not syncing: Fatal exception\n')
    expect((await panic).kind).toBe('panic')
    await expect(text).rejects.toThrow(/panic while waiting for an answer/)
  })

  it('a lease that is lost ends every wait and says so', async () => {
    const lost = new AbortController()
    const console = new Console(new PassThrough(), { now: () => 0 })
    const wait = console.waitForText(() => undefined, 'an answer', 0, { timeoutMs: 60_000, signal: lost.signal })
    lost.abort(new LabError('the lease of rpi4-1 is lost: anna has taken it'))
    await expect(wait).rejects.toThrow(LabError)
    await expect(wait).rejects.toThrow(/anna has taken it; stopped while waiting for an answer/)
  })

  it('a stick that was pulled is no trouble of the device', () => {
    const trouble = (line: string, stick = true) => {
      const event = readLine(line)
      return event !== undefined && isTrouble(event, [], stick)
    }
    expect(trouble('[ 9.0] I/O error, dev vdb, sector 8 op 0x0:(READ)')).toBe(false)
    expect(trouble('[ 9.0] EXT4-fs error (device sda1): ext4_find_entry')).toBe(false)
    // A PC's own disk has such a name.
    expect(trouble('[ 9.0] EXT4-fs error (device sda1): ext4_find_entry', false)).toBe(true)
    expect(trouble('[ 9.0] I/O error, dev vda, sector 8 op 0x0:(READ)')).toBe(true)
    expect(trouble('[ 9.0] EXT4-fs error (device vda7): ext4_find_entry')).toBe(true)
    expect(trouble('You are in emergency mode.')).toBe(true)
    expect(trouble('systemd[1]: Started.')).toBe(false)
  })
})
