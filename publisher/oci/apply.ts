import { show } from '../tar/names.ts'
import type { TreeNode } from '../tree.ts'
import type { Finding } from './attributes.ts'
import { ociErrors } from './errors.ts'
import { findItem, type Item, type Layer, type Whiteout } from './layer.ts'

/**
 * Applies a layer to the tree of the layers below it, in place. Pure but for that tree.
 *
 * Order, whatever the tar said: whiteouts and opaque marks, entries, then hard links into lower layers. `lower` takes over
 * the layer's items.
 * @param made for directories that no layer describes
 * @throws LAYER_PARENT, LAYER_LINK
 */
export function applyLayer(lower: Item, layer: Layer, made: TreeNode, findings: Finding[]): void {
  for (const whiteout of layer.whiteouts) hide(lower, whiteout)
  merge(lower, layer.root, '', made, findings)
  for (const { item, path, target } of layer.lowerLinks) {
    const there = findItem(lower, target)
    if (there?.node?.type !== 'file')
      throw ociErrors.LAYER_LINK(
        `the hard link ${show(path)} leads to ${show(target)}, ${there === undefined ? 'which is not in the image' : 'not a regular file'}`,
      )
    item.node = there.node
  }
}

/** Links are not followed; a whiteout of nothing has no effect. */
function hide(lower: Item, { path, opaque }: Whiteout): void {
  const slash = path.lastIndexOf('/')
  if (opaque) findItem(lower, path)?.children?.clear()
  else findItem(lower, path.slice(0, Math.max(0, slash)))?.children?.delete(path.slice(slash + 1))
}

function merge(lower: Item, layer: Item, path: string, made: TreeNode, findings: Finding[]): void {
  const children = lower.children
  if (children === undefined) return
  lower.node = layer.node ?? lower.node ?? { ...made }
  for (const [name, item] of layer.children ?? []) {
    const there = children.get(name)
    const full = path === '' ? name : `${path}/${name}`
    if (item.children === undefined) children.set(name, item)
    else if (there?.children !== undefined) merge(there, item, full, made, findings)
    else {
      // A directory that the layer does not list itself must not take the place of a file or link below.
      if (there !== undefined && item.node === undefined)
        throw ociErrors.LAYER_PARENT(`${show(full)} is a ${there.node?.type} in a lower layer, a directory is wanted`)
      if (there?.node?.type === 'symlink')
        findings.push({
          kind: 'directory-replaces-link',
          path: full,
          detail: `a lower layer links it to ${show(there.node.target)}`,
        })
      children.set(name, settle(item, full, made, findings))
    }
  }
}

/** Makes a layer's subtree part of the merged tree where nothing lies below. */
function settle(item: Item, path: string, made: TreeNode, findings: Finding[]): Item {
  if (item.node === undefined) {
    item.node = { ...made }
    findings.push({ kind: 'implied-directory', path, detail: 'no layer describes it; made as root, 0755' })
  }
  for (const [name, child] of item.children ?? [])
    if (child.children !== undefined) settle(child, `${path}/${name}`, made, findings)
  return item
}
