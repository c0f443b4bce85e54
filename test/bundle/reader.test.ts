import { expect, test } from 'vitest'
import { indexSize } from '../../bundle/chunks.ts'
import { inspectBundle, openBundle } from '../../bundle/reader.ts'
import { tarHeader } from '../../bundle/tar.ts'
import { checkFraming, readAttachment, verifyBundle } from '../../bundle/verify.ts'
import { walkRoots } from '../../keys/root.ts'
import { signedRoot } from '../keys/helpers.ts'
import { fleetSigned, makeBundle, memorySource } from './fixture.ts'
import { haveTool, noise, run } from './tools.ts'

const refusal = (code: string) => expect.objectContaining({ name: 'BistableError', code })

test('what is written is what is read', async () => {
  const made = await makeBundle({
    boot: Buffer.concat([noise(8192), Buffer.alloc(290_816)]),
    assignment: fleetSigned(),
  })
  const source = memorySource(made.bytes)
  const head = await openBundle(source, made)
  expect(head.size).toBe(made.bytes.length)
  expect(head.statement).toMatchObject({ product: 'demo', number: { epoch: 0, counter: 7 } })
  expect(head.assignment?.statement).toMatchObject({ device: 'device-1', sequence: 1, release: head.digest })
  expect(head.envelope).toEqual(made.parts.envelope)
  expect(head.roots).toEqual(made.parts.roots)
  expect(head.indexes.boot.chunks.some((chunk) => chunk.encoding === 'zstd')).toBe(true)
  expect(head.indexes.rootfs.chunks.every((chunk) => chunk.encoding === 'raw')).toBe(true)
  expect(head.indexBytes.boot).toEqual(made.parts.images[0]?.indexBytes)
  const rootfs = made.bytes.subarray(head.offsets.data.rootfs, head.offsets.data.rootfs + 12288)
  expect(rootfs.equals(noise(12288, 'rootfs'))).toBe(true)
  const pieces: Uint8Array[] = []
  for await (const piece of readAttachment(source, head, 'inventory')) pieces.push(piece)
  expect(Buffer.concat(pieces).toString()).toBe('{"path":"/"}\n'.repeat(50))
  const seen: number[] = []
  await verifyBundle(source, made, { onProgress: (done) => seen.push(done) })
  expect(seen.at(-1)).toBe(head.size)
})

test('a head needs no byte of the data, and few reads', async () => {
  const made = await makeBundle({ rootfs: noise(64 * 4096) })
  const source = memorySource(made.bytes)
  const head = await openBundle(source, made)
  expect(Math.max(...source.reads.map(([offset]) => offset))).toBeLessThan(head.offsets.data.boot)
  expect(source.reads.length).toBe(1)
})

test('A24 truncated at every 512 bytes and around, and with bytes behind the end', async () => {
  const made = await makeBundle()
  const whole = made.bytes
  for (let cut = 0; cut < whole.length; cut += 512)
    for (const size of [cut - 1, cut, cut + 1].filter((n) => n >= 0 && n < whole.length))
      await expect(verifyBundle(memorySource(whole.subarray(0, size)), made), `${size} bytes`).rejects.toEqual(
        refusal('BUNDLE_TRUNCATED'),
      )
  for (const extra of [1, 511, 512, 1024, 100_000])
    await expect(openBundle(memorySource(Buffer.concat([whole, Buffer.alloc(extra)])), made)).rejects.toEqual(
      refusal('BUNDLE_TRAILING_BYTES'),
    )
})

test('not a bundle at all', async () => {
  const made = await makeBundle()
  const page = Buffer.from('<!DOCTYPE html><title>Welcome to the hotel network</title>')
  for (const bytes of [page, noise(100_000), Buffer.concat([page, Buffer.alloc(4096)]), Buffer.alloc(2048)])
    await expect(openBundle(memorySource(bytes), made)).rejects.toEqual(refusal('BUNDLE_NOT_A_BUNDLE'))
  const strange = Buffer.from(made.bytes)
  strange.write('bistable bundle x\n', 512)
  await expect(openBundle(memorySource(strange), made)).rejects.toEqual(refusal('BUNDLE_NOT_A_BUNDLE'))
})

test('an unknown format version is named, also when it has more digits', async () => {
  const made = await makeBundle()
  const two = Buffer.from(made.bytes)
  two.write('2', 'bistable bundle 1'.length - 1 + 512)
  await expect(openBundle(memorySource(two), made)).rejects.toThrow(/format version 2/)
  await expect(openBundle(memorySource(two), made)).rejects.toEqual(refusal('BUNDLE_FORMAT_UNKNOWN'))
  const ten = Buffer.concat([tarHeader('bistable-bundle', 19), Buffer.from('bistable bundle 10\n'), Buffer.alloc(493)])
  await expect(openBundle(memorySource(ten), made)).rejects.toEqual(refusal('BUNDLE_FORMAT_UNKNOWN'))
})

test('A6 a member that claims to be large is refused before it is read', async () => {
  const made = await makeBundle()
  for (const [at, name] of [
    [1024, 'roots/1.json'],
    [made.bytes.indexOf('release.json'), 'release.json'],
  ] as const) {
    const bytes = Buffer.concat([made.bytes, Buffer.alloc(20_000)])
    bytes.set(tarHeader(name, 16 * 1024 + 1), at)
    await expect(openBundle(memorySource(bytes), made)).rejects.toEqual(refusal('BUNDLE_TOO_LARGE'))
    bytes.set(tarHeader(name, 0), at)
    await expect(openBundle(memorySource(bytes), made)).rejects.toEqual(refusal('BUNDLE_TOO_LARGE'))
  }
})

test('members out of order, and a root under the wrong name', async () => {
  const made = await makeBundle()
  const root = made.parts.roots[0] ?? new Uint8Array()
  const rename = (name: string) => {
    const bytes = Buffer.from(made.bytes)
    bytes.set(tarHeader(name, root.length), 1024)
    return memorySource(bytes)
  }
  await expect(openBundle(rename('roots/2.json'), made)).rejects.toEqual(refusal('BUNDLE_ROOTS'))
  for (const name of ['roots/01.json', 'roots/0.json', 'roots/x.json', 'release.json', '../roots/1.json'])
    await expect(openBundle(rename(name), made), name).rejects.toEqual(refusal('BUNDLE_HEADER'))
})

test('more roots than the format allows', async () => {
  const marker = Buffer.concat([
    tarHeader('bistable-bundle', 18),
    Buffer.from('bistable bundle 1\n'),
    Buffer.alloc(494),
  ])
  const roots = Array.from({ length: 1025 }, (_, i) => [tarHeader(`roots/${i + 1}.json`, 1), Buffer.alloc(512)]).flat()
  const source = memorySource(Buffer.concat([marker, ...roots, Buffer.alloc(512)]))
  await expect(inspectBundle(source)).rejects.toEqual(refusal('BUNDLE_TOO_LARGE'))
})

test('the chain must connect to what is trusted; a newer trusted root revokes', async () => {
  const made = await makeBundle()
  const other = walkRoots([await signedRoot({ root: [4, 5, 6], release: [14], fleet: [24] }, [4, 5])])
  await expect(openBundle(memorySource(made.bytes), { trusted: other })).rejects.toEqual(refusal('SIGNATURE_THRESHOLD'))
  const newer = walkRoots([await signedRoot({}, [1, 2]), await signedRoot({ version: 2, release: [12] }, [1, 2])])
  await expect(openBundle(memorySource(made.bytes), { trusted: newer })).rejects.toEqual(refusal('SIGNATURE_THRESHOLD'))
})

test('a bundle with a longer chain raises what is trusted', async () => {
  const first = await signedRoot({}, [1, 2])
  const made = await makeBundle({
    roots: [first, await signedRoot({ version: 2, release: [12], epoch: 1 }, [1, 2])],
    by: [12],
    release: { rootVersion: 2, number: { epoch: 1, counter: 1 } },
  })
  const head = await openBundle(memorySource(made.bytes), { trusted: walkRoots([first]) })
  expect(head.trusted.current.version).toBe(2)
})

test('a release outside what its root allows is refused', async () => {
  // The writer authenticates with the same function as the reader, so such a bundle cannot be made to be read.
  await expect(makeBundle({ release: { rootVersion: 2 } })).rejects.toEqual(refusal('BUNDLE_ROOTS'))
  await expect(makeBundle({ release: { product: 'other' } })).rejects.toEqual(refusal('BUNDLE_PRODUCT'))
  await expect(makeBundle({ release: { number: { epoch: 1, counter: 1 } } })).rejects.toEqual(refusal('BUNDLE_EPOCH'))
  await expect(makeBundle({ by: [21] })).rejects.toEqual(refusal('SIGNATURE_UNKNOWN'))
  await expect(makeBundle({ by: [] })).rejects.toEqual(refusal('SIGNATURE_THRESHOLD'))
  await expect(makeBundle({ assignment: fleetSigned([11]) })).rejects.toEqual(refusal('SIGNATURE_UNKNOWN'))
})

test('an index that lies about its image is refused although it is signed', async () => {
  const edit = (change: (image: { length: number; index: { length: number }; data: { length: number } }) => void) =>
    makeBundle({
      edit: (statement) => {
        const release = statement as { images: Parameters<typeof change>[0][] }
        if (release.images[1] !== undefined) change(release.images[1])
        return release
      },
    })
  await expect(edit((image) => (image.length += 4096))).rejects.toEqual(refusal('BUNDLE_INDEX_INVALID'))
  await expect(edit((image) => image.data.length--)).rejects.toEqual(refusal('BUNDLE_INDEX_INVALID'))
  await expect(edit((image) => (image.index.length = indexSize(2)))).rejects.toEqual(refusal('BUNDLE_PARTS'))
})

test('a root hash that does not fit the signed chunks is found by the full verification', async () => {
  const made = await makeBundle({
    edit: (statement) => {
      const release = statement as { images: { root: string }[] }
      if (release.images[0] !== undefined) release.images[0].root = '0'.repeat(64)
      return release
    },
  })
  await openBundle(memorySource(made.bytes), made)
  await expect(verifyBundle(memorySource(made.bytes), made)).rejects.toEqual(refusal('BUNDLE_ROOT_HASH'))
})

test('framing: what an installer does not fetch is checked by a few small reads', async () => {
  const made = await makeBundle()
  const head = await openBundle(memorySource(made.bytes), made)
  const source = memorySource(made.bytes)
  await checkFraming(source, head)
  expect(source.reads.reduce((sum, [, length]) => sum + length, 0)).toBeLessThan(6 * 1024)
  const broken = (at: number) => {
    const bytes = Buffer.from(made.bytes)
    bytes[at] = (bytes[at] ?? 0) ^ 1
    return memorySource(bytes)
  }
  const data = head.offsets.data.rootfs
  await expect(checkFraming(broken(data - 512), head)).rejects.toEqual(refusal('BUNDLE_HEADER'))
  await expect(checkFraming(broken(data - 1), head)).rejects.toEqual(refusal('BUNDLE_HEADER'))
  await expect(checkFraming(broken(made.bytes.length - 1), head)).rejects.toEqual(refusal('BUNDLE_PADDING'))
  await checkFraming(broken(data), head)
})

test('attachments: digest before unpacking, size exact, absent ones named', async () => {
  const made = await makeBundle()
  const source = memorySource(made.bytes)
  const head = await openBundle(source, made)
  const read = async (name: 'inventory' | 'sbom', from = source, of = head) => {
    for await (const _ of readAttachment(from, of, name));
  }
  await expect(read('sbom')).rejects.toEqual(refusal('BUNDLE_ATTACHMENT'))
  const entry = head.statement.attachments[0]
  if (entry === undefined) throw new Error('no inventory')
  const says = (unpacked: number) => ({
    ...head,
    statement: { ...head.statement, attachments: [{ ...entry, unpacked }] },
  })
  await expect(read('inventory', source, says(entry.unpacked + 1))).rejects.toEqual(refusal('BUNDLE_ATTACHMENT'))
  await expect(read('inventory', source, says(entry.unpacked - 1))).rejects.toEqual(refusal('ZSTD_LENGTH'))
  const at = head.offsets.attachments.inventory ?? 0
  const changed = Buffer.from(made.bytes)
  changed[at + 4] = (changed[at + 4] ?? 0) ^ 4
  await expect(read('inventory', memorySource(changed))).rejects.toEqual(refusal('BUNDLE_DIGEST'))
})

test('inspect shows a bundle without a trust anchor, and says so', async () => {
  const made = await makeBundle()
  const seen = await inspectBundle(memorySource(made.bytes))
  expect(seen.authenticated).toBe(false)
  expect(seen.signedBy.length).toBe(1)
  expect(seen.head.digest).toMatch(/^[0-9a-f]{64}$/)
})

test('an aborted verification stops', async () => {
  const made = await makeBundle()
  const { fileSource } = await import('../../bundle/file-source.ts')
  const source = await fileSource(made.path)
  await expect(verifyBundle(source, made, { signal: AbortSignal.abort() })).rejects.toThrow(/abort/i)
  await source.close()
})

test.skipIf(!haveTool('tar'))('GNU tar lists it, with nothing to say', async () => {
  const made = await makeBundle()
  const listing = run('tar', 'tvf', made.path).trim().split('\n')
  expect(listing.map((line) => line.split(/\s+/).at(-1))).toEqual([
    'bistable-bundle',
    'roots/1.json',
    'release.json',
    'index/boot',
    'index/rootfs',
    'attachments/inventory',
    'data/boot',
    'data/rootfs',
  ])
  expect(listing.every((line) => line.startsWith('-rw-r--r-- 0/0'))).toBe(true)
})
