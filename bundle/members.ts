import { compareBytes, hex } from '../base/bytes.ts'
import type { Cursor } from './cursor.ts'
import { bundleErrors } from './errors.ts'
import { MARKER, MARKER_NAME, MAX_ENVELOPE_MEMBER, type Member } from './layout.ts'
import { parseTarHeader, TAR_BLOCK, tarHeader, tarPadding } from './tar.ts'

/** Reading members one after the other; each is refused unless it is the only one that may stand there. */

/** The format marker. @throws BUNDLE_NOT_A_BUNDLE, BUNDLE_FORMAT_UNKNOWN, BUNDLE_TRUNCATED */
export async function readMarker(cursor: Cursor): Promise<void> {
  const { name, size } = cursor.source
  if (size === 0) throw bundleErrors.BUNDLE_TRUNCATED(`${name} is empty, wanted a bundle`)
  const start = await cursor.take(Math.min(TAR_BLOCK, size))
  if (
    start.length < TAR_BLOCK &&
    compareBytes(start, tarHeader(MARKER_NAME, MARKER.length).subarray(0, start.length)) === 0
  )
    throw bundleErrors.BUNDLE_TRUNCATED(`${name} ends at byte ${start.length}, within its first header`)
  const member = parseTarHeader(start)
  if (member?.name !== MARKER_NAME || member.size > TAR_BLOCK)
    throw bundleErrors.BUNDLE_NOT_A_BUNDLE(
      `${name} ${isWebPage(start) ? 'is a web page' : `starts with the bytes ${hex(start.subarray(0, 8))}`}, wanted a bundle, which starts with the member ${MARKER_NAME}`,
    )
  const text = Buffer.from(await readContent(cursor, member)).toString('latin1')
  if (text === MARKER) return
  const version = /^bistable bundle ([1-9][0-9]{0,8})\n$/.exec(text)?.[1]
  if (version === undefined)
    throw bundleErrors.BUNDLE_NOT_A_BUNDLE(`${name} has a marker of another program in its first member`)
  throw bundleErrors.BUNDLE_FORMAT_UNKNOWN(`the bundle has format version ${version}, this program reads version 1`)
}

const isWebPage = (start: Uint8Array): boolean =>
  /^\s*(?:<!doctype html|<html|<\?xml|<head|<!--)/i.test(Buffer.from(start.subarray(0, 64)).toString('latin1'))

/** The next header, whatever it names. @throws BUNDLE_HEADER, BUNDLE_TRUNCATED */
export async function readHeader(cursor: Cursor): Promise<Member> {
  const at = cursor.position
  const member = parseTarHeader(await cursor.take(TAR_BLOCK))
  if (member === undefined) throw bundleErrors.BUNDLE_HEADER(`the bytes at ${at} are not a header of a bundle`)
  return member
}

/** The content of a member whose header was just read, and its padding. The caller bounds the size. */
export async function readContent(cursor: Cursor, member: Member): Promise<Uint8Array> {
  const content = await cursor.take(member.size)
  checkZero(await cursor.take(tarPadding(member.size)), `the padding of ${member.name}`)
  return content
}

/** The content of an envelope member, bounded. @throws BUNDLE_TOO_LARGE */
export async function readEnvelope(cursor: Cursor, member: Member): Promise<Uint8Array> {
  if (member.size < 1 || member.size > MAX_ENVELOPE_MEMBER)
    throw bundleErrors.BUNDLE_TOO_LARGE(`${member.name} has ${member.size} bytes, wanted 1 to ${MAX_ENVELOPE_MEMBER}`)
  return readContent(cursor, member)
}

/** Refuses a member that is not exactly the wanted one. @throws BUNDLE_HEADER */
export function checkMember(found: Member | undefined, wanted: Member): void {
  if (found?.name !== wanted.name || found.size !== wanted.size)
    throw bundleErrors.BUNDLE_HEADER(
      `wanted the header of ${wanted.name} with ${wanted.size} bytes, found ${
        found === undefined ? 'none' : `'${found.name}' with ${found.size}`
      }`,
    )
}

/** @throws BUNDLE_PADDING */
export function checkZero(bytes: Uint8Array, what: string): void {
  if (bytes.some((byte) => byte !== 0)) throw bundleErrors.BUNDLE_PADDING(`${what} is not zero`)
}
