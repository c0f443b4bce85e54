import { strict as assert } from 'node:assert'
import type { Sha256 } from '../../../base/bytes.ts'
import { applyLayer } from '../../../publisher/oci/apply.ts'
import { type Compression, decompress } from '../../../publisher/oci/decompress.ts'
import { dropDevices, findIn, listEntries, stillTrue } from '../../../publisher/oci/finish.ts'
import { Item, readLayer } from '../../../publisher/oci/layer.ts'
import { Budget, DEFAULT_LIMITS } from '../../../publisher/oci/limits.ts'
import type { ContentStore } from '../../../publisher/oci/store.ts'
import type { TarReader } from '../../../publisher/tar/reader.ts'
import type { TreeNode } from '../../../publisher/tree.ts'
import { dir, file, hardlink, symlink, tar } from '../../oci/tars.ts'

/** A layer over a lower one, merged as an image is, but for the content store: contents are read and forgotten. */

const MADE: TreeNode = { type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: new Map() }
const LOWER = tar(
  dir('etc/'),
  file('etc/a', 'lower'),
  symlink('lib', 'usr/lib'),
  dir('usr/'),
  dir('usr/lib/'),
  hardlink('b', 'etc/a'),
)

const forgetful = {
  add: async (reader: TarReader): Promise<Sha256> => {
    for (let piece = await reader.piece(); piece !== undefined; piece = await reader.piece());
    return '00'.repeat(32) as Sha256
  },
} as unknown as ContentStore

async function* pieces(bytes: Uint8Array): AsyncGenerator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += 700) yield bytes.subarray(at, at + 700)
}

export async function fuzzLayer(bytes: Uint8Array, compression: Compression): Promise<void> {
  const limits = { ...DEFAULT_LIMITS, bytes: 32 << 20, entries: 2000 }
  const root = new Item('dir')
  const budget = new Budget(limits)
  const policy = { devices: 'drop-dev', whiteouts: true, clampTime: undefined } as const
  const findings: Parameters<typeof applyLayer>[3] = []
  const context = { budget, store: forgetful, policy, findings }
  applyLayer(root, await readLayer(pieces(LOWER), context, 'required'), MADE, findings)
  const unpacked = budget.unpacked(decompress(pieces(bytes), compression, bytes.length), bytes.length)
  applyLayer(root, await readLayer(unpacked, context, 'required'), MADE, findings)
  root.node ??= MADE
  dropDevices(root, findings)
  const entries = listEntries(root)
  for (const { path, node } of entries) {
    assert.ok(node !== undefined, path)
    // Whatever the layer said: plain components, no way out.
    assert.match(path, /^(?!\/)(?!.*(?:^|\/)\.\.?(?:\/|$))(?!.*\/\/)(?!.*\/$)[^\u0000-\u001f\u007f]*$/su)
  }
  stillTrue(findings, entries)
  findIn(entries)
}
