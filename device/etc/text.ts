import { diff3Merge } from 'node-diff3'

/** Three-way merge of text files: only where no line is in doubt. */

/** Larger files are not merged: the comparison takes time that grows with the square of what repeats. */
export const MAX_TEXT_BYTES = 256 * 1024
const MAX_LINES = 5000

/**
 * The text with both sides' changes, or undefined when they touch the same lines, or when one of them is not text
 * (UTF-8 without NUL, at most 256 KiB and 5,000 lines). Pure.
 */
export function mergeText(old: Uint8Array, local: Uint8Array, image: Uint8Array): Uint8Array | undefined {
  const [o, a, b] = [linesOf(old), linesOf(local), linesOf(image)]
  if (o === undefined || a === undefined || b === undefined) return undefined
  const regions = diff3Merge(a, o, b, { excludeFalseConflicts: true })
  const merged: string[] = []
  for (const region of regions) {
    if (region.ok === undefined) return undefined
    merged.push(...region.ok)
  }
  return Buffer.from(merged.join(''))
}

/** Lines with their ends, so that a missing last newline is a difference of its line only. */
function linesOf(bytes: Uint8Array): string[] | undefined {
  if (bytes.length > MAX_TEXT_BYTES || bytes.includes(0)) return undefined
  let text: string
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes)
  } catch {
    return undefined
  }
  const lines = text.match(/[^\n]*\n|[^\n]+$/g) ?? []
  return lines.length > MAX_LINES ? undefined : lines
}
