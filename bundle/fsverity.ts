import { hash } from 'node:crypto'
import { fromHex, type Sha256 } from '../base/bytes.ts'
import { sha256 } from './digest.ts'
import { BLOCK, createTreeHasher, type TreeHasher } from './tree.ts'

/** fs-verity digests (SHA-256, 4096-byte blocks, no salt), as the kernel and `fsverity digest` compute them. */

const EMPTY_ROOT = '0'.repeat(64) as Sha256

/**
 * The digest of a file from its tree's root and its length. It is the SHA-256 of the kernel's 256-byte
 * `struct fsverity_descriptor` (Documentation/filesystems/fsverity.rst): version 1, algorithm 1 (SHA-256), block size
 * 2^12, no salt. An empty file has an all-zero root.
 */
export function fsverityDigest(root: Sha256, length: number): Sha256 {
  const descriptor = Buffer.alloc(256)
  descriptor[0] = 1
  descriptor[1] = 1
  descriptor[2] = 12
  descriptor.writeBigUInt64LE(BigInt(length), 8)
  descriptor.set(fromHex(root), 16)
  return sha256(descriptor)
}

/** The digest of a file whose content is in memory. */
export function fsverityOfBytes(content: Uint8Array): Sha256 {
  if (content.length === 0) return fsverityDigest(EMPTY_ROOT, 0)
  if (content.length <= BLOCK) {
    const block = content.length === BLOCK ? content : Buffer.concat([content], BLOCK)
    return fsverityDigest(hash('sha256', block, 'hex') as Sha256, content.length)
  }
  const tree = createTreeHasher()
  tree.update(content)
  return fsverityDigest(tree.finish().root, content.length)
}

/** The digest of a file given as a stream; memory does not grow with its size. */
export async function fsverityOf(stream: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<Sha256> {
  // Most files are one short piece: no tree is set up for those. It is copied: the stream may reuse its buffer.
  let first: Uint8Array | undefined
  let tree: TreeHasher | undefined
  for await (const piece of stream) {
    if (piece.length === 0) continue
    if (tree === undefined && first === undefined && piece.length <= BLOCK) {
      first = Uint8Array.from(piece)
      continue
    }
    if (tree === undefined) {
      tree = createTreeHasher({ onPage: () => undefined })
      if (first !== undefined) tree.update(first)
    }
    tree.update(piece)
  }
  if (tree === undefined) return fsverityOfBytes(first ?? new Uint8Array(0))
  const { root, length } = tree.finish()
  return fsverityDigest(root, length)
}
