import { strict as assert } from 'node:assert'
import type { ByteSource } from '../../../base/source.ts'
import { sha256 } from '../../../bundle/digest.ts'
import {
  attachmentName,
  dataName,
  indexName,
  MARKER,
  MARKER_NAME,
  RELEASE_NAME,
  rootName,
} from '../../../bundle/layout.ts'
import { createTreeHasher } from '../../../bundle/tree.ts'
import { IMAGE_NAMES, RELEASE_PAYLOAD_TYPE } from '../../../bundle/types.ts'
import { verifyBundle } from '../../../bundle/verify.ts'
import { encodeEnvelope } from '../../../keys/dsse.ts'
import { trustAnchor } from '../../../keys/root.ts'
import { signStatement } from '../../../keys/statement.ts'
import { signedRoot, signer } from '../../keys/helpers.ts'
import { frame } from '../container.ts'

/** The parts behind the signature: what a thief of the release key can put there. */

export function sourceOf(bytes: Uint8Array): ByteSource {
  return {
    name: 'fuzz',
    size: bytes.length,
    async *read(offset, length) {
      if (offset < 0 || offset + length > bytes.length) throw new RangeError(`read of ${offset}+${length}`)
      for (let at = 0; at < length; at += 65536)
        yield bytes.subarray(offset + at, offset + Math.min(length, at + 65536))
    },
    close: async () => undefined,
  }
}

const anchor = await signedRoot({}, [1, 2])
const trust = { trusted: trustAnchor(anchor) }

/** Four parts, each after its length in two bytes: payload, chunk index and data of the rootfs, an attachment. */
export function joinParts(parts: readonly Uint8Array[]): Buffer {
  return Buffer.concat(
    parts.flatMap((part) => {
      const length = Buffer.alloc(2)
      length.writeUInt16LE(part.length)
      return [length, part]
    }),
  )
}

function splitParts(bytes: Uint8Array): Buffer[] {
  const all = Buffer.from(bytes)
  const parts: Buffer[] = []
  for (let at = 0; parts.length < 4; ) {
    const length = at + 2 <= all.length ? all.readUInt16LE(at) : 0
    parts.push(all.subarray(Math.min(at + 2, all.length), at + 2 + length))
    at += 2 + length
  }
  return parts
}

/**
 * Signs what the input says, with digests and lengths of the parts put right, so that the bytes behind the signature are
 * looked at too. What is accepted must be what the statement says.
 */
export async function fuzzSigned(bytes: Uint8Array): Promise<void> {
  const [payload = Buffer.alloc(0), index = Buffer.alloc(0), data = Buffer.alloc(0), attachment = Buffer.alloc(0)] =
    splitParts(bytes)
  if (payload.length === 0 || payload.length > 3500) return
  let signed: Uint8Array = payload
  try {
    const release = JSON.parse(payload.toString()) as {
      images?: { index?: unknown; data?: unknown }[]
      attachments?: { length?: unknown; sha256?: unknown }[]
    }
    for (const image of release.images ?? []) {
      image.index = { length: index.length, sha256: sha256(index) }
      image.data = { length: data.length }
    }
    for (const one of release.attachments ?? [])
      Object.assign(one, { length: attachment.length, sha256: sha256(attachment) })
    signed = Buffer.from(JSON.stringify(release))
  } catch {
    // Signed as it is.
  }
  if (signed.length > 3500) return
  const envelope = encodeEnvelope(await signStatement(RELEASE_PAYLOAD_TYPE, signed, [signer(11)]))
  const bundle = frame([
    { name: MARKER_NAME, content: Buffer.from(MARKER) },
    { name: rootName(1), content: anchor },
    { name: RELEASE_NAME, content: envelope },
    ...IMAGE_NAMES.map((name) => ({ name: indexName(name), content: index })),
    { name: attachmentName('inventory'), content: attachment },
    ...IMAGE_NAMES.map((name) => ({ name: dataName(name), content: data })),
  ])
  const head = await verifyBundle(sourceOf(bundle), trust)
  assert.equal(head.size, bundle.length)
  for (const image of head.statement.images) {
    if (head.indexes[image.name].chunks.some(({ encoding }) => encoding !== 'raw')) continue
    const tree = createTreeHasher()
    tree.update(data)
    assert.equal(image.length, data.length)
    assert.equal(tree.finish().root, image.root)
  }
}
