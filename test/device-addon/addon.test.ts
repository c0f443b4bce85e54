import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished, vi } from 'vitest'
import { runCli } from '../../base/cli.ts'
import { nodeFiles } from '../../base/durable.ts'
import { type AddonFacts, encodeAddon, judgeAddon, parseAddon } from '../../bundle/addon.ts'
import { openAddon } from '../../bundle/addon-file.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { AddonStore } from '../../device/addons/store.ts'
import { Unlocking } from '../../device/addons/unlock.ts'
import { addonLines, applyAddon, removeAddon, reviewAddons } from '../../device/agent/addons.ts'
import type { Core } from '../../device/agent/core.ts'
import { operate } from '../../device/agent/operations.ts'
import { stateReport } from '../../device/agent/session.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { walkRoots } from '../../keys/root.ts'
import { packAddon } from '../../publisher/addon.ts'
import { addonVerbs } from '../../publisher/verbs/addon.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { digestOf, type World } from '../device-agent/world.ts'
import { onDevice, RUNNING } from './device.ts'
import { drop, type MadeAddon, makeAddon, ROOT, scratchFolder } from './made.ts'

// Add-ons from the publisher's folder to the device's list: who may, for which release, for how long.

const folder = scratchFolder()
const never = new AbortController().signal
let fix: MadeAddon

beforeAll(async () => {
  fix = await makeAddon(folder, [RUNNING])
})
afterAll(() => drop(folder))

describe('an add-on', () => {
  it('is applied, told everywhere, and removed', async () => {
    await onDevice(async ({ core, over, store }) => {
      expect(await applyAddon(core, fix.file, never)).toContain('hotfix (fix) is over /usr until 2026-12-21')
      expect(over.names).toEqual(['hotfix'])
      const status = await statusOf(core)
      expect(status.addons).toMatchObject([{ name: 'hotfix', state: 'active', fixes: ['CVE-1'], reason: null }])
      expect(statusText(status)).toContain('addon hotfix  ACTIVE  fix CVE-1  until 2026-12-21T00:00:00Z  a fix')
      expect(stateReport(core).addons).toEqual([{ name: 'hotfix', state: 'active' }])
      expect(status.lastOutcome).toMatchObject({ what: 'addon', ok: true })
      const image = readFileSync(store.image('hotfix'))
      expect(image.length).toBeGreaterThan(fix.statement.image.length)
      const list = await operate(core, 'addon', { what: 'list' }, () => undefined, never)
      expect(list).toMatchObject({ addons: [{ name: 'hotfix' }] })
      expect(await removeAddon(core, 'hotfix')).toBe('hotfix is removed')
      expect([over.names, (await statusOf(core)).addons]).toEqual([[], []])
      expect(await codeOfAsync(() => removeAddon(core, '../../etc'))).toBe('ADDON_STATE')
    })
  })

  it('C14 that is not for this device is refused, and nothing is kept of it', async () => {
    const other = await makeAddon(folder, [digestOf({ counter: 9 })], { name: 'other' })
    const old = await makeAddon(folder, [RUNNING], { name: 'old', expires: '2026-11-21T06:00:00Z' })
    const foreign = await makeAddon(folder, [RUNNING], { name: 'foreign', by: [11] })
    const bytes = readFileSync(foreign.file)
    // Signed by a key that is no release key.
    const forged = join(folder, 'forged.addon')
    const build = await makeAddon(folder, [RUNNING], { name: 'forged', by: [21] }).catch(
      (error: { code: string }) => error,
    )
    expect(build).toMatchObject({ code: 'SIGNATURE_UNKNOWN' })
    const flipped = Buffer.from(bytes)
    flipped[bytes.length - 3000] = (flipped[bytes.length - 3000] ?? 0) ^ 1
    writeFileSync(forged, flipped)
    const cut = join(folder, 'cut.addon')
    writeFileSync(cut, bytes.subarray(0, bytes.length - 512))
    const text = join(folder, 'text.addon')
    writeFileSync(text, 'hello')
    await onDevice(async ({ core, over, store }) => {
      for (const [file, code] of [
        [other.file, 'ADDON_BASE'],
        [old.file, 'ADDON_EXPIRED'],
        [forged, 'ADDON_CONTENT'],
        [cut, 'ADDON_FORMAT'],
        [text, 'ADDON_FORMAT'],
      ] as const)
        expect(await codeOfAsync(() => applyAddon(core, file, never)), file).toBe(code)
      expect([over.names, await store.list(core.trusted)]).toEqual([[], []])
      over.broken = 'hotfix'
      expect(await codeOfAsync(() => applyAddon(core, fix.file, never))).toBe('ADDON_MOUNT')
      expect(await store.list(core.trusted)).toEqual([])
    })
    const containing = (world: World) => Object.assign(world, { systemMore: { fixes: ['CVE-1'] } })
    await onDevice(async ({ core }) => {
      expect(await codeOfAsync(() => applyAddon(core, fix.file, never))).toBe('ADDON_CONTAINED')
    }, containing)
  })

  it('is dropped when it expires, with a word about it', async () => {
    await onDevice(async ({ core, over, world }) => {
      await applyAddon(core, fix.file, never)
      world.wall = Date.parse('2026-12-21T00:00:01Z')
      await reviewAddons(core)
      expect(over.names).toEqual([])
      expect((await statusOf(core)).lastOutcome).toMatchObject({
        ...{ what: 'addon', ok: false, code: 'ADDON_EXPIRED' },
        message: 'hotfix was dropped: it expired at 2026-12-21T00:00:00Z',
      })
    })
  })

  it('whose statement or key counts no more is not over /usr, and said to be so', async () => {
    await onDevice(async ({ core, over, store }) => {
      await applyAddon(core, fix.file, never)
      writeFileSync(join(store.image('hotfix'), '../addon.json'), readFileSync(join(fix.build, 'statement.json')))
      const status = await reviewAddons(core)
      expect(over.names).toEqual([])
      expect(status).toMatchObject([{ name: 'hotfix', state: 'failed', reason: { code: 'ENVELOPE_INVALID' } }])
      expect(addonLines(status).join()).toContain('FAILED')
      // Said once, not at every look.
      const told = core.body.outcomes.length
      await reviewAddons(core)
      expect(core.body.outcomes.length).toBe(told)
    })
  })
})

describe('room', () => {
  it('is asked for before anything is written, and there is a most', async () => {
    const data = scratchFolder()
    const source = await fileSource(fix.file)
    try {
      const head = await openAddon(source, walkRoots([ROOT]))
      const full = new AddonStore(join(data, 'full'), nodeFiles, async () => 1_000_000)
      expect(await codeOfAsync(() => full.add(head, source, never))).toBe('ADDON_SPACE')
      expect(readdirSync(join(data, 'full'))).toEqual([])
      const many = new AddonStore(join(data, 'many'), nodeFiles)
      for (let n = 0; n < 16; n++) mkdirSync(join(data, 'many', `other${n}`), { recursive: true })
      expect(await codeOfAsync(() => many.add(head, source, never))).toBe('ADDON_STATE')
    } finally {
      await source.close()
      drop(data)
    }
  })
})

describe('unlock', () => {
  it('C14 is for development releases, says so, and ends by itself', async () => {
    const run = scratchFolder()
    const asked: string[] = []
    const uptime = join(run, 'uptime')
    writeFileSync(uptime, '50.00 1.00\n')
    const processes = {
      glob: async () => [],
      run: async (command: readonly string[]) => {
        asked.push(command.slice(0, 2).join(' '))
        return { exit: 0, timedOut: false, said: '' }
      },
    }
    const unlocking = new Unlocking({ processes, run, usr: '/usr', uptime })
    const unlock = (core: Core) => operate(core, 'unlock', { seconds: 7200 }, () => undefined, never)
    try {
      await onDevice(
        async ({ core }) => {
          expect(await codeOfAsync(() => unlock(core))).toBe('UNLOCK_PRODUCTION')
          expect(asked).toEqual([])
        },
        (world) => Object.assign(world, { unlocking }),
      )
      await onDevice(
        async ({ core, world }) => {
          await applyAddon(core, fix.file, never)
          expect(await unlock(core)).toMatchObject({ message: expect.stringContaining('7200 s') })
          expect(asked).toContain('mount -t')
          const status = await statusOf(core)
          expect(statusText(status)).toContain('UNLOCKED  /usr can be written until ')
          expect(status.lastOutcome).toMatchObject({ what: 'unlock', ok: true })
          // What lies below the layer stays as it is.
          expect(await codeOfAsync(() => applyAddon(core, fix.file, never))).toBe('ADDON_STATE')
          writeFileSync(uptime, '7251.00 1.00\n')
          world.held = false
          while ((await unlocking.until()) !== undefined) await world.sleep(1000)
          expect(asked).toContain('umount -l')
        },
        (world) => Object.assign(world, { unlocking, systemMore: { development: true } }),
      )
    } finally {
      drop(run)
    }
  })
})

describe('what becomes of an add-on', () => {
  const facts: AddonFacts = {
    ...{ release: RUNNING, product: 'demo', contains: [], committed: true, now: Date.parse('2026-11-22T00:00:00Z') },
  }
  const judge = (more: Partial<AddonFacts>) => judgeAddon(fix.statement, { ...facts, ...more })

  it('follows from the release, what that contains, and the time', () => {
    expect(judge({})).toEqual({ use: 'active' })
    expect(judge({ release: digestOf({ counter: 3 }) })).toMatchObject({ use: 'inactive', code: 'ADDON_BASE' })
    expect(judge({ release: undefined })).toMatchObject({ use: 'inactive' })
    const next = { release: digestOf({ counter: 3 }), contains: ['CVE-1', 'CVE-2'] }
    // On trial the next release may still be given up, and the fix is wanted again.
    expect(judge({ ...next, committed: false })).toMatchObject({ use: 'inactive' })
    expect(judge(next)).toMatchObject({ use: 'drop', code: 'ADDON_CONTAINED' })
    expect(judge({ now: Date.parse(fix.statement.expires) })).toMatchObject({ use: 'drop', code: 'ADDON_EXPIRED' })
    expect(judge({ product: 'another' })).toMatchObject({ use: 'drop', code: 'ADDON_INVALID' })
  })

  it('is written down strictly', () => {
    const { statement } = fix
    expect(parseAddon(encodeAddon(statement))).toEqual(statement)
    const bad: [Partial<typeof statement>, string][] = [
      [{ name: 'UP' }, 'name'],
      [{ bases: [] }, 'bases'],
      [{ kind: 'debug', bases: [RUNNING, digestOf({ counter: 9 })] }, 'exactly one release'],
      [{ fixes: [] }, 'names what it fixes'],
      [{ expires: statement.issued }, 'not after issued'],
      [{ image: { ...statement.image, length: 4096 } }, 'image.length'],
      [{ summary: 'a\u001b[2J' }, 'summary'],
    ]
    for (const [change, what] of bad) {
      expect(
        codeOf(() => encodeAddon({ ...statement, ...change })),
        what,
      ).toBe('ADDON_INVALID')
      expect(() => encodeAddon({ ...statement, ...change })).toThrow(what)
    }
    const critical = Buffer.from(JSON.stringify({ ...statement, critical: ['new'] }))
    expect(codeOf(() => parseAddon(critical))).toBe('ADDON_INVALID')
  })
})

describe("the publisher's side", () => {
  it('C14 refuses what may not lie over /usr', async () => {
    const refused = (name: string, files: Record<string, string>) =>
      codeOfAsync(() => makeAddon(folder, [RUNNING], { name, files }))
    expect(await refused('etc', { 'etc/shadow': 'x' })).toBe('ADDON_LAYOUT')
    expect(await refused('agent', { 'usr/lib/bistable/system.json': '{}' })).toBe('ADDON_LAYOUT')
    expect(await refused('launcher', { 'usr/bin/bistable': '#!/bin/sh' })).toBe('ADDON_LAYOUT')
    expect(await refused('folder', { 'usr/bin': 'a file' })).toBe('ADDON_LAYOUT')
    expect(await codeOfAsync(() => makeAddon(folder, [RUNNING], { name: 'x/../../../../y' }))).toBe('ADDON_INVALID')
    // Nothing stands in the way of the next try.
    expect(existsSync(join(folder, 'folder.build'))).toBe(false)
  })

  it("lets everybody into its folders, which stand in the place of the system's own, whatever the umask", async () => {
    const before = process.umask(0o077)
    onTestFinished(() => void process.umask(before))
    const made = await makeAddon(folder, [RUNNING], { name: 'narrow' })
    const file = await openImageFile(join(made.build, 'addon.squashfs'))
    onTestFinished(() => file.close())
    const modes: Record<string, string> = {}
    for await (const { path, mode } of (await openSquashfs(file, file.size)).walk()) modes[path] = mode.toString(8)
    expect(modes).toEqual({
      '': '755',
      usr: '755',
      'usr/bin': '755',
      'usr/bin/tool': '755',
      'usr/lib': '755',
      'usr/lib/extension-release.d': '755',
      'usr/lib/extension-release.d/extension-release.narrow': '644',
    })
  })

  it('writes through no link of the tree, whoever made that', async () => {
    const outside = join(folder, 'outside')
    mkdirSync(outside)
    writeFileSync(join(outside, 'file'), 'kept')
    const build = (name: string) =>
      codeOfAsync(() => makeAddon(folder, [RUNNING], { name, files: { 'usr/bin/tool': 'x' } }))
    mkdirSync(join(folder, 'parent.tree', 'usr'), { recursive: true })
    symlinkSync(outside, join(folder, 'parent.tree', 'usr', 'lib'))
    expect(await build('parent')).toBe('ADDON_LAYOUT')
    expect(readdirSync(outside)).toEqual(['file'])
    const release = join(folder, 'marker.tree', 'usr/lib/extension-release.d')
    mkdirSync(release, { recursive: true })
    symlinkSync(join(outside, 'file'), join(release, 'extension-release.marker'))
    expect(await build('marker')).toBe('accepted')
    expect(readFileSync(join(outside, 'file'), 'utf8')).toBe('kept')
    // The folder itself, named by a link, stays as it is.
    const real = join(folder, 'real.tree')
    mkdirSync(join(real, 'usr'), { recursive: true, mode: 0o700 })
    symlinkSync(real, join(folder, 'linked.tree'))
    expect(await build('linked')).toBe('accepted')
    expect(readdirSync(join(real, 'usr'))).toEqual(['bin'])
    expect(statSync(join(real, 'usr')).mode & 0o777).toBe(0o700)
  })

  it('leaves no half of a file behind', async () => {
    const made = await makeAddon(folder, [RUNNING], { name: 'grown' })
    const image = join(made.build, 'addon.squashfs')
    writeFileSync(image, Buffer.concat([readFileSync(image), Buffer.alloc(4096)]))
    const again = join(folder, 'half.addon')
    expect(await codeOfAsync(() => packAddon(made.build, [ROOT], again))).toBe('ADDON_CONTENT')
    expect(existsSync(again)).toBe(false)
    // What is there already is somebody else's.
    expect(await codeOfAsync(() => packAddon(made.build, [ROOT], made.file))).toBe('FILE_FAILED')
    expect(existsSync(made.file)).toBe(true)
  })

  it('says what is missing, taken or full in the way of a pack, and what to do', async () => {
    const made = await makeAddon(folder, [RUNNING], { name: 'way' })
    const roots = join(folder, 'roots')
    mkdirSync(roots)
    writeFileSync(join(roots, '1.json'), ROOT)
    const pack = async (build: string, output: string) => {
      const said: string[] = []
      const terminal = { out: () => undefined, err: (line: string) => said.push(line), interactive: false }
      const argv = ['addon', 'pack', build, '--roots', roots, '--output', output]
      return [await runCli(addonVerbs, argv, terminal, never), said.join('\n')]
    }
    expect(await pack(made.build, made.file)).toEqual([2, expect.stringContaining('OUTPUT_EXISTS')])
    expect(await pack(made.build, '/dev/full/x')).toEqual([8, expect.stringContaining('FILE_FAILED')])
    rmSync(join(made.build, 'release.json'))
    expect(await pack(made.build, join(folder, 'unsigned.addon'))).toEqual([3, expect.stringMatching(/addon sign/)])
  })

  it('packs only the image that was signed, and the file is a tar', async () => {
    const flushed = vi.spyOn(nodeFiles, 'syncDir')
    const made = await makeAddon(folder, [RUNNING], { name: 'packed' })
    expect(flushed).toHaveBeenLastCalledWith(folder)
    expect(readdirSync(made.build).sort()).toEqual(['addon.squashfs', 'release.json', 'statement.json'])
    const image = join(made.build, 'addon.squashfs')
    copyFileSync(image, `${image}.kept`)
    const bytes = readFileSync(image)
    bytes[200] = (bytes[200] ?? 0) ^ 1
    writeFileSync(image, bytes)
    const again = join(folder, 'again.addon')
    expect(await codeOfAsync(() => packAddon(made.build, [ROOT], again))).toBe('ADDON_CONTENT')
    expect(existsSync(again)).toBe(false)
    const source = await fileSource(made.file)
    expect(await openAddon(source, walkRoots([ROOT]))).toMatchObject({ statement: made.statement })
    await source.close()
  })
})
