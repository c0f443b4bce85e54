import { fromHex, hex, MiB, type Sha256 } from '../../base/bytes.ts'
import { type ByteSource, readExactly } from '../../base/source.ts'
import { sha256 } from '../digest.ts'
import { type ChunkIndex, IMAGE_NAMES, type ImageName } from '../types.ts'
import { deltaErrors } from './errors.ts'
import { SIDES, type Sides, withinLimit } from './sides.ts'

/**
 * The head of a patch file (docs/format.md): between which releases, with which compressor, and its units with digests.
 * A patch is no part of a release and vouches for nothing: whatever it yields is compared with the signed chunk index.
 */

export const MAX_DELTA_HEAD = 4 * MiB
/** Stored bytes of a unit, and what its streams unpack to in all. */
export const MAX_UNIT_STORED = 24 * MiB
export const MAX_UNIT_UNPACKED = 32 * MiB
const MAGIC = 'BSTDLT02'
const FIXED = 124
const LIBRARY = 24

/** A row of neighbouring chunks of the new image. */
export interface ChunkRun {
  readonly first: number
  readonly count: number
}

export interface DeltaUnit {
  readonly image: ImageName
  /** Ascending, apart. */
  readonly runs: readonly ChunkRun[]
  /** Where in the patch file. */
  readonly offset: number
  readonly stored: number
  readonly sha256: Sha256
}

export interface DeltaHead {
  /** Digests of the two release statements. */
  readonly from: Sha256
  readonly to: Sha256
  /** `blockLibrary` of the publisher: the compressor that makes the same blocks. */
  readonly library: string
  /** Level of the new root file system's blocks. */
  readonly level: number
  /** Bytes of content of a full block of the new root file system. */
  readonly blockSize: number
  readonly units: readonly DeltaUnit[]
  /** What else a release has, as patches; they stand in the head. */
  readonly sides: Sides
  /** Bytes of the head. */
  readonly length: number
  /** Bytes of the whole file. */
  readonly size: number
}

/** Units without their places, which follow. */
export type PlannedUnit = Omit<DeltaUnit, 'offset'>

/** Sides that would make the head too long are left out. */
export function encodeDeltaHead(
  head: Omit<DeltaHead, 'length' | 'size' | 'units'>,
  units: readonly PlannedUnit[],
): Uint8Array {
  const plain = FIXED + units.reduce((sum, { runs }) => sum + 44 + runs.length * 8, 0)
  const sides = withinLimit(head.sides, MAX_DELTA_HEAD - plain)
  const length = plain + SIDES.reduce((sum, name) => sum + sides[name].length, 0)
  const bytes = Buffer.alloc(length)
  bytes.write(MAGIC, 0, 'latin1')
  bytes.writeUInt32LE(length, 8)
  bytes.writeUInt32LE(units.length, 12)
  bytes.set(fromHex(head.from), 16)
  bytes.set(fromHex(head.to), 48)
  bytes.write(head.library, 80, LIBRARY, 'latin1')
  bytes.writeUInt32LE(head.level, 104)
  bytes.writeUInt32LE(head.blockSize, 108)
  for (const [i, name] of SIDES.entries()) bytes.writeUInt32LE(sides[name].length, 112 + i * 4)
  let at = FIXED
  for (const { image, runs, stored, sha256: digest } of units) {
    bytes.writeUInt32LE(IMAGE_NAMES.indexOf(image), at)
    bytes.writeUInt32LE(runs.length, at + 4)
    bytes.writeUInt32LE(stored, at + 8)
    bytes.set(fromHex(digest), at + 12)
    at += 44
    for (const { first, count } of runs) {
      bytes.writeUInt32LE(first, at)
      bytes.writeUInt32LE(count, at + 4)
      at += 8
    }
  }
  for (const name of SIDES) {
    bytes.set(sides[name], at)
    at += sides[name].length
  }
  return bytes
}

/**
 * Reads the head of a patch file.
 * @param announced its length and digest, where someone vouched for it
 * @throws DELTA_INVALID, DELTA_DIGEST, and those of the source
 */
export async function readDeltaHead(
  source: ByteSource,
  announced?: { readonly length: number; readonly sha256: Sha256 },
  options: { readonly signal?: AbortSignal } = {},
): Promise<DeltaHead> {
  if (source.size < FIXED) throw invalid(`it has ${source.size} bytes`)
  const start = Buffer.from(await readExactly(source, 0, FIXED, options))
  if (start.toString('latin1', 0, 8) !== MAGIC) throw invalid(`it does not start with ${MAGIC}`)
  const length = start.readUInt32LE(8)
  if (length < FIXED || length > MAX_DELTA_HEAD || length > source.size) throw invalid(`its head says ${length} bytes`)
  if (announced !== undefined && announced.length !== length)
    throw deltaErrors.DELTA_DIGEST(`the head of a patch has ${length} bytes, announced were ${announced.length}`)
  const bytes = Buffer.concat([start, await readExactly(source, FIXED, length - FIXED, options)])
  if (announced !== undefined && sha256(bytes) !== announced.sha256)
    throw deltaErrors.DELTA_DIGEST('the head of a patch does not have the announced digest')
  const head = decodeHead(bytes)
  if (head.size !== source.size) throw invalid(`its units end at ${head.size}, the file at ${source.size}`)
  return head
}

function decodeHead(bytes: Buffer): DeltaHead {
  const units: DeltaUnit[] = []
  let at = FIXED
  let offset = bytes.length
  const lengths = SIDES.map((_, i) => bytes.readUInt32LE(112 + i * 4))
  const unitsEnd = bytes.length - lengths.reduce((sum, length) => sum + length, 0)
  const need = (count: number): void => {
    if (at + count > unitsEnd) throw invalid('its head ends inside a unit')
  }
  for (let n = bytes.readUInt32LE(12); n > 0; n--) {
    need(44)
    const image = IMAGE_NAMES[bytes.readUInt32LE(at)]
    const count = bytes.readUInt32LE(at + 4)
    const stored = bytes.readUInt32LE(at + 8)
    if (image === undefined || stored < 1 || stored > MAX_UNIT_STORED)
      throw invalid(`unit ${units.length} is impossible`)
    const digest = hex(bytes.subarray(at + 12, at + 44)) as Sha256
    at += 44
    need(count * 8)
    const runs: ChunkRun[] = []
    for (let run = 0; run < count; run++, at += 8)
      runs.push({ first: bytes.readUInt32LE(at), count: bytes.readUInt32LE(at + 4) })
    units.push({ image, runs, offset, stored, sha256: digest })
    offset += stored
  }
  if (at !== unitsEnd) throw invalid('bytes stand behind the last unit of its head')
  const sides: Record<string, Uint8Array> = {}
  for (const [i, name] of SIDES.entries()) {
    const length = lengths[i] ?? 0
    sides[name] = bytes.subarray(at, at + length)
    at += length
  }
  const library = bytes.toString('latin1', 80, 80 + LIBRARY).replace(/\0+$/, '')
  const level = bytes.readUInt32LE(104)
  const blockSize = bytes.readUInt32LE(108)
  if (!/^[\x21-\x7e]+ [\x21-\x7e]+$/.test(library) || level < 1 || level > 22)
    throw invalid('its compressor is impossible')
  if (blockSize < 4096 || blockSize > MiB) throw invalid(`its blocks have ${blockSize} bytes`)
  const from = hex(bytes.subarray(16, 48)) as Sha256
  const to = hex(bytes.subarray(48, 80)) as Sha256
  const codec = { library, level, blockSize }
  return { from, to, ...codec, units, sides: sides as unknown as Sides, length: bytes.length, size: offset }
}

/** Refuses units that do not fit the chunks of the release. @throws DELTA_INVALID */
export function checkUnits(units: readonly DeltaUnit[], indexes: Readonly<Record<ImageName, ChunkIndex>>): void {
  const ends: Record<ImageName, number> = { boot: 0, rootfs: 0 }
  for (const { image, runs } of units) {
    if (runs.length === 0) throw invalid('a unit has no chunks')
    for (const { first, count } of runs) {
      if (first < ends[image] || count < 1 || first + count > indexes[image].chunks.length)
        throw invalid(`a unit names the chunks ${first} to ${first + count} of ${image}`)
      ends[image] = first + count
    }
  }
}

export const invalid = (sentence: string) => deltaErrors.DELTA_INVALID(`patch: ${sentence}`)
