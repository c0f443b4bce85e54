import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gunzipSync } from 'node:zlib'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { BLOCK } from '../../bundle/tree.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import { bootCfg } from '../../publisher/boot-image.ts'
import { type BuildRequest, buildRelease } from '../../publisher/build.ts'
import { deriveTree } from '../../publisher/derive.ts'
import { fitSpecs, memoryTree, type Spec, TIME } from './memory-tree.ts'

const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` }
const run = (tool: string, ...args: string[]): string => execFileSync(tool, args, { env, encoding: 'utf8' })
const sha = (path: string): string => createHash('sha256').update(readFileSync(path)).digest('hex')

const request: BuildRequest = {
  version: '1.0.0',
  number: { epoch: 1, counter: 7 },
  securityFloor: { epoch: 1, counter: 3 },
  parts: {},
  blockSize: 128 * 1024,
  level: 3,
  writer: 'own',
}

/** Everything that file systems know, and names and contents at their edges. */
async function manySpecs(): Promise<Record<string, Spec>> {
  const noise = randomBytes(0)
  const big = Buffer.alloc(700_000, 'The quick brown fox. ')
  return {
    ...(await fitSpecs()),
    'a/empty': '',
    'a/one': 'x',
    'a/big': big,
    'a/big-link': { type: 'link', to: 'a/big' },
    'b/small-link': { type: 'link', to: 'a/one' },
    'a/sparse': Buffer.alloc(400_000),
    'a/noise': createHash('sha256').update(noise).digest(),
    'a/setuid': { type: 'file', bytes: 'su', mode: 0o4755 },
    'a/owned': { type: 'file', bytes: 'o', uid: 70_000, gid: 4_000_000_000, mtime: 1 },
    'a/caps': {
      type: 'file',
      bytes: 'ping',
      xattrs: {
        'security.capability': Buffer.from('0100000200200000000000000000000000000000', 'hex'),
        'user.a': Buffer.from([0, 10, 255]),
      },
    },
    'a/dir-xattr': { type: 'dir', mode: 0o2775, gid: 50, xattrs: { 'user.dir': Buffer.from('yes') } },
    'a/fifo': { type: 'fifo' },
    'a/dangling': { type: 'symlink', target: '../../nowhere' },
    [`a/${'n'.repeat(255)}`]: 'long name',
    [`a/${'d'.repeat(120)}/${'e'.repeat(120)}/${'f'.repeat(120)}`]: 'long path',
    'a/Grüße 日本 \u{1f600}': 'names are bytes',
    'a/ space and \'quote" ': 'shell?',
    'a-b': { type: 'dir' },
  }
}

describe('build', () => {
  let work: string
  beforeAll(() => {
    work = mkdtempSync(join(tmpdir(), 'bistable-build-'))
  })
  afterAll(() => rmSync(work, { recursive: true, force: true }))

  it('makes images that other tools read, without the kernel in the root file system', async () => {
    const folder = join(work, 'first')
    const said: string[] = []
    const tree = memoryTree(await manySpecs())
    const { build } = await buildRelease(tree, request, folder, { say: (line) => said.push(line) })
    expect(readdirSync(folder).sort()).toEqual(
      [
        ...['boot.data', 'boot.idx', 'boot.img', 'inventory.zst', 'provenance.zst'],
        ...['rootfs.idx', 'rootfs.img', 'sbom.zst', 'statement.json'],
      ].sort(),
    )
    const { statement } = build
    expect(statement.issued).toBe(new Date(TIME * 1000).toISOString().replace('.000Z', 'Z'))
    expect(statement.hardware).toEqual(['qemu-x86_64'])
    expect(statement.rootVersion).toBe(1)

    const rootfs = statement.images[1]
    const out = run(
      'veritysetup',
      'format',
      '--no-superblock',
      '--salt=-',
      join(folder, 'rootfs.img'),
      join(work, 'tree'),
    )
    expect(out).toContain(rootfs?.root)
    const list = run('unsquashfs', '-lc', join(folder, 'rootfs.img'))
    expect(list).not.toContain('/vmlinuz')
    expect(list).toContain('/a/big-link')
    expect(run('unsquashfs', '-cat', join(folder, 'rootfs.img'), 'a/caps')).toBe('ping')

    const boot = join(folder, 'boot.img')
    expect(run('mdir', '-b', '-i', boot, '::')).toBe('::/vmlinuz\n::/initrd.img\n::/boot.cfg\n')
    const initrd = gunzipSync(execFileSync('mtype', ['-i', boot, '::/initrd.img'], { env }))
    expect(initrd.subarray(0, 6).toString()).toBe('070701')
    expect(initrd.includes('lib/modules/virtio_blk.ko')).toBe(true)
    const cfg = run('mtype', '-i', boot, '::/boot.cfg')
    expect(cfg).toContain('1.7')
    expect(cfg).toContain(
      `bistable.root=${rootfs?.root} bistable.length=${rootfs?.length} bistable.floor=1.3 console=ttyS0`,
    )
    run('fsck.fat', '-n', boot)
  })

  it('B13 gives the same bytes in another folder, time zone, umask and with another number of threads', async () => {
    const before = { tz: process.env['TZ'], cwd: process.cwd(), umask: process.umask(0o077) }
    const folder = join(work, 'elsewhere', 'second')
    mkdirSync(join(work, 'elsewhere'))
    try {
      process.env['TZ'] = 'Pacific/Chatham'
      process.chdir(join(work, 'elsewhere'))
      const tree = memoryTree(await manySpecs())
      await buildRelease(tree, { ...request, processors: 1 }, folder, { say: () => {} })
    } finally {
      process.chdir(before.cwd)
      process.umask(before.umask)
      if (before.tz === undefined) delete process.env['TZ']
      else process.env['TZ'] = before.tz
    }
    // The other one is made by the test above, unless only this one runs.
    if (!existsSync(join(work, 'first')))
      await buildRelease(memoryTree(await manySpecs()), request, join(work, 'first'), { say: () => {} })
    for (const name of readdirSync(join(work, 'first')))
      expect([name, sha(join(folder, name))]).toEqual([name, sha(join(work, 'first', name))])
  })

  it('has mksquashfs write the root file system when told, and says so', async () => {
    const folder = join(work, 'by-other')
    const tree = memoryTree(await manySpecs())
    const { build } = await buildRelease(tree, { ...request, writer: 'mksquashfs' }, folder, { say: () => {} })
    const image = join(folder, 'rootfs.img')
    expect(run('unsquashfs', '-s', image)).toContain('Always-use-fragments option is specified')
    expect(run('unsquashfs', '-cat', image, 'a/caps')).toBe('ping')
    const entry = build.statement.attachments.find(({ name }) => name === 'provenance')
    const provenance = decompressExactly(readFileSync(join(folder, 'provenance.zst')), entry?.unpacked ?? 0)
    const { runDetails, buildDefinition } = JSON.parse(Buffer.from(provenance).toString()).predicate
    expect(runDetails.builder.version.mksquashfs).toMatch(/^4/)
    expect(buildDefinition.externalParameters.squashfs).toMatchObject({ writer: 'mksquashfs' })
  })

  it('keeps what the tree says of its top directory, but for its owner, who is root', async () => {
    const folder = join(work, 'top')
    const specs = await fitSpecs()
    const tree = deriveTree(memoryTree(specs), {
      add: [
        {
          path: '',
          node: {
            type: 'dir',
            mode: 0o711,
            uid: 5,
            gid: 6,
            mtime: 77,
            xattrs: new Map([['user.top', Buffer.from('t')]]),
          },
        },
      ],
      time: TIME,
    })
    await buildRelease(tree, request, folder, { say: () => {} })
    const file = await openImageFile(join(folder, 'rootfs.img'))
    const top = await (await openSquashfs(file, file.size)).lookup('')
    await file.close()
    expect(top).toMatchObject({ mode: 0o711, uid: 0, gid: 0, mtime: 77 })
    expect([...(top?.xattrs ?? [])]).toHaveLength(1)
  })

  it('adds the agent, system.json and root.json from files, and enables its units', async () => {
    const specs = await fitSpecs()
    for (const path of Object.keys(specs)) if (path.includes('bistable') || path === 'data') delete specs[path]
    specs['usr/lib/systemd/system/multi-user.target'] = ''
    specs['usr/lib/udev/rules.d/50-other.rules'] = ''
    const host = join(work, 'agent')
    mkdirSync(join(host, 'dist'), { recursive: true })
    mkdirSync(join(host, 'units'))
    const file = (name: string, bytes: string | Uint8Array): string => {
      writeFileSync(join(host, name), bytes)
      return join(host, name)
    }
    file('dist/bistable.mjs', 'agent')
    file('dist/binding.node', 'addon')
    file('units/90-stick.rules', 'ACTION=="add"\n')
    file('units/bistable.service', '[Install]\nWantedBy=multi-user.target\n')
    const full = await fitSpecs()
    const parts = {
      agent: {
        files: join(host, 'dist'),
        units: join(host, 'units'),
        inits: join(import.meta.dirname, '../../device/inits'),
        launcher: file('launcher', '#!'),
        node: file('node', 'n'),
      },
      system: file('system.json', full['usr/lib/bistable/system.json'] as string),
      root: file('root.json', full['usr/lib/bistable/root.json'] as Uint8Array),
    }
    const folder = join(work, 'with-agent')
    await buildRelease(memoryTree(specs), { ...request, parts }, folder, { say: () => {} })
    const list = run('unsquashfs', '-lln', join(folder, 'rootfs.img'))
    expect(list).toMatch(/-rwxr-xr-x 0\/0 +1 .*\/usr\/lib\/bistable\/agent\/node\n/)
    expect(list).toMatch(/-rw-r--r-- 0\/0 +5 .*\/usr\/lib\/bistable\/agent\/binding\.node\n/)
    expect(list).toContain('/multi-user.target.wants/bistable.service -> ../bistable.service')
    expect(list).toMatch(/-rw-r--r-- 0\/0 .*\/usr\/lib\/udev\/rules\.d\/90-stick\.rules\n/)
    expect(list).toMatch(/drwxr-xr-x .*squashfs-root\/data\n/)

    const missing = { ...parts, system: join(host, 'nowhere.json') }
    await expect(
      buildRelease(memoryTree(specs), { ...request, parts: missing }, join(work, 'x'), { say: () => {} }),
    ).rejects.toMatchObject({ code: 'AGENT_PARTS_INVALID' })
    specs['usr/lib/bistable'] = 'a file in the way'
    await expect(
      buildRelease(memoryTree(specs), { ...request, parts }, join(work, 'x'), { say: () => {} }),
    ).rejects.toMatchObject({ code: 'IMAGE_PATH_TAKEN' })
    expect(existsSync(join(work, 'x'))).toBe(false)
  })

  it('refuses kernel arguments that the kernel would cut off, before anything is made; 32-bit arm takes fewer', async () => {
    const specs = await fitSpecs()
    const system = JSON.parse(String(specs['usr/lib/bistable/system.json']))
    const facts = { number: request.number, securityFloor: request.securityFloor, root: '0'.repeat(64), length: BLOCK }
    const least = Buffer.from(bootCfg({ ...facts, kernelArgs: ['x'], architecture: 'arm' })).toString()
    const around = least.match(/^bistable_args=(.*)$/m)
    const folder = join(work, 'long')
    const build = (characters: number, number = request.number) => {
      const kernelArgs = `${'x'.repeat(63)} `
        .repeat(13)
        .slice(0, characters - (around?.[1]?.length ?? 0) + 1)
        .trim()
        .split(' ')
      const tree = memoryTree({ ...specs, 'usr/lib/bistable/system.json': JSON.stringify({ ...system, kernelArgs }) })
      const arm = { ...tree, config: { ...tree.config, architecture: 'arm' } } as typeof tree
      return buildRelease(arm, { ...request, number, securityFloor: number }, folder, { say: () => {} })
    }
    // What fits no release is wrong with the image; what does not fit this one has longer numbers.
    await expect(build(777)).rejects.toMatchObject({
      code: 'IMAGE_UNFIT',
      message: expect.stringMatching(/args-too-long.*at most 776 fit/),
    })
    await expect(build(776, { epoch: 1, counter: 12345 })).rejects.toMatchObject({
      code: 'BOOT_CFG_INVALID',
      message: expect.stringContaining('at most 776 fit'),
    })
    expect(existsSync(folder)).toBe(false)
    expect(bootCfg({ ...facts, kernelArgs: ['x'.repeat(1000)], architecture: 'arm64' }).length).toBeGreaterThan(776)
  })

  it('leaves nothing behind when it fails, and touches no folder that was there', async () => {
    const tree = memoryTree(await fitSpecs())
    const broken = join(work, 'broken')
    const notElf = memoryTree({ ...(await fitSpecs()), 'usr/sbin/dmsetup': 'a script' })
    await expect(buildRelease(notElf, request, broken, { say: () => {} })).rejects.toMatchObject({
      code: 'INITRAMFS_ELF',
    })
    expect(existsSync(broken)).toBe(false)
    await expect(buildRelease(tree, request, join(work, 'first'), { say: () => {} })).rejects.toMatchObject({
      code: 'OUTPUT_EXISTS',
    })
    expect(existsSync(join(work, 'first', 'statement.json'))).toBe(true)
  })
})
