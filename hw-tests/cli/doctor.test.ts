import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import { afterAll, describe, expect, it } from 'vitest'
import { fakeLab } from '../fixtures/fake-lab.ts'
import type { BoardPlace, Place } from '../places/index.ts'
import { converse } from './console.ts'
import { diagnose, examine, type Facts } from './doctor.ts'
import { readKeys } from './keys.ts'
import { openPatient, type Patient } from './patient.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-doctor-'))
afterAll(() => rmSync(folder, { recursive: true }))
process.env['HIL_LOCKS'] = join(folder, 'locks')
const lab = (health?: string, more?: Partial<BoardPlace>, script?: string) => fakeLab(folder, health, more, script)

const TIMES = { silenceMs: 300, bootMs: 30_000 }
/** For those whose boot never ends; the stand-in is a program, which takes its time to say its first word. */
const ENDLESS = { silenceMs: 5000, bootMs: 5000 }
const QUIET = { say: () => {}, onLost: () => {} }

describe('doctor', () => {
  const open = (place: Place) => () => openPatient(place, QUIET)
  const wrong = (facts: Facts) =>
    diagnose(facts)
      .filter(({ ok }) => !ok)
      .map(({ part, text }) => `${part}: ${text}`)
      .join('\n')

  it('finds nothing wrong with a board in order, and leaves it off', async () => {
    const { place, power } = await lab()
    const facts = await examine(place, open(place), TIMES)
    expect(wrong(facts)).toBe('')
    expect(facts.states).toEqual(['firmware', 'bootloader', 'kernel', 'userspace'])
    expect(readFileSync(power, 'utf8').trim()).toBe('off')
  })

  it('a system that waits at its login prompt, without a line end, is up; medium, stick and network are in order', async () => {
    const configfs = join(folder, 'configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const storage = { driver: 'usb-gadget', image: join(folder, 'card'), controller: 'udc0', configfs } as const
    const { place } = await lab('login', { storage, stick: storage })
    const facts = await examine(place, open(place), TIMES)
    expect(facts.states).toEqual(['firmware', 'bootloader', 'kernel', 'userspace'])
    expect(diagnose(facts).map(({ part, ok, text }) => [part, ok, text])).toEqual([
      ['tools', true, 'all programs are here'],
      ['storage', true, 'the medium comes to this machine and goes back (usb-gadget)'],
      ['storage', true, 'the stick comes to this machine and goes back (usb-gadget)'],
      ['network', true, "the tests' servers can listen on 127.0.0.1"],
      ['power', true, 'off is silent, and answers nothing'],
      ['console', true, expect.stringMatching(/^\d+ bytes of text/)],
      ['boot', true, 'seen: firmware, bootloader, kernel, userspace'],
    ])
  })

  const SICK: readonly (readonly [string, string, Partial<BoardPlace>, string, RegExp])[] = [
    ['a console without a word', 'silent', {}, '', /^console: no byte came after power-on: TX and RX swapped/],
    ['another baud rate', 'garbage', {}, '', /^console: \d+ of \d+ bytes are no text: another baud rate/],
    [
      "another board's outlet",
      'other-outlet',
      {},
      '',
      /^power: \d+ bytes came while the power was off, where a line end was typed: the outlet is another/,
    ],
    [
      'a system that was never off, and is idle',
      'always-on',
      {},
      '',
      /^power: \d+ bytes came while the power was off, where a line end was typed: /,
    ],
    [
      'a medium that does not come',
      'good',
      { storage: { driver: 'usb-gadget', image: 'x', controller: 'udc0', configfs: '/proc/no-such-configfs' } },
      '',
      /^storage: no USB gadget in /,
    ],
    [
      'a network that this machine is not in',
      'good',
      { serverListen: '192.0.2.7' },
      '',
      /^network: no web server on 192.0.2.7: .*EADDRNOTAVAIL/,
    ],
    ['a system that panics', 'panics', {}, '', /^boot: it ended in panic .*Unable to mount root fs/],
    ['a dead outlet', 'good', {}, 'echo no route to host >&2; exit 1', /^power: .*no route to host/],
    [
      'a console that is gone',
      'good',
      { console: { driver: 'serial', path: '/dev/no-tty', baudRate: 9600 } },
      '',
      /^console: the serial port \/dev\/no-tty does not open/,
    ],
    [
      'a console server that is down',
      'good',
      { console: { driver: 'tcp', host: '127.0.0.1', port: 9 } },
      '',
      /^console: no console at 127.0.0.1:9: .*REFUSED/,
    ],
    ['a missing program', 'good', { tools: ['no-such-tool'] }, '', /^tools: not here: no-such-tool; nothing else/],
    [
      'a console that dies during the boot',
      'dies',
      {},
      '',
      /^console: the console went away: .*, \d+\.\d s after power-on; its last line: .*Linux version/,
    ],
  ]
  for (const [what, health, more, script, words] of SICK)
    it(`says what is wrong: ${what}`, async () => {
      const { place } = await lab(health, more, script)
      const never = ['other-outlet', 'always-on'].includes(health)
      const times = never ? { ...ENDLESS, bootMs: 100 } : ['silent', 'garbage'].includes(health) ? ENDLESS : TIMES
      expect(wrong(await examine(place, open(place), times))).toMatch(words)
    })
})

describe('console for a person', () => {
  it('the escape key gives orders and is itself when typed twice, however the keys are cut', () => {
    const typed = Buffer.from('ls\r\x1d?\x1d\x1d\x1dcq\x1dx')
    const whole = readKeys(false, typed)
    expect([whole.forward.toString(), whole.orders]).toEqual(['ls\r\x1dq', ['help', 'power-cycle', 'help']])
    let escaped = false
    const forward: number[] = []
    const orders: string[] = []
    for (const byte of typed) {
      const one = readKeys(escaped, Buffer.from([byte]))
      escaped = one.escaped
      forward.push(...one.forward)
      orders.push(...one.orders)
    }
    expect([Buffer.from(forward), orders]).toEqual([whole.forward, whole.orders])
  })

  it('shows the board, sends what is typed, switches the power, and ends', async () => {
    const { place, power } = await lab()
    const patient: Patient = await openPatient(place, QUIET)
    const [input, output] = [new PassThrough(), new PassThrough()]
    let shown = ''
    output.on('data', (bytes: Buffer) => {
      shown += bytes.toString()
    })
    const done = converse(patient, { input, output }, new AbortController().signal)
    await expect.poll(() => shown).toContain('Ctrl-] then: q quit')
    await expect(openPatient(place, QUIET)).rejects.toThrow(/is leased by/)
    input.write('\x1d1')
    await expect.poll(() => shown, { timeout: 60_000 }).toContain('bistable: running slot=a')
    input.write('hello')
    await expect.poll(() => shown).toContain('echo hello')
    input.write('\x1db')
    await expect.poll(() => shown).toContain('no break')
    input.write('\x1d0\x1dq')
    await done
    expect(readFileSync(power, 'utf8').trim()).toBe('off')
    await patient.close()
  })
})
