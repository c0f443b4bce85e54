import { mkdir, open, readdir, rename, rm, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { MiB } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import { isBistableError, systemReason } from '../../base/errors.ts'
import type { ByteSource } from '../../base/source.ts'
import { type AuthenticAddon, authenticateAddon } from '../../bundle/addon.ts'
import { addonErrors } from '../../bundle/addon-errors.ts'
import { type AddonHead, checkAddonLayout } from '../../bundle/addon-file.ts'
import { MAX_ENVELOPE_MEMBER } from '../../bundle/layout.ts'
import { openSquashfs } from '../../bundle/squashfs/image.ts'
import { openImageFile } from '../../bundle/squashfs/reader.ts'
import { createTreeHasher, treeSize } from '../../bundle/tree.ts'
import type { TrustedRoots } from '../../keys/types.ts'

/**
 * Add-ons on the data partition: `addons/NAME/addon.json` is the signed statement, `image` the SquashFS image with its tree
 * behind it, as in a slot. What stands there is believed only as far as signature and dm-verity go.
 */

/** More at once are a release that nobody made. */
export const MAX_ADDONS = 16
/** What an add-on leaves free on the data partition. */
const SPARE_BYTES = 16 * MiB
const NAME = /^[a-z0-9][a-z0-9._-]{0,47}$/

export interface StoredAddon {
  readonly name: string
  /** Undefined: it cannot be believed any more, `problem` says why. */
  readonly addon?: AuthenticAddon
  readonly problem?: { readonly code: string; readonly message: string }
}

export class AddonStore {
  readonly #folder: string
  readonly #files: Files
  readonly #free: (folder: string) => Promise<number>

  /**
   * @param folder "/data/bistable/addons"
   * @param free bytes that may still be written there
   */
  constructor(folder: string, files: Files, free: (folder: string) => Promise<number> = freeBytes) {
    this.#folder = folder
    this.#files = files
    this.#free = free
  }

  image(name: string): string {
    return join(this.#folder, name, 'image')
  }

  /** Every add-on by name, each verified under the roots that count now. */
  async list(trusted: TrustedRoots): Promise<readonly StoredAddon[]> {
    const names = await readdir(this.#folder).catch(() => [])
    const found: StoredAddon[] = []
    for (const name of names.filter((name) => NAME.test(name)).sort()) {
      try {
        const bytes = await this.#files.read(join(this.#folder, name, 'addon.json'), MAX_ENVELOPE_MEMBER)
        if (bytes === undefined) throw addonErrors.ADDON_FORMAT('its statement is missing')
        const addon = authenticateAddon(bytes, trusted)
        if (addon.statement.name !== name) throw addonErrors.ADDON_FORMAT(`its statement is of ${addon.statement.name}`)
        found.push({ name, addon })
      } catch (error) {
        if (!isBistableError(error)) throw error
        found.push({ name, problem: { code: error.code, message: error.message } })
      }
    }
    return found
  }

  /**
   * Copies an add-on and reads it back (`onProgress`: after each piece); one of the same name gives way. A power cut leaves the old one, the new one, or none.
   * @throws ADDON_CONTENT, ADDON_LAYOUT, ADDON_SPACE, ADDON_STATE, and the errors of the source
   */
  async add(
    head: AddonHead,
    source: ByteSource,
    signal: AbortSignal,
    onProgress: () => void = () => undefined,
  ): Promise<void> {
    const { name, image } = head.statement
    const staged = join(this.#folder, `.${name}`)
    try {
      await mkdir(this.#folder, { recursive: true })
      await rm(staged, { recursive: true, force: true })
      const others = (await readdir(this.#folder)).filter((entry) => NAME.test(entry) && entry !== name)
      if (others.length >= MAX_ADDONS) throw addonErrors.ADDON_STATE(`${others.length} add-ons are here already`)
      const free = await this.#free(this.#folder)
      const wanted = image.length + treeSize(image.length) + SPARE_BYTES
      if (free < wanted) throw addonErrors.ADDON_SPACE(`${free} bytes are free, ${wanted} are wanted`)
      await mkdir(staged, { mode: 0o755 })
      const path = join(staged, 'image')
      await copyImage(head, source, path, signal, onProgress)
      const opened = await openImageFile(path)
      try {
        await checkAddonLayout(await openSquashfs(opened, image.length), name)
      } finally {
        await opened.close()
      }
      await writeFileDurably(join(staged, 'addon.json'), head.envelope, this.#files)
      await rm(join(this.#folder, name), { recursive: true, force: true })
      await rename(staged, join(this.#folder, name))
      await this.#files.syncDir(this.#folder)
    } catch (error) {
      await rm(staged, { recursive: true, force: true }).catch(() => undefined)
      if (isBistableError(error) || signal.aborted) throw error
      const full = error instanceof Error && 'code' in error && error.code === 'ENOSPC'
      const raise = full ? addonErrors.ADDON_SPACE : addonErrors.ADDON_STATE
      throw raise(`${staged}: ${systemReason(error)}`, { cause: error })
    }
  }

  /** @returns false when there is none of that name */
  async remove(name: string): Promise<boolean> {
    if (!NAME.test(name)) return false
    const there = (await readdir(this.#folder).catch((): string[] => [])).includes(name)
    await rm(join(this.#folder, name), { recursive: true, force: true })
    if (there) await this.#files.syncDir(this.#folder)
    return there
  }
}

async function freeBytes(folder: string): Promise<number> {
  const { bavail, bsize } = await statfs(folder)
  return bavail * bsize
}

/** The image and its tree, flushed; read back from the file. */
async function copyImage(
  head: AddonHead,
  source: ByteSource,
  path: string,
  signal: AbortSignal,
  onProgress: () => void,
): Promise<void> {
  const { length, root } = head.statement.image
  const file = await open(path, 'wx+', 0o644)
  try {
    const written = createTreeHasher()
    for await (const piece of source.read(head.offset, length, { signal })) {
      written.update(piece)
      await file.writeFile(piece)
      onProgress()
    }
    const tree = written.finish()
    if (tree.root !== root || tree.length !== length)
      throw addonErrors.ADDON_CONTENT(`the image has root ${tree.root}, ${root} was signed`)
    for (const piece of tree.writeTree()) await file.writeFile(piece)
    await file.sync()
    const back = createTreeHasher()
    const buffer = Buffer.allocUnsafe(MiB)
    for (let at = 0; at < length; ) {
      const { bytesRead } = await file.read(buffer, 0, Math.min(buffer.length, length - at), at)
      if (bytesRead === 0) break
      back.update(buffer.subarray(0, bytesRead))
      at += bytesRead
    }
    if (back.finish().root !== root) throw addonErrors.ADDON_CONTENT(`${path} does not hold what was written`)
  } finally {
    await file.close()
  }
}
