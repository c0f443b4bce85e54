import { createHash } from 'node:crypto'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { buildImagePath, finishBuild } from '../../bundle/build.ts'
import { checkSystem, type System } from '../../bundle/system.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import {
  IMAGE_NAMES,
  type ImageName,
  RELEASE_PAYLOAD_TYPE,
  type ReleaseNumber,
  type ReleaseStatement,
} from '../../bundle/types.ts'
import { writeBundle } from '../../bundle/writer.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { signStatement } from '../../keys/statement.ts'
import { signedRoot, signer } from '../keys/helpers.ts'

/** Small real bundles, and what the release in each does when it is started. */

export type Conduct = 'healthy' | 'unhealthy' | 'panics' | 'initramfs-fails'

export interface Release {
  /** Its number, as `rankOf` has it. */
  readonly rank: number
  readonly securityFloor: number
  readonly conduct: Conduct
  readonly statement: ReleaseStatement
  readonly bundle: Buffer
  /** Each image with its tree behind it: what a slot holds that was provisioned with this release. May be unknown. */
  readonly content?: Readonly<Record<ImageName, Buffer>>
}

/** Slot partitions, in bytes: the images with their trees and some room. */
export const SLOT_BYTES: Readonly<Record<ImageName, number>> = { boot: 48 * 1024, rootfs: 208 * 1024 }
const BOOT_BLOCKS = 8
const ROOTFS_BLOCKS = 40

/** One root key, since curve arithmetic is most of the time of a start here; the second root changes the release key. */
const one = { root: [1], threshold: 1 }
const FIRST = await signedRoot(one, [1])
const SECOND = await signedRoot({ ...one, version: 2, release: [12] }, [1])

interface Plan {
  readonly securityFloor?: number
  readonly conduct?: Conduct
  /** Signed by the key that only root version 2 lists, and the bundle carries it. */
  readonly rotated?: boolean
}

const PLANS: Readonly<Record<number, Plan>> = {
  1: {},
  2: {},
  3: { securityFloor: 1 },
  4: { conduct: 'panics' },
  5: { conduct: 'unhealthy' },
  6: { conduct: 'initramfs-fails' },
  7: { rotated: true, securityFloor: 3 },
  8: { rotated: true, securityFloor: 3 },
  9: { rotated: true, securityFloor: 3 },
  10: { rotated: true, securityFloor: 3 },
  11: { rotated: true, securityFloor: 3 },
  100: { rotated: true, securityFloor: 3 },
  101: { rotated: true, securityFloor: 3 },
}

/** More counters than any release here has. */
const EPOCH = 2 ** 24

/** A release number as one number, of which a later release has a greater one; in epoch 0 it is the counter. */
export const rankOf = ({ epoch, counter }: ReleaseNumber): number => epoch * EPOCH + counter

export const numberOf = (rank: number): ReleaseNumber => ({ epoch: Math.floor(rank / EPOCH), counter: rank % EPOCH })

export type Releases = ReadonlyMap<number, Release>

/** Everything that the devices of one maker have in common. */
export interface Product {
  /** By rank. */
  readonly releases: Releases
  /** What is installed after a cut, to show that the device still can; the second one where the first was under way. */
  readonly next: readonly number[]
  readonly system: System
  readonly anchor: Uint8Array
}

const SYSTEM: System = (() => {
  const checked = checkSystem({
    product: 'demo',
    hardware: ['model'],
    health: { deadlineSeconds: 10, required: ['/health/*'], wanted: [] },
    agent: {},
  })
  if ('problems' in checked) throw new Error(checked.problems.join())
  return checked.system
})()

export async function makeProduct(): Promise<Product> {
  return { releases: await makeReleases(), next: [100, 101], system: SYSTEM, anchor: FIRST }
}

async function makeReleases(): Promise<Releases> {
  const dir = mkdtempSync(join(tmpdir(), 'bistable-releases-'))
  try {
    const all = new Map<number, Release>()
    for (const [name, plan] of Object.entries(PLANS)) all.set(Number(name), await make(dir, Number(name), plan))
    return all
  } finally {
    rmSync(dir, { recursive: true })
  }
}

async function make(dir: string, counter: number, plan: Plan): Promise<Release> {
  const { securityFloor = 0, conduct = 'healthy', rotated = false } = plan
  const folder = join(dir, `${counter}.build`)
  mkdirSync(folder)
  // Two thirds of a release are as in every other one, so that installs take chunks from the running slot too.
  const image = (name: string, blocks: number): Buffer => {
    const bytes = noise(blocks * 4096, name)
    noise(Math.floor((blocks * 4096) / 3), `${name} ${counter}`).copy(bytes, 5000)
    return bytes
  }
  writeFileSync(buildImagePath(folder, 'boot'), image('boot', BOOT_BLOCKS))
  writeFileSync(buildImagePath(folder, 'rootfs'), image('rootfs', ROOTFS_BLOCKS))
  const ends = Array.from({ length: 12 }, (_, n) => 9000 + n * 13_000)
  const { payload, parts, statement } = await finishBuild(folder, {
    release: {
      product: 'demo',
      hardware: ['model'],
      number: { epoch: 0, counter },
      version: `1.${counter}`,
      securityFloor: { epoch: 0, counter: securityFloor },
      rootVersion: rotated ? 2 : 1,
      issued: '2026-11-21T00:00:00Z',
    },
    boundaries: { rootfs: ends },
    attachments: { inventory: Buffer.from('{"path":"/"}\n') },
  })
  const envelope = encodeEnvelope(await signStatement(RELEASE_PAYLOAD_TYPE, payload, [signer(rotated ? 12 : 11)]))
  const path = join(dir, `${counter}.bundle`)
  await writeBundle({ roots: rotated ? [FIRST, SECOND] : [FIRST], envelope, ...parts }, path)
  const content = Object.fromEntries(
    IMAGE_NAMES.map((name) => [name, withTree(readFileSync(buildImagePath(folder, name)))]),
  ) as Record<ImageName, Buffer>
  return { rank: rankOf({ epoch: 0, counter }), securityFloor, conduct, statement, bundle: readFileSync(path), content }
}

/** Bytes that look random and are the same in every run. */
function noise(length: number, seed: string): Buffer {
  return createHash('shake256', { outputLength: length }).update(seed).digest()
}

function withTree(image: Buffer): Buffer {
  const hasher = createTreeHasher()
  hasher.update(image)
  return Buffer.concat([image, ...hasher.finish().writeTree()])
}
