import { PassThrough } from 'node:stream'
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { nextState, readLine } from './boot-states.ts'
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
