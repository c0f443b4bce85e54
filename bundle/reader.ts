import type { ByteSource } from '../base/source.ts'
import { MAX_ROOTS } from '../keys/root.ts'
import type { TrustedRoots } from '../keys/types.ts'
import { type Authentic, authenticate, authenticateAssignment, checkAssigned, checkRootNames } from './authentic.ts'
import { decodeIndex, storedLength } from './chunks.ts'
import { Cursor } from './cursor.ts'
import { sha256 } from './digest.ts'
import { bundleErrors } from './errors.ts'
import { ASSIGNMENT_NAME, headOffsets, indexName, type Member, placeMembers, RELEASE_NAME, rootName } from './layout.ts'
import { checkMember, readContent, readEnvelope, readHeader, readMarker } from './members.ts'
import { TAR_BLOCK, tarMemberSize } from './tar.ts'
import type { BundleHead, ChunkIndex, ImageEntry, ImageName } from './types.ts'

/**
 * The strict reader of docs/format.md: one encoding, one order, every read bounded, verified before parsed.
 * `openBundle` reads up to the chunk indexes; `verify.ts` reads all the rest.
 */

/** A release whose signatures were verified. */
export type AuthenticRelease = Pick<Authentic, 'statement' | 'digest'>

export interface ReadOptions {
  readonly signal?: AbortSignal
  /**
   * Where else the bytes of a chunk index may be had. What it gives counts only with the signed digest; undefined: the bundle's
   * own are read.
   */
  readonly indexOf?: (image: ImageEntry, release: AuthenticRelease) => Promise<Uint8Array | undefined>
}

/**
 * Reads and authenticates everything in front of the attachments and the data: what an installer needs to begin.
 * @param trust what the device trusts already; the bundle's root chain must connect to it
 * @throws BUNDLE_*, RELEASE_INVALID, RELEASE_CRITICAL, the errors of keys/, and those of the source
 */
export async function openBundle(
  source: ByteSource,
  trust: { readonly trusted: TrustedRoots },
  options: ReadOptions = {},
): Promise<BundleHead> {
  return (await readHead(source, trust.trusted, options)).head
}

/**
 * The head of a bundle whose root chain vouches only for itself. Unauthenticated: for showing, never for installing.
 * All else is checked as in `openBundle`.
 */
export async function inspectBundle(
  source: ByteSource,
  options: ReadOptions = {},
): Promise<{ readonly authenticated: false; readonly head: BundleHead; readonly signedBy: Authentic['signedBy'] }> {
  return { authenticated: false, ...(await readHead(source, undefined, options)) }
}

async function readHead(
  source: ByteSource,
  trustedBefore: TrustedRoots | undefined,
  options: ReadOptions,
): Promise<{ readonly head: BundleHead; readonly signedBy: Authentic['signedBy'] }> {
  const cursor = new Cursor(source, options.signal)
  await readMarker(cursor)
  const { first, roots, release } = await readRoots(cursor)
  const envelope = await readEnvelope(cursor, release)
  const authentic = authenticate(roots, envelope, trustedBefore)
  const { trusted, statement, digest, signedBy } = authentic
  checkRootNames(first, roots, trusted)

  // Only an assignment may stand between here and the members that the statement names.
  const header = await readHeader(cursor)
  const assigned = header.name === ASSIGNMENT_NAME ? header : undefined
  const assignment =
    assigned === undefined ? undefined : authenticateAssignment(await readEnvelope(cursor, assigned), trusted)
  if (assignment !== undefined) checkAssigned(assignment, authentic)
  const start = assigned === undefined ? cursor.position - TAR_BLOCK : cursor.position
  const { at, size } = placeMembers(statement, start)
  checkSize(source.size, size)

  const indexes: Partial<Record<ImageName, ChunkIndex>> = {}
  const indexBytes: Partial<Record<ImageName, Uint8Array>> = {}
  let next = assigned === undefined ? header : undefined
  let spared = 0
  for (const image of statement.images) {
    const wanted: Member = { name: indexName(image.name), size: image.index.length }
    if (next !== undefined) checkMember(next, wanted)
    let bytes = await options.indexOf?.(image, authentic)
    if (bytes === undefined) {
      if (next === undefined) checkMember(await readHeader(cursor), wanted)
      bytes = await readContent(cursor, wanted)
    } else {
      const rest = tarMemberSize(wanted.size) - (next === undefined ? 0 : TAR_BLOCK)
      cursor.skip(rest)
      spared += rest
    }
    next = undefined
    indexBytes[image.name] = bytes
    indexes[image.name] = readIndex(bytes, image)
  }
  const head: BundleHead = {
    roots,
    envelope,
    statement,
    digest,
    trusted,
    assignment,
    indexes: both(indexes),
    indexBytes: both(indexBytes),
    spared,
    offsets: headOffsets(statement, at),
    size,
  }
  return { head, signedBy }
}

/** The root chain, up to and with the header of the member behind it: the release, or what `next` names. */
export async function readRoots(
  cursor: Cursor,
  next = RELEASE_NAME,
): Promise<{ first: number; roots: Uint8Array[]; release: Member }> {
  let header = await readHeader(cursor)
  const first = Number(/^roots\/([1-9][0-9]{0,14})\.json$/.exec(header.name)?.[1])
  if (!Number.isSafeInteger(first))
    throw bundleErrors.BUNDLE_HEADER(`found the member '${header.name}', wanted the first root`)
  const roots: Uint8Array[] = []
  while (header.name === rootName(first + roots.length)) {
    if (roots.length === MAX_ROOTS) throw bundleErrors.BUNDLE_TOO_LARGE(`the bundle has more than ${MAX_ROOTS} roots`)
    roots.push(await readEnvelope(cursor, header))
    header = await readHeader(cursor)
  }
  if (header.name !== next)
    throw bundleErrors.BUNDLE_HEADER(
      `found the member '${header.name}', wanted ${rootName(first + roots.length)} or ${next}`,
    )
  return { first, roots, release: header }
}

function checkSize(found: number, wanted: number): void {
  if (found < wanted)
    throw bundleErrors.BUNDLE_TRUNCATED(`the bundle has ${found} bytes, its signed statement says ${wanted}`)
  if (found > wanted)
    throw bundleErrors.BUNDLE_TRAILING_BYTES(`the bundle has ${found} bytes, its signed statement says ${wanted}`)
}

/**
 * Decodes the chunk index of an image after checking its digest, and checks that it fits the image.
 * @throws BUNDLE_DIGEST, BUNDLE_INDEX_INVALID
 */
export function readIndex(bytes: Uint8Array, image: ImageEntry): ChunkIndex {
  if (bytes.length !== image.index.length || sha256(bytes) !== image.index.sha256)
    throw bundleErrors.BUNDLE_DIGEST(`the chunk index of ${image.name} does not have the signed digest`)
  const index = decodeIndex(bytes)
  if (index.imageLength !== image.length)
    throw bundleErrors.BUNDLE_INDEX_INVALID(
      `the chunk index of ${image.name} is for ${index.imageLength} bytes, the image has ${image.length}`,
    )
  if (storedLength(index) !== image.data.length)
    throw bundleErrors.BUNDLE_INDEX_INVALID(
      `the chunks of ${image.name} take ${storedLength(index)} bytes, the signed data has ${image.data.length}`,
    )
  return index
}

function both<T>(part: Partial<Record<ImageName, T>>): Record<ImageName, T> {
  const { boot, rootfs } = part
  if (boot === undefined || rootfs === undefined) throw new RangeError('a release has both images')
  return { boot, rootfs }
}
