import { availableParallelism } from 'node:os'
import { MiB } from '../../base/bytes.ts'
import { isBistableError } from '../../base/errors.ts'
import { type ByteSource, readExactly } from '../../base/source.ts'
import { type Compressor, UnitReader } from '../../bundle/delta/apply.ts'
import { deltaErrors } from '../../bundle/delta/errors.ts'
import { checkUnits, type DeltaHead, type DeltaUnit } from '../../bundle/delta/head.ts'
import { type OldImage, openOldImage } from '../../bundle/delta/old.ts'
import { sha256 } from '../../bundle/digest.ts'
import { blockLibrary, compressBlock } from '../../bundle/squashfs/block-codec.ts'
import { createPool } from '../../bundle/squashfs/pool.ts'
import type { BundleHead, ChunkIndex, ImageName } from '../../bundle/types.ts'
import type { SlotDevice } from '../slots/types.ts'

/**
 * A patch as a source of chunks. It is never believed: each unit is compared with its announced digest before it is
 * unpacked, and each chunk with the signed one before it is written. Whatever a patch does not give is fetched as chunks.
 */

export interface Patch {
  readonly source: ByteSource
  readonly head: DeltaHead
  /** The running slot: what the patch starts from, and how long its images are. */
  readonly from: Readonly<Record<ImageName, { readonly device: Pick<SlotDevice, 'read'>; readonly length: number }>>
  /** Told once for each reason why it, or a part of it, is not used. */
  readonly onRefused: (error: Error) => void
}

/**
 * Refuses a patch that cannot lead from what runs to what is to be installed.
 * @param running digest of the running release's statement
 * @throws DELTA_WRONG_RELEASE, DELTA_CODEC, DELTA_INVALID
 */
export function checkPatch(head: DeltaHead, running: string, wanted: BundleHead): void {
  if (head.from !== running || head.to !== wanted.digest)
    throw deltaErrors.DELTA_WRONG_RELEASE(
      `a patch leads from ${head.from} to ${head.to}; wanted is one from ${running} to ${wanted.digest}`,
    )
  if (head.library !== blockLibrary)
    throw deltaErrors.DELTA_CODEC(`a patch was made with ${head.library}, this is ${blockLibrary}`)
  checkUnits(head.units, wanted.indexes)
}

/** Units that take fewer bytes than the chunks they stand for, of those that are lacking. Pure. */
export function worthwhile(
  head: DeltaHead,
  image: ImageName,
  { chunks }: ChunkIndex,
  lacking: (chunk: number) => boolean,
): readonly DeltaUnit[] {
  return head.units.filter((unit) => {
    if (unit.image !== image) return false
    let instead = 0
    for (const { first, count } of unit.runs)
      for (let n = first; n < first + count; n++) if (lacking(n)) instead += chunks[n]?.storedLength ?? 0
    return instead > unit.stored
  })
}

/** The chunks that units give. */
export function chunksOf(units: readonly DeltaUnit[]): ReadonlyMap<number, DeltaUnit> {
  const chunks = new Map<number, DeltaUnit>()
  for (const unit of units)
    for (const { first, count } of unit.runs) for (let n = first; n < first + count; n++) chunks.set(n, unit)
  return chunks
}

/** Of image to be rebuilt: under this the threads' start costs more than it saves. */
const WORTH_THREADS = MiB
/** Beside the install's own, which compresses what they have no hand free for. A thread takes some 20 MiB. */
const MAX_THREADS = 1
/** Blocks that a thread has at a time: the one it works on, and the next. */
const AT_THREAD = 2

interface Compressors extends Compressor {
  close(): Promise<void>
}

/** The chunks of one image that a patch gives. Asked for in ascending order; closed afterwards. */
export class PatchedChunks {
  readonly #patch: Patch
  readonly #image: ImageName
  readonly #index: ChunkIndex
  readonly #signal: AbortSignal | undefined
  readonly #onFetched: (bytes: number) => void
  readonly #units: ReadonlyMap<number, DeltaUnit>
  #old: OldImage | undefined
  readonly #lacking: (chunk: number) => boolean
  readonly #threads: number | undefined
  #pool: Compressors | undefined
  #reader: { readonly unit: DeltaUnit; readonly unitReader: UnitReader; readonly left: number[] } | undefined
  #given = true

  constructor(
    patch: Patch,
    image: ImageName,
    parts: {
      readonly index: ChunkIndex
      readonly units: readonly DeltaUnit[]
      /** Whether a chunk will be asked for. */
      readonly lacking: (chunk: number) => boolean
      readonly signal: AbortSignal | undefined
      readonly onFetched: (bytes: number) => void
      /** Unless told, by the processors and what is to be done. */
      readonly threads?: number
    },
  ) {
    this.#lacking = parts.lacking
    this.#threads = parts.threads
    this.#patch = patch
    this.#image = image
    this.#index = parts.index
    this.#signal = parts.signal
    this.#onFetched = parts.onFetched
    this.#units = chunksOf(parts.units)
  }

  covers(chunk: number): boolean {
    return this.#units.has(chunk)
  }

  /** The verified content of a chunk, or undefined: fetch it. Fails only when the install was cancelled. */
  async take(chunk: number): Promise<Uint8Array | undefined> {
    const unit = this.#units.get(chunk)
    const wanted = this.#index.chunks[chunk]
    if (!this.#given || unit === undefined || wanted === undefined) return undefined
    try {
      const { unitReader, left } = await this.#open(unit)
      for (let next = left.shift(); next !== undefined; next = left.shift()) {
        const bytes = await unitReader.next()
        if (next !== chunk) continue
        if (bytes !== undefined && sha256(bytes) === wanted.digest) return bytes
        // One block that this compressor makes otherwise costs its chunk and no more.
        return undefined
      }
    } catch (error) {
      if (this.#signal?.aborted === true || !isBistableError(error)) throw error
      this.#given = false
      this.#reader = undefined
      this.#patch.onRefused(error)
    }
    return undefined
  }

  /** Ends the threads; once nothing more is asked for. */
  async close(): Promise<void> {
    this.#given = false
    await this.#pool?.close()
  }

  /** Blocks are compressed in threads where there is enough to do. */
  #compressors(level: number): Compressors {
    let bytes = 0
    for (const chunk of this.#units.keys()) if (this.#lacking(chunk)) bytes += this.#index.chunks[chunk]?.length ?? 0
    const processors = availableParallelism()
    const usual = bytes < WORTH_THREADS || processors < 2 ? 0 : MAX_THREADS
    const threads = this.#threads ?? usual
    const pool = createPool(level, threads, (cause) =>
      deltaErrors.DELTA_THREAD(`a thread that rebuilds blocks failed: ${cause.message}`, { cause }),
    )
    let there = 0
    let own: Uint8Array<ArrayBuffer> | undefined
    return {
      pack: async (content) => {
        if (there < threads * AT_THREAD) {
          there++
          return pool.pack(content).finally(() => there--)
        }
        const packed = compressBlock(content, level)
        if (!packed.plain) own = content
        return packed
      },
      memory: (length) => {
        const from = own
        own = undefined
        return from !== undefined && from.buffer.byteLength >= length
          ? new Uint8Array(from.buffer, 0, length)
          : pool.memory(length)
      },
      close: () => pool.close(),
    }
  }

  async #open(unit: DeltaUnit) {
    if (this.#reader?.unit === unit) return this.#reader
    this.#reader = undefined
    const { source, head, from } = this.#patch
    const { device, length } = from[this.#image]
    const read = async (offset: number, count: number): Promise<Uint8Array> => {
      const into = new Uint8Array(count)
      await device.read(offset, into, { fresh: false })
      return into
    }
    this.#old ??= await openOldImage({ read }, length)
    const options = this.#signal === undefined ? {} : { signal: this.#signal }
    const stored = await readExactly(source, unit.offset, unit.stored, options)
    this.#onFetched(stored.length)
    if (sha256(stored) !== unit.sha256)
      throw deltaErrors.DELTA_DIGEST(`${unit.stored} bytes at ${unit.offset} of the patch are not those announced`)
    const left = unit.runs.flatMap(({ first, count }) => Array.from({ length: count }, (_, n) => first + n))
    const chunks = left.map((n) => ({ length: this.#index.chunks[n]?.length ?? 0, wanted: this.#lacking(n) }))
    this.#pool ??= this.#compressors(head.level)
    const unitReader = UnitReader.open(stored, { old: this.#old, codec: head, chunks, compressor: this.#pool })
    this.#reader = { unit, unitReader, left }
    return this.#reader
  }
}
