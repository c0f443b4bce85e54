import { readFileSync } from 'node:fs'
import {
  ASSIGNMENT_NAME,
  attachmentName,
  dataName,
  indexName,
  MARKER,
  MARKER_NAME,
  RELEASE_NAME,
  rootName,
} from '../../bundle/layout.ts'
import { makeParts, type Plan } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { frame, type Part } from './container.ts'

/** Bundles made by the real build with the fixture's keys, taken apart and put together again without its checks. */

const IMAGES = { boot: noise(2 * 4096, 'boot'), rootfs: noise(30 * 4096, 'rootfs') }

/** All members of a bundle, in order. The default images do not compress; the fixture's keys sign. */
export async function partsOf(plan: Plan = {}): Promise<Part[]> {
  const { parts } = await makeParts({ ...IMAGES, ...plan })
  const data = parts.images.map(({ name, data }) => {
    if (typeof data !== 'string') throw new Error('data is a path here')
    return { name: dataName(name), content: readFileSync(data) }
  })
  return [
    { name: MARKER_NAME, content: Buffer.from(MARKER) },
    ...parts.roots.map((content, i) => ({ name: rootName(i + 1), content })),
    { name: RELEASE_NAME, content: parts.envelope },
    ...(parts.assignment === undefined ? [] : [{ name: ASSIGNMENT_NAME, content: parts.assignment }]),
    ...parts.images.map(({ name, indexBytes }) => ({ name: indexName(name), content: indexBytes })),
    ...parts.attachments.map(({ name, stored }) => ({ name: attachmentName(name), content: stored })),
    ...data,
  ]
}

export async function forge(plan: Plan = {}): Promise<Buffer> {
  return frame(await partsOf(plan))
}

/** The members of `parts`, those named taken from `others`. */
export function mixed(parts: readonly Part[], others: readonly Part[], names: RegExp): Buffer {
  return frame(
    parts.map((part) => (names.test(part.name) ? (others.find((other) => other.name === part.name) ?? part) : part)),
  )
}
