import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { MiB } from '../../base/bytes.ts'
import { runCli } from '../../base/cli.ts'
import { openSquashfs, type Squashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { wantedBy } from '../../publisher/agent-overlay.ts'
import { buildRelease } from '../../publisher/build.ts'
import { publisherVerbs } from '../../publisher/cli.ts'
import { comparing } from '../../publisher/compare.ts'
import { deriveTree } from '../../publisher/derive.ts'
import { makeFat, planFat } from '../../publisher/fat.ts'
import { makeSquashfs } from '../../publisher/squashfs/mksquashfs.ts'
import { cleanTar } from '../../publisher/tar/clean.ts'
import { runTool } from '../../publisher/tools.ts'
import type { MergedTree } from '../../publisher/tree.ts'
import { memoryTree, type Spec, TIME } from './memory-tree.ts'

let work: string
beforeAll(() => {
  work = mkdtempSync(join(tmpdir(), 'bistable-parts-'))
})
afterAll(() => rmSync(work, { recursive: true, force: true }))

describe('external programs', () => {
  it('a missing one is named with its Debian package', async () => {
    await expect(runTool('mksquashfs', [], { path: '/nowhere' })).rejects.toMatchObject({
      code: 'TOOL_MISSING',
      exitCode: 10,
      message: expect.stringContaining('squashfs-tools'),
    })
  })

  it('a failing one is reported with its last words, also when it stops reading', async () => {
    async function* endless(): AsyncGenerator<Uint8Array> {
      for (;;) yield Buffer.alloc(MiB)
    }
    await expect(runTool('mksquashfs', ['-', '/nowhere/x', '-tar'], { input: endless() })).rejects.toMatchObject({
      code: 'TOOL_FAILED',
      message: expect.stringContaining('mksquashfs'),
    })
  })

  it('an input that fails is what is reported, not the program that got a short one', async () => {
    async function* failing(): AsyncGenerator<Uint8Array> {
      yield Buffer.alloc(512)
      throw new Error('the layer is damaged')
    }
    await expect(
      runTool('mksquashfs', ['-', join(work, 'short'), '-tar', '-quiet', '-no-progress'], { input: failing() }),
    ).rejects.toThrow('the layer is damaged')
  })

  it('an abort ends it', async () => {
    const abort = new AbortController()
    async function* slow(): AsyncGenerator<Uint8Array> {
      abort.abort()
      yield Buffer.alloc(512)
    }
    const options = { input: slow(), signal: abort.signal }
    await expect(runTool('mksquashfs', ['-', join(work, 'never'), '-tar'], options)).rejects.toMatchObject({
      name: 'AbortError',
    })
  })

  it('one that is told to stop has ended when its caller goes on', async () => {
    const bin = join(work, 'bin')
    mkdirSync(bin)
    const script = `trap 'sleep 0.3; : >"${bin}/ended"; exit 1' TERM\n: >"${bin}/runs"\nwhile :; do sleep 0.02; done\n`
    writeFileSync(join(bin, 'mksquashfs'), `#!/bin/sh\n${script}`, { mode: 0o755 })
    const stop = new AbortController()
    const running = runTool('mksquashfs', [], { signal: stop.signal, path: `${bin}:/usr/bin:/bin` })
    running.catch(() => undefined)
    await vi.waitFor(() => expect(existsSync(join(bin, 'runs'))).toBe(true), 60_000)
    stop.abort()
    await expect(running).rejects.toMatchObject({ name: 'AbortError' })
    expect(existsSync(join(bin, 'ended'))).toBe(true)
  })
})

describe('FAT', () => {
  it('is large enough for its files at every cluster size, and is FAT16', async () => {
    for (const size of [0, 1, 3 * MiB, 9 * MiB, 70 * MiB]) {
      const source = join(work, 'file')
      execFileSync('truncate', ['-s', String(size), source])
      const out = join(work, `fat-${size}`)
      const bytes = await makeFat([{ name: 'EFI/BOOT/A.EFI', source }], out, { time: TIME, label: 'X', workDir: work })
      expect(bytes % 4096).toBe(0)
      expect(bytes).toBeLessThan(Math.max(size * 1.02, 8 * MiB) + MiB)
      const about = execFileSync('file', [out], { encoding: 'utf8' })
      expect(about).toContain('FAT (16 bit)')
      rmSync(out)
    }
  })

  it('refuses names that bootloaders may miss, and more than it can hold', async () => {
    const options = { time: TIME, label: 'X', workDir: work }
    for (const name of ['toolongname', 'Mixed.txt', 'a.html', 'a b', '../x'])
      await expect(makeFat([{ name, source: '/dev/null' }], join(work, 'no'), options)).rejects.toMatchObject({
        code: 'FAT_NAME_INVALID',
      })
    expect(() => planFat([5 * 1024 * MiB], 0)).toThrow(expect.objectContaining({ code: 'IMAGE_TOO_LARGE' }))
  })
})

describe('reading back', () => {
  const specs: Record<string, Spec> = {
    'a/file': 'content',
    'a/linked': { type: 'link', to: 'a/file' },
    'a/other': 'something else',
    'a/link': { type: 'symlink', target: 'file' },
    'a/attr': { type: 'file', bytes: 'x', xattrs: { 'user.k': Buffer.from('v') } },
    z: { type: 'dir' },
  }
  async function imageOf(tree: MergedTree): Promise<Squashfs> {
    const path = join(work, `${Math.random()}.img`)
    await makeSquashfs(cleanTar(tree), path, { blockSize: 4096, level: 1, time: TIME, rootMode: 0o755 })
    const file = await openImageFile(path)
    return await openSquashfs(file, file.size)
  }
  async function compare(tree: MergedTree, image: Squashfs): Promise<string> {
    try {
      for await (const _ of comparing(tree, image).walk());
      return 'equal'
    } catch (error) {
      expect(error).toMatchObject({ code: 'IMAGE_READBACK_DIFFERS' })
      return error instanceof Error ? error.message : ''
    }
  }

  it('sees every kind of difference', async () => {
    const image = await imageOf(memoryTree(specs))
    expect(await compare(memoryTree(specs), image)).toBe('equal')
    const changes: [Record<string, Spec>, string][] = [
      [{ 'a/file': 'CONTENT' }, '/a/file has content'],
      [{ 'a/other': 'something Else' }, '/a/other has content'],
      [{ 'a/other': 'longer than it was' }, '/a/other has size'],
      [{ 'a/other': { type: 'file', bytes: 'something else', mode: 0o600 } }, '/a/other has mode'],
      [{ 'a/other': { type: 'file', bytes: 'something else', uid: 3 } }, '/a/other has uid'],
      [{ 'a/other': { type: 'file', bytes: 'something else', gid: 3 } }, '/a/other has gid'],
      [{ 'a/other': { type: 'file', bytes: 'something else', mtime: 3 } }, '/a/other has mtime'],
      [{ 'a/other': { type: 'dir' } }, '/a/other is a file'],
      [{ 'a/link': { type: 'symlink', target: 'else' } }, '/a/link points'],
      [{ 'a/attr': { type: 'file', bytes: 'x', xattrs: { 'user.k': Buffer.from('w') } } }, '/a/attr has another value'],
      [{ 'a/attr': 'x' }, '/a/attr has xattrs'],
      [{ 'a/linked': 'content' }, '/a/file has 2 links'],
      [{ 'a/other': { type: 'link', to: 'a/file' } }, '/a/file has 2 links'],
      [{ 'a/new': 'x' }, '/a/other is in the image where /a/new'],
      [{ zz: 'x' }, '/zz is in the merged tree'],
    ]
    for (const [change, message] of changes)
      expect(await compare(memoryTree({ ...specs, ...change }), image)).toContain(message)
    const { z: _, ...less } = specs
    expect(await compare(memoryTree(less), image)).toBe('/z is in the image, not in the merged tree')
  })

  it('compares content also when the walker reads none of it', async () => {
    const image = await imageOf(memoryTree(specs))
    const lying: Squashfs = {
      ...image,
      read: async function* () {
        yield Buffer.from('forged!')
      },
    }
    expect(await compare(memoryTree(specs), lying)).toContain('/a/attr has content')
  })
})

describe('derived trees', () => {
  it('add, replace and drop, and resolve through links', async () => {
    const base = memoryTree({
      'usr/lib/x': 'x',
      lib: { type: 'symlink', target: 'usr/lib' },
      'boot/a': 'a',
      loop: { type: 'symlink', target: 'loop' },
    })
    const file = memoryTree({ f: 'new' }).get('f')?.node
    if (file?.type !== 'file') throw new Error('no file')
    const tree = deriveTree(base, {
      drop: (path) => path.startsWith('boot/'),
      add: [{ path: 'usr/lib/deep/er', node: file, content: Buffer.from('new') }],
      time: 5,
    })
    expect([...tree.entries()].map(({ path }) => path)).toEqual([
      '',
      'boot',
      'lib',
      'loop',
      'usr',
      'usr/lib',
      'usr/lib/deep',
      'usr/lib/deep/er',
      'usr/lib/x',
    ])
    expect(tree.resolve('/lib/../lib/deep/er')?.path).toBe('usr/lib/deep/er')
    expect(tree.resolve('loop')).toBeUndefined()
    expect(tree.resolve('lib/x/y')).toBeUndefined()
    expect(Buffer.from(await tree.readSmall(file, 10)).toString()).toBe('new')
    expect(tree.children('boot')).toEqual([])
    expect(() => deriveTree(base, { add: [{ path: 'lib/y', node: file }], time: 5 })).toThrow(
      expect.objectContaining({ code: 'IMAGE_PATH_TAKEN' }),
    )
    expect(() => deriveTree(base, { add: [{ path: 'usr', node: file }], time: 5 })).toThrow(
      expect.objectContaining({ code: 'IMAGE_PATH_TAKEN' }),
    )
  })

  it('units are enabled as systemctl would', () => {
    const unit = '[Unit]\nWantedBy=no.target\n[Install]\nWantedBy=a.target b.target\nRequiredBy=c.target\n'
    expect(wantedBy(unit)).toEqual([
      ['a.target', 'wants'],
      ['b.target', 'wants'],
      ['c.target', 'requires'],
    ])
  })
})

describe('command line', () => {
  async function cli(...argv: string[]): Promise<{ code: number; out: string[]; err: string[] }> {
    const out: string[] = []
    const err: string[] = []
    const terminal = { out: (l: string) => out.push(l), err: (l: string) => err.push(l), interactive: false }
    return { code: await runCli(publisherVerbs, argv, terminal, new AbortController().signal), out, err }
  }

  it('lint of a plain tar lists everything and ends with the input exit code', async () => {
    const tar = join(work, 'small.tar')
    const pieces: Uint8Array[] = []
    for await (const piece of cleanTar(memoryTree({ 'etc/passwd': 'root:x:0:0::/:/bin/sh\n' }))) pieces.push(piece)
    writeFileSync(tar, Buffer.concat(pieces))
    const { code, out } = await cli('lint', `rootfs:${tar}`, '--json')
    expect(code).toBe(3)
    const { ok, problems } = JSON.parse(out[0] ?? '') as { ok: boolean; problems: { id: string }[] }
    expect(ok).toBe(false)
    expect(problems.map(({ id }) => id)).toContain('kernel-missing')
    const build = await cli(
      'build',
      `rootfs:${tar}`,
      '--output',
      join(work, 'b'),
      '--version',
      '1',
      '--counter',
      '1',
      '--json',
    )
    expect(build.code).toBe(3)
    expect(JSON.parse(build.out[0] ?? '')).toMatchObject({ error: { code: 'IMAGE_UNFIT' } })
  })

  it('what is not an image is refused by name', async () => {
    writeFileSync(join(work, 'text'), 'hello')
    const { code, err } = await cli('lint', join(work, 'text'))
    expect(code).toBe(3)
    expect(err[0]).toMatch(/^bistable: IMAGE_/)
  })

  it('bad options are usage errors', async () => {
    const build = ['build', 'rootfs:x', '--output', join(work, 'b'), '--version', '1']
    for (const more of [
      [],
      ['--counter', '-1'],
      ['--counter', '1', '--level', '23'],
      ['--counter', '1', '--block', '5K'],
      ['--counter', '1', '--security-floor', '1'],
      ['--counter', '1', '--node', 'x'],
      ['--counter', '1', '--processors', '1000000'],
    ])
      expect([more, (await cli(...build, ...more)).code]).toEqual([more, 2])
    for (const argv of [
      ['sign', 'x'],
      ['publish', '--to', 'x'],
      ['serve'],
      ['disk', 'x', '--root', 'y'],
      ['lint', 'a', 'b'],
      // Times that no calendar has.
      ['publish', 'x', '--to', 'y', '--key', 'k', '--days', '999999999'],
      ['assign', '--device', 'd', '--bundle', 'b', '--to', 't', '--key', 'k', '--hours', '99999999999'],
    ])
      expect([argv, (await cli(...argv)).code]).toEqual([argv, 2])
    expect((await cli('disk', 'x', '--root', 'y', '--output', work)).err[0]).toContain('OUTPUT_EXISTS')
    for (const more of [
      ['--arch', 'arm'],
      ['--arch', 'arm64', '--firmware', 'bios'],
      ['--firmware', 'coreboot'],
      ['--uboot-memory', '0x1000'],
      ['--closed', '--menu-seconds', '5'],
      ['--bootloader', 'uboot', '--closed'],
      ['--bootloader', 'lilo'],
      ['--bootloader', 'uboot', '--firmware', 'uefi'],
      ['--bootloader', 'uboot', '--grub-modules', '/x'],
      ['--bootloader', 'uboot', '--uboot-memory', '0x1001'],
    ]) {
      const { code, err } = await cli('disk', 'x', '--root', 'y', '--output', join(work, 'z'), ...more)
      expect([more, code, err[0]]).toEqual([more, 2, expect.stringContaining('USAGE')])
    }
  })

  it('an image from the future is refused: its bytes would depend on the clock', async () => {
    const tree = memoryTree({ f: { type: 'file', bytes: '', mtime: 4_000_000_000 } })
    const request = {
      version: '1',
      number: { epoch: 0, counter: 1 },
      securityFloor: { epoch: 0, counter: 0 },
      parts: {},
      blockSize: 4096,
      level: 1,
      writer: 'own' as const,
    }
    await expect(buildRelease(tree, request, join(work, 'f'), { say: () => {} })).rejects.toMatchObject({
      code: 'IMAGE_FROM_FUTURE',
    })
  })
})
