import type { ReleaseStatement } from '../../bundle/types.ts'
import type { Plan } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { signedRoot } from '../keys/helpers.ts'
import { frame } from './container.ts'
import { forge, mixed, partsOf } from './forge.ts'

/** Bundles that must not be installed by the device of device.ts, and the code that says why. */
export interface Hostile {
  readonly what: string
  readonly bytes: Uint8Array
  readonly code: string
  /** The lie is in the image data: some doors find it only while they write the inactive slot. */
  readonly payload?: true
}

type Statement = { -readonly [Key in keyof ReleaseStatement]: ReleaseStatement[Key] } & Record<string, unknown>

export async function hostileBundles(): Promise<Hostile[]> {
  const bytes = await forge()
  const made = async (what: string, code: string, plan: Plan): Promise<Hostile> => ({
    what,
    code,
    bytes: await forge(plan),
  })
  const changed = (what: string, code: string, change: (copy: Buffer) => Uint8Array | undefined): Hostile => {
    const copy = Buffer.from(bytes)
    return { what, code, bytes: change(copy) ?? copy }
  }
  const flip = (copy: Buffer, at: number) => {
    copy[at] = (copy[at] ?? 0) ^ 1
    return undefined
  }
  const at = (name: string) => {
    const found = bytes.indexOf(`${name}\0`)
    if (found === -1 || found % 512 !== 0) throw new Error(`no member ${name}`)
    return found
  }
  const parts = await partsOf()
  const next = await partsOf({
    rootfs: noise(30 * 4096, 'next'),
    boot: noise(2 * 4096, 'next boot'),
    release: { number: { epoch: 0, counter: 8 } },
  })
  const low = { epoch: 0, counter: 2 }
  const zero = { epoch: 0, counter: 0 }
  return [
    changed('one byte', 'BUNDLE_TRUNCATED', (copy) => copy.subarray(0, 1)),
    changed('zeros', 'BUNDLE_NOT_A_BUNDLE', (copy) => copy.fill(0)),
    changed('an ordinary tar', 'BUNDLE_NOT_A_BUNDLE', (copy) => {
      copy.write('etc/passwd', 0)
      return undefined
    }),
    changed('cut in the first header', 'BUNDLE_TRUNCATED', (copy) => copy.subarray(0, 300)),
    changed('cut in the roots', 'BUNDLE_TRUNCATED', (copy) => copy.subarray(0, at('roots/1.json') + 700)),
    changed('cut before the data', 'BUNDLE_TRUNCATED', (copy) => copy.subarray(0, at('data/boot') + 512)),
    changed('cut by one byte', 'BUNDLE_TRUNCATED', (copy) => copy.subarray(0, -1)),
    changed('one byte more', 'BUNDLE_TRAILING_BYTES', (copy) => Buffer.concat([copy, Buffer.alloc(1)])),
    changed('a second bundle behind', 'BUNDLE_TRAILING_BYTES', (copy) => Buffer.concat([copy, copy])),
    changed('a changed header', 'BUNDLE_HEADER', (copy) => flip(copy, at('index/boot') + 100)),
    changed('a changed header of data', 'BUNDLE_HEADER', (copy) => flip(copy, at('data/rootfs') + 300)),
    changed('padding that is not zero', 'BUNDLE_PADDING', (copy) => flip(copy, at('index/boot') - 1)),
    changed('a changed chunk index', 'BUNDLE_DIGEST', (copy) => flip(copy, at('index/rootfs') + 512 + 30)),
    changed('bytes at the end', 'BUNDLE_PADDING', (copy) => flip(copy, copy.length - 700)),
    changed('a changed root', 'SIGNATURE_THRESHOLD', (copy) => {
      // The last character of the envelope's first signature that carries whole bits.
      const sig = copy.indexOf('"sig":"', at('roots/1.json')) + 20
      copy.write(copy[sig] === 0x41 ? 'B' : 'A', sig)
      return undefined
    }),
    changed('an unsigned release', 'ENVELOPE_INVALID', (copy) => {
      const from = copy.indexOf('"signatures":[', at('release.json'))
      copy.write('"signatures":[]}\n'.padEnd(40, ' '), from)
      return undefined
    }),
    {
      ...changed('a changed chunk of boot', 'BUNDLE_DIGEST', (copy) => flip(copy, at('data/boot') + 512 + 5000)),
      payload: true,
    },
    {
      ...changed('a changed chunk of rootfs', 'BUNDLE_DIGEST', (copy) => flip(copy, at('data/rootfs') + 512 + 99_999)),
      payload: true,
    },
    {
      ...(await made('a signed root hash of another image', 'BUNDLE_ROOT_HASH', {
        edit: (statement) => {
          const { images } = statement as Statement
          return { ...statement, images: images.map((image) => ({ ...image, root: 'ab'.repeat(32) })) }
        },
      })),
      payload: true,
    },
    {
      what: 'the boot image of one release with the root file system of the next',
      bytes: mixed(parts, next, /^(index|data)\/rootfs$/),
      code: 'BUNDLE_DIGEST',
    },
    {
      what: "another release's data",
      bytes: mixed(parts, next, /^data\/rootfs$/),
      code: 'BUNDLE_DIGEST',
      payload: true,
    },
    {
      what: "another release's boot data",
      bytes: mixed(parts, next, /^data\/boot$/),
      code: 'BUNDLE_DIGEST',
      payload: true,
    },
    { what: "another release's statement", bytes: mixed(parts, next, /^release/), code: 'BUNDLE_DIGEST' },
    {
      what: 'a member nobody signed',
      bytes: frame([...parts, { name: 'hooks/pre', content: Buffer.from('#!/bin/sh') }]),
      code: 'BUNDLE_TRAILING_BYTES',
    },
    await made('signed by a stranger', 'SIGNATURE_UNKNOWN', { by: [99] }),
    await made('signed by a root key', 'SIGNATURE_UNKNOWN', { by: [1] }),
    await made('signed by the fleet key', 'SIGNATURE_UNKNOWN', { by: [21] }),
    await made('signed by the release key and a stranger', 'SIGNATURE_UNKNOWN', { by: [11, 99] }),
    await made('a chain of roots of its own', 'SIGNATURE_THRESHOLD', {
      roots: [await signedRoot({ root: [4, 5], release: [99], threshold: 1 }, [4])],
      by: [99],
    }),
    await made('a next root that the old keys did not sign', 'SIGNATURE_THRESHOLD', {
      roots: [await signedRoot({}, [1, 2]), await signedRoot({ version: 2, root: [4, 5], release: [99] }, [4, 5])],
      by: [99],
    }),
    await made('a gap in the roots', 'ROOT_VERSION', {
      roots: [await signedRoot({}, [1, 2]), await signedRoot({ version: 3 }, [1, 2])],
    }),
    await made('a root newer than those in the bundle', 'BUNDLE_ROOTS', { release: { rootVersion: 2 } }),
    await made('an epoch that no root opened', 'BUNDLE_EPOCH', { release: { number: { epoch: 1, counter: 1 } } }),
    await made('another product', 'BUNDLE_PRODUCT', { release: { product: 'other' } }),
    await made('another board', 'RELEASE_WRONG_HARDWARE', { release: { hardware: ['other-board'] } }),
    await made('older than what is committed', 'RELEASE_BELOW_FLOOR', {
      release: { number: { epoch: 0, counter: 4 }, securityFloor: zero },
    }),
    await made('below the security floor', 'RELEASE_BELOW_FLOOR', { release: { number: low, securityFloor: zero } }),
    await made('a counter burnt to the end', 'RELEASE_TOO_FAR_AHEAD', {
      release: { number: { epoch: 0, counter: Number.MAX_SAFE_INTEGER } },
    }),
    await made('a critical field that nobody knows', 'RELEASE_CRITICAL', {
      edit: (statement) => ({ ...statement, script: 'rm -rf /', critical: ['script'] }),
    }),
    await made('a payload that is no release', 'RELEASE_INVALID', { edit: () => ({ type: 'release' }) }),
    await made('a payload of too many bytes in one number', 'JSON_INVALID', {
      edit: (statement) => ({ ...statement, rootVersion: 1.5 }),
    }),
  ]
}
