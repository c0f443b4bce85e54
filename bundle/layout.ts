import { KiB } from '../base/bytes.ts'
import { TAR_BLOCK, TAR_END, tarMemberSize } from './tar.ts'
import type { AttachmentName, BundleHead, ImageName, ReleaseStatement } from './types.ts'

/** Names, order and places of the members: docs/format.md as code, shared by reader and writer. */

export const MARKER_NAME = 'bistable-bundle'
export const MARKER = 'bistable bundle 1\n'
export const RELEASE_NAME = 'release.json'
export const ASSIGNMENT_NAME = 'assignment.json'
/** An envelope member: root, release or assignment. */
export const MAX_ENVELOPE_MEMBER = 16 * KiB

export const rootName = (version: number): string => `roots/${version}.json`
export const indexName = (image: ImageName): string => `index/${image}`
export const attachmentName = (attachment: AttachmentName): string => `attachments/${attachment}`
export const dataName = (image: ImageName): string => `data/${image}`

export interface Member {
  readonly name: string
  readonly size: number
}

/** The members behind the envelopes, in order: they follow from the signed statement alone. */
export function signedMembers(release: ReleaseStatement): readonly Member[] {
  return [
    ...release.images.map(({ name, index }) => ({ name: indexName(name), size: index.length })),
    ...release.attachments.map(({ name, length }) => ({ name: attachmentName(name), size: length })),
    ...release.images.map(({ name, data }) => ({ name: dataName(name), size: data.length })),
  ]
}

/** Where each signed member's content starts, when the first of their headers stands at byte `start`. */
export function placeMembers(
  release: ReleaseStatement,
  start: number,
): { readonly at: ReadonlyMap<string, number>; readonly size: number } {
  const at = new Map<string, number>()
  let position = start
  for (const { name, size } of signedMembers(release)) {
    at.set(name, position + TAR_BLOCK)
    position += tarMemberSize(size)
  }
  return { at, size: position + TAR_END }
}

/** The offsets of a bundle head, from the places of its members. */
export function headOffsets(release: ReleaseStatement, at: ReadonlyMap<string, number>): BundleHead['offsets'] {
  const attachments: Partial<Record<AttachmentName, number>> = {}
  for (const { name } of release.attachments) attachments[name] = placeOf(at, attachmentName(name))
  return {
    attachments,
    data: { boot: placeOf(at, dataName('boot')), rootfs: placeOf(at, dataName('rootfs')) },
  }
}

function placeOf(at: ReadonlyMap<string, number>, name: string): number {
  const place = at.get(name)
  if (place === undefined) throw new RangeError(`no member ${name}`)
  return place
}
