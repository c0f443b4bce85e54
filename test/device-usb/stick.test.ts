import { EventEmitter, once } from 'node:events'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { EXIT, isBistableError } from '../../base/errors.ts'
import type { ByteSource } from '../../base/source.ts'
import { operate } from '../../device/agent/operations.ts'
import { statusOf } from '../../device/agent/status.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { usbErrors } from '../../device/usb/errors.ts'
import { watchSticks } from '../../device/usb/watch.ts'
import { Device, type DevicePlan, NEVER } from '../attacks/device.ts'
import { forge } from '../attacks/forge.ts'
import { attempt, WHOLE } from '../attacks/refused.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { tampered } from '../helpers/tampered.ts'
import { signedRoot } from '../keys/helpers.ts'
import { FolderSticks } from './sticks.ts'

const anchor = await signedRoot({}, [1, 2])
let made: Promise<Buffer> | undefined
const release = (counter: number, seed = 'rootfs') =>
  forge({
    rootfs: noise(30 * 4096, seed),
    release: { number: { epoch: 0, counter }, version: `1.${counter}`, securityFloor: { epoch: 0, counter: 1 } },
  })

async function world(plan: DevicePlan = {}) {
  made ??= forge()
  const good = await made
  const folder = scratch()
  const sticks = new FolderSticks(join(folder, 'stick'))
  const device = await Device.make(folder, { anchor, sticks, ...plan })
  const use = (args: object = {}) => operate(device.core, 'usb', { ...args }, () => undefined, NEVER)
  const result = () => JSON.parse(readFileSync(join(sticks.folder, 'bistable-device-1.json'), 'utf8'))
  return { device, sticks, use, result, good }
}

/** As `tampered`, for a stick's source still to come. */
const tamperedWith = (change: Parameters<typeof tampered>[1]) => (inner: ByteSource) => tampered(inner, change)

describe('a stick', () => {
  it('with one bundle: mounted read-only, verified, installed, and the result is left on it', async () => {
    const { device, sticks, use, result, good } = await world()
    sticks.put('release.bundle', good)
    expect(await use()).toMatchObject({ stick: 'sdz1', release: '0.7', notes: [] })
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: 'b' })
    expect(sticks.log).toEqual(['mount sdz1 ro', 'unmount', 'mount sdz1 rw', 'unmount'])
    expect(result()).toMatchObject({
      type: 'stick-result',
      device: 'device-1',
      product: 'demo',
      ok: true,
      code: 'OK',
      exit: 0,
      running: '0.5',
      armed: '0.7',
      files: [{ name: 'release.bundle', code: 'OK' }],
    })
    expect(result().journal.slice(-2)).toEqual([expect.stringMatching(/^rootfs verified [0-9a-f]{64}$/), 'armed'])
    // Again: it is here already, and nothing is written to a slot.
    const before = await device.fingerprint()
    expect(await use()).toMatchObject({ release: null, message: expect.stringContaining('is here already') })
    expect(await device.fingerprint()).toBe(before)
    expect(result()).toMatchObject({ ok: true, code: 'OK', armed: null })
  })

  it('with several: the newest acceptable one wins, whatever the names', async () => {
    const { device, sticks, use, result } = await world()
    sticks.put('a-newest-foreign.bundle', await forge({ by: [99], release: { number: { epoch: 0, counter: 50 } } }))
    const broken = await release(40, 'broken')
    broken[broken.indexOf('data/rootfs\0') + 512 + 50_000] = 0x55
    sticks.put('b-broken.bundle', broken)
    sticks.put('c-board.bundle', await forge({ release: { number: { epoch: 0, counter: 30 }, hardware: ['other'] } }))
    sticks.put('y-good.bundle', await release(20))
    sticks.put('z-older.bundle', await release(9, 'older'))
    sticks.put('0-floor.bundle', await release(4, 'floor'))
    sticks.put('notes.txt', Buffer.from('x'))
    expect(await use()).toMatchObject({ release: '0.20' })
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(result().files.map(({ name, code }: { name: string; code: string }) => `${name} ${code}`)).toEqual([
      'a-newest-foreign.bundle SIGNATURE_UNKNOWN',
      'b-broken.bundle BUNDLE_DIGEST',
      'c-board.bundle RELEASE_WRONG_HARDWARE',
      'y-good.bundle OK',
    ])
  })

  it('is only looked at with --check', async () => {
    const { device, sticks, use, good } = await world()
    sticks.put('release.bundle', good)
    const before = await device.fingerprint()
    expect(await use({ check: true })).toMatchObject({ message: expect.stringContaining('would be installed') })
    expect(await device.fingerprint()).toBe(before)
  })

  it('without a network-set clock, and with a slot that held something else', async () => {
    const { device, sticks, use, result, good } = await world({ synchronised: false, wall: '1970-01-01T00:00:10Z' })
    sticks.put('release.bundle', good)
    await use()
    expect(result()).toMatchObject({ ok: true, clock: 'not-set', at: '1970-01-01T00:00:10.000Z' })
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
  })

  it('that is write-protected is used all the same; the file is left out when the settings say so', async () => {
    const { device, sticks, use, good } = await world()
    sticks.put('release.bundle', good)
    sticks.refuse = { mode: 'rw', error: usbErrors.USB_MOUNT('write-protected') }
    expect(await use()).toMatchObject({ release: '0.7', notes: ['write-protected'] })
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    const silent = await world({ usb: { result: false } })
    silent.sticks.put('release.bundle', good)
    await silent.use()
    expect(silent.sticks.log).toEqual(['mount sdz1 ro', 'unmount'])
    expect(existsSync(join(silent.sticks.folder, 'bistable-device-1.json'))).toBe(false)
  })

  it('tells the hook, and reboots when the settings say so', async () => {
    const { device, sticks, use, good } = await world({ usb: { hook: '/usr/lib/led', apply: 'reboot' } })
    sticks.put('release.bundle', good)
    await use()
    const told = device.ran.filter(([program]) => program === '/usr/lib/led').map((words) => words.slice(1).join(' '))
    expect(told[0]).toBe('found 0 OK')
    expect(told.some((words) => words.startsWith('installing'))).toBe(true)
    expect(told.at(-1)).toBe('armed 100 OK')
    expect(device.ran.at(-1)).toEqual(['reboot'])
  })

  it('does not reboot where a hook before the reboot says no; the release stays armed', async () => {
    const { device, sticks, use, good } = await world({ usb: { apply: 'reboot' } })
    sticks.put('release.bundle', good)
    const { processes } = device.core.ports
    const run = processes.run.bind(processes)
    Object.assign(processes, {
      glob: async (pattern: string) => (pattern === '/etc/bistable/hooks.d/pre-reboot/*' ? ['/not-now'] : []),
      run: async (...call: Parameters<typeof run>) =>
        call[0][0] === '/not-now' ? { exit: 1, timedOut: false, said: 'a film is running' } : run(...call),
    })
    expect(await codeOfAsync(use)).toBe('HOOK_REFUSED')
    expect(device.ran).not.toContainEqual(['reboot'])
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
  })
})

describe('a stick that lies or is pulled', () => {
  it('A15 C2 pulled at every percent: typed, never armed, and the next one goes on', async () => {
    let most = 0
    const tamper = tamperedWith((_, piece, readSoFar) => {
      if (readSoFar > most) throw doorErrors.TRANSPORT_FILE_FAILED('the stick is gone')
      return piece
    })
    const { device, sticks, use, good } = await world({ tamper })
    sticks.put('release.bundle', good)
    const step = WHOLE ? 0.01 : 0.1
    // Verified once, installed once.
    for (let part = 0; part < 1.99; part += step) {
      most = Math.floor(good.length * part)
      expect(await attempt(() => use()), `at ${Math.round(part * 100)} %`).toBe('TRANSPORT_FILE_FAILED')
      expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
      expect(device.core.body.state.name).toBe('idle')
    }
    most = Number.POSITIVE_INFINITY
    expect(await attempt(() => use())).toBe('accepted')
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
  })

  it('C1 C2 other bytes on the second or third read are never armed', async () => {
    let lie: ((at: number, piece: Uint8Array) => Uint8Array) | undefined
    const tamper = tamperedWith((at, piece) => lie?.(at, piece) ?? piece)
    const { device, sticks, use, good } = await world({ tamper })
    sticks.put('release.bundle', good)
    const start = good.indexOf('data/rootfs\0') + 512
    for (const pass of [1, 2])
      for (const target of [2500, start - 512, start + 70_000]) {
        let seen = 0
        lie = (at, piece) => {
          if (at > target || at + piece.length <= target || seen++ < pass) return piece
          const changed = Uint8Array.from(piece)
          changed[target - at] = (changed[target - at] ?? 0) ^ 4
          return changed
        }
        const code = await attempt(() => use())
        if (code === 'accepted') {
          const stored = await device.ports.engine.storedRelease('b')
          if (stored === undefined) throw new Error('nothing is kept about slot b')
          expect(await device.ports.engine.slotFault('b', stored.statement, NEVER)).toBeUndefined()
          await device.core.update((body) => ({ ...body, state: { name: 'idle' }, slots: {} }))
        } else expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
        await device.reset()
      }
  })

  it('C3 full of junk: each file has its code, nothing crashes, nothing is written to a slot', async () => {
    const { device, sticks, use, result, good } = await world()
    const before = await device.fingerprint()
    sticks.put('empty.bundle', Buffer.alloc(0))
    sticks.put('half.bundle', good.subarray(0, good.length / 2))
    sticks.put('noise.bundle', noise(200_000))
    sticks.put('more.bundle', Buffer.concat([good, Buffer.alloc(512)]))
    for (let n = 0; n < 100; n++) sticks.put(`zz${n}$(touch owned).bundle`, noise(700, `${n}`))
    expect(await attempt(() => use())).toMatch(/^BUNDLE_/)
    expect(result().files).toHaveLength(64)
    expect(new Set(result().files.map(({ code }: { code: string }) => code.split('_')[0]))).toEqual(new Set(['BUNDLE']))
    expect(await device.fingerprint()).toBe(before)
    expect(device.ran).toEqual([])
  })
})

describe('every outcome has one code', () => {
  const cases: readonly (readonly [
    string,
    string,
    keyof typeof EXIT,
    (sticks: FolderSticks, good: Buffer) => unknown,
  ])[] = [
    ['no bundle', 'USB_NO_BUNDLE', 'input', () => undefined],
    [
      'a foreign signature',
      'SIGNATURE_UNKNOWN',
      'authenticity',
      async (on) => on.put('a.bundle', await forge({ by: [99] })),
    ],
    ['an old release', 'RELEASE_BELOW_FLOOR', 'policy', async (on) => on.put('a.bundle', await release(1))],
    ['cut off', 'BUNDLE_TRUNCATED', 'input', (on, good) => on.put('a.bundle', good.subarray(0, 20_000))],
    [
      'not mountable',
      'USB_MOUNT',
      'transport',
      (on) => {
        on.refuse = { mode: 'ro', error: usbErrors.USB_MOUNT('no such file system here') }
      },
    ],
  ]
  for (const [what, code, family, prepare] of cases)
    it(`${what}: ${code}, the same as exit code, in status and in the result file`, async () => {
      const { device, sticks, use, result, good } = await world()
      await prepare(sticks, good)
      const error: unknown = await use().catch((e: unknown) => e)
      if (!isBistableError(error)) throw error
      expect([error.code, error.exitCode]).toEqual([code, EXIT[family]])
      const status = await statusOf(device.core)
      expect(status.lastFailure).toMatchObject({ ok: false, code, message: error.message })
      // A stick that cannot be mounted takes no file.
      if (code === 'USB_MOUNT') expect(existsSync(join(sticks.folder, 'bistable-device-1.json'))).toBe(false)
      else
        expect(result()).toMatchObject({
          ok: false,
          code,
          exit: EXIT[family],
          message: error.message,
          next: error.next,
        })
      expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined })
    })

  it('no stick at all, and one that is not to be used when udev says so', async () => {
    const { device, sticks, use, good } = await world()
    expect(await use({ event: true, device: '/dev/sdz1' })).toMatchObject({
      message: expect.stringContaining('usb.watch is off'),
    })
    expect(sticks.log).toEqual([])
    sticks.there = []
    expect(await attempt(() => use())).toBe('USB_NONE')
    const udev = await world({ usb: { watch: 'event' } })
    udev.sticks.put('a.bundle', good)
    expect(await udev.use({ event: true, device: 'sdz1' })).toMatchObject({ stick: 'sdz1', release: '0.7' })
    expect(device.core.body.state.name).toBe('idle')
  })
})

describe('the agent looks by itself', () => {
  /** A clock that a test moves on, one look at a time. */
  function looks(device: Device) {
    const abort = new AbortController()
    let wake: () => void = () => undefined
    const sleep = async () => {
      await new Promise<void>((resolve) => {
        wake = resolve
      })
    }
    Object.assign(device.ports.clock, { sleep })
    const watching = watchSticks(device.core, abort.signal)
    const used = () => device.said.filter((line) => line === 'bistable: stick sdz1').length
    return {
      used,
      next: async (wanted: number) => {
        wake()
        for (let n = 0; n < 400 && (used() < wanted || device.core.busyWith !== undefined); n++)
          await new Promise((resolve) => setTimeout(resolve, 5))
        for (let n = 0; n < 5; n++) await new Promise((resolve) => setImmediate(resolve))
        return used()
      },
      stop: async () => {
        abort.abort()
        wake()
        await watching
      },
    }
  }

  it('uses each stick once, and again when it was pulled and plugged in', async () => {
    const { device, sticks, good } = await world({ usb: { watch: 'poll' } })
    sticks.put('a.bundle', noise(5000))
    const look = looks(device)
    expect(await look.next(1)).toBe(1)
    expect(await look.next(1)).toBe(1)
    sticks.there = []
    expect(await look.next(1)).toBe(1)
    sticks.there = [{ name: 'sdz1', identity: 'sdz1 8 2048' }]
    writeFileSync(join(sticks.folder, 'a.bundle'), good)
    expect(await look.next(2)).toBe(2)
    expect(await device.bootState()).toMatchObject({ trial: 'b' })
    expect(device.said.filter((line) => /stick sdz1 [A-Z]/.test(line))).toEqual([
      expect.stringMatching(/^bistable: stick sdz1 BUNDLE_NOT_A_BUNDLE /),
      expect.stringMatching(/^bistable: stick sdz1 OK release 0\.7 /),
    ])
    await look.stop()
  })

  it('waits while something else is at work or a release is tried, and does nothing unless told', async () => {
    const { device, sticks, good } = await world({ usb: { watch: 'poll' } })
    sticks.put('a.bundle', good)
    const gate = new EventEmitter()
    const other = device.core.exclusive('verify', NEVER, async () => void (await once(gate, 'open')))
    const look = looks(device)
    for (let n = 0; n < 3; n++) await new Promise((resolve) => setImmediate(resolve))
    expect(look.used()).toBe(0)
    gate.emit('open')
    await other
    expect(await look.next(1)).toBe(1)
    await look.stop()
    const off = await world()
    off.sticks.put('a.bundle', good)
    await watchSticks(off.device.core, NEVER)
    expect(off.sticks.log).toEqual([])
  })
})
