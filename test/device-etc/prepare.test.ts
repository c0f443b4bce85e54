import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import type { RunBounded } from '../../bootloader/run-bounded.ts'
import { openSquashfs, type Squashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { addDeviceRule } from '../../device/etc/choices.ts'
import { discard } from '../../device/etc/discard.ts'
import { type EtcSurroundings, prepareEtc } from '../../device/etc/prepare.ts'
import { etcVerbText } from '../../device/etc/text-report.ts'
import { folderTree } from '../../device/etc/trees.ts'
import { attrTools, formatDump, parseDump, xattrsBy } from '../../device/etc/xattrs.ts'
import { codeOfAsync } from '../codes.ts'
import { makeTree, scratch, type Tree } from './trees.ts'

/** From two SquashFS images and a running /etc to the folder of the slot that is armed. */

const target = { slot: 'b', number: { epoch: 1, counter: 4 }, root: 'f'.repeat(64) } as const
const never = new AbortController().signal

async function imageOf(base: string, name: string, tree: Tree): Promise<Squashfs> {
  const file = join(base, `${name}.squashfs`)
  execFileSync('mksquashfs', [makeTree(join(base, name), tree), file, '-comp', 'zstd', '-quiet', '-no-progress'])
  const image = await openImageFile(file)
  onTestFinished(() => image.close())
  return await openSquashfs(image, image.size)
}

async function lab(old: Tree, local: Tree, image: Tree, extra: Partial<EtcSurroundings> = {}) {
  const base = scratch()
  const under = (tree: Tree): Tree =>
    Object.fromEntries(
      Object.entries(tree).map(([path, node]) => [path.startsWith('/') ? path.slice(1) : `etc/${path}`, node]),
    )
  const images = {
    old: await imageOf(base, 'old', { 'etc/.keep': '', ...under(old) }),
    image: await imageOf(base, 'image', { 'etc/.keep': '', ...under(image) }),
  }
  mkdirSync(join(base, 'data'))
  const around: EtcSurroundings = {
    running: makeTree(join(base, 'running'), { '.keep': '', ...local }),
    folders: join(base, 'data/etc'),
    rules: join(base, 'running/bistable/etc.json'),
    owned: ['/etc/hostname', '/etc/passwd'],
    report: join(base, 'data/etc-report.json'),
    files: nodeFiles,
    xattrs: attrTools,
    flush: async () => undefined,
    ...extra,
  }
  const at = (path: string) => join(around.folders, 'b', path)
  return { base, around, images, at, prepare: (signal = never) => prepareEtc(around, images, target, signal) }
}

const PASSWD = 'root:x:0:0::/:/bin/sh\ndaemon:x:1:1::/:/bin/false\n'

describe('the /etc of the next slot', () => {
  it('is merged from both images and the running one, with marker and report; the running one is untouched', async () => {
    const { around, at, prepare } = await lab(
      { motd: 'one', hostname: 'factory', passwd: PASSWD, 'app/conf': 'a\nb\nc\n' },
      {
        motd: 'one',
        hostname: 'mine',
        passwd: `${PASSWD}anna:x:1000:1000::/:/bin/sh\n`,
        'app/conf': 'A\nb\nc\n',
        new: 'n',
      },
      { motd: 'two', hostname: 'factory 2', passwd: `${PASSWD}svc:x:90:90::/:/bin/false\n`, 'app/conf': 'a\nb\nC\n' },
    )
    const before = await folderTree(around.running, attrTools)
    const report = await prepare()
    const text = (path: string) => readFileSync(at(path), 'utf8')
    expect(text('motd')).toBe('two')
    expect(text('hostname')).toBe('mine')
    expect(text('app/conf')).toBe('A\nb\nC\n')
    expect(text('new')).toBe('n')
    expect(text('passwd')).toBe(`${PASSWD}anna:x:1000:1000::/:/bin/sh\nsvc:x:90:90::/:/bin/false\n`)
    expect(text('.bistable-release')).toBe(`1.4 ${'f'.repeat(64)}\n`)
    expect(existsSync(at('.bistable-merged'))).toBe(true)
    expect(readdirSync(around.folders)).toEqual(['b'])
    expect(report).toMatchObject({ mode: 'merge', xattrs: true, refused: 0, conflicts: 0, notes: 2 })
    expect(JSON.parse(readFileSync(around.report, 'utf8'))).toMatchObject({ release: '1.4', slot: 'b', notes: 2 })
    expect(etcVerbText({ report })).toContain('/etc/passwd: accounts-merged, taken: both (from the image: svc)')
    expect([...(await folderTree(around.running, attrTools)).entries]).toEqual([...before.entries])
  })

  it('systemd shall see that another release is here: its note of the last one does not come along', async () => {
    const { at, prepare } = await lab({ f: '1' }, { f: '1', '.updated': 'stamp', 'app/.updated': 'x' }, { f: '1' })
    await prepare()
    expect([existsSync(at('.updated')), existsSync(at('app/.updated'))]).toEqual([false, true])
    const owned = await lab({ f: '1' }, { f: '1', '.updated': 'stamp' }, { f: '1', '.updated': 'of the image' })
    await owned.prepare()
    expect(readFileSync(owned.at('.updated'), 'utf8')).toBe('of the image')
  })

  it('replaces what an earlier install left there, whole or not at all', async () => {
    const { at, prepare, around } = await lab({ f: '1' }, { f: '1' }, { f: '2' })
    makeTree(join(around.folders, 'b'), { stale: 'x' })
    makeTree(join(around.folders, 'b.merging'), { half: 'x' })
    await prepare()
    expect(readdirSync(around.folders)).toEqual(['b'])
    expect(existsSync(at('stale'))).toBe(false)
    expect(existsSync(at('half'))).toBe(false)
  })

  it('ETC_REFUSED names the paths, writes the report and leaves the old folder; a rule decides', async () => {
    const { around, at, prepare } = await lab({ f: '1' }, { f: 'mine' }, { 'f/x': '2' })
    makeTree(join(around.folders, 'b'), { stale: 'x' })
    await expect(prepare()).rejects.toMatchObject({
      code: 'ETC_REFUSED',
      message: expect.stringContaining('/etc/f (type-conflict)'),
      details: { paths: ['/etc/f'] },
    })
    expect(readFileSync(at('stale'), 'utf8')).toBe('x')
    expect(JSON.parse(readFileSync(around.report, 'utf8'))).toMatchObject({ refused: 1 })
    await addDeviceRule(around.rules, { path: '/etc/f', policy: 'image' }, nodeFiles)
    await prepare()
    expect(readFileSync(at('f/x'), 'utf8')).toBe('2')
  })

  it('a system user that the image would make at boot with a number that is taken here is refused', async () => {
    const bob = { passwd: `${PASSWD}bob:x:950:950::/:/bin/sh\n`, group: 'bob:x:950:\n' }
    const tables = { passwd: PASSWD, group: '' }
    const sysusers = { '/usr/lib/sysusers.d/svc.conf': '# a service\nu svc 950 "Service" /var/lib/svc\n' }
    const first = await lab(tables, bob, { ...tables, ...sysusers })
    await expect(first.prepare()).rejects.toMatchObject({
      code: 'ETC_REFUSED',
      message: expect.stringContaining('user svc is to be 950 by sysusers.d, but in passwd that is bob'),
      details: { paths: ['/etc/group', '/etc/passwd'] },
    })
    // The same was so before: the device lives with it, and is told.
    const known = await lab({ ...tables, ...sysusers }, bob, { ...tables, ...sysusers })
    expect(await known.prepare()).toMatchObject({ refused: 0, conflicts: 2 })
    // A number of its own harms nobody, and a file in /etc with the same name counts instead.
    const other = { ...tables, ...sysusers, 'sysusers.d/svc.conf': 'u svc 951\n' }
    expect(await (await lab(tables, bob, other)).prepare()).toMatchObject({ refused: 0, conflicts: 0 })
  })

  it('users of the image and of the device with one number are refused', async () => {
    const { prepare } = await lab(
      { passwd: PASSWD },
      { passwd: `${PASSWD}anna:x:990:990::/:/bin/sh\n` },
      { passwd: `${PASSWD}svc:x:990:990::/:/bin/false\n` },
    )
    await expect(prepare()).rejects.toMatchObject({
      code: 'ETC_REFUSED',
      message: expect.stringContaining('anna and svc would both be 990'),
    })
  })

  it('takes mode and rules that the new image declares; one it does not understand is passed over', async () => {
    const declared = (etc: object) => ({ '/usr/lib/bistable/system.json': JSON.stringify({ etc }) })
    const first = await lab({ f: '1' }, { f: 'mine', hostname: 'mine' }, { f: '1', ...declared({ mode: 'image' }) })
    expect(await first.prepare()).toMatchObject({ mode: 'image' })
    expect(readFileSync(first.at('f'), 'utf8')).toBe('1')
    expect(readFileSync(first.at('hostname'), 'utf8')).toBe('mine')
    const second = await lab({ f: '1' }, { f: 'mine' }, { f: '1', ...declared({ mode: 'of a later version' }) })
    expect(await second.prepare()).toMatchObject({ mode: 'merge' })
    const third = await lab({ f: '1' }, { f: 'mine' }, { f: '1', ...declared({ mode: 'transient' }) })
    expect(await third.prepare()).toMatchObject({ mode: 'transient' })
    expect(existsSync(third.around.folders)).toBe(false)
  })

  it('without the tools for xattrs it says so and goes on', async () => {
    const none = { read: async () => undefined, write: async () => 'not there' }
    const { prepare } = await lab({ f: '1' }, { f: 'mine' }, { f: { text: '1', xattr: 'x' } }, { xattrs: none })
    const report = await prepare()
    expect(report).toMatchObject({ xattrs: false })
    expect(etcVerbText({ report })).toContain('package attr')
  })

  it('ETC_RULES_INVALID names every wrong field', async () => {
    const { around, prepare } = await lab(
      {},
      { 'bistable/etc.json': '{"rules":[{"path":"/var/x","policy":"mine"}]}' },
      {},
    )
    expect(around.rules).toContain('etc.json')
    await expect(prepare()).rejects.toMatchObject({
      code: 'ETC_RULES_INVALID',
      message: expect.stringMatching(/path.*policy/),
    })
    writeFileSync(around.rules, '{')
    await expect(prepare()).rejects.toMatchObject({ code: 'ETC_RULES_INVALID' })
  })

  it('ETC_WRITE_FAILED: an extended attribute that did not arrive is seen when the folder is read back', async () => {
    const deaf = { read: attrTools.read, write: async () => undefined }
    const change: [Tree, Tree, Tree] = [{ f: '1' }, { f: '1' }, { f: { text: '2', xattr: 'x' } }]
    const { at, prepare } = await lab(...change, { xattrs: deaf })
    await expect(prepare()).rejects.toThrow(expect.objectContaining({ code: 'ETC_WRITE_FAILED' }))
    expect(existsSync(at(''))).toBe(false)
    const good = await lab(...change)
    await good.prepare()
    const written = (await folderTree(good.at(''), attrTools)).entries.get('f')
    expect(written?.xattrs?.size).toBe(1)
  })

  it('ETC_WRITE_FAILED: a flush that fails leaves the old folder', async () => {
    const flush = async () => {
      throw Object.assign(new Error('no space'), { code: 'ENOSPC', errno: -28 })
    }
    const { around, at, prepare } = await lab({ f: '1' }, { f: '1' }, { f: '2' }, { flush })
    makeTree(join(around.folders, 'b'), { stale: 'x' })
    await expect(prepare()).rejects.toMatchObject({ code: 'ETC_WRITE_FAILED' })
    expect(readdirSync(around.folders)).toEqual(['b'])
    expect(readFileSync(at('stale'), 'utf8')).toBe('x')
  })

  it('ETC_TOO_LARGE and ETC_UNREADABLE', async () => {
    const base = scratch()
    for (let n = 0; n < 3; n++) writeFileSync(join(base, `f${n}`), '')
    const none = { read: async () => undefined, write: async () => undefined }
    expect((await folderTree(base, none, never, 4)).entries.size).toBe(4)
    await expect(folderTree(base, none, never, 3)).rejects.toMatchObject({ code: 'ETC_TOO_LARGE' })
    await expect(folderTree(`${base}/f1/below`, none)).rejects.toMatchObject({ code: 'ETC_UNREADABLE' })
  })

  it('the dump of getfattr is read and written in its own quoting', () => {
    const text = '# file: a\\012b\nuser.x=0sYQ==\n\n# file: .\nuser.empty\n\n'
    const values = parseDump(text)
    expect(values.get('a\nb')?.get('user.x')).toBe('YQ==')
    expect(values.get('')?.get('user.empty')).toBe('')
    expect(parseDump(formatDump(values))).toEqual(values)
  })

  /** Whether files can be made immutable here: by root, on a file system that knows the flag. */
  const immutable = (path: string, flag: '+i' | '-i') => {
    try {
      execFileSync('chattr', ['-R', flag, path], { stdio: 'ignore' })
      return true
    } catch {
      return false
    }
  }

  it('takes the place of one in which somebody made files immutable, again and again', async (context) => {
    const { base, around, at, prepare } = await lab({ motd: 'one' }, { motd: 'one' }, { motd: 'two' })
    onTestFinished(() => void immutable(base, '-i'))
    for (const what of ['', 'resolv.conf', 'app']) {
      makeTree(at(''), { 'resolv.conf': 'of mine', 'app/conf': 'mine' })
      if (!immutable(at(what), '+i')) return context.skip('no immutable files here')
      await prepare()
      expect([readFileSync(at('motd'), 'utf8'), existsSync(at('resolv.conf'))]).toEqual(['two', false])
      expect(readdirSync(around.folders)).toEqual(['b'])
    }
  })

  it('lists attributes once more when a file went away in the middle', async () => {
    const answers = [
      { exit: 1, out: '# file: a\nuser.x=0sMQ==\n', said: 'getfattr: ./gone: No such file or directory' },
      { exit: 0, out: '# file: a\nuser.x=0sMQ==\n\n# file: b\nuser.y=0sMg==\n', said: '' },
    ]
    const read = xattrsBy(async () => answers.shift() ?? { exit: 1, out: '', said: '' }).read
    expect([...((await read('/etc')) ?? [])].map(([path]) => path)).toEqual(['a', 'b'])
    expect(await read('/etc')).toBeUndefined()
  })

  it('is not made of an /etc that stands in memory for one start: the changes of the device are not in it', async () => {
    const one = await lab({ motd: 'one' }, { motd: 'one' }, { motd: 'two' }, { inMemory: async () => true })
    expect(await codeOfAsync(one.prepare)).toBe('ETC_UNREADABLE')
    expect(existsSync(one.around.folders)).toBe(false)
    // Made anew at every start, it has no changes.
    const two = await lab(
      { motd: 'one' },
      { motd: 'one', 'bistable/etc.json': '{"mode":"transient"}' },
      { motd: 'two' },
      { inMemory: async () => true },
    )
    expect((await two.prepare()).mode).toBe('transient')
  })

  it('says which files it cannot carry because their names are no text', async () => {
    const { around, prepare } = await lab({ motd: 'one' }, { motd: 'one' }, { motd: 'two' })
    writeFileSync(Buffer.concat([Buffer.from(`${around.running}/caf`), Buffer.from([0xe9])]), 'mine')
    expect((await prepare()).findings).toEqual([
      expect.objectContaining({ path: '/etc/caf\ufffd', kind: 'not-carried', level: 'conflict', taken: 'none' }),
    ])
  })

  it('puts aside what nothing can remove, and goes on', async (context) => {
    const base = scratch()
    onTestFinished(() => void immutable(base, '-i'))
    const old = join(base, 'b.old')
    const noTool: RunBounded = async () => ({ exit: undefined, out: '', said: 'cannot be run' })
    for (const n of [1, 2]) {
      makeTree(old, { 'resolv.conf': 'of mine' })
      if (!immutable(join(old, 'resolv.conf'), '+i')) return context.skip('no immutable files here')
      await discard(old, noTool)
      expect([existsSync(old), readdirSync(join(base, 'stuck')).length]).toEqual([false, n])
    }
  })
})
