import { createHash } from 'node:crypto'
import { mkdir, open, readdir, rm, stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { readDeltaHead } from '../bundle/delta/head.ts'
import { fileSource } from '../bundle/file-source.ts'
import { inspectBundle } from '../bundle/reader.ts'
import { deviceNode } from '../scripts/device-node.ts'
import { pairs, systemFile } from './delta-images.ts'
import { type Measured, measure, tool } from './measure.ts'
import { type Goal, goal, type Report, type Row } from './report.ts'
import { PRODUCT, type Workshop } from './workshop.ts'

/** Bytes that a device fetches to go from one release to the next, by every technique that is to be had. */

/** One root file system as everyone's input. */
interface Side {
  readonly bundle: string
  /** As the publisher wrote it, and the same tree without any compression. */
  readonly squashfs: string
  readonly plain: string
}

interface Both {
  readonly folder: string
  readonly old: Side
  readonly next: Side
}

interface Found {
  readonly bytes: number
  readonly measured?: Measured
}

type Technique = readonly [what: string, run: (both: Both) => Promise<Found>]

const BLOCK = 4096

const techniques: readonly Technique[] = [
  ['full image', async ({ next }) => ({ bytes: await sizeOf(next.squashfs) })],
  ['RAUC block-hash-index (counted)', ({ old, next }) => countBlocks(old.squashfs, next.squashfs)],
  ['casync, 64 KiB chunks', (both) => casync(both, 65_536)],
  ['casync, 16 KiB chunks', (both) => casync(both, 16_384)],
  ['zchunk', zchunk],
  ['bistable, chunks', chunks],
  [
    'xdelta3 on SquashFS',
    (both) =>
      made(both, 'xdelta', (old, next, out) => ['xdelta3', '-e', '-9', '-f', '-B', '1073741824', '-s', old, next, out]),
  ],
  ['bsdiff on SquashFS', (both) => made(both, 'bsdiff', (old, next, out) => ['bsdiff', old, next, out])],
  ['zstd --patch-from on SquashFS', (both) => made(both, 'zst', patchFrom)],
  ['zstd --patch-from on uncompressed', (both) => made(both, 'plain.zst', patchFrom, 'plain')],
  [
    'xdelta3 on uncompressed',
    (both) =>
      made(
        both,
        'plain.xdelta',
        (old, next, out) => ['xdelta3', '-e', '-9', '-f', '-B', '1073741824', '-s', old, next, out],
        'plain',
      ),
  ],
  [
    'bsdiff on uncompressed',
    (both) => made(both, 'plain.bsdiff', (old, next, out) => ['bsdiff', old, next, out], 'plain'),
  ],
]
const OURS = 'bistable, patch'

const patchFrom = (old: string, next: string, out: string): string[] => [
  'zstd',
  '-q',
  '-f',
  '-19',
  '--long=31',
  '-T1',
  `--patch-from=${old}`,
  next,
  '-o',
  out,
]

export async function benchDelta(workshop: Workshop): Promise<Report> {
  const rows: Row[] = []
  const goals: Goal[] = []
  const notes: string[] = []
  const only = process.env['BISTABLE_BENCH_PAIRS']?.split(',')
  for (const pair of pairs(workshop.say)) {
    if (only !== undefined && !only.includes(pair.name)) continue
    const folder = join(workshop.folder, `delta-${pair.name}`)
    await mkdir(folder)
    workshop.say(`delta: pair ${pair.name}: ${pair.what}`)
    const tars = await pair.make(folder)
    const both = {
      folder,
      old: await makeSide(workshop, folder, 'old', tars.old, 1),
      next: await makeSide(workshop, folder, 'next', tars.next, 2),
    }
    const bytes = new Map<string, number>()
    const note = (what: string, { bytes: size, measured }: Found): void => {
      bytes.set(what, size)
      const spread = measured && { median: measured.seconds, min: measured.seconds, max: measured.seconds }
      const cost = measured && { cpuSeconds: measured.cpuSeconds, peakMiB: measured.peakMiB }
      rows.push({ what: `${pair.name}: ${what}`, bytes: size, ...(spread && { seconds: spread }), ...cost })
      workshop.say(`delta: ${pair.name}: ${what}: ${size} bytes`)
    }
    for (const [what, run] of techniques) note(what, await run(both))
    const { patch, applied } = await ours(workshop, both)
    note(OURS, patch)
    note('bistable, patch applied', applied)
    const ratio = (what: string, against: string): number => (bytes.get(what) ?? 0) / (bytes.get(against) ?? 1)
    goals.push(
      goal(`${pair.name}: patch / bsdiff on uncompressed`, ratio(OURS, 'bsdiff on uncompressed'), '', 1.1),
      goal(`${pair.name}: patch / xdelta3 on SquashFS`, ratio(OURS, 'xdelta3 on SquashFS'), '', 1 / 3),
      goal(`${pair.name}: chunks / casync 16 KiB`, ratio('bistable, chunks', 'casync, 16 KiB chunks'), '', 1),
      goal(`${pair.name}: chunks / zchunk`, ratio('bistable, chunks', 'zchunk'), '', 1),
      goal(`${pair.name}: chunks / RAUC`, ratio('bistable, chunks', 'RAUC block-hash-index (counted)'), '', 1),
    )
    notes.push(
      `${pair.name}: ${pair.what}; image ${await sizeOf(both.next.squashfs)} bytes, uncompressed ${await sizeOf(both.next.plain)}`,
    )
    await rm(folder, { recursive: true })
  }
  notes.push(
    'root file systems only; chunks and patches with their indexes; "applied": the whole install from that patch',
  )
  return { name: 'delta', runs: 1, rows, goals, notes }
}

async function makeSide(workshop: Workshop, folder: string, name: string, tar: string, counter: number): Promise<Side> {
  const build = join(folder, `${name}.build`)
  const bundle = join(folder, `${name}.bundle`)
  const parts = ['--agent', dirname(workshop.device.agent), '--node', await deviceNode('x64')]
  const system = await systemFile(folder, PRODUCT)
  const release = ['--version', `${counter}`, '--counter', `${counter}`, '--level', `${workshop.level}`]
  const trust = ['--system', system, '--root', workshop.rootStatement]
  await workshop.bistable(['build', `rootfs:${tar}`, '--output', build, ...release, ...parts, ...trust])
  await workshop.signAndPack(build, bundle)
  const squashfs = join(build, 'rootfs.img')
  const tree = join(folder, `${name}.tree`)
  const plain = join(folder, `${name}.plain`)
  await tool('unsquashfs', ['-quiet', '-no-progress', '-d', tree, squashfs])
  await tool('mksquashfs', [
    tree,
    plain,
    '-noI',
    '-noD',
    '-noF',
    '-noX',
    '-noId',
    '-reproducible',
    '-no-progress',
    '-quiet',
  ])
  await rm(tree, { recursive: true })
  return { bundle, squashfs, plain }
}

const sizeOf = async (path: string): Promise<number> => (await stat(path)).size

async function made(
  { folder, old, next }: Both,
  name: string,
  command: (old: string, next: string, out: string) => readonly string[],
  which: 'squashfs' | 'plain' = 'squashfs',
): Promise<Found> {
  const out = join(folder, `patch.${name}`)
  const [program = '', ...args] = command(old[which], next[which], out)
  const measured = await measure(program, args)
  return { bytes: await sizeOf(out), measured }
}

/** RAUC's adaptive update reuses 4 KiB blocks of either slot at block borders; its index has 32 bytes for each. */
async function countBlocks(old: string, next: string): Promise<Found> {
  const known = new Set<string>()
  for await (const digest of blockDigests(old)) known.add(digest)
  let fetched = 0
  let blocks = 0
  for await (const digest of blockDigests(next)) {
    blocks++
    if (!known.has(digest)) fetched++
    known.add(digest)
  }
  return { bytes: fetched * BLOCK + blocks * 32 }
}

async function* blockDigests(path: string): AsyncGenerator<string> {
  const file = await open(path)
  try {
    for await (const piece of file.createReadStream({ highWaterMark: 256 * BLOCK }) as AsyncIterable<Buffer>)
      for (let at = 0; at < piece.length; at += BLOCK)
        yield createHash('sha256')
          .update(piece.subarray(at, at + BLOCK))
          .digest('base64')
  } finally {
    await file.close()
  }
}

/** Chunks that the old store has not, as stored, and the index. */
async function casync({ folder, old, next }: Both, size: number): Promise<Found> {
  const stores: Map<string, number>[] = []
  let index = 0
  for (const [name, { squashfs }] of Object.entries({ old, next })) {
    const store = join(folder, `casync-${size}-${name}`)
    const file = `${store}.caibx`
    await tool('casync', ['make', `--chunk-size=${size}`, `--store=${store}`, file, squashfs])
    const chunks = new Map<string, number>()
    for (const entry of await readdir(store, { recursive: true, withFileTypes: true }))
      if (entry.isFile()) chunks.set(entry.name, await sizeOf(join(entry.parentPath, entry.name)))
    stores.push(chunks)
    index = await sizeOf(file)
    await rm(store, { recursive: true })
  }
  const [before, after] = stores
  let bytes = index
  for (const [name, length] of after ?? []) if (before?.has(name) !== true) bytes += length
  return { bytes }
}

async function zchunk({ folder, old, next }: Both): Promise<Found> {
  const files: string[] = []
  for (const [name, { squashfs }] of Object.entries({ old, next })) {
    const out = join(folder, `${name}.zck`)
    await tool('zck', ['-o', out, squashfs])
    files.push(out)
  }
  const said = await tool('zck_delta_size', files)
  const found = /would download (\d+) of \d+ bytes/i.exec(said)?.[1]
  if (found === undefined) throw new Error(`zck_delta_size said: ${said}`)
  return { bytes: Number(found) }
}

async function chunks({ old, next }: Both): Promise<Found> {
  const [before, after] = await Promise.all([old, next].map(({ bundle }) => headOf(bundle)))
  if (before === undefined || after === undefined) throw new RangeError('two bundles')
  const known = new Set(before.indexes.rootfs.chunks.map(({ digest }) => digest))
  const lacking = after.indexes.rootfs.chunks.filter(({ digest }) => !known.has(digest))
  return { bytes: after.indexBytes.rootfs.length + lacking.reduce((sum, { storedLength }) => sum + storedLength, 0) }
}

async function headOf(bundle: string) {
  const source = await fileSource(bundle)
  try {
    return (await inspectBundle(source)).head
  } finally {
    await source.close()
  }
}

/** Making our patch, and an install from it by the device's own code in a process of its own. */
async function ours(workshop: Workshop, { folder, old, next }: Both): Promise<{ patch: Found; applied: Found }> {
  const out = join(folder, 'ours.delta')
  const measured = await workshop.bistable(['delta', old.bundle, next.bundle, '--output', out])
  const source = await fileSource(out)
  const head = await readDeltaHead(source).finally(() => source.close())
  const units = head.units.filter(({ image }) => image === 'rootfs')
  const bytes = head.length + units.reduce((sum, { stored }) => sum + stored, 0)
  const program = join(import.meta.dirname, 'apply-delta.ts')
  const applying = await measure(process.execPath, ['--import', 'tsx', program, old.bundle, next.bundle, out, folder])
  return { patch: { bytes, measured }, applied: { bytes, measured: applying } }
}
