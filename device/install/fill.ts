import { MiB } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import { sha256 } from '../../bundle/digest.ts'
import { readChunks, unpackChunk } from '../../bundle/stored.ts'
import type { Chunk, ChunkIndex } from '../../bundle/types.ts'
import type { SlotWriter } from '../slots/writer.ts'
import { throwIfCancelled } from './pieces.ts'
import type { ReuseSource } from './types.ts'

/** Where a chunk's bytes may be found: a claim, checked by hashing what is read. */
export type ReuseMap = ReadonlyMap<string, { readonly from: ReuseSource; readonly chunk: Chunk }>

/** First source wins; only chunks that are wanted and fit the device are kept, so memory follows the new index. */
export function reuseMap(sources: readonly ReuseSource[], wanted: readonly ChunkIndex[]): ReuseMap {
  const digests = new Set(wanted.flatMap((index) => index.chunks.map((chunk) => chunk.digest)))
  const map = new Map<string, { from: ReuseSource; chunk: Chunk }>()
  for (const from of sources)
    for (const chunk of from.index.chunks)
      if (digests.has(chunk.digest) && !map.has(chunk.digest) && chunk.offset + chunk.length <= from.device.size)
        map.set(chunk.digest, { from, chunk })
  return map
}

export interface FillCounts {
  /** Image bytes from reuse sources and from the door; stored bytes that came through the door. */
  reused: number
  fetched: number
  stored: number
}

export interface FillJob {
  readonly source: ByteSource
  /** Where the image's data starts in the source. */
  readonly dataOffset: number
  readonly index: ChunkIndex
  /** From `scanSlot`. */
  readonly held: Uint8Array
  readonly reuse: ReuseMap
  readonly writer: SlotWriter
  readonly signal: AbortSignal | undefined
  /** Counted up while the work goes on. */
  readonly counts: FillCounts
  readonly onChunk: () => void
}

/**
 * Makes every chunk that the slot does not hold true, in image order. Missing neighbours are fetched in one range.
 * `unpackChunk` checks a chunk's stored digest before unpacking and its content digest after: nothing unchecked is written.
 */
export async function fillSlot(job: FillJob): Promise<void> {
  const { chunks } = job.index
  const scratch = new Uint8Array(MiB)
  /** The run of neighbouring chunks to fetch: first .. end-1. */
  let first = 0
  for (let i = 0; i <= chunks.length; i++) {
    throwIfCancelled(job.signal)
    const chunk = chunks[i]
    if (chunk !== undefined && job.held[i] === 0 && !job.reuse.has(chunk.digest)) continue
    await fetchRun(job, chunks.slice(first, i))
    first = i + 1
    if (chunk === undefined || job.held[i] === 1) continue
    const bytes = await reusedBytes(job.reuse, chunk, scratch)
    if (bytes === undefined) first = i
    else {
      await job.writer.write(chunk.offset, bytes)
      job.counts.reused += chunk.length
      job.onChunk()
    }
  }
}

async function reusedBytes(reuse: ReuseMap, chunk: Chunk, scratch: Uint8Array): Promise<Uint8Array | undefined> {
  const found = reuse.get(chunk.digest)
  if (found === undefined || found.chunk.length !== chunk.length) return undefined
  const bytes = scratch.subarray(0, chunk.length)
  try {
    await found.from.device.read(found.chunk.offset, bytes, { fresh: false })
  } catch {
    // A bad sector elsewhere is no reason to fail: the door has the chunk too.
    return undefined
  }
  return sha256(bytes) === chunk.digest ? bytes : undefined
}

async function fetchRun(job: FillJob, run: readonly Chunk[]): Promise<void> {
  const options = job.signal === undefined ? {} : { signal: job.signal }
  for await (const [chunk, stored] of readChunks(job.source, job.dataOffset, run, options)) {
    job.counts.stored += stored.length
    await job.writer.write(chunk.offset, unpackChunk(chunk, stored))
    job.counts.fetched += chunk.length
    job.onChunk()
    throwIfCancelled(job.signal)
  }
}
