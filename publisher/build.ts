import { createWriteStream } from 'node:fs'
import { mkdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { MiB } from '../base/bytes.ts'
import { storageFailure } from '../base/durable.ts'
import { systemCode } from '../base/errors.ts'
import { type Build, buildImagePath, finishBuild } from '../bundle/build.ts'
import { buildInventory, encodeInventory } from '../bundle/inventory.ts'
import { listPackages, type PackageList } from '../bundle/packages.ts'
import { MAX_ATTACHMENT_UNPACKED } from '../bundle/release.ts'
import { openSquashfs, type Squashfs } from '../bundle/squashfs/image.ts'
import { openImageFile } from '../bundle/squashfs/reader.ts'
import { BLOCK } from '../bundle/tree.ts'
import type { ReleaseNumber } from '../bundle/types.ts'
import { buildInitramfs, INITRAMFS_NEEDS, type InitramfsSource } from '../initramfs/build.ts'
import { type AgentParts, agentFiles } from './agent-overlay.ts'
import { bootCfg, makeBootImage } from './boot-image.ts'
import { comparing } from './compare.ts'
import { type AddedFile, deriveTree } from './derive.ts'
import { publisherErrors } from './errors.ts'
import { initramfsOptions } from './initramfs-options.ts'
import { type LintResult, lintTree, requireFit } from './lint/lint.ts'
import { toolVersions } from './package.ts'
import {
  type BuilderFacts,
  type BuildSource,
  type BuiltImage,
  digestImage,
  makeProvenance,
  UNNAMED_BUILDER,
} from './provenance.ts'
import { type Distribution, makeSbom, parseOsRelease } from './sbom.ts'
import { makeSquashfs } from './squashfs/mksquashfs.ts'
import { writeSquashfs } from './squashfs/write.ts'
import { cleanTar } from './tar/clean.ts'
import type { MergedTree, TreeNode } from './tree.ts'

/** From a merged tree to a build folder: rootfs image, boot image, unsigned statement. Sees no key. */

export const SQUASHFS_WRITERS = ['own', 'mksquashfs'] as const
export type SquashfsWriter = (typeof SQUASHFS_WRITERS)[number]

export interface BuildRequest {
  readonly version: string
  readonly number: ReleaseNumber
  readonly securityFloor: ReleaseNumber
  /** Oldest root version whose keys may sign; that of the image's root.json unless told. */
  readonly rootVersion?: number
  readonly parts: AgentParts
  /** Bytes: SquashFS block. */
  readonly blockSize: number
  /** zstd level. */
  readonly level: number
  /** Seconds since 1970: the time of everything added, and the statement's issue time. The newest file's unless told. */
  readonly time?: number
  /** What the tree was merged from, for the provenance. */
  readonly source?: BuildSource
  /** Who builds, for the provenance. */
  readonly builder?: BuilderFacts
  /** What writes the root file system: this program itself, or mksquashfs, which must be installed then. */
  readonly writer: SquashfsWriter
  /** Compression threads of the SquashFS writer; the result does not depend on it. */
  readonly processors?: number
}

export interface BuildEdge {
  /** One line per step. */
  readonly say: (line: string) => void
  readonly signal?: AbortSignal
}

/**
 * Builds into the new folder `folder`; when it fails, the folder is removed.
 * @throws OUTPUT_EXISTS, IMAGE_NO_KERNEL, IMAGE_UNFIT, IMAGE_READBACK_DIFFERS, TOOL_*, and those of the parts
 */
export async function buildRelease(
  merged: MergedTree,
  request: BuildRequest,
  folder: string,
  edge: BuildEdge,
): Promise<{ readonly build: Build; readonly lint: LintResult }> {
  const time = request.time ?? newestTime(merged)
  if (time * 1000 > Date.now())
    throw publisherErrors.IMAGE_FROM_FUTURE(
      `the newest file is of ${isoSeconds(time)}, later than this machine's clock`,
    )
  const added = await agentFiles(merged, request.parts, time)
  const tree = deriveTree(merged, { add: added, time })
  const lint = await lintTree(tree, INITRAMFS_NEEDS)
  const fit = requireFit(lint)
  const { number, securityFloor } = request
  const { kernelArgs } = fit.system
  const cfgFor = (root: string, length: number): Uint8Array =>
    bootCfg({ number, securityFloor, root, length, kernelArgs, architecture: tree.config.architecture })
  // Said before minutes of work: what does not fit with the shortest length there is.
  cfgFor('0'.repeat(64), BLOCK)
  try {
    await mkdir(folder)
  } catch (cause) {
    if (systemCode(cause) !== 'EEXIST') throw cause
    throw publisherErrors.OUTPUT_EXISTS(`${folder} exists already`)
  }
  const work = join(folder, 'work')
  const signal = edge.signal === undefined ? {} : { signal: edge.signal }
  try {
    await mkdir(work)
    const kernel = join(work, 'vmlinuz')
    const initrd = join(work, 'initrd.img')
    const bootParts = async (): Promise<void> => {
      await pipeline(tree.content(fit.kernel.entry.node), createWriteStream(kernel))
      await writeFile(
        initrd,
        await buildInitramfs(initramfsSource(tree), {
          ...initramfsOptions(fit.system),
          kernel: fit.kernel.version,
        }),
      )
    }
    const rootfs = await buildRootfs(tree, fit.kernel.entry.path, request, time, folder, edge, bootParts)

    edge.say(`boot image: kernel ${fit.kernel.version}`)
    const cfg = cfgFor(rootfs.root, rootfs.length)
    await makeBootImage({ kernel, initrd, cfg }, buildImagePath(folder, 'boot'), { time, workDir: work, ...signal })

    edge.say('bill of materials, provenance, chunks and statement')
    const { product, hardware } = fit.system
    const tools = await toolVersions(request.writer === 'mksquashfs')
    const issued = isoSeconds(time)
    const sbom = makeSbom(rootfs.packages, {
      product,
      hardware,
      version: request.version,
      number,
      rootfsRoot: rootfs.root,
      issued,
      toolVersion: tools['bistable'] ?? 'unknown',
      distribution: rootfs.distribution,
    })
    const provenance = makeProvenance({
      images: [await digestImage('boot', buildImagePath(folder, 'boot')), rootfs],
      source: request.source,
      added: added.flatMap(({ path, node }) =>
        node.type === 'file' ? [{ path: `/${path}`, sha256: node.content }] : [],
      ),
      parameters: parametersOf(request),
      builder: request.builder ?? { id: UNNAMED_BUILDER },
      tools,
    })
    const build = await finishBuild(
      folder,
      {
        release: {
          product,
          hardware,
          number,
          version: request.version,
          securityFloor,
          rootVersion: request.rootVersion ?? fit.root.version,
          issued,
        },
        boundaries: { rootfs: rootfs.boundaries },
        attachments: {
          inventory: rootfs.inventory,
          sbom: Buffer.from(sbom),
          provenance: Buffer.from(provenance),
        },
      },
      signal,
    )
    await rm(work, { recursive: true })
    return { build, lint }
  } catch (error) {
    await rm(folder, { recursive: true, force: true })
    throw storageFailure('write', folder, error)
  }
}

/** What whoever ran the build chose, and nothing of the machine. */
function parametersOf(request: BuildRequest): Readonly<Record<string, unknown>> {
  const { version, number, securityFloor, rootVersion, writer, blockSize, level, time } = request
  return {
    version,
    number,
    securityFloor,
    ...(rootVersion === undefined ? {} : { rootVersion }),
    squashfs: { writer, blockSize, level },
    ...(time === undefined ? {} : { sourceDateEpoch: time }),
  }
}

interface Rootfs extends BuiltImage {
  readonly packages: PackageList
  readonly distribution: Distribution | undefined
  readonly boundaries: readonly number[]
  readonly inventory: Uint8Array
}

/**
 * Builds the SquashFS image, proves that it is the tree, and makes the inventory in the same pass.
 * @param meanwhile begun when the builder has all its input and still compresses; its failure is the build's
 */
async function buildRootfs(
  tree: MergedTree,
  kernelPath: string,
  request: BuildRequest,
  time: number,
  folder: string,
  edge: BuildEdge,
  meanwhile: () => Promise<void>,
): Promise<Rootfs> {
  // The boot image carries the kernel; a second copy in every slot and every download is of no use to anyone.
  const drop = (path: string): boolean => path.startsWith('boot/') || path === kernelPath
  const output = buildImagePath(folder, 'rootfs')
  edge.say('root file system: SquashFS')
  let beside: Promise<void> | undefined
  const contentTaken = (): void => {
    beside = meanwhile()
    // Met below; until then it must not count as unhandled.
    beside.catch(() => undefined)
  }
  const content = deriveTree(tree, { drop, add: [rootDirectory(tree, request, time)], time })
  const options = { ...request, time, ...(edge.signal === undefined ? {} : { signal: edge.signal }) }
  try {
    if (request.writer === 'mksquashfs') {
      const input = async function* (): AsyncGenerator<Uint8Array> {
        yield* cleanTar(content)
        contentTaken()
      }
      await makeSquashfs(input(), output, { ...options, rootMode: content.get('')?.node.mode ?? 0o755 })
    } else await writeSquashfs(content, output, options, contentTaken)
  } finally {
    // Settled in any case: it writes into a folder that a failed build removes.
    await beside?.catch(() => undefined)
  }
  await beside
  edge.say('root file system: read back and compared')
  const file = await openImageFile(output)
  try {
    const image = await openSquashfs(file, file.size)
    const inventory = await collect(encodeInventory(buildInventory(comparing(content, image))))
    const boundaries = await image.contentBoundaries()
    const packages = await listPackages(image)
    const distribution = await distributionOf(image)
    return { ...(await digestImage('rootfs', output)), boundaries, inventory, packages, distribution }
  } finally {
    await file.close()
  }
}

/** The image's top directory: that of the tree, owned by root whoever owned it on the machine where it was made. */
function rootDirectory(tree: MergedTree, request: BuildRequest, time: number): AddedFile {
  const node = tree.get('')?.node ?? { type: 'dir', mode: 0o755, mtime: time, xattrs: new Map() }
  const owned = { ...node, type: 'dir', uid: 0, gid: 0 } as const
  if (request.writer !== 'mksquashfs') return { path: '', node: owned }
  // What mksquashfs makes of it (squashfs/mksquashfs.ts), so that the comparison can be exact.
  return { path: '', node: { ...owned, mtime: time, xattrs: new Map() } }
}

const MAX_OS_RELEASE = 64 * 1024

async function distributionOf(image: Squashfs): Promise<Distribution | undefined> {
  for (const path of ['usr/lib/os-release', 'etc/os-release']) {
    const entry = await image.lookup(path)
    if (entry?.type !== 'file' || entry.size > MAX_OS_RELEASE) continue
    const pieces: Uint8Array[] = []
    for await (const piece of image.read(entry)) pieces.push(piece)
    return parseOsRelease(Buffer.concat(pieces).toString('utf8'))
  }
  return undefined
}

async function collect(pieces: AsyncIterable<Uint8Array>): Promise<Uint8Array> {
  const all: Uint8Array[] = []
  let length = 0
  for await (const piece of pieces) {
    all.push(piece)
    length += piece.length
    if (length > MAX_ATTACHMENT_UNPACKED)
      throw publisherErrors.IMAGE_TOO_LARGE(`the inventory takes more than ${MAX_ATTACHMENT_UNPACKED} bytes`)
  }
  return new Uint8Array(Buffer.concat(all))
}

/** The largest file that goes into an initramfs whole: a kernel module or a library. */
const MAX_INITRAMFS_FILE = 64 * MiB

/** What the initramfs builder sees of a tree. */
export function initramfsSource(tree: MergedTree): InitramfsSource {
  return {
    resolve: (path) => {
      const entry = tree.resolve(path)
      return entry?.node.type === 'file' || entry?.node.type === 'dir' ? entry.path : undefined
    },
    read: async (path) => {
      const node: TreeNode | undefined = tree.get(path)?.node
      if (node?.type !== 'file') throw new RangeError(`${path} is not a file of the tree`)
      return await tree.readSmall(node, MAX_INITRAMFS_FILE)
    },
    list: (path) => tree.children(path).map((entry) => entry.path.slice(entry.path.lastIndexOf('/') + 1)),
  }
}

/** The newest modification time in the tree: the same for the same input, whenever it is built. Pure. */
export function newestTime(tree: MergedTree): number {
  let newest = 0
  for (const { node } of tree.entries()) newest = Math.max(newest, node.mtime)
  // SquashFS and ext4's oldest form hold 32 bits.
  return Math.min(newest, 0xffffffff)
}

/** "2026-11-21T00:00:00Z" */
export const isoSeconds = (time: number): string => new Date(time * 1000).toISOString().replace('.000Z', 'Z')
