import { hash } from 'node:crypto'
import type { Sha256 } from '../../base/bytes.ts'
import type { MergedTree } from '../tree.ts'
import type { FileNode } from './contents.ts'

/**
 * In which order contents stand in the data area, and where fragment blocks end: chosen so that a file that changes,
 * comes or goes disturbs little of what stands around it (docs/squashfs.md). Pure.
 */

/** A content, with the first of the paths that have it. */
export interface Laid {
  readonly node: FileNode
  readonly path: string
}

/** Every content that is not empty, once, in byte order of the paths: a release's neighbours are the next one's, too. */
export function layoutOrder(tree: MergedTree): Laid[] {
  const seen = new Set<Sha256>()
  const laid: Laid[] = []
  for (const { path, node } of tree.entries()) {
    if (node.type !== 'file' || node.size === 0 || seen.has(node.content)) continue
    seen.add(node.content)
    laid.push({ node, path })
  }
  return laid
}

/** One path in this many may end a fragment block. */
const CUTS = 8

/**
 * Whether a fragment block with `filled` of its `blockSize` bytes ends before the content of `path`, though it would
 * still fit. From a quarter on, one path in eight ends it. That follows from the path alone, so where blocks end falls
 * into step again behind a change, instead of when two fillings happen to meet.
 */
export function endsFragment(filled: number, blockSize: number, path: string): boolean {
  return filled * 4 >= blockSize && Number.parseInt(hash('sha256', path).slice(0, 8), 16) % CUTS === 0
}
