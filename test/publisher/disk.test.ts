import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  copyFileSync,
  createReadStream,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, vi } from 'vitest'
import { MiB } from '../../base/bytes.ts'
import { nodeFiles } from '../../base/durable.ts'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { ubootBootstateImage } from '../../bootloader/uboot.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import { treeSize } from '../../bundle/tree.ts'
import { debugfsScript } from '../../publisher/disk/data.ts'
import { diskFromBundle } from '../../publisher/disk/from-bundle.ts'
import { derivedUuid, partition, planDisk } from '../../publisher/disk/plan.ts'
import { codeOfAsync } from '../codes.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import { have } from '../helpers/run.ts'

const env = { ...process.env, PATH: `${process.env['PATH']}:/usr/sbin:/sbin` }
const run = (tool: string, ...args: string[]): string => execFileSync(tool, args, { env, encoding: 'utf8' })

const code = (name: string) => expect.objectContaining({ code: name })

function bytesAt(path: string, at: number, length: number): Buffer {
  const fd = openSync(path, 'r')
  const out = Buffer.alloc(length)
  readSync(fd, out, 0, length, at)
  closeSync(fd)
  return out
}

async function shaOf(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const piece of createReadStream(path)) hash.update(piece)
  return hash.digest('hex')
}

describe('disk plan', () => {
  const needs = { esp: 16 * MiB, bootstate: MiB, boot: 20 * MiB, rootfs: 100 * MiB }

  it('lays partitions out one behind the other, slots twice what the release needs', () => {
    const plan = planDisk(needs, {})
    expect(plan.partitions.map(({ name, start, size }) => [name, start / MiB, size / MiB])).toEqual([
      ['esp', 1, 16],
      ['bootstate', 17, 1],
      ['boot-a', 18, 64],
      ['rootfs-a', 82, 256],
      ['boot-b', 338, 64],
      ['rootfs-b', 402, 256],
      ['data', 658, 512],
    ])
    expect(plan.size).toBe(1171 * MiB)
  })

  it('gives data the rest of a disk of known size', () => {
    const plan = planDisk(needs, { disk: 2048 * MiB + 5, rootfs: 128 * MiB })
    expect(plan.size).toBe(2048 * MiB)
    expect(partition(plan, 'data').start + partition(plan, 'data').size).toBe(2047 * MiB)
  })

  it('counts the tree: an image that fits without it is refused', () => {
    const boot = 20 * MiB
    expect(() => planDisk({ ...needs, boot }, { boot })).toThrow(expect.objectContaining({ code: 'IMAGE_TOO_LARGE' }))
    const enough = Math.ceil((boot + treeSize(boot)) / MiB) * MiB
    expect(partition(planDisk({ ...needs, boot }, { boot: enough }), 'boot-b').size).toBe(enough)
  })

  it('refuses a disk that is too small', () => {
    expect(() => planDisk(needs, { disk: 700 * MiB })).not.toThrow()
    for (const sizes of [{ disk: 680 * MiB }, { disk: 10 * MiB }, { disk: 1000 * MiB, data: 600 * MiB }, { data: MiB }])
      expect(() => planDisk(needs, sizes)).toThrow(expect.objectContaining({ code: 'DISK_TOO_SMALL' }))
  })

  it('derives UUIDs of version 8 that differ by name and identity', () => {
    const all = ['disk', 'esp', 'data'].flatMap((name) => [derivedUuid('x', name), derivedUuid('y', name)])
    expect(new Set(all).size).toBe(6)
    for (const uuid of all)
      expect(uuid).toMatch(/^[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/)
  })

  it('debugfs gets plain paths only', () => {
    expect(debugfsScript(['a/b'])).toBe(
      'mkdir /a\nset_inode_field /a mode 040755\nwrite f0 /a/b\nset_inode_field /a/b mode 0100644\n',
    )
    expect(() => debugfsScript(['a b'])).toThrow(RangeError)
  })
})

describe('disk image', () => {
  let work: string
  let bundle: TestBundle
  let disk: string
  const sizes = { boot: 4 * MiB, rootfs: 8 * MiB, data: 64 * MiB }

  beforeAll(async () => {
    work = mkdtempSync(join(tmpdir(), 'bistable-disk-'))
    const rootfs = Buffer.alloc(5 * MiB + 4096)
    for (let i = 0; i < rootfs.length; i += 4096) rootfs.writeUInt32LE(i % 5 === 0 ? 0 : i, i)
    bundle = await makeBundle(work, 'r1', { boot: Buffer.alloc(3 * MiB, 'boot'), rootfs })
    disk = join(work, 'disk.img')
    await diskFromBundle(bundle.path, bundle.trusted, sizes, disk)
  })
  afterAll(() => rmSync(work, { recursive: true, force: true }))

  const at = (name: Parameters<typeof partition>[1]) =>
    partition(planDisk({ esp: 17 * MiB, bootstate: MiB, boot: 3 * MiB, rootfs: 5 * MiB }, sizes), name)

  it('has a GPT that sgdisk accepts, with the names of docs/architecture.md', () => {
    expect(run('sgdisk', '--verify', disk)).toContain('No problems found')
    const names = [...run('sgdisk', '--print', disk).matchAll(/^ +\d+ +\d+ +\d+ +\S+ \S+ +\S+ +(\S+)$/gm)].map(
      (m) => m[1],
    )
    expect(names).toEqual(['esp', 'bootstate', 'boot-a', 'rootfs-a', 'boot-b', 'rootfs-b', 'data'])
    expect(run('sgdisk', '--info=1', disk)).toContain('C12A7328-F81F-11D2-BA4B-00A0C93EC93B')
  })

  it('is sparse', () => {
    const { blocks, size } = statSync(disk)
    expect(blocks * 512).toBeLessThan(size / 2)
  })

  it('holds GRUB, the boot state, and both images with their trees', async () => {
    const esp = join(work, 'esp')
    run(
      'dd',
      `if=${disk}`,
      `of=${esp}`,
      'bs=1M',
      `skip=${at('esp').start / MiB}`,
      `count=${at('esp').size / MiB}`,
      'status=none',
    )
    run('fsck.fat', '-n', esp)
    const grub = execFileSync('mtype', ['-i', esp, '::/EFI/BOOT/BOOTX64.EFI'], { env, maxBuffer: 64 * MiB })
    expect(grub.subarray(0, 2).toString()).toBe('MZ')
    const state = await bootstateImage({ generation: 1, primary: 'a', trial: undefined, left: 0, spare: false })
    expect(bytesAt(disk, at('bootstate').start, state.length).equals(state)).toBe(true)
    for (const [name, image] of [
      ['boot', bundle.boot],
      ['rootfs', bundle.rootfs],
    ] as const) {
      const start = at(`${name}-a`).start
      expect(bytesAt(disk, start, image.length).equals(image)).toBe(true)
      const slot = join(work, `${name}.slot`)
      const { size } = at(`${name}-a`)
      run('dd', `if=${disk}`, `of=${slot}`, 'bs=1M', `skip=${start / MiB}`, `count=${size / MiB}`, 'status=none')
      const out = run(
        'veritysetup',
        'format',
        '--no-superblock',
        '--salt=-',
        `--data-blocks=${image.length / 4096}`,
        slot,
        join(work, 'tree'),
      )
      const root = /Root hash:\s+(\w+)/.exec(out)?.[1] ?? ''
      run(
        'veritysetup',
        'verify',
        '--no-superblock',
        '--salt=-',
        '--hash=sha256',
        '--data-block-size=4096',
        '--hash-block-size=4096',
        `--data-blocks=${image.length / 4096}`,
        `--hash-offset=${image.length}`,
        slot,
        slot,
        root,
      )
      expect(bytesAt(disk, at(`${name}-b`).start, 4096).equals(Buffer.alloc(4096))).toBe(true)
    }
  })

  it('has a sound ext4 with the records of slot a', () => {
    const { start, size } = at('data')
    const data = join(work, 'data.ext4')
    run('dd', `if=${disk}`, `of=${data}`, 'bs=1M', `skip=${start / MiB}`, `count=${size / MiB}`, 'status=none')
    run('e2fsck', '-fn', data)
    const cat = (path: string) => execFileSync('debugfs', ['-R', `cat /bistable/slots/a/${path}`, data], { env })
    const build = join(work, 'r1.build')
    expect(cat('boot.idx').equals(readFileSync(join(build, 'boot.idx')))).toBe(true)
    expect(cat('rootfs.idx').equals(readFileSync(join(build, 'rootfs.idx')))).toBe(true)
    expect(cat('inventory.zst').equals(readFileSync(join(build, 'inventory.zst')))).toBe(true)
    expect(cat('release.json').toString()).toContain('application/vnd.bistable.release.v1+json')
    expect(cat('roots/1.json').toString()).toContain('application/vnd.bistable.root.v1+json')
    expect(run('debugfs', '-R', 'stat /bistable/slots/a/release.json', data)).toMatch(/Mode: +0644[\s\S]*User: +0/)
  })

  it('is the same, byte for byte, when made again elsewhere', async () => {
    const again = join(work, 'again.img')
    const flushed = vi.spyOn(nodeFiles, 'syncDir')
    const umask = process.umask(0o077)
    const zone = process.env['TZ']
    process.env['TZ'] = 'Asia/Kathmandu'
    try {
      await diskFromBundle(bundle.path, bundle.trusted, sizes, again)
    } finally {
      process.umask(umask)
      if (zone === undefined) delete process.env['TZ']
      else process.env['TZ'] = zone
    }
    expect(await shaOf(again)).toBe(await shaOf(disk))
    expect(flushed).toHaveBeenLastCalledWith(work)
  })

  it('takes nothing from a bundle that became another one since it was verified', async () => {
    const copy = join(work, 'changing.bundle')
    copyFileSync(bundle.path, copy)
    const source = await fileSource(copy)
    const at = (await inspectBundle(source)).head.offsets.attachments.inventory ?? 0
    await source.close()
    const change = () => {
      const bytes = readFileSync(copy)
      bytes[at + 9] = (bytes[at + 9] ?? 0) ^ 1
      writeFileSync(copy, bytes)
      return 'ext4' as const
    }
    // Asked for behind the verification.
    const options = {
      bootloader: { kind: 'uboot', arch: 'arm64' } as const,
      get dataFileSystem() {
        return change()
      },
    }
    const image = join(work, 'changed.img')
    expect(await codeOfAsync(() => diskFromBundle(copy, bundle.trusted, sizes, image, options))).toBe('BUNDLE_DIGEST')
    expect(existsSync(image)).toBe(false)
  })

  it("for a PC's BIOS: the same numbers, and GRUB where the BIOS and its own first sectors look for it", async () => {
    const image = join(work, 'bios.img')
    const bootloader = { kind: 'grub', platform: 'i386-pc' } as const
    const { plan } = await diskFromBundle(bundle.path, bundle.trusted, sizes, image, { bootloader })
    expect(run('sgdisk', '--verify', image)).toContain('No problems found')
    const { number, start, size } = partition(plan, 'bios')
    expect([number, start / 512, (start + size) / MiB]).toEqual([8, 34, 1])
    expect(run('sgdisk', '--info=8', image)).toContain('21686148-6449-6E6F-744E-656564454649')
    const { partitions } = planDisk({ esp: 17 * MiB, bootstate: MiB, boot: 3 * MiB, rootfs: 5 * MiB }, sizes)
    expect(plan.partitions.slice(0, 7)).toEqual(partitions)
    const [sector, core] = [bytesAt(image, 0, 512), bytesAt(image, start, size)]
    // The BIOS wants its signature and sgdisk its protective entry: boot.img may cover neither.
    expect([sector.readUInt16LE(510), sector[450]]).toEqual([0xaa55, 0xee])
    expect([sector.readBigUInt64LE(0x5c), core.readBigUInt64LE(500)]).toEqual([34n, 35n])
    expect(core.subarray((core.readUInt16LE(508) + 1) * 512).every((byte) => byte === 0)).toBe(true)
  })

  it.each(['arm64', 'x86_64'] as const)('for U-Boot on %s: boot.scr knows where its state is', async (arch) => {
    const image = join(work, `${arch}.img`)
    const bootloader = { kind: 'uboot', arch, memory: 0x4800_0000 } as const
    const { plan } = await diskFromBundle(bundle.path, bundle.trusted, sizes, image, { bootloader })
    const place = partition(plan, 'bootstate')
    expect(Buffer.compare(bytesAt(image, place.start, place.size), ubootBootstateImage(freshState('a')))).toBe(0)
    const esp = join(work, `esp-${arch}`)
    const { start, size } = partition(plan, 'esp')
    writeFileSync(esp, bytesAt(image, start, size))
    run('fsck.fat', '-n', esp)
    const script = execFileSync('mtype', ['-i', esp, '::/boot.scr'], { env, maxBuffer: MiB }).toString('latin1')
    expect(script).toMatch(new RegExp(`^setenv bs_state1 0*${(place.start / 512 + 1024).toString(16)}$`, 'm'))
    expect(script).toContain('setenv bs_mem 0x48000\n')
    expect(script).toContain(arch === 'arm64' ? 'booti' : 'zboot')
    expect(run('sgdisk', '--verify', image)).toContain('No problems found')
  })

  it('refuses a slot that is too small and leaves nothing behind', async () => {
    const out = join(work, 'small.img')
    await expect(diskFromBundle(bundle.path, bundle.trusted, { ...sizes, rootfs: 5 * MiB }, out)).rejects.toMatchObject(
      {
        code: 'IMAGE_TOO_LARGE',
        details: { image: 'rootfs' },
      },
    )
    expect(() => statSync(out)).toThrow()
    expect(run('ls', '-A', work)).not.toMatch(/^\.(disk|boot)-/m)
  })

  it.skipIf(!have('btrfs', 'mkfs.btrfs', 'mksquashfs'))(
    'has a btrfs instead, where the release says that it runs from one',
    async () => {
      const tree = join(work, 'tree-btrfs')
      const made = async (name: string, state: object) => {
        const folder = join(tree, 'usr/lib/bistable')
        mkdirSync(folder, { recursive: true })
        writeFileSync(join(folder, 'system.json'), JSON.stringify({ state }))
        const image = join(work, `${name}.squashfs`)
        run('mksquashfs', tree, image, '-quiet', '-no-progress', '-all-root', '-comp', 'zstd')
        const rootfs = readFileSync(image)
        const padded = Buffer.concat([rootfs, Buffer.alloc((4096 - (rootfs.length % 4096)) % 4096)])
        return await makeBundle(work, name, { boot: Buffer.alloc(MiB, 'boot'), rootfs: padded })
      }
      const output = join(work, 'btrfs.img')
      const options = { dataFileSystem: 'btrfs' } as const
      const big = { ...sizes, data: 256 * MiB }
      const other = await made('ext4-only', { schema: 1 })
      await expect(diskFromBundle(other.path, other.trusted, big, output, options)).rejects.toThrow(
        code('DISK_FILE_SYSTEM'),
      )
      const fit = await made('either', { schema: 1, btrfs: true })
      await expect(diskFromBundle(fit.path, fit.trusted, sizes, output, options)).rejects.toThrow(
        code('DISK_TOO_SMALL'),
      )
      const { plan } = await diskFromBundle(fit.path, fit.trusted, big, output, options)
      const { start, size } = partition(plan, 'data')
      const data = join(work, 'data.btrfs')
      run(
        'dd',
        `if=${output}`,
        `of=${data}`,
        'bs=1M',
        `skip=${start / MiB}`,
        `count=${size / MiB}`,
        'status=none',
        'conv=sparse',
      )
      mkdirSync(join(work, 'restored'))
      run('btrfs', 'restore', data, join(work, 'restored'))
      expect(readFileSync(join(work, 'restored/bistable/slots/a/release.json'), 'utf8')).toContain(
        'vnd.bistable.release',
      )
      const items = run('btrfs', 'inspect-internal', 'dump-tree', '-t', 'fs', data)
      expect(
        [
          ...new Set([...items.matchAll(/mode (\d+) links \d+ uid (\d+) gid (\d+)/g)].map((m) => m.slice(1).join(' '))),
        ].sort(),
      ).toEqual(['100644 0 0', '40755 0 0'])
    },
  )
})
