import { humanBytes } from '../../base/bytes.ts'
import type { DeltaUnit } from '../../bundle/delta/head.ts'
import { storedRanges } from '../../bundle/stored.ts'
import { type BundleHead, type Chunk, type ChunkIndex, IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { installErrors } from './errors.ts'
import { claimFor, type ReuseMap } from './fill.ts'
import { chunksOf, type Patch, worthwhile } from './patch.ts'

/** What an install would do, before it does anything: where each byte of the images comes from. Pure. */

export interface ImagePlan {
  readonly image: ImageName
  readonly length: number
  /** Image bytes that the slot holds at their place. */
  readonly kept: number
  /** Image bytes that other places on the device claim to have; each claim is checked when it is used. */
  readonly reused: readonly { readonly from: string; readonly bytes: number }[]
  /** Image bytes that a patch rebuilds from the running slot, and the bytes of it that this takes. */
  readonly patched: { readonly bytes: number; readonly stored: number; readonly units: number }
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
  /** Bytes of roots, statement and those chunk indexes that are read from the bundle: fetched before anything can be planned. */
  readonly head: number
  /** Bytes that the inventory takes yet. */
  readonly attachments: number
  /** Bytes of the patch's head, with indexes and inventory; 0 without one. */
  readonly patch: number
  /** Bytes of the hints beside the bundle, from which indexes were made. */
  readonly hints: number
  /** All that comes through the door, in bytes. */
  readonly total: number
}

export interface PlanParts {
  readonly source: string
  readonly head: BundleHead
  /** From `scanSlot`. */
  readonly held: Readonly<Record<ImageName, Uint8Array>>
  readonly reuse: ReuseMap
  readonly patch?: Pick<Patch, 'head'> | undefined
  /** See `InstallRequest`. */
  readonly inventory?: { readonly bytes: number } | undefined
  readonly hintBytes?: number | undefined
}

/** The patch's units that are worth their bytes, for one image. Pure. */
export function unitsFor(
  image: ImageName,
  { head, held, reuse, patch }: Omit<PlanParts, 'source'>,
): readonly DeltaUnit[] {
  const index = head.indexes[image]
  if (patch === undefined) return []
  return worthwhile(patch.head, image, index, lackingOf(index, held[image], image, reuse))
}

/** Chunks that neither the slot holds nor another place on the device claims to have. */
export function lackingOf({ chunks }: ChunkIndex, held: Uint8Array, image: ImageName, reuse: ReuseMap) {
  return (n: number): boolean => {
    const chunk = chunks[n]
    return chunk !== undefined && held[n] === 0 && claimFor(reuse, image, chunk) === undefined
  }
}

export function planInstall(parts: PlanParts): InstallPlan {
  const { source, head, patch, hintBytes: hints = 0 } = parts
  const images = IMAGE_NAMES.map((image) => planImage(image, parts))
  const patchHead = patch?.head.length ?? 0
  const whole = head.statement.attachments.find(({ name }) => name === 'inventory')?.length ?? 0
  const inventory = parts.inventory?.bytes ?? whole
  const first = Math.min(head.offsets.data.boot, ...Object.values(head.offsets.attachments)) - head.spared
  const stored = images.reduce((sum, { fetched, patched }) => sum + fetched.stored + patched.stored, 0)
  const total = first + inventory + patchHead + hints + stored
  return { source, images, head: first, attachments: inventory, patch: patchHead, hints, total }
}

function planImage(image: ImageName, parts: PlanParts): ImagePlan {
  const { head, reuse } = parts
  const held = parts.held[image]
  const { chunks, imageLength } = head.indexes[image]
  const units = unitsFor(image, parts)
  const covered = chunksOf(units)
  let rebuilt = 0
  const reused = new Map<string, number>()
  const lacking: Chunk[] = []
  let kept = 0
  for (const [i, chunk] of chunks.entries()) {
    const claim = claimFor(reuse, image, chunk)
    if (held[i] === 1) kept += chunk.length
    else if (claim === undefined) {
      if (covered.has(i)) rebuilt += chunk.length
      else lacking.push(chunk)
    } else reused.set(claim.from.name, (reused.get(claim.from.name) ?? 0) + chunk.length)
  }
  return {
    image,
    length: imageLength,
    kept,
    reused: [...reused].map(([from, bytes]) => ({ from, bytes })),
    patched: { bytes: rebuilt, stored: units.reduce((sum, { stored }) => sum + stored, 0), units: units.length },
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
  const kept = images.reduce((sum, image) => sum + image.kept + image.patched.bytes, 0)
  throw installErrors.INSTALL_BUDGET(
    `${total} bytes (${humanBytes(total)}) would be fetched, at most ${maxBytes} are allowed; ${humanBytes(kept + reused)} of the images are on the device`,
    { details: { total, maxBytes, kept, reused } },
  )
}

const counted = (n: number, what: string): string => `${n} ${what}${n === 1 ? '' : 's'}`

/** The plan for people, line by line. */
export function planText({ source, images, head, attachments, patch, hints, total }: InstallPlan): string {
  const lines = images.flatMap(({ image, length, kept, reused, patched, fetched }) => [
    `${image}: ${humanBytes(length)}`,
    ...(kept > 0 ? [`  ${humanBytes(kept).padStart(9)}  in the slot already`] : []),
    ...reused.map(({ from, bytes }) => `  ${humanBytes(bytes).padStart(9)}  from ${from}`),
    ...(patched.units > 0
      ? [`  ${humanBytes(patched.bytes).padStart(9)}  rebuilt by a patch of ${patched.stored} bytes`]
      : []),
    ...(fetched.chunks > 0
      ? [
          `  ${humanBytes(fetched.bytes).padStart(9)}  to fetch: ${fetched.stored} bytes, ${counted(fetched.chunks, 'chunk')} in ${counted(fetched.ranges, 'range')}`,
        ]
      : []),
  ])
  return [
    ...lines,
    [
      `statement and indexes: ${head} bytes; inventory: ${attachments} bytes`,
      ...(patch > 0 ? [`head of the patch: ${patch} bytes`] : []),
      ...(hints > 0 ? [`hints: ${hints} bytes`] : []),
    ].join('; '),
    `in all ${total} bytes (${humanBytes(total)}) from ${source}`,
  ].join('\n')
}
