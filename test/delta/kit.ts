import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { ByteSource } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { openBundle } from '../../bundle/reader.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import type { BundleHead, ImageName } from '../../bundle/types.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { writeSquashfs } from '../../publisher/squashfs/write.ts'
import { noise } from '../bundle/tools.ts'
import { Machine, ModelDevice, randomFrom } from '../device-install/model.ts'
import { makeBundle, type TestBundle } from '../helpers/bundle.ts'
import type { Item } from '../squashfs/build.ts'
import { treeOf } from '../squashfs/trees.ts'

/** Two releases of a small system, as images by the publisher's own writer, with what happens between real releases. */

/** Machine-like content: words with addresses in them, so that what is inserted in front changes many bytes. */
export function program(words: number, base: number, seed: number): Buffer {
  const random = randomFrom(seed)
  const bytes = Buffer.alloc(words * 8)
  for (let i = 0; i < words; i++) {
    bytes.writeUInt32LE(Math.floor(random() * 2 ** 32), i * 8)
    bytes.writeUInt32LE(random() < 0.3 ? base + Math.floor(random() * 4096) * 16 : 0x0f0b90c3, i * 8 + 4)
  }
  return bytes
}

export const text = (lines: number, seed: number): Buffer => {
  const random = randomFrom(seed)
  const words = ['slot', 'release', 'boot', 'verify', 'chunk', 'signature', 'window', 'of', 'the', 'and']
  const line = () => Array.from({ length: 9 }, () => words[Math.floor(random() * words.length)]).join(' ')
  return Buffer.from(Array.from({ length: lines }, (_, i) => `${i} ${line()}\n`).join(''))
}

export function system(version: 1 | 2): Item[] {
  const items: Item[] = []
  const dir = (path: string) => items.push({ path, type: 'dir', mode: 0o755 })
  const file = (path: string, content: Uint8Array) => items.push({ path, type: 'file', mtime: version, content })
  for (const path of ['bin', 'etc', 'lib', `lib/tool-1.${version}`, 'share']) dir(path)
  // A program whose addresses move; its front grows.
  const moved = program(60_000, version === 1 ? 0x400000 : 0x400040, 5)
  file('bin/program', version === 1 ? moved : Buffer.concat([noise(192, 'front'), moved]))
  file('bin/same', program(40_000, 0x800000, 6))
  // A library in a folder that carries its version, slightly changed.
  const library = text(9000, 7)
  if (version === 2) library.write('CHANGED', 200_000)
  file(`lib/tool-1.${version}/library`, library)
  for (let i = 0; i < 120; i++) {
    const content = text(20 + (i % 17), 100 + i)
    if (version === 2 && i % 40 === 3) content.write('another', 30)
    file(`share/note-${String(i).padStart(3, '0')}`, content)
  }
  if (version === 2) file('share/added', noise(30_000, 'added'))
  return items
}

/** Lines that do not compress, one in so many of them another in each release. */
function inventoryLine(i: number, version: 1 | 2, every: number): string {
  const digest = sha256(Buffer.from(`${i} ${i % every === 3 ? version : 0}`))
  return `${JSON.stringify({ path: `/share/${i}`, type: 'file', mode: 420, uid: 0, gid: 0, size: i, digest })}\n`
}

export interface Made {
  readonly bundle: TestBundle
  readonly source: ByteSource
  readonly head: BundleHead
}

export async function release(
  dir: string,
  version: 1 | 2,
  { level = 9, counter = version as number, lines = 400, every = 40 } = {},
): Promise<Made> {
  const path = join(dir, `rootfs-${version}.img`)
  await writeSquashfs(treeOf(system(version)), path, { blockSize: 65_536, level, time: 1, processors: 1 })
  const rootfs = readFileSync(path)
  const image = await openSquashfs({ read: async (at, n) => rootfs.subarray(at, at + n) }, rootfs.length)
  const boundaries = await image.contentBoundaries()
  const boot = Buffer.concat([noise(4096 * 30, 'kernel'), noise(4096 * 4, `initrd ${version}`)])
  const number = { epoch: 0, counter }
  const inventory = Buffer.from(Array.from({ length: lines }, (_, i) => inventoryLine(i, version, every)).join(''))
  const bundle = await makeBundle(dir, `release-${version}`, { boot, rootfs, boundaries, number, inventory })
  const source = await openFileDoor(bundle.path)
  return { bundle, source, head: await openBundle(source, { trusted: bundle.trusted }) }
}

/** A pair of slots in memory that holds a release, or nothing. */
export function slots(made?: Made, machine = new Machine()): Record<ImageName, ModelDevice> {
  const device = (name: ImageName, size: number) => {
    const medium = Buffer.alloc(size, 0xee)
    if (made !== undefined) medium.set(made.bundle[name])
    return new ModelDevice(name, medium, machine)
  }
  return { boot: device('boot', 4096 * 60), rootfs: device('rootfs', 4096 * 800) }
}

/** A file with other bytes at some places. */
export function changed(
  dir: string,
  name: string,
  bytes: Uint8Array,
  change: (bytes: Buffer) => undefined | Buffer,
): string {
  const copy = Buffer.from(bytes)
  const path = join(dir, name)
  writeFileSync(path, change(copy) ?? copy)
  return path
}
