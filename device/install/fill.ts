import { MiB } from '../../base/bytes.ts'
import { type ByteSource, readRanges } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { holdsRun, type StoredRun, splitRuns, storedRanges, unpackChecked, unpackChunk } from '../../bundle/stored.ts'
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
  try {
    for (const [i, chunk] of chunks.entries()) {
      throwIfCancelled(job.signal)
      if (job.held[i] === 1) {
        job.journal.add(i, 'keep')
        continue
      }
      const found = local(i, chunk)
      if (found !== undefined) {
        const bytes = await found.bytes()
        if (bytes === undefined) failed.add(i)
        else {
          const written = job.writer.write(chunk.offset, bytes)
          if (written !== undefined) await written
          job.counts[found.counted] += chunk.length
          job.journal.add(i, found.how)
          job.onChunk()
        }
      } else {
        const taken = takeNext(job, coming, chunk)
        if (taken !== undefined) await taken
        job.journal.add(i, 'fetch')
      }
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
      await takeNext(job, again, chunks[i] as Chunk)
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

/** Chunks that come through the door, in the order they were asked for. */
class Coming {
  readonly #chunks: readonly Chunk[]
  readonly #runs: AsyncGenerator<StoredRun>
  #run: StoredRun | undefined
  /** Of the run: chunks and bytes that were taken. */
  #taken = 0
  #at = 0
  /** Not all of this run is what was signed: each chunk of it is checked by itself, for those in front are good. */
  #doubtful = false

  constructor(job: FillJob, chunks: readonly Chunk[]) {
    this.#chunks = chunks
    const ranges = storedRanges(job.dataOffset, chunks)
    const options = job.signal === undefined ? {} : { signal: job.signal }
    this.#runs = splitRuns(readRanges(job.source, ranges, options), chunks)
  }

  /** Waits only when nothing that has come is left; the bytes, checked, are valid until it waits again. */
  next(): Uint8Array | Promise<Uint8Array> {
    const run = this.#run
    return run === undefined || this.#taken === run.count ? this.#more() : this.#take(run)
  }

  #take({ first, bytes }: StoredRun): Uint8Array {
    const chunk = this.#chunks[first + this.#taken++] as Chunk
    const stored = bytes.subarray(this.#at, this.#at + chunk.storedLength)
    this.#at += chunk.storedLength
    return this.#doubtful ? unpackChunk(chunk, stored) : unpackChecked(chunk, stored)
  }

  async #more(): Promise<Uint8Array> {
    const { value, done } = await this.#runs.next()
    // `splitRuns` refuses a stream that is too short.
    if (done === true) throw new RangeError('a chunk was not asked for')
    this.#run = value
    this.#taken = 0
    this.#at = 0
    this.#doubtful = !holdsRun(value, this.#chunks)
    return this.#take(value)
  }

  async end(): Promise<void> {
    await this.#runs.return(undefined)
  }
}

/** Writes the next chunk that comes. Waits only when it has to. */
function takeNext(job: FillJob, coming: Coming, chunk: Chunk): Promise<void> | undefined {
  const bytes = coming.next()
  if (bytes instanceof Promise) return bytes.then((come) => put(job, chunk, come))
  return put(job, chunk, bytes)
}

function put(job: FillJob, chunk: Chunk, bytes: Uint8Array): Promise<void> | undefined {
  job.counts.stored += chunk.storedLength
  const done = (): void => {
    job.counts.fetched += chunk.length
    job.onChunk()
    throwIfCancelled(job.signal)
  }
  const written = job.writer.write(chunk.offset, bytes)
  if (written !== undefined) return written.then(done)
  done()
  return undefined
}
