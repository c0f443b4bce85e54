import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead, ImageName } from '../../bundle/types.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import { openFileDoor } from '../doors/file.ts'
import { openSlotDevice } from '../slots/block.ts'
import { checkNotInUse, placeAt } from '../slots/find.ts'
import { nodeSys } from '../slots/sys.ts'
import type { SlotDevice } from '../slots/types.ts'
import { install } from './install.ts'
import type { InstallProgress, InstallResult } from './types.ts'

export interface LocalInstall {
  /** Path of a bundle. */
  readonly bundle: string
  /** Where to write: block devices or files of full size. */
  readonly slot: Readonly<Record<ImageName, string>>
  readonly trusted: TrustedRoots
  /** Refuses a release that is not allowed: `checkApplies`. Default: every authentic one is. */
  readonly check?: (head: BundleHead) => void
  readonly arm?: () => Promise<void>
  readonly signal?: AbortSignal
  readonly onProgress?: (progress: InstallProgress) => void
}

/** Installs a bundle file into slot paths with no boot state or records around it: bench, provisioning, tests. */
export async function installLocal(request: LocalInstall): Promise<InstallResult & { readonly head: BundleHead }> {
  const nothing = async (): Promise<void> => undefined
  const sys = nodeSys()
  const signal = request.signal === undefined ? {} : { signal: request.signal }
  const opened: { close(): Promise<void> }[] = []
  const openPlace = async (path: string): Promise<SlotDevice> => {
    const place = await placeAt(sys, path)
    await checkNotInUse(sys, place)
    const device = await openSlotDevice(place)
    opened.push(device)
    return device
  }
  try {
    const source = await openFileDoor(request.bundle)
    opened.push(source)
    const head = await openBundle(source, { trusted: request.trusted }, signal)
    request.check?.(head)
    const slot = { boot: await openPlace(request.slot.boot), rootfs: await openPlace(request.slot.rootfs) }
    const result = await install({
      source,
      head,
      slot,
      ...signal,
      ...(request.onProgress === undefined ? {} : { onProgress: request.onProgress }),
      invalidate: nothing,
      beforeArm: nothing,
      arm: request.arm ?? nothing,
    })
    return { ...result, head }
  } finally {
    for (const one of opened.reverse()) await one.close()
  }
}
