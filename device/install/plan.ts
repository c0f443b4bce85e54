import { humanBytes } from '../../base/bytes.ts'
import { storedRanges } from '../../bundle/stored.ts'
import { type BundleHead, type Chunk, IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { installErrors } from './errors.ts'
import { claimFor, type ReuseMap } from './fill.ts'

/** What an install would do, before it does anything: where each byte of the images comes from. Pure. */

export interface ImagePlan {
  readonly image: ImageName
  readonly length: number
  /** Image bytes that the slot holds at their place. */
  readonly kept: number
  /** Image bytes that other places on the device claim to have; each claim is checked when it is used. */
  readonly reused: readonly { readonly from: string; readonly bytes: number }[]
  /** Image bytes that come through the door, the bytes that this takes, and in how many ranges of the bundle. */
  readonly fetched: {
    readonly chunks: number
    readonly bytes: number
    readonly stored: number
    readonly ranges: number
  }
}

export interface InstallPlan {
  /** Where the rest is fetched from. */
  readonly source: string
  readonly images: readonly ImagePlan[]
  /** Bytes of roots, statement and chunk indexes: fetched before anything can be planned. */
  readonly head: number
  /** Bytes of attachments that the device keeps. */
  readonly attachments: number
  /** All that comes through the door, in bytes. */
  readonly total: number
}

export interface PlanParts {
  readonly source: string
  readonly head: BundleHead
  /** From `scanSlot`. */
  readonly held: Readonly<Record<ImageName, Uint8Array>>
  readonly reuse: ReuseMap
}

export function planInstall({ source, head, held, reuse }: PlanParts): InstallPlan {
  const images = IMAGE_NAMES.map((image) => planImage(image, head, held[image], reuse))
  const inventory = head.statement.attachments.find(({ name }) => name === 'inventory')?.length ?? 0
  const first = Math.min(head.offsets.data.boot, ...Object.values(head.offsets.attachments))
  const stored = images.reduce((sum, { fetched }) => sum + fetched.stored, 0)
  return { source, images, head: first, attachments: inventory, total: first + inventory + stored }
}

function planImage(image: ImageName, head: BundleHead, held: Uint8Array, reuse: ReuseMap): ImagePlan {
  const { chunks, imageLength } = head.indexes[image]
  const reused = new Map<string, number>()
  const lacking: Chunk[] = []
  let kept = 0
  for (const [i, chunk] of chunks.entries()) {
    const claim = claimFor(reuse, image, chunk)
    if (held[i] === 1) kept += chunk.length
    else if (claim === undefined) lacking.push(chunk)
    else reused.set(claim.from.name, (reused.get(claim.from.name) ?? 0) + chunk.length)
  }
  return {
    image,
    length: imageLength,
    kept,
    reused: [...reused].map(([from, bytes]) => ({ from, bytes })),
    fetched: {
      chunks: lacking.length,
      bytes: lacking.reduce((sum, { length }) => sum + length, 0),
      stored: lacking.reduce((sum, { storedLength }) => sum + storedLength, 0),
      ranges: storedRanges(head.offsets.data[image], lacking).length,
    },
  }
}

/** Refuses a plan that would fetch more than `maxBytes`. @throws INSTALL_BUDGET */
export function checkBudget({ total, images }: InstallPlan, maxBytes: number | undefined): void {
  if (maxBytes === undefined || total <= maxBytes) return
  const reused = images.reduce((sum, image) => sum + image.reused.reduce((part, { bytes }) => part + bytes, 0), 0)
  const kept = images.reduce((sum, image) => sum + image.kept, 0)
  throw installErrors.INSTALL_BUDGET(
    `${total} bytes (${humanBytes(total)}) would be fetched, at most ${maxBytes} are allowed; ${humanBytes(kept + reused)} of the images are on the device`,
    { details: { total, maxBytes, kept, reused } },
  )
}

/** The plan for people, line by line. */
export function planText({ source, images, head, attachments, total }: InstallPlan): string {
  const lines = images.flatMap(({ image, length, kept, reused, fetched }) => [
    `${image}: ${humanBytes(length)}`,
    ...(kept > 0 ? [`  ${humanBytes(kept).padStart(9)}  in the slot already`] : []),
    ...reused.map(({ from, bytes }) => `  ${humanBytes(bytes).padStart(9)}  from ${from}`),
    ...(fetched.chunks > 0
      ? [
          `  ${humanBytes(fetched.bytes).padStart(9)}  to fetch: ${fetched.stored} bytes, ${fetched.chunks} chunks in ${fetched.ranges} ranges`,
        ]
      : []),
  ])
  return [
    ...lines,
    `statement and indexes: ${head} bytes; inventory: ${attachments} bytes`,
    `in all ${total} bytes (${humanBytes(total)}) from ${source}`,
  ].join('\n')
}
