import { execFileSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { gzipSync } from 'node:zlib'
import { compress } from 'zstd-napi'
import type { Sha256 } from '../../../base/bytes.ts'
import { encodeBootCfg } from '../../../bootloader/boot-cfg.ts'
import { encodeFloor } from '../../../bootloader/floor.ts'
import { encodeCopy } from '../../../bootloader/grub-env.ts'
import { arm, freshState } from '../../../bootloader/machine.ts'
import { encodeReason } from '../../../bootloader/reason.ts'
import { encodeAddon } from '../../../bundle/addon.ts'
import { encodeAssignment } from '../../../bundle/assignment.ts'
import { encodeIndex } from '../../../bundle/chunks.ts'
import { sha256 } from '../../../bundle/digest.ts'
import { encodeFreshness } from '../../../bundle/freshness.ts'
import { encodeInventoryEntry } from '../../../bundle/inventory.ts'
import { tarHeader } from '../../../bundle/tar.ts'
import type { InventoryEntry } from '../../../bundle/types.ts'
import { EMPTY_BODY, encodeRecord } from '../../../device/records/record.ts'
import { encodeRoot } from '../../../keys/root.ts'
import { fakeModule } from '../../helpers/elf.ts'
import { rootOf, signedRoot } from '../../keys/helpers.ts'
import { dir, file, hardlink, paxBody, symlink, tar } from '../../oci/tars.ts'
import { type Image, imageOf, memoryBundle, statementFor } from '../container.ts'
import { joinParts } from './signed.ts'

/** Honest inputs, a few per target: mutation starts from them. No part of the test runner is needed here. */

type Seeds = () => Promise<readonly Uint8Array[]>
const bytes = (value: unknown): Uint8Array => Buffer.from(typeof value === 'string' ? value : JSON.stringify(value))
const give =
  (...values: readonly unknown[]): Seeds =>
  async () =>
    values.map((value) => (value instanceof Uint8Array ? value : bytes(value)))

const SHA = 'ab'.repeat(32) as Sha256
const small = imageOf(Buffer.alloc(8192, 'x'))
const images = { boot: small, rootfs: imageOf(Buffer.alloc(4096 * 5, 'rootfs ')) }

const zipped = (): Image => {
  const content = Buffer.alloc(8192, 'kernel ')
  const stored = compress(content)
  const chunk = {
    digest: sha256(content),
    offset: 0,
    length: content.length,
    encoding: 'zstd' as const,
    storedOffset: 0,
    storedLength: stored.length,
    storedDigest: sha256(stored),
  }
  return { index: { imageLength: content.length, chunks: [chunk] }, root: imageOf(content).root, data: stored }
}

const number = { epoch: 0, counter: 7 }
const times = { issued: '2026-11-21T00:00:00Z', expires: '2026-11-22T00:00:00Z' }

export const json = give('{"a":[1,true,null,"\\u00e9\\ud83d\\ude00"],"b":{"c":-1}}', '[]', '"x"', '0')
export const envelopes: Seeds = async () => [await signedRoot({}, [1, 2]), await signedRoot({ version: 2 }, [1, 2, 3])]
export const roots: Seeds = async () => [
  encodeRoot(rootOf()),
  encodeRoot(rootOf({ version: 3, release: [11, 12], epoch: 2 })),
]
export const releases: Seeds = async () => [
  bytes(statementFor(images).statement),
  bytes(statementFor(images, { critical: ['type'], extra: 1 }).statement),
]
export const freshness = give(
  encodeFreshness({
    type: 'freshness',
    product: 'demo',
    channel: 'stable',
    number,
    release: SHA,
    path: 'bundles/x.bundle',
    size: 1,
    rootVersion: 1,
    ...times,
  }),
)
export const assignments = give(
  encodeAssignment({
    type: 'assignment',
    product: 'demo',
    device: 'device-1',
    sequence: 1,
    release: SHA,
    number,
    bundle: { path: 'bundles/x', size: 5 },
    ...times,
    notBefore: '2026-11-21T01:00:00Z',
    allowDowngrade: true,
  }),
)
export const addons = give(
  encodeAddon({
    type: 'addon',
    product: 'demo',
    name: 'fix-1',
    kind: 'fix',
    summary: 'mends it',
    bases: [SHA],
    fixes: ['CVE-2026-1'],
    image: { length: 8192, root: SHA },
    rootVersion: 1,
    ...times,
  }),
)
export const bundles: Seeds = async () => [await memoryBundle(images, [await signedRoot({}, [1, 2])])]
export const signedBundles: Seeds = async () =>
  [small, zipped()].map((image) => {
    const { statement, inventory } = statementFor({ boot: image, rootfs: image })
    return joinParts([bytes(statement), encodeIndex(image.index), image.data, inventory])
  })
export const indexes: Seeds = async () => [encodeIndex(images.rootfs.index), encodeIndex(zipped().index)]
export const headers = give(tarHeader('release.json', 1234), tarHeader('data/rootfs', 8 ** 11 + 5))
export const frames: Seeds = async () => [
  compress(Buffer.alloc(5000, 'abc')),
  compress(Buffer.from('x')),
  compress(Buffer.alloc(300_000, 'a long run ')),
]
const entries: InventoryEntry[] = [
  { path: '/', type: 'dir', mode: 0o755, uid: 0, gid: 0 },
  { path: '/a', type: 'file', mode: 0o644, uid: 0, gid: 0, size: 5, digest: SHA, xattrs: { 'user.x': 'eA==' } },
  { path: '/b', type: 'symlink', mode: 0o777, uid: 0, gid: 0, target: 'a' },
  { path: '/c', type: 'char', mode: 0o600, uid: 0, gid: 0, rdev: [1, 3] },
]
export const inventories = give(entries.map(encodeInventoryEntry).join(''))
export const dpkg = give(
  'Package: bash\nStatus: install ok installed\nArchitecture: amd64\nSource: bash (5.2)\nVersion: 5.2-1\nDescription: shell\n more\n\nPackage: zlib\nStatus: deinstall ok config-files\nArchitecture: all\nVersion: 1\n',
)
export const apk = give('C:Q1abc=\nP:musl\nV:1.2.4-r2\nA:x86_64\no:musl\n\nP:busybox\nV:1.36\nA:x86_64\n')
export const rpmHeaders: Seeds = async () => [rpmHeader()]
export const databases: Seeds = async () => sqliteSeeds()
export const squashfs: Seeds = async () => squashfsSeeds()

const members = [
  dir('etc/'),
  file('etc/motd', 'hello', { pax: { mtime: '1.5', 'SCHILY.xattr.user.x': 'y' } }),
  symlink('s', '../etc'),
  hardlink('h', 'etc/motd'),
  file('etc/.wh.a', ''),
  file('usr/.wh..wh..opq', ''),
  { name: 'L', type: 'L', body: `${'long/'.repeat(30)}name\0` },
  file('short', 'x'),
]
const layer = tar(...members)
export const layers = give(
  layer,
  tar(file('a', 'x'.repeat(2000)), { name: 'dev/null', type: '3', rdev: [1, 3] as const }),
)
export const gzipLayers: Seeds = async () => [
  gzipSync(layer),
  Buffer.concat([gzipSync(layer.subarray(0, 700)), gzipSync(layer.subarray(700))]),
]
export const zstdLayers: Seeds = async () => [
  compress(layer),
  Buffer.concat([compress(layer.subarray(0, 512)), compress(layer.subarray(512))]),
]
export const pax: Seeds = async () => [
  paxBody({ path: 'a/b', size: '5', mtime: '1.25', 'SCHILY.xattr.user.x': Buffer.from([0, 255]) }),
]

const OCI = 'application/vnd.oci.image'
const descriptor = { mediaType: `${OCI}.manifest.v1+json`, digest: `sha256:${SHA}`, size: 5 }
export const ociIndexes = give({
  schemaVersion: 2,
  manifests: [
    { ...descriptor, platform: { os: 'linux', architecture: 'arm64', variant: 'v8' }, annotations: { a: 'b' } },
  ],
})
export const ociManifests = give({
  schemaVersion: 2,
  mediaType: `${OCI}.manifest.v1+json`,
  config: { ...descriptor, mediaType: `${OCI}.config.v1+json` },
  layers: [{ ...descriptor, mediaType: `${OCI}.layer.v1.tar+gzip` }],
})
export const ociConfigs = give({
  architecture: 'amd64',
  os: 'linux',
  created: '2026-11-21T00:00:00Z',
  config: { Labels: { a: 'b' } },
  rootfs: { type: 'layers', diff_ids: [`sha256:${SHA}`] },
})
export const savedImages = give([{ Config: `blobs/sha256/${SHA}`, RepoTags: ['x:1'], Layers: [`blobs/sha256/${SHA}`] }])

const state = freshState('a')
export const grubEnvs: Seeds = async () => [
  Buffer.concat([encodeCopy(state), encodeCopy(arm(state, 'b'))]),
  Buffer.concat([encodeCopy(state), encodeReason({ starts: { a: 3, b: 6, up: 'a' }, failure: undefined })]),
  encodeBootCfg({ release: '1.2', args: `bistable.root=${SHA} bistable.length=4096 quiet` }),
]
export const reasons = give(
  encodeReason({
    starts: { a: 3, b: 0, up: 'b' },
    failure: { slot: 'a', stage: 'verity', text: 'block 5 is corrupt' },
  }),
)
export const floors = give(encodeFloor({ epoch: 0, counter: 0 }), encodeFloor({ epoch: 12, counter: 345 }))
export const records: Seeds = async () => [
  encodeRecord({ generation: 1, body: EMPTY_BODY }),
  encodeRecord({
    generation: 99,
    body: { ...EMPTY_BODY, blocked: [{ digest: SHA, reason: 'x', at: '2026-11-21T00:00:00.000Z' }] },
  }),
]
export const recordBodies: Seeds = async () => {
  const at = '2026-11-21T00:00:00.000Z'
  const job = { kind: 'update', slot: 'b', digest: SHA, number, version: '1', source: 'x', forced: false, started: at }
  return [
    bytes(EMPTY_BODY),
    bytes({
      ...EMPTY_BODY,
      state: { name: 'armed', job, since: at, bootId: 'x' },
      trust: { version: 2, roots: [{ version: 2, sha256: SHA }] },
      verifiedTime: at,
      slots: { a: { digest: SHA, number, version: '1', committed: true } },
      outcomes: [{ at, what: 'check', ok: false, code: 'X', message: 'y' }],
    }),
  ]
}
export const commandLines = give(
  'quiet bistable.floor=0.1 bistable.slot=a bistable.release=0.2 bistable.boot=try bistable.left=2 bistable.why=ok',
)
export const systems = give({
  product: 'demo',
  hardware: ['qemu-x86_64'],
  kernelArgs: ['console=ttyS0'],
  writable: ['/opt/x'],
  mounts: [{ path: '/opt/y', policy: 'overlay' }],
  state: { schema: 1, migrations: [{ to: 1, run: '/m' }], paths: ['/var/lib/x'] },
  owned: ['/etc/machine-id'],
  health: { deadlineSeconds: 20, required: ['/x/*'], wanted: [] },
  agent: { channel: 'http://x/channels/stable.json', pollSeconds: 100, apply: 'manual' },
  watchdog: '/dev/watchdog',
})
export const keyUris = give(
  'release-1.key',
  `command:${'58'.repeat(31)}66:sign --with x`,
  'pkcs11:token=a%20b;object=release;id=%01%ff?module-path=/usr/lib/x.so&pin-source=file:/pin',
  'aws-kms:arn:aws:kms:eu-central-1:111122223333:key/1234',
  'gcp-kms:projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1',
)
/** Without and with a signature behind it. */
export const modules: Seeds = async () => {
  const plain = fakeModule('6.1.0-42-amd64')
  const signature = Buffer.concat([Buffer.alloc(20, 's'), Buffer.from([0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 20])])
  return [plain, Buffer.concat([plain, signature, Buffer.from('~Module signature appended~\n')])]
}
export const programs: Seeds = async () => [readFileSync('/bin/true')]

/** A small image, by the tool that a build uses. */
async function squashfsSeeds(): Promise<Uint8Array[]> {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-fuzz-'))
  try {
    const from = join(folder, 'root')
    mkdirSync(join(from, 'a/b'), { recursive: true })
    writeFileSync(join(from, 'a/large'), Buffer.alloc(20_000, 'some text '))
    for (let i = 0; i < 20; i++) writeFileSync(join(from, 'a/b', `file-${i}`), `content ${i}`)
    symlinkSync('../a', join(from, 'a/link'))
    const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
    return [['zstd'], ['gzip'], ['zstd', '-no-fragments', '-noI', '-noD']].map(([comp = '', ...more], i) => {
      const image = join(folder, `${i}.sqfs`)
      const args = [from, image, '-comp', comp, '-b', '4096', '-quiet', '-no-progress', '-nopad', ...more]
      execFileSync('mksquashfs', args, { env, stdio: 'ignore' })
      return readFileSync(image)
    })
  } finally {
    rmSync(folder, { recursive: true })
  }
}

/** An rpm header: three index entries and their strings. */
function rpmHeader(): Uint8Array {
  const strings = Buffer.from('bash\u00005.2\u00001\u0000')
  const entry = (tag: number, type: number, offset: number) => {
    const out = Buffer.alloc(16)
    for (const [i, value] of [tag, type, offset, 1].entries()) out.writeUInt32BE(value, i * 4)
    return out
  }
  const counts = Buffer.alloc(8)
  counts.writeUInt32BE(3, 0)
  counts.writeUInt32BE(strings.length, 4)
  return Buffer.concat([counts, entry(1000, 6, 0), entry(1001, 6, 5), entry(1002, 6, 9), strings])
}

/** Databases by Python's sqlite3, where there is one; else only their first bytes. */
async function sqliteSeeds(): Promise<Uint8Array[]> {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-fuzz-'))
  const script = `import sqlite3, sys
c = sqlite3.connect(sys.argv[1])
c.execute('PRAGMA page_size=512')
c.execute('CREATE TABLE Packages (hnum INTEGER PRIMARY KEY, blob BLOB NOT NULL)')
for i in range(30): c.execute('INSERT INTO Packages VALUES (?, ?)', (i, bytes([i]) * (i * 40)))
c.commit()`
  try {
    execFileSync('python3', ['-c', script, join(folder, 'x.db')], { stdio: 'ignore' })
    return [readFileSync(join(folder, 'x.db'))]
  } catch {
    return [Buffer.concat([Buffer.from('SQLite format 3\0'), Buffer.alloc(1008)])]
  } finally {
    rmSync(folder, { recursive: true })
  }
}
