import { createHash } from 'node:crypto'
import type { Sha256 } from '../../base/bytes.ts'
import type { BuildSource } from '../provenance.ts'
import type { MergedTree, TreeNode } from '../tree.ts'
import { applyLayer } from './apply.ts'
import type { Finding } from './attributes.ts'
import { decompress } from './decompress.ts'
import { ociErrors } from './errors.ts'
import { CheckedRange } from './file-range.ts'
import { dropDevices, findIn, listEntries, makeTree, stillTrue } from './finish.ts'
import type { ImageInput, LayerInput } from './input.ts'
import { Item, type Layer, type LayerContext, type LayerPolicy, readLayer } from './layer.ts'
import { Budget, DEFAULT_LIMITS, type Limits } from './limits.ts'
import { ContentStore } from './store.ts'

export interface MergeOptions {
  /**
   * Times above this many seconds since 1970 are lowered to it (SOURCE_DATE_EPOCH). Unless told: when the image config
   * says the image was created; if it does not say, times stay as they are.
   */
  readonly clampTime?: number
  /**
   * Device nodes and FIFOs. `drop-dev` (the default): below /dev they are left out with a finding, elsewhere refused.
   * `refuse`: refused everywhere. `keep`: kept.
   */
  readonly devices?: LayerPolicy['devices']
  readonly limits?: Limits
  readonly signal?: AbortSignal
}

/** A merged tree that holds a content store open. */
export interface StoredTree extends MergedTree {
  /** What was read, by digest. */
  readonly source: BuildSource
  /** Removes the content store; contents cannot be read afterwards. */
  close(): void
}

/**
 * Reads all layers of an image once, checks every digest, and merges them. Nothing is created on the host but one
 * content store file in `workDir`, which must exist and is best on the disk where the images will be built.
 * @throws LAYER_… and IMAGE_… codes of `errors.ts`; nothing is left in `workDir` then
 */
export async function mergeImage(input: ImageInput, workDir: string, options: MergeOptions = {}): Promise<StoredTree> {
  const store = await ContentStore.create(workDir)
  const clampTime = options.clampTime ?? input.config.created
  const findings: Finding[] = []
  const root = new Item('dir')
  const layers: BuildSource['layers'][number][] = []
  const context: LayerContext = {
    budget: new Budget(options.limits ?? DEFAULT_LIMITS),
    store,
    policy: { devices: options.devices ?? 'drop-dev', whiteouts: input.whiteouts, clampTime },
    findings,
  }
  const made: TreeNode = { type: 'dir', mode: 0o755, uid: 0, gid: 0, mtime: clampTime ?? 0, xattrs: new Map() }
  try {
    for (const one of input.layers) {
      const { layer, digest, diffId } = await readChecked(one, context, options.signal)
      applyLayer(root, layer, made, findings)
      layers.push({ digest, diffId })
    }
    root.node ??= made
    if (context.policy.devices === 'drop-dev') dropDevices(root, findings)
  } catch (error) {
    await store.abandon()
    throw error
  }
  const sealed = await store.seal()
  const entries = listEntries(root)
  const config = { architecture: input.config.architecture, labels: input.config.labels }
  const tree = makeTree(entries, sealed, config, [...stillTrue(findings, entries), ...findIn(entries)])
  const source: BuildSource = {
    layers,
    ...(input.digest === undefined ? {} : { image: input.digest }),
    // A path says where it lay on this machine, which is nobody's business and differs from one to the next.
    ...(input.reference.startsWith('docker://') ? { reference: input.reference } : {}),
  }
  return { ...tree, source, close: () => sealed.close() }
}

/** Reads one layer; its blob and its unpacked stream must be what the image says, whatever else is wrong with it. */
async function readChecked(
  layer: LayerInput,
  context: LayerContext,
  signal: AbortSignal | undefined,
): Promise<{ readonly layer: Layer; readonly digest: Sha256; readonly diffId: Sha256 }> {
  const blob = new CheckedRange(layer.blob, { digest: layer.digest, size: layer.size }, signal)
  const unpackedHash = layer.compression === 'none' ? undefined : createHash('sha256')
  const unpacked = decompress(blob.pieces(), layer.compression, layer.blob.size)
  let tree: Layer
  try {
    const pieces = context.budget.unpacked(hashed(unpacked, unpackedHash), layer.blob.size)
    tree = await readLayer(pieces, context, layer.diffId === undefined ? 'required' : 'optional')
  } catch (error) {
    // A damaged blob can look like anything: say that it is damaged, not what it looks like.
    signal?.throwIfAborted()
    await blob.finish()
    throw error
  }
  const stored = await blob.finish()
  const diffId = (unpackedHash?.digest('hex') as Sha256 | undefined) ?? stored
  if (layer.diffId !== undefined && layer.diffId !== diffId)
    throw ociErrors.IMAGE_DIGEST_MISMATCH(
      `${layer.name} unpacks to the SHA-256 ${diffId}, its diff_id is ${layer.diffId}`,
    )
  return { layer: tree, digest: stored, diffId }
}

async function* hashed(
  pieces: AsyncIterable<Uint8Array>,
  hash: ReturnType<typeof createHash> | undefined,
): AsyncGenerator<Uint8Array> {
  for await (const piece of pieces) {
    hash?.update(piece)
    yield piece
  }
}
