import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Files } from '../../base/durable.ts'
import type { ByteSource } from '../../base/source.ts'
import { otherSlot, type Slot } from '../../bootloader/state.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { openSquashfs, type Squashfs } from '../../bundle/squashfs/image.ts'
import type { BundleHead, ReleaseStatement } from '../../bundle/types.ts'
import {
  type EtcImages,
  type EtcReport,
  type EtcSurroundings,
  MAX_REPORT_BYTES,
  planEtc,
  prepareEtc,
} from '../etc/prepare.ts'
import { carryOwnedAgain } from '../etc/write.ts'
import type { Slots } from './engine-over.ts'
import { readSlotRelease, slotFolder } from './slot-files.ts'
import { closeAll, type Opened, openSlotImage, readImageFile } from './slot-image.ts'

/** Binds the merge of /etc to the slots: where the old and the new image are read. */

export class EtcOfDevice {
  readonly #around: EtcSurroundings
  readonly #slots: Slots
  readonly #data: string
  readonly #files: Files

  constructor(around: EtcSurroundings, slots: Slots, data: string, files: Files) {
    this.#around = around
    this.#slots = slots
    this.#data = data
    this.#files = files
  }

  /** Makes the other slot's /etc from the image that stands there, verified. Nothing where /etc is not kept per slot. */
  async prepare(running: Slot, statement: ReleaseStatement, signal: AbortSignal): Promise<EtcReport | undefined> {
    if (!(await this.#perSlot(running))) return undefined
    const slot = otherSlot(running)
    const root = statement.images.find(({ name }) => name === 'rootfs')?.root ?? ''
    return await this.#withImages(
      running,
      async (opened) => this.#imageIn(slot, statement, opened),
      (images) => prepareEtc(this.#around, images, { slot, number: statement.number, root }, signal),
    )
  }

  /** The same once more, right before an armed release is tried: what was changed since the install comes along. */
  async refresh(running: Slot, signal: AbortSignal): Promise<EtcReport | undefined> {
    const stored = await readSlotRelease(this.#files, slotFolder(this.#data, otherSlot(running)))
    return stored === undefined ? undefined : await this.prepare(running, stored.statement, signal)
  }

  /** Before the other slot is tried again as it was left. */
  async rollBack(running: Slot): Promise<void> {
    if (await this.#perSlot(running))
      await carryOwnedAgain(join(this.#around.folders, otherSlot(running)), this.#around.flush)
  }

  /** What a merge with a bundle's image would do; writes nothing. */
  async preview(running: Slot, source: ByteSource, head: BundleHead, signal: AbortSignal): Promise<EtcReport> {
    const image = async (): Promise<Squashfs> => {
      const index = head.indexes.rootfs
      return await openSquashfs(chunkImage(source, head.offsets.data.rootfs, index), index.imageLength)
    }
    return (await this.#withImages(running, image, (images) => planEtc(this.#around, images, signal))).report
  }

  /** What the running image has at these paths, of files of at most `limit` bytes. */
  async released(running: Slot, paths: readonly string[], limit: number): Promise<Map<string, Uint8Array>> {
    const opened: Opened = []
    try {
      const stored = await readSlotRelease(this.#files, slotFolder(this.#data, running))
      const image = await this.#imageIn(running, stored?.statement, opened)
      const found = new Map<string, Uint8Array>()
      for (const path of paths) {
        const bytes = await readImageFile(image, path, limit)
        if (bytes !== undefined) found.set(path, bytes)
      }
      return found
    } finally {
      await closeAll(opened)
    }
  }

  /** The report of the last merge, or undefined. */
  async lastReport(): Promise<unknown> {
    const bytes = await this.#files.read(this.#around.report, MAX_REPORT_BYTES)
    return bytes === undefined ? undefined : JSON.parse(Buffer.from(bytes).toString('utf8'))
  }

  async #perSlot(running: Slot): Promise<boolean> {
    return await stat(join(this.#around.folders, running)).then(
      (found) => found.isDirectory(),
      () => false,
    )
  }

  async #withImages<T>(
    running: Slot,
    image: (opened: Opened) => Promise<Squashfs>,
    work: (images: EtcImages) => Promise<T>,
  ): Promise<T> {
    const opened: Opened = []
    try {
      const stored = await readSlotRelease(this.#files, slotFolder(this.#data, running))
      const old = await this.#imageIn(running, stored?.statement, opened)
      return await work({ old, image: await image(opened) })
    } finally {
      await closeAll(opened)
    }
  }

  async #imageIn(slot: Slot, statement: ReleaseStatement | undefined, opened: Opened): Promise<Squashfs> {
    return await openSlotImage(this.#slots, slot, statement, opened)
  }
}
