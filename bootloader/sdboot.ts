import { mkdir, open, readdir, readFile, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { systemReason } from '../base/errors.ts'
import { writeAll } from '../base/write-all.ts'
import type { BackendReading, BootBackend } from './backend.ts'
import { type BootCfg, decodeBootCfg } from './boot-cfg.ts'
import { bootErrors } from './errors.ts'
import { type BootImage, fatBytes, fatFile } from './fat-read.ts'
import { checkState } from './machine.ts'
import type { ReasonPlace } from './reason-place.ts'
import { type Entry, entryName, entryText, newestEntries, parseEntry, stateOfEntries } from './sdboot-entries.ts'
import { type BootState, MAX_TRIES, otherSlot, type Slot } from './state.ts'

/**
 * The systemd-boot backend: an edge module over the mounted EFI system partition. systemd-boot reads kernels from that
 * partition only, so arming copies the slot's kernel and initramfs there first.
 */

export interface SdbootOptions {
  /** Where the EFI system partition (or XBOOTLDR) is mounted: `/boot/efi`. */
  readonly esp: string
  /** Opens the boot image of a slot. */
  readonly bootImage: (slot: Slot) => Promise<BootImage>
  readonly reasons: ReasonPlace
}

export function sdbootBackend({ esp, bootImage, reasons }: SdbootOptions): BootBackend {
  const folder = join(esp, 'loader', 'entries')
  const list = async (): Promise<readonly Entry[]> => {
    const names = await readdir(folder).catch((cause: unknown) => {
      throw bootErrors.BOOT_STATE_READ(`${folder}: ${systemReason(cause)}`, { cause })
    })
    return names.flatMap((name) => parseEntry(name) ?? [])
  }
  const read = async (): Promise<BackendReading> => {
    const entries = await list()
    const { state, torn } = stateOfEntries(entries)
    // systemd-bless-boot commits by renaming; what stands in the entry is then still the text of a try.
    const primary = state === undefined ? undefined : newestEntries(entries)[state.primary]
    const text = primary === undefined ? '' : await readFile(join(folder, primary.file), 'utf8').catch(() => '')
    return { state, torn: torn || (primary !== undefined && !text.includes(' bistable.boot=committed ')) }
  }
  /** Makes the entry of a slot, whole or not at all. */
  const put = async (slot: Slot, number: number, left: number | undefined, cfg: BootCfg) => {
    const text = entryText(slot, cfg, left === undefined ? 'committed' : 'try')
    await writeWhole(join(folder, entryName(number, slot, left)), [Buffer.from(text)])
  }
  const drop = async (entries: readonly Entry[]) => {
    for (const { file } of entries) await rm(join(folder, file), { force: true })
    await flush(folder)
  }
  /** Kernel and initramfs of a slot, copied unless they stand there already; its arguments. */
  const stage = async (slot: Slot, copy: boolean): Promise<BootCfg> => {
    const image = await bootImage(slot)
    try {
      const cfg = decodeBootCfg(await fatBytes(image.read, 'boot.cfg', 16 * 1024))
      const place = join(esp, 'bistable', slot)
      await mkdir(place, { recursive: true })
      for (const name of copy ? ['vmlinuz', 'initrd.img'] : [])
        await writeWhole(join(place, name), (await fatFile(image.read, name)).content())
      return cfg
    } finally {
      await image.close()
    }
  }
  const write = async (state: BootState): Promise<void> => {
    const entries = await list()
    const before = stateOfEntries(entries).state
    if (before !== undefined && checkState(state).generation <= before.generation)
      throw bootErrors.BOOT_STATE_INVALID(`generation ${state.generation} is not above ${before.generation}`)
    const now = newestEntries(entries)
    const { primary, trial, generation } = state
    const mine = now[primary]
    // The new primary first, then what it replaces: at every moment there is an entry to boot.
    const text = mine === undefined ? '' : await readFile(join(folder, mine.file), 'utf8').catch(() => '')
    const stands = before?.primary === primary && mine?.left === undefined && text.includes(' bistable.boot=committed ')
    if (!stands) await put(primary, generation, undefined, await stage(primary, mine === undefined))
    const other = now[otherSlot(primary)]
    const counted = trial !== undefined && other?.left !== undefined
    if (counted && other.left !== state.left) {
      await rename(join(folder, other.file), join(folder, entryName(other.number, trial, state.left)))
    } else if (trial !== undefined && !counted) {
      await put(trial, generation, state.left, await stage(trial, other === undefined))
    }
    // What was armed may be booted for good, as before: behind the primary, which the name of a try was not.
    const calm = trial === undefined && state.spare && other?.left !== undefined
    if (calm) {
      const first = stands && mine !== undefined ? mine.number : generation
      await put(other.slot, Math.max(0, first - 1), undefined, await stage(other.slot, false))
    }
    const keep = new Set<Entry | undefined>([
      ...(stands ? [mine] : []),
      ...(counted || (trial === undefined && state.spare && !calm) ? [other] : []),
    ])
    await drop(entries.filter((entry) => !keep.has(entry)))
  }
  return {
    describe: () => ({ name: 'systemd-boot', place: `entries in ${folder}`, maxTries: MAX_TRIES }),
    read,
    write: async (state) => {
      await write(state).catch((cause: unknown) => {
        if (cause instanceof Error && 'family' in cause) throw cause
        throw bootErrors.BOOT_STATE_WRITE(`${folder}: ${systemReason(cause)}`, { cause })
      })
      const back = (await read()).state
      const same =
        back !== undefined && JSON.stringify({ ...back, generation: 0 }) === JSON.stringify({ ...state, generation: 0 })
      if (!same) throw bootErrors.BOOT_STATE_NOT_STORED(`${folder} reads back as ${JSON.stringify(back)}`)
    },
    reason: () => reasons.reason(),
    clearReason: (up) => reasons.clearReason(up),
    close: async () => undefined,
  }
}

/** Written beside, flushed, renamed. The name of the temporary file is none that systemd-boot takes for an entry. */
async function writeWhole(path: string, content: AsyncIterable<Uint8Array> | Iterable<Uint8Array>): Promise<void> {
  const beside = `${path}.new`
  const file = await open(beside, 'w', 0o644)
  try {
    let at = 0
    for await (const piece of content) {
      // In as many writes as it takes: a file system that is all but full takes the first half without a word.
      await writeAll(file, piece, at)
      at += piece.length
    }
    await file.sync()
  } finally {
    await file.close()
  }
  await rename(beside, path)
  await flush(join(path, '..'))
}

async function flush(folder: string): Promise<void> {
  const file = await open(folder, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}
