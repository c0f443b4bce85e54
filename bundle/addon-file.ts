import { createReadStream } from 'node:fs'
import { open, rm } from 'node:fs/promises'
import { dirname } from 'node:path'
import { compareBytes } from '../base/bytes.ts'
import { nodeFiles, storageFailure } from '../base/durable.ts'
import { isBistableError } from '../base/errors.ts'
import type { ByteSource } from '../base/source.ts'
import { walkRoots } from '../keys/root.ts'
import type { TrustedRoots } from '../keys/types.ts'
import { type AuthenticAddon, authenticateAddon } from './addon.ts'
import { addonErrors } from './addon-errors.ts'
import { checkRootNames } from './authentic.ts'
import { Cursor } from './cursor.ts'
import { rootName } from './layout.ts'
import { checkMember, readContent, readEnvelope, readHeader } from './members.ts'
import { readRoots } from './reader.ts'
import type { Squashfs } from './squashfs/image.ts'
import { parseTarHeader, TAR_BLOCK, TAR_END, tarHeader, tarMemberSize, tarPadding } from './tar.ts'

/**
 * An add-on as one file, in the strict tar subset of bundles: marker, root chain, signed statement, image, end. The chain
 * comes along, so that a stick serves a device that has not heard of newer keys.
 */

const MARKER_NAME = 'bistable-addon'
const MARKER = Buffer.from('bistable addon 1\n')
const STATEMENT_NAME = 'addon.json'
const IMAGE_NAME = 'addon.squashfs'

export interface AddonHead extends AuthenticAddon {
  /** Exact bytes of the signed statement. */
  readonly envelope: Uint8Array
  readonly trusted: TrustedRoots
  /** Where the image starts in the file. */
  readonly offset: number
}

/**
 * Reads and authenticates everything in front of the image; the image itself is checked where it is copied.
 * @throws ADDON_FORMAT, ADDON_INVALID, the errors of keys/ and of the source
 */
export async function openAddon(source: ByteSource, trusted: TrustedRoots, signal?: AbortSignal): Promise<AddonHead> {
  try {
    return await readHead(new Cursor(source, signal), trusted)
  } catch (error) {
    // The reader of members is the bundle's: what it says of a file that is no bundle is said of an add-on here.
    if (!isBistableError(error) || !error.code.startsWith('BUNDLE_')) throw error
    throw addonErrors.ADDON_FORMAT(error.message, { cause: error })
  }
}

async function readHead(cursor: Cursor, before: TrustedRoots): Promise<AddonHead> {
  const { name, size } = cursor.source
  const first = size < TAR_BLOCK ? undefined : parseTarHeader(await cursor.take(TAR_BLOCK))
  if (first?.name !== MARKER_NAME || first.size !== MARKER.length)
    throw addonErrors.ADDON_FORMAT(`${name} does not start as an add-on does`)
  if (compareBytes(await readContent(cursor, first), MARKER) !== 0)
    throw addonErrors.ADDON_FORMAT(`${name} has the marker of another version`)
  const chain = await readRoots(cursor, STATEMENT_NAME)
  const envelope = await readEnvelope(cursor, chain.release)
  const trusted = walkRoots(chain.roots, before)
  checkRootNames(chain.first, chain.roots, trusted)
  const authentic = authenticateAddon(envelope, trusted)
  const { length } = authentic.statement.image
  checkMember(await readHeader(cursor), { name: IMAGE_NAME, size: length })
  const offset = cursor.position
  const wanted = offset + length + tarPadding(length) + TAR_END
  if (size !== wanted) throw addonErrors.ADDON_FORMAT(`${name} has ${size} bytes, its signed statement says ${wanted}`)
  return { ...authentic, envelope, trusted, offset }
}

/**
 * Writes the file; what is written is for `openAddon` to judge.
 * @param image path of the image
 * @throws ADDON_CONTENT, FILE_*
 */
export async function writeAddon(
  path: string,
  parts: {
    readonly roots: readonly Uint8Array[]
    readonly first: number
    readonly envelope: Uint8Array
    readonly image: string
    readonly length: number
  },
): Promise<void> {
  const small: [string, Uint8Array][] = [
    [MARKER_NAME, MARKER],
    ...parts.roots.map((bytes, i): [string, Uint8Array] => [rootName(parts.first + i), bytes]),
    [STATEMENT_NAME, parts.envelope],
  ]
  try {
    const file = await open(path, 'wx', 0o644)
    try {
      const write = async (bytes: Uint8Array) => void (await file.writeFile(bytes))
      for (const [name, bytes] of small) {
        await write(tarHeader(name, bytes.length))
        await write(bytes)
        await write(Buffer.alloc(tarMemberSize(bytes.length) - TAR_BLOCK - bytes.length))
      }
      await write(tarHeader(IMAGE_NAME, parts.length))
      let length = 0
      for await (const piece of createReadStream(parts.image) as AsyncIterable<Buffer>) {
        length += piece.length
        await write(piece)
      }
      if (length !== parts.length)
        throw addonErrors.ADDON_CONTENT(`${parts.image} has ${length} bytes, ${parts.length} were signed`)
      await write(Buffer.alloc(tarPadding(length) + TAR_END))
      await file.sync()
    } catch (cause) {
      // Half a file would stand in the way of the next try.
      await rm(path, { force: true })
      throw cause
    } finally {
      await file.close()
    }
    await nodeFiles.syncDir(dirname(path))
  } catch (cause) {
    throw storageFailure('pack', `${parts.image} into ${path}`, cause)
  }
}

const MAX_PATHS = 50_000

/** Where systemd-sysext looks whether an extension fits; "ID=_any": bistable has checked that by the release's digest. */
export const extensionRelease = (name: string): string => `usr/lib/extension-release.d/extension-release.${name}`
export const EXTENSION_RELEASE = 'ID=_any\n'

/**
 * Everything in an add-on lies below /usr, is a file, folder or symlink, and leaves the agent and its declarations alone.
 * @throws ADDON_LAYOUT naming the first path; SQUASHFS_*
 */
export async function checkAddonLayout(image: Squashfs, name: string): Promise<void> {
  let paths = 0
  let found = false
  for await (const { path, type } of image.walk()) {
    const bad = (why: string) => addonErrors.ADDON_LAYOUT(`/${path}: ${why}`)
    if (path === '') continue
    if (path !== 'usr' && !path.startsWith('usr/')) throw bad('not below /usr')
    if (path === 'usr/lib/bistable' || path.startsWith('usr/lib/bistable/') || path === 'usr/bin/bistable')
      throw bad('it belongs to the agent')
    if (!['file', 'dir', 'symlink'].includes(type)) throw bad(`a ${type}`)
    // A folder of the system that were a file in an add-on would hide all below it.
    if (path.split('/').length === 2 && type !== 'dir') throw bad(`a ${type} in the place of a folder`)
    if (path === extensionRelease(name) && type === 'file') found = true
    if (++paths > MAX_PATHS) throw addonErrors.ADDON_LAYOUT(`more than ${MAX_PATHS} paths`)
  }
  if (!found) throw addonErrors.ADDON_LAYOUT(`/${extensionRelease(name)} is missing`)
}
