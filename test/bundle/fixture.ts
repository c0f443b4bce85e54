import { createHash } from 'node:crypto'
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Sha256 } from '../../base/bytes.ts'
import type { ByteSource } from '../../base/source.ts'
import { ASSIGNMENT_PAYLOAD_TYPE, type AssignmentStatement, encodeAssignment } from '../../bundle/assignment.ts'
import { type BuildFacts, buildImagePath, finishBuild } from '../../bundle/build.ts'
import { RELEASE_PAYLOAD_TYPE, type ReleaseStatement } from '../../bundle/types.ts'
import { type BundleParts, writeBundle } from '../../bundle/writer.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { walkRoots } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import { signedRoot, signer } from '../keys/helpers.ts'
import { noise, scratch } from './tools.ts'

export const RELEASE: BuildFacts['release'] = {
  product: 'demo',
  hardware: ['qemu-x86_64'],
  number: { epoch: 0, counter: 7 },
  version: '2.0.0',
  securityFloor: { epoch: 0, counter: 3 },
  rootVersion: 1,
  issued: '2026-11-21T00:00:00Z',
}

export const SHA = 'ab'.repeat(32) as ReleaseStatement['images'][number]['root']

/** A well-formed statement that no files stand behind. */
export const STATEMENT: ReleaseStatement = {
  type: 'release',
  ...RELEASE,
  images: [
    { name: 'boot', length: 8192, root: SHA, index: { length: 100, sha256: SHA }, data: { length: 5000 } },
    { name: 'rootfs', length: 4096, root: SHA, index: { length: 176, sha256: SHA }, data: { length: 4096 } },
  ],
  attachments: [{ name: 'inventory', length: 10, sha256: SHA, unpacked: 20 }],
}

export interface Made {
  readonly dir: string
  readonly path: string
  readonly parts: BundleParts
  readonly bytes: Buffer
  readonly trusted: ReturnType<typeof walkRoots>
}

export interface Plan {
  readonly boot?: Uint8Array
  readonly rootfs?: Uint8Array
  readonly release?: Partial<BuildFacts['release']>
  readonly attachments?: BuildFacts['attachments']
  readonly roots?: readonly Uint8Array[]
  readonly by?: readonly number[]
  readonly assignment?: AssignmentOf
  /** Changes the payload after the build, before it is signed. */
  readonly edit?: (statement: Record<string, unknown>) => unknown
}

/** Everything up to `writeBundle`. */
export async function makeParts(plan: Plan = {}): Promise<{ dir: string; parts: BundleParts }> {
  const dir = scratch()
  const folder = join(dir, 'demo.build')
  mkdirSync(folder)
  writeFileSync(buildImagePath(folder, 'boot'), plan.boot ?? Buffer.concat([noise(4096), Buffer.alloc(8192, 'boot')]))
  writeFileSync(buildImagePath(folder, 'rootfs'), plan.rootfs ?? noise(4096 * 3, 'rootfs'))
  const build = await finishBuild(folder, {
    release: { ...RELEASE, ...plan.release },
    attachments: plan.attachments ?? { inventory: Buffer.from('{"path":"/"}\n'.repeat(50)) },
  })
  const payload =
    plan.edit === undefined
      ? build.payload
      : Buffer.from(JSON.stringify(plan.edit(JSON.parse(Buffer.from(build.payload).toString()))))
  const envelope = encodeEnvelope(await signStatement(RELEASE_PAYLOAD_TYPE, payload, (plan.by ?? [11]).map(signer)))
  const roots = plan.roots ?? [await signedRoot({}, [1, 2])]
  const digest = createHash('sha256').update(payload).digest('hex') as Sha256
  const assignment = plan.assignment === undefined ? {} : { assignment: await plan.assignment(digest) }
  return { dir, parts: { ...build.parts, roots, envelope, ...assignment } }
}

export async function makeBundle(plan: Plan = {}): Promise<Made> {
  const { dir, parts } = await makeParts(plan)
  const path = join(dir, 'demo.bundle')
  await writeBundle(parts, path)
  return { dir, path, parts, bytes: readFileSync(path), trusted: walkRoots(parts.roots) }
}

/** Makes the envelope of an assignment of the release with this digest. */
export type AssignmentOf = (release: Sha256) => Promise<Uint8Array>

export const ASSIGNMENT: AssignmentStatement = {
  type: 'assignment',
  product: 'demo',
  device: 'device-1',
  sequence: 1,
  release: SHA,
  number: RELEASE.number,
  issued: '2026-11-21T00:00:00Z',
  expires: null,
  allowDowngrade: false,
}

/** An assignment signed by fleet key 21 (or others). */
export function fleetSigned(by: readonly number[] = [21], change: Partial<AssignmentStatement> = {}): AssignmentOf {
  return async (release) => {
    const payload = encodeAssignment({ ...ASSIGNMENT, release, ...change })
    return encodeEnvelope(await signStatement(ASSIGNMENT_PAYLOAD_TYPE, payload, by.map(signer)))
  }
}

/** A source over bytes in memory; `bytes` may be changed between reads. */
export function memorySource(bytes: Uint8Array, name = 'memory'): ByteSource & { reads: [number, number][] } {
  const reads: [number, number][] = []
  return {
    name,
    size: bytes.length,
    reads,
    async *read(offset, length) {
      reads.push([offset, length])
      if (offset < 0 || offset + length > bytes.length) throw new RangeError(`read of ${offset}+${length}`)
      for (let at = 0; at < length; at += 1 << 20)
        yield bytes.subarray(offset + at, offset + Math.min(length, at + (1 << 20)))
    },
    close: async () => undefined,
  }
}
