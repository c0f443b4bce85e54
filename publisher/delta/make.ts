import { randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { type FileHandle, open, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { MiB, type Sha256 } from '../../base/bytes.ts'
import { nodeFiles, requireReplaceable, storageFailure } from '../../base/durable.ts'
import type { ByteSource } from '../../base/source.ts'
import { writeAll } from '../../base/write-all.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { encodeDeltaHead, MAX_UNIT_STORED, type PlannedUnit } from '../../bundle/delta/head.ts'
import { type OldImage, openOldImage } from '../../bundle/delta/old.ts'
import { packStreams } from '../../bundle/delta/streams.ts'
import { sha256 } from '../../bundle/digest.ts'
import { formatNumber } from '../../bundle/fields.ts'
import { blockLibrary, DEFAULT_LEVEL } from '../../bundle/squashfs/block-codec.ts'
import { type BundleHead, type ChunkIndex, IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { publisherErrors } from '../errors.ts'
import { sidesOf } from './sides.ts'
import { OldSources, placesOf } from './sources.ts'
import { UnitBuilder } from './unit.ts'

/** A patch file from one release to another (docs/deltas.md). Signs nothing and needs no key. */

export interface DeltaSide {
  /** The bundle. */
  readonly source: ByteSource
  readonly head: BundleHead
}

export interface MadeDelta {
  readonly size: number
  /** What a channel says of it. */
  readonly head: { readonly length: number; readonly sha256: Sha256 }
  readonly units: number
  /** Stored bytes of the chunks that it stands for, and of those that it leaves to be fetched. */
  readonly instead: number
  readonly left: number
  /** Bytes of content that a device compresses at the image's level: most of what applying it takes. */
  readonly packed: number
}

export interface DeltaEdge {
  readonly say: (line: string) => void
  readonly signal?: AbortSignal
}

/**
 * Writes the patch to `output`, which appears whole or not at all. The same bundles give the same bytes.
 * @throws DELTA_RELEASES, FILE_*, and what reading the bundles throws
 */
export async function makeDelta(from: DeltaSide, to: DeltaSide, output: string, edge: DeltaEdge): Promise<MadeDelta> {
  const [was, is] = [from.head.statement, to.head.statement]
  if (was.product !== is.product || from.head.digest === to.head.digest)
    throw publisherErrors.DELTA_RELEASES(
      `${was.product} ${formatNumber(was.number)} and ${is.product} ${formatNumber(is.number)}`,
    )
  await requireReplaceable(output)
  const known = new Set(IMAGE_NAMES.flatMap((name) => from.head.indexes[name].chunks.map(({ digest }) => digest)))
  // Hidden: whoever serves the folder must not take it for a patch.
  const partial = join(dirname(output), `.${basename(output)}.${process.pid}-${randomBytes(8).toString('hex')}.partial`)
  const scratch = `${partial}.units`
  const units: PlannedUnit[] = []
  const totals = { instead: 0, left: 0, packed: 0 }
  let codec = { level: DEFAULT_LEVEL, blockSize: 128 * 1024 }
  try {
    const file = await open(scratch, 'wx')
    try {
      for (const image of IMAGE_NAMES) {
        const next = await imageOf(to, image)
        if (image === 'rootfs' && next.squashfs !== undefined)
          codec = { level: next.squashfs.level ?? DEFAULT_LEVEL, blockSize: next.squashfs.superblock.blockSize }
        const wanted = wantedChunks(to.head.indexes[image], known, next)
        if (wanted.size === 0) continue
        edge.say(`${image}: ${wanted.size} of ${to.head.indexes[image].chunks.length} chunks changed`)
        const old = await OldSources.open(await imageOf(from, image), edge.signal)
        await imageUnits({
          image,
          next,
          old,
          codec,
          wanted,
          index: to.head.indexes[image],
          known,
          units,
          totals,
          file,
          edge,
        })
      }
      await file.sync()
    } finally {
      await file.close()
    }
    const parts = { from: from.head.digest, to: to.head.digest, library: blockLibrary, ...codec }
    const head = encodeDeltaHead({ ...parts, sides: await sidesOf(from, to) }, units)
    const joined = async function* (): AsyncGenerator<Uint8Array> {
      yield head
      yield* createReadStream(scratch)
    }
    await pipeline(joined(), createWriteStream(partial, { flags: 'wx', flush: true }))
    await rename(partial, output)
    await nodeFiles.syncDir(dirname(output))
    const size = head.length + units.reduce((sum, { stored }) => sum + stored, 0)
    return { size, head: { length: head.length, sha256: sha256(head) }, units: units.length, ...totals }
  } catch (cause) {
    throw storageFailure('write', output, cause)
  } finally {
    await rm(partial, { force: true })
    await rm(scratch, { force: true })
  }
}

function imageOf({ source, head }: DeltaSide, image: ImageName): Promise<OldImage> {
  const index = head.indexes[image]
  return openOldImage(chunkImage(source, head.offsets.data[image], index), index.imageLength, { names: true })
}

/** Small blocks may unpack to very much: a chunk of such is no longer than what it would be made of, and is left alone. */
const MAX_CHUNK_CONTENT = 8 * MiB

/** Chunks that the old release has not, and those between which a piece of the image lies that has to be made whole. */
function wantedChunks({ chunks }: ChunkIndex, known: ReadonlySet<Sha256>, { extents }: OldImage): ReadonlySet<number> {
  const wanted = new Set<number>()
  const cut = (at: number): boolean => {
    if (at >= extents.end) return false
    const { at: start, kind } = extents.get(extents.find(at))
    return kind !== 'raw' && start < at
  }
  /** What the blocks in a chunk unpack to, at most. */
  const contentOf = (n: number): number => {
    const chunk = chunks[n]
    if (chunk === undefined) return 0
    const { pieces } = piecesOf({ extents }, chunk.offset, chunk.offset + chunk.length)
    return pieces.reduce((sum, index) => sum + extents.stride(index), 0)
  }
  for (const [n, { digest }] of chunks.entries()) {
    if (known.has(digest) || contentOf(n) > MAX_CHUNK_CONTENT) continue
    let first = n
    while (first > 0 && cut(chunks[first]?.offset ?? 0)) first--
    let last = n
    while (last + 1 < chunks.length && cut(chunks[last + 1]?.offset ?? 0)) last++
    for (let i = first; i <= last; i++) wanted.add(i)
  }
  return wanted
}

interface Work {
  readonly image: ImageName
  readonly next: OldImage
  readonly old: OldSources
  readonly codec: { readonly level: number; readonly blockSize: number }
  readonly wanted: ReadonlySet<number>
  readonly index: ChunkIndex
  readonly known: ReadonlySet<Sha256>
  readonly units: PlannedUnit[]
  readonly totals: { instead: number; left: number; packed: number }
  readonly file: FileHandle
  readonly edge: DeltaEdge
}

async function imageUnits(work: Work): Promise<void> {
  const { next, old, codec, index } = work
  const places = await placesOf(next)
  let unit = new UnitBuilder(old, next, codec, places)
  for (const number of [...work.wanted].sort((a, b) => a - b)) {
    work.edge.signal?.throwIfAborted()
    const chunk = index.chunks[number]
    if (chunk === undefined) continue
    const { pieces, closed } = piecesOf(next, chunk.offset, chunk.offset + chunk.length)
    await unit.add(number, chunk, pieces, closed)
    if (!unit.full || !closed) continue
    await writeUnit(work, unit)
    unit = new UnitBuilder(old, next, codec, places)
  }
  if (!unit.empty) await writeUnit(work, unit)
}

/** Extents that begin between two places of the image; of raw ones also those that go on there. */
function piecesOf({ extents }: Pick<OldImage, 'extents'>, from: number, to: number) {
  const pieces: number[] = []
  let closed = true
  for (let index = extents.find(from); index < extents.count; index++) {
    const { at, length, kind } = extents.get(index)
    if (at >= to) break
    if (kind === 'raw' || at >= from) pieces.push(index)
    closed = kind === 'raw' || at + length <= to
  }
  return { pieces, closed }
}

async function writeUnit({ image, index, known, units, totals, file, edge }: Work, unit: UnitBuilder): Promise<void> {
  const instead = unit.runs
    .flatMap(({ first, count }) => index.chunks.slice(first, first + count))
    .reduce((sum, { digest, storedLength }) => (known.has(digest) ? sum : sum + storedLength), 0)
  const stored = packStreams(await unit.finish())
  if (stored.length >= instead || stored.length > MAX_UNIT_STORED) {
    totals.left += instead
    return
  }
  totals.instead += instead
  totals.packed += unit.packed
  await writeAll(
    file,
    stored,
    units.reduce((sum, unit) => sum + unit.stored, 0),
  )
  units.push({ image, runs: unit.runs, stored: stored.length, sha256: sha256(stored) })
  edge.say(`${image}: ${stored.length} bytes instead of ${instead}`)
}
