import { MiB } from '../../base/bytes.ts'
import { type ByteSource, readRanges } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { checkRun, contentsOf, type StoredRun, splitRuns, storedRanges } from '../../bundle/stored.ts'
import type { Chunk, ChunkIndex, ImageName } from '../../bundle/types.ts'
import type { SlotWriter } from '../slots/writer.ts'
import type { ChunkJournal } from './journal.ts'
import type { PatchedChunks } from './patch.ts'
import { throwIfCancelled } from './pieces.ts'
import type { ReuseSource } from './types.ts'

/** Where a chunk's bytes may be found: a claim, checked by hashing what is read. */
export type ReuseMap = ReadonlyMap<string, { readonly from: ReuseSource; readonly chunk: Chunk }>

/** First source wins; only chunks that are wanted and fit the device are kept, so memory follows the new index. */
export function reuseMap(sources: readonly ReuseSource[], wanted: readonly ChunkIndex[]): ReuseMap {
  if (sources.length === 0) return new Map()
  const digests = new Set(wanted.flatMap((index) => index.chunks.map((chunk) => chunk.digest)))
  const map = new Map<string, { from: ReuseSource; chunk: Chunk }>()
  for (const from of sources)
    for (const chunk of from.index.chunks)
      if (digests.has(chunk.digest) && !map.has(chunk.digest) && chunk.offset + chunk.length <= from.device.size)
        map.set(chunk.digest, { from, chunk })
  return map
}

/** The place that claims to have a chunk of an image, and will still have it when its turn comes. */
export function claimFor(reuse: ReuseMap, image: ImageName, chunk: Chunk) {
  const found = reuse.size === 0 ? undefined : reuse.get(chunk.digest)
  if (found === undefined || found.chunk.length !== chunk.length) return undefined
  // Chunks are written in image order: what stood in front of this one is gone.
  return found.from.overwrittenBy === image && found.chunk.offset < chunk.offset ? undefined : found
}

export interface FillCounts {
  /** Image bytes from reuse sources and from the door; stored bytes that came through the door. */
  reused: number
  fetched: number
  stored: number
  /** Image bytes that a patch rebuilt. */
  patched: number
}

export interface FillJob {
  readonly source: ByteSource
  /** Where the image's data starts in the source. */
  readonly dataOffset: number
  readonly image: ImageName
  readonly index: ChunkIndex
  /** From `scanSlot`. */
  readonly held: Uint8Array
  readonly reuse: ReuseMap
  readonly patched: PatchedChunks | undefined
  readonly writer: SlotWriter
  readonly signal: AbortSignal | undefined
  /** Counted up while the work goes on. */
  readonly counts: FillCounts
  readonly journal: ChunkJournal
  readonly onChunk: () => void
  /** Asked before chunks whose reuse failed are fetched, with their stored bytes; may throw. */
  readonly mayFetch: (stored: number) => void
}

/**
 * Makes every chunk that the slot does not hold true, in image order. What must come through the door is asked for in
 * one go, so that the door can plan its requests. A chunk whose reuse or patch failed is fetched behind all others.
 * A chunk's stored digest is checked before unpacking and its content digest after: nothing unchecked is written.
 */
export async function fillSlot(job: FillJob): Promise<void> {
  const { chunks } = job.index
  const scratch = new Uint8Array(MiB)
  const local = (i: number, chunk: Chunk) => localSource(job, i, chunk, scratch)
  const lacking = chunks.filter((chunk, i) => job.held[i] === 0 && local(i, chunk) === undefined)
  const failed = new Set<number>()
  const coming = new Coming(job, lacking)
  /** How many of those that are lacking were taken. */
  let taken = 0
  try {
    for (let i = 0; i < chunks.length; ) {
      throwIfCancelled(job.signal)
      const chunk = chunks[i] as Chunk
      if (chunk === lacking[taken]) {
        // Together with those behind it that are lacking too: nothing else is written between them.
        let most = 1
        while (lacking[taken + most] !== undefined && chunks[i + most] === lacking[taken + most]) most++
        const count = await takeNext(job, coming, most)
        for (const end = i + count; i < end; i++) job.journal.add(i, 'fetch')
        taken += count
        continue
      }
      if (job.held[i] === 1) job.journal.add(i, 'keep')
      else {
        const found = local(i, chunk)
        const bytes = await found?.bytes()
        if (found === undefined || bytes === undefined) failed.add(i)
        else {
          const written = job.writer.write(chunk.offset, bytes)
          if (written !== undefined) await written
          job.counts[found.counted] += chunk.length
          job.journal.add(i, found.how)
          job.onChunk()
        }
      }
      i++
    }
  } finally {
    job.journal.end()
    await coming.end()
  }
  if (failed.size === 0) return
  const wanted = chunks.filter((_, i) => failed.has(i))
  job.mayFetch(wanted.reduce((sum, { storedLength }) => sum + storedLength, 0))
  const again = new Coming(job, wanted)
  try {
    for (const i of failed) {
      await takeNext(job, again, 1)
      job.journal.add(i, 'refetch')
    }
  } finally {
    job.journal.end()
    await again.end()
  }
}

interface LocalSource {
  readonly how: 'reuse' | 'patch'
  readonly counted: 'reused' | 'patched'
  /** Verified content; undefined when the claim or the patch did not hold. */
  readonly bytes: () => Promise<Uint8Array | undefined>
}

/** What the device itself can make a chunk of: a copy that it claims to have, or a patch. Undefined: fetch it. */
function localSource(
  { reuse, image, patched }: FillJob,
  i: number,
  chunk: Chunk,
  scratch: Uint8Array,
): LocalSource | undefined {
  const claim = claimFor(reuse, image, chunk)
  if (claim !== undefined) return { how: 'reuse', counted: 'reused', bytes: () => claimedBytes(claim, chunk, scratch) }
  if (patched?.covers(i) !== true) return undefined
  return { how: 'patch', counted: 'patched', bytes: () => patched.take(i) }
}

async function claimedBytes(
  found: { readonly from: ReuseSource; readonly chunk: Chunk },
  chunk: Chunk,
  scratch: Uint8Array,
): Promise<Uint8Array | undefined> {
  const bytes = scratch.subarray(0, chunk.length)
  try {
    await found.from.device.read(found.chunk.offset, bytes, { fresh: false })
  } catch {
    // A bad sector elsewhere is no reason to fail: the door has the chunk too.
    return undefined
  }
  return sha256(bytes) === chunk.digest ? bytes : undefined
}

/** Chunks that come through the door, in the order they were asked for, checked. */
class Coming {
  readonly #chunks: readonly Chunk[]
  readonly #runs: AsyncGenerator<StoredRun>
  #run: StoredRun | undefined
  /** Something in this run is not what was signed: what stands before it is still taken. */
  #doubtful = false

  constructor(job: FillJob, chunks: readonly Chunk[]) {
    this.#chunks = chunks
    const ranges = storedRanges(job.dataOffset, chunks)
    const options = job.signal === undefined ? {} : { signal: job.signal }
    this.#runs = splitRuns(readRanges(job.source, ranges, options), chunks)
  }

  get chunks(): readonly Chunk[] {
    return this.#chunks
  }

  /** The next chunks, at most so many; their bytes are valid until the next are asked for. */
  async take(most: number): Promise<StoredRun> {
    const run = this.#run ?? (await this.#more())
    const count = Math.min(run.count, this.#doubtful ? 1 : most)
    this.#run = undefined
    if (count === run.count && !this.#doubtful) return run
    let length = 0
    for (let i = 0; i < count; i++) length += this.#chunks[run.first + i]?.storedLength ?? 0
    const { first, bytes } = run
    const part = { first, count, bytes: bytes.subarray(0, length), digests: undefined }
    if (count < run.count)
      this.#run = { first: first + count, count: run.count - count, bytes: bytes.subarray(length), digests: undefined }
    if (this.#doubtful) checkRun(part, this.#chunks)
    return part
  }

  async #more(): Promise<StoredRun> {
    const { value, done } = await this.#runs.next()
    // `splitRuns` refuses a stream that is too short.
    if (done === true) throw new RangeError('a chunk was not asked for')
    try {
      checkRun(value, this.#chunks)
      this.#doubtful = false
    } catch {
      this.#doubtful = true
    }
    return value
  }

  async end(): Promise<void> {
    await this.#runs.return(undefined)
  }
}

/** @returns how many chunks were taken and written */
async function takeNext(job: FillJob, coming: Coming, most: number): Promise<number> {
  const run = await coming.take(most)
  job.counts.stored += run.bytes.length
  for (const { offset, bytes } of contentsOf(run, coming.chunks)) {
    const written = job.writer.write(offset, bytes)
    if (written !== undefined) await written
    job.counts.fetched += bytes.length
  }
  job.onChunk()
  throwIfCancelled(job.signal)
  return run.count
}
