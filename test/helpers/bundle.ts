import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { buildImagePath, finishBuild } from '../../bundle/build.ts'
import { RELEASE_PAYLOAD_TYPE, type ReleaseNumber } from '../../bundle/types.ts'
import { writeBundle } from '../../bundle/writer.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { trustAnchor } from '../../keys/root.ts'
import { signStatement } from '../../keys/statement.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { signedRoot, signer } from '../keys/helpers.ts'

/** A small real bundle, built and signed by the real writer with the test keys. */
export interface TestBundle {
  readonly path: string
  readonly boot: Uint8Array
  readonly rootfs: Uint8Array
  /** What a device that trusts the test keys starts from. */
  readonly trusted: TrustedRoots
}

export interface TestBundlePlan {
  readonly boot: Uint8Array
  readonly rootfs: Uint8Array
  readonly number?: ReleaseNumber
  readonly securityFloor?: ReleaseNumber
  /** Ends of the rootfs image's own blocks. Default: chunks of 128 KiB. */
  readonly boundaries?: readonly number[]
  /** Unpacked; unless given, one that names the root directory. */
  readonly inventory?: Uint8Array
}

/** Writes `NAME.bundle` into `folder`. */
export async function makeBundle(folder: string, name: string, plan: TestBundlePlan): Promise<TestBundle> {
  const build = join(folder, `${name}.build`)
  mkdirSync(build, { recursive: true })
  writeFileSync(buildImagePath(build, 'boot'), plan.boot)
  writeFileSync(buildImagePath(build, 'rootfs'), plan.rootfs)
  const root = await signedRoot({}, [1, 2])
  const { payload, parts } = await finishBuild(build, {
    release: {
      product: 'demo',
      hardware: ['qemu-x86_64'],
      number: plan.number ?? { epoch: 0, counter: 2 },
      version: '2.0.0',
      securityFloor: plan.securityFloor ?? { epoch: 0, counter: 1 },
      rootVersion: 1,
      issued: '2026-11-21T00:00:00Z',
    },
    ...(plan.boundaries === undefined ? {} : { boundaries: { rootfs: plan.boundaries } }),
    attachments: { inventory: plan.inventory ?? Buffer.from('{"path":"/"}\n') },
  })
  const envelope = encodeEnvelope(await signStatement(RELEASE_PAYLOAD_TYPE, payload, [signer(11)]))
  const path = join(folder, `${name}.bundle`)
  await writeBundle({ roots: [root], envelope, ...parts }, path)
  return { path, boot: readFileSync(buildImagePath(build, 'boot')), rootfs: plan.rootfs, trusted: trustAnchor(root) }
}
