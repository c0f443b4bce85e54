import { mkdirSync, mkdtempSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { reviewAddons } from '../../device/agent/addons.ts'
import type { Core } from '../../device/agent/core.ts'
import { statusOf } from '../../device/agent/status.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { type StickOptions, type StickReport, useStick } from '../../device/usb/stick.ts'
import { codeOfAsync } from '../codes.ts'
import { digestOf } from '../device-agent/world.ts'
import { FolderSticks } from '../device-usb/sticks.ts'
import { tampered } from '../helpers/tampered.ts'
import { onDevice, RUNNING } from './device.ts'
import { drop, type MadeAddon, makeAddon, scratchFolder } from './made.ts'

/** Add-ons that come on a stick: found without being named, judged like any other, told in the result file. */

const folder = scratchFolder()
const never = new AbortController().signal
let fix: MadeAddon
let other: MadeAddon

beforeAll(async () => {
  fix = await makeAddon(folder, [RUNNING])
  other = await makeAddon(folder, [digestOf({ counter: 9 })], { name: 'other' })
})
afterAll(() => drop(folder))

class Stick extends FolderSticks {
  constructor(files: Readonly<Record<string, string>>) {
    super(mkdtempSync(join(folder, 'stick-')))
    for (const [name, from] of Object.entries(files)) this.put(name, readFileSync(from))
  }

  async use(core: Core, apply: StickOptions['apply'] = 'install'): Promise<StickReport> {
    const options = { apply, result: true, hook: undefined, onProgress: () => undefined }
    return await useStick(core, this, { name: 'sdz1', identity: 'sdz1 7 2048' }, options, never)
  }

  result(): { code: string; message: string; files: { name: string; code: string }[] } {
    return JSON.parse(readFileSync(join(this.folder, 'bistable-device-1.json'), 'utf8'))
  }

  files(): string[] {
    return this.result().files.map(({ name, code }) => `${name} ${code}`)
  }
}

it('a stick with an add-on alone: over /usr, in the result file, in the history, and once only', async () => {
  await onDevice(async ({ core, over }) => {
    const stick = new Stick({ 'a.addon': fix.file, 'b.ADDON': other.file })
    expect(await stick.use(core, 'check')).toMatchObject({ message: 'hotfix would be put over /usr', release: null })
    expect(over.names).toEqual([])
    const report = await stick.use(core)
    expect(report.message).toContain('hotfix (fix) is over /usr until 2026-12-21')
    expect(over.names).toEqual(['hotfix'])
    // The other one is for another release: said, and no failure of the stick.
    expect(stick.files()).toEqual(['a.addon OK', 'b.ADDON ADDON_BASE'])
    expect(stick.result()).toMatchObject({ ok: true, code: 'OK', armed: null, message: report.message })
    const status = await statusOf(core)
    expect(status.addons).toMatchObject([{ name: 'hotfix', state: 'active' }])
    expect(status.lastOutcome).toMatchObject({ what: 'stick', ok: true })
    const { changes } = over
    expect((await stick.use(core)).message).toBe('hotfix is over /usr already')
    expect(over.changes).toBe(changes)
  })
})

it('a stick whose add-ons all do not count says why, with the code of the first', async () => {
  await onDevice(async ({ core, over }) => {
    const stick = new Stick({ 'other.addon': other.file })
    expect(await codeOfAsync(() => stick.use(core))).toBe('ADDON_BASE')
    expect(stick.result()).toMatchObject({ ok: false, code: 'ADDON_BASE', exit: 5 })
    expect(await codeOfAsync(() => new Stick({}).use(core))).toBe('USB_NO_BUNDLE')
    expect(over.names).toEqual([])
  })
})

it('C14 an older add-on on a stick does not take the place of a newer one; a damaged one is put on anew', async () => {
  const later = { issued: '2026-11-21T06:00:00Z', summary: 'a better fix' }
  mkdirSync(join(folder, 'later'))
  const newer = await makeAddon(join(folder, 'later'), [RUNNING], later)
  await onDevice(async ({ core, over }) => {
    await new Stick({ 'n.addon': newer.file }).use(core)
    const stick = new Stick({ 'o.addon': fix.file })
    expect((await stick.use(core)).message).toBe('hotfix is here already, from a later time')
    expect((await statusOf(core)).addons).toMatchObject([{ summary: 'a better fix' }])
    // The other way round it does.
    over.broken = 'hotfix'
    over.names = []
    expect(await reviewAddons(core)).toMatchObject([{ name: 'hotfix', state: 'failed' }])
    over.broken = ''
    over.names = []
    expect((await new Stick({ 'n.addon': newer.file }).use(core)).message).toContain('is over /usr until')
    expect(over.names).toEqual(['hotfix'])
  })
})

it('a bundle and an add-on: both count, and neither keeps the other from it', async () => {
  await onDevice(async ({ core, world, over }) => {
    const stick = new Stick({ 'fix.addon': fix.file, 'bad.addon': other.file })
    const release = { counter: 3 }
    world.published.set(stick.put('next.bundle', new Uint8Array(1)), release)
    const report = await stick.use(core)
    expect(report).toMatchObject({ release: '0.3', message: expect.stringMatching(/0\.3.*; hotfix \(fix\) is over/) })
    expect(stick.files()).toEqual(['bad.addon ADDON_BASE', 'fix.addon OK', 'next.bundle OK'])
    expect(over.names).toEqual(['hotfix'])
    expect(core.body.state).toMatchObject({ name: 'armed' })
  })
  await onDevice(async ({ core, over }) => {
    const stick = new Stick({ 'fix.addon': fix.file, 'junk.bundle': fix.file })
    const failed = await stick.use(core).catch((error: Error) => error)
    expect(failed).toBeInstanceOf(Error)
    expect(stick.files()[0]).toBe('fix.addon OK')
    expect(over.names).toEqual(['hotfix'])
  })
})

it('a stick that is pulled in the middle of an add-on: typed, and nothing half is kept', async () => {
  await onDevice(async ({ core, over, store }) => {
    const stick = new Stick({ 'a.addon': fix.file })
    const { open } = core.ports.engine
    core.ports.engine.open = async (from, signal) =>
      tampered(await open(from, signal), (_, piece, readSoFar) => {
        if (readSoFar > 6000) throw doorErrors.TRANSPORT_FILE_FAILED('the stick is gone')
        return piece
      })
    expect(await codeOfAsync(() => stick.use(core))).toBe('TRANSPORT_FILE_FAILED')
    expect([over.names, await store.list(core.trusted)]).toEqual([[], []])
    core.ports.engine.open = open
    expect((await stick.use(core)).message).toContain('is over /usr')
  })
})
