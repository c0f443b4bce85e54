import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { PassThrough } from 'node:stream'
import { afterAll, describe, expect, it } from 'vitest'
import { converse } from '../cli/console.ts'
import { diagnose, examine, type Facts } from '../cli/doctor.ts'
import { readKeys } from '../cli/keys.ts'
import { openPatient, type Patient } from '../cli/patient.ts'
import { program } from '../drivers/stand-ins.ts'
import { hold } from '../lease/hold.ts'
import { localStore } from '../lease/store.ts'
import { allPlaces, type BoardPlace, PLACES, type Place } from '../places/index.ts'
import { openBoard } from './board.ts'
import { Dut } from './dut.ts'
import { LabError } from './lab-error.ts'
import { nextHealth, quarantineText } from './quarantine.ts'
import { doneFile, labErrorFile } from './report.ts'

const root = resolve(import.meta.dirname, '..', '..')
const folder = mkdtempSync(join(tmpdir(), 'bistable-board-'))
afterAll(() => rmSync(folder, { recursive: true }))
process.env['HIL_LOCKS'] = join(folder, 'locks')

const FAKE = join(root, 'hw-tests', 'fixtures', 'fake-board.mjs')
let boards = 0

interface Lab {
  readonly place: Place & BoardPlace
  readonly power: string
  /** What the power program was told, in order. */
  orders(): string[]
}

/** A board that is a program, with a power switch that is one, too. */
async function lab(health = 'good', more: Partial<BoardPlace> = {}, script = ''): Promise<Lab> {
  const own = join(folder, `board-${++boards}`)
  mkdirSync(own)
  const outlet = await program(own, 'outlet', `${script}\n[ "$1" = state ] && exec cat "$STATE"\necho "$1" >"$STATE"`)
  const power = join(own, 'outlet.state')
  writeFileSync(power, 'off\n')
  return {
    power,
    orders: () =>
      (existsSync(`${power}.log`) ? readFileSync(`${power}.log`, 'utf8') : '')
        .split('\n')
        .filter((line) => line === 'on' || line === 'off'),
    place: {
      name: `board-${boards}`,
      kind: 'board',
      console: { driver: 'command', argv: [process.execPath, FAKE, power, health] },
      power: { driver: 'command', on: [outlet, 'on'], off: [outlet, 'off'], state: [outlet, 'state'] },
      offMs: 150,
      tools: ['sh'],
      features: [],
      serverAddress: 'http://127.0.0.1',
      serverListen: '127.0.0.1',
      ...more,
    },
  }
}

describe('a board', () => {
  it('is heard from its first byte on, and is off when it was cut; one that was left on is cut first', async () => {
    const { place, power, orders } = await lab()
    writeFileSync(power, 'on\n')
    const board = openBoard(place.name, place, { check: () => {} })
    const dut = new Dut({ disk: '/nowhere', machine: () => board.powerOn() })
    await dut.powerOn()
    await dut.next(['firmware'], { timeoutMs: 60_000 })
    expect((await dut.next(['running'], { timeoutMs: 60_000 })).fields).toMatchObject({ slot: 'a', release: '1.2' })
    await dut.powerCut()
    expect(readFileSync(power, 'utf8').trim()).toBe('off')
    expect(orders()).toEqual(['off', 'on', 'off'])
    const before = Date.now()
    await dut.powerOn()
    expect(Date.now() - before).toBeGreaterThanOrEqual(100)
    await dut.powerCut()
    await expect(dut.save('/x')).rejects.toThrow(/is off/)
    expect(() => dut.console.modem).toThrow(/no break and no modem lines/)
    await board.close()
  })

  it('is not touched without its lease', async () => {
    const { place, orders } = await lab()
    let lost = false
    const check = () => {
      if (lost) throw new LabError('the lease of board is lost')
    }
    const board = openBoard(place.name, place, { check })
    const machine = await board.powerOn()
    lost = true
    await expect(machine.cut()).rejects.toThrow(/lease of board is lost/)
    await expect(machine.reset()).rejects.toThrow(/lease/)
    await expect(machine.plug('x')).rejects.toThrow(/lease/)
    await expect(board.provision('x')).rejects.toThrow(/lease/)
    await expect(board.powerOn()).rejects.toThrow(/lease/)
    expect(orders()).toEqual(['on'])
  })

  it('gets its image while it is off, and the medium goes back to it', async () => {
    const image = join(folder, 'image')
    writeFileSync(image, 'a whole system')
    const card = join(folder, 'card')
    const configfs = join(folder, 'configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const storage = { driver: 'usb-gadget', image: card, controller: 'udc0', configfs } as const
    const { place, orders } = await lab('good', { storage, stick: storage })
    const board = openBoard(place.name, place, { check: () => {} })
    await board.provision(image)
    expect(orders()).toEqual(['off'])
    expect(readFileSync(card, 'utf8')).toBe('a whole system')
    const lun = join(configfs, 'usb_gadget/bistable-stick/functions/mass_storage.0/lun.0/file')
    expect(readFileSync(lun, 'utf8').trim()).toBe(card)
    const dut = new Dut({ disk: '', machine: () => board.powerOn(), withMedium: (act) => board.withMedium(act) })
    expect(await dut.withMedium(async (path) => path)).toBe(card)
    await dut.powerOn()
    await expect(dut.withMedium(async () => {})).rejects.toThrow(/belongs to the device while it is on/)
    await dut.plug(image)
    await dut.unplug()
    expect(readFileSync(lun, 'utf8').trim()).toBe('')
    await dut.powerCut()
  })
})

describe('places of a bench', () => {
  it('come from a file, beside the emulated ones; the example is one; a bad file is said', async () => {
    const places = await allPlaces({ HIL_PLACES: join(root, 'hw-tests/places/example.ts') })
    expect(Object.keys(places)).toEqual([...Object.keys(PLACES), 'rpi4-1', 'pc-1'])
    expect(places['rpi4-1']).toMatchObject({ kind: 'board', features: ['medium'], serverListen: '192.168.7.1' })
    await expect(allPlaces({ HIL_PLACES: join(folder, 'nothing.ts') })).rejects.toThrow(LabError)
    writeFileSync(join(folder, 'empty.mjs'), 'export const OTHER = 1\n')
    await expect(allPlaces({ HIL_PLACES: join(folder, 'empty.mjs') })).rejects.toThrow(/exports no PLACES/)
  })
})

describe('quarantine', () => {
  it('begins with the second lab error in a row, and a product that fails says that the lab works', () => {
    let health = nextHealth({ strikes: 0 }, 'the relay is silent\nmore', 5)
    expect(quarantineText('p', health)).toBeUndefined()
    health = nextHealth(nextHealth(health, undefined, 6), 'again', 7)
    expect(quarantineText('p', health)).toBeUndefined()
    health = nextHealth(health, 'the relay is silent\nmore', 0)
    expect(quarantineText('p', health)).toBe(
      'p is quarantined since 1970-01-01 00:00:00 UTC: the relay is silent; when it is repaired: npm run hil -- doctor p',
    )
  })
})

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

  const SICK: readonly (readonly [string, string, Partial<BoardPlace>, string, RegExp])[] = [
    ['a console without a word', 'silent', {}, '', /^console: no byte came after power-on: TX and RX swapped/],
    ['another baud rate', 'garbage', {}, '', /^console: \d+ of \d+ bytes are no text: another baud rate/],
    [
      "another board's outlet",
      'other-outlet',
      {},
      '',
      /^power: \d+ bytes came while the power was off: the outlet is another/,
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
      const times = ['silent', 'garbage', 'other-outlet'].includes(health) ? ENDLESS : TIMES
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

/** A whole run of the harness on a board that is a program. */
async function wholeRun(
  place: BoardPlace,
  locks: string,
  more: NodeJS.ProcessEnv = {},
  heard: (said: string) => void = () => {},
  done: readonly string[] = [],
): Promise<{ code: number; said: string; out: string }> {
  const out = mkdtempSync(join(folder, 'run-'))
  writeFileSync(doneFile(out), JSON.stringify(done))
  const places = join(out, 'places.mjs')
  writeFileSync(places, `export const PLACES = ${JSON.stringify({ 'fake-1': place })}\n`)
  const kit = mkdtempSync(join(out, 'kit-'))
  writeFileSync(join(kit, 'disk.img'), 'a system')
  writeFileSync(join(kit, 'kit.json'), JSON.stringify({ disk: 'disk.img', product: 'fake', bundles: {} }))
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  const config = join(root, 'hw-tests/fixtures/lab.config.ts')
  const { GITHUB_STEP_SUMMARY: _, CI: __, ...env } = process.env
  const args = [vitest, 'run', '--config', config, '--root', join(root, 'hw-tests/fixtures')]
  const child = spawn(process.execPath, args, {
    env: { ...env, HIL_PLACES: places, HIL_PLACE: 'fake-1', HIL_KIT: kit, HIL_RUN: out, HIL_LOCKS: locks, ...more },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (bytes: Buffer) => {
      said += bytes.toString()
      heard(said)
    })
  const code = await new Promise<number>((done) => child.on('close', (status) => done(status ?? -1)))
  return { code, said, out }
}

function verdicts(out: string): string[] {
  const lines = readFileSync(join(out, 'run.jsonl'), 'utf8').trim().split('\n')
  return lines.map((line) => JSON.parse(line).verdict)
}

describe('a whole run', () => {
  it('on a sound lab: what fails is the product, with state, console and the command to do it again', async () => {
    const configfs = join(folder, 'run-configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const storage = { driver: 'usb-gadget', image: join(folder, 'run-card'), controller: 'udc0', configfs } as const
    const { place, orders } = await lab('good', { storage })
    const { name: _, ...wired } = place
    // Another run has the board: this one says who, touches nothing, and waits when it is told to.
    const locks = join(folder, 'run-locks')
    const other = await hold(localStore(locks), 'fake-1', { owner: 'another run' })
    const refused = await wholeRun(wired, locks)
    expect(refused.said).toContain('fake-1 is leased by another run')
    expect(refused.code).toBe(1)
    for (const report of [labErrorFile(refused.out), join(refused.out, 'junit.xml'), join(refused.out, 'summary.md')])
      expect(readFileSync(report, 'utf8')).toContain('is leased by another run')
    let waited: readonly string[] | undefined
    const { code, said, out } = await wholeRun(wired, locks, { HIL_WAIT: '60' }, (text) => {
      if (waited !== undefined || !text.includes('waiting')) return
      waited = orders()
      void other.release()
    })
    expect(waited).toEqual([])
    expect(verdicts(out), said).toEqual(['passed', 'failed', 'passed', 'passed', 'skipped'])
    expect(code).toBe(1)
    expect(orders().at(-1)).toBe('off')
    const page = readFileSync(join(out, 'index.html'), 'utf8')
    expect(page).toContain('1 failed')
    expect(page).toContain('device on fake-1, state: userspace')
    expect(page).toContain('HIL_PLACE=fake-1 npx vitest run')
    expect(page).toContain('the place fake-1 has no bad-medium')
    expect(readFileSync(join(out, 'junit.xml'), 'utf8')).toContain('[[ATTACHMENT|lab-hil-fixture/boots.log]]')
  })

  it('on a broken one: nothing is said about the product; the place is quarantined, also for the next run', async () => {
    const { place, orders } = await lab('good', {}, '[ "$1" = on ] && { echo the relay is silent >&2; exit 1; }')
    const { name: _, storage: __, ...wired } = { ...place, storage: undefined }
    const locks = join(folder, 'broken-locks')
    const configfs = join(folder, 'broken-configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const medium = { driver: 'usb-gadget', image: join(folder, 'broken-card'), controller: 'udc0', configfs } as const
    const first = await wholeRun({ ...wired, storage: medium }, locks)
    expect(verdicts(first.out), first.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped'])
    const junit = readFileSync(join(first.out, 'junit.xml'), 'utf8')
    expect(junit).not.toContain('<failure')
    expect(junit.match(/the relay is silent/g)?.length).toBeGreaterThan(2)
    expect(junit).toContain('fake-1 is quarantined since')
    // The third test did not even try.
    expect(orders().filter((order) => order === 'on')).toEqual(['on', 'on'])
    // A run that goes on leaves out what had ended before.
    const done = ['hw-tests/fixtures/lab.hil-fixture.ts boots']
    const second = await wholeRun({ ...wired, storage: medium }, locks, {}, () => {}, done)
    expect(verdicts(second.out)).toEqual(['skipped', 'lab', 'lab', 'passed', 'skipped'])
    expect(orders().filter((order) => order === 'on')).toEqual(['on', 'on'])
    expect(existsSync(join(locks, 'health-fake-1.json'))).toBe(true)
  })

  it('without a lease nothing is touched: where a program is missing in CI, and where nothing leases', async () => {
    const { place, orders } = await lab()
    const { name: _, ...wired } = place
    const locks = join(folder, 'unleased-locks')
    const other = await hold(localStore(locks), 'fake-1', { owner: 'another run' })
    const missing = await wholeRun({ ...wired, tools: ['no-such-tool'] }, locks, { CI: 'true' })
    expect(orders()).toEqual([])
    expect(verdicts(missing.out), missing.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped'])
    expect(readFileSync(join(missing.out, 'junit.xml'), 'utf8')).toContain('not here: no-such-tool')
    const alone = await wholeRun(wired, locks, { HIL_FIXTURE_SETUP: 'none' })
    expect(verdicts(alone.out), alone.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped'])
    expect(readFileSync(join(alone.out, 'junit.xml'), 'utf8')).toContain('this run has no lease of fake-1')
    expect(orders()).toEqual([])
    await other.release()
  })
})
