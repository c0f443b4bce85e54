import { IMAGE_NAMES, type ImageEntry, type ImageName } from '../../bundle/types.ts'
import { slotFault } from '../../device/install/verify.ts'
import type { SlotDevice } from '../../device/slots/types.ts'
import type { Release, Releases } from './releases.ts'

/** Which release a slot holds: its images and the trees behind them verified block by block, as dm-verity would. */

/** One slot's two partitions; equal keys stand for equal bytes. */
export interface SlotContent {
  readonly key: string
  readonly boot: () => Buffer
  readonly rootfs: () => Buffer
}

export class SlotReader {
  readonly #releases: Releases
  readonly #known = new Map<string, Release | undefined>()

  constructor(releases: Releases) {
    this.#releases = releases
  }

  /** Distinct slot contents that were verified. */
  get verified(): number {
    return this.#known.size
  }

  async holds(content: SlotContent): Promise<Release | undefined> {
    if (this.#known.has(content.key)) return this.#known.get(content.key)
    const parts = { boot: content.boot(), rootfs: content.rootfs() }
    let found: Release | undefined
    for (const release of this.#releases.values()) {
      // The rootfs image's root stands in the signed boot image: both must be of one release.
      if (await holdsAll(parts, release)) found = release
    }
    this.#known.set(content.key, found)
    return found
  }
}

async function holdsAll(parts: Readonly<Record<ImageName, Buffer>>, release: Release): Promise<boolean> {
  for (const name of IMAGE_NAMES) {
    const image = release.statement.images.find((entry) => entry.name === name)
    // A look at one block first: most releases differ there.
    if (image === undefined || !sameAt(parts[name], release.content?.[name], 8192)) return false
    if ((await slotFault(reader(name, parts[name]), image as ImageEntry)) !== undefined) return false
  }
  return true
}

const sameAt = (a: Buffer, b: Buffer | undefined, at: number): boolean =>
  b === undefined || a.subarray(at, at + 64).equals(b.subarray(at, at + 64))

function reader(name: string, bytes: Buffer): SlotDevice {
  return {
    name,
    size: bytes.length,
    freshness: 'direct',
    read: async (offset, into) => {
      into.set(bytes.subarray(offset, offset + into.length))
    },
    write: async () => undefined,
    flush: async () => undefined,
    close: async () => undefined,
  }
}
