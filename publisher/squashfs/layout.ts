import type { Sha256 } from '../../base/bytes.ts'
import type { MergedTree } from '../tree.ts'
import type { FileNode } from './contents.ts'

export interface Laid {
  readonly node: FileNode
  readonly path: string
  /** A new fragment block starts before this content. */
  readonly cut: boolean
}

export function layoutOrder(
  tree: MergedTree,
  _options: { readonly blockSize: number; readonly fragments: boolean },
): Laid[] {
  const seen = new Set<Sha256>()
  const laid: Laid[] = []
  for (const { path, node } of tree.entries()) {
    if (node.type !== 'file' || node.size === 0 || seen.has(node.content)) continue
    seen.add(node.content)
    laid.push({ node, path, cut: false })
  }
  return laid
}
