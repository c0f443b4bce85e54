import {
  chownSync,
  closeSync,
  fchmodSync,
  fchownSync,
  lchownSync,
  linkSync,
  mkdirSync,
  openSync,
  symlinkSync,
  writeSync,
} from 'node:fs'
import { chmod, mkdir, open, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { isBistableError, systemReason } from '../../base/errors.ts'
import { discard, loosen } from './discard.ts'
import { etcErrors } from './errors.ts'
import { folderTree } from './trees.ts'
import type { EtcPlan, EtcPlanned, EtcTree } from './types.ts'
import type { XattrTool } from './xattrs.ts'

/** Writes a planned /etc into a new folder, reads it back, and only then puts it in the place of the old one. */

export interface EtcTarget {
  /** The folder to replace: "/data/etc/b". Beside it stand ".merging" and ".old" while it is replaced. */
  readonly folder: string
  /** What the initramfs compares: "RELEASE ROOTHASH". It stands in ".bistable-release". */
  readonly marker: string
  readonly sources: { readonly local: EtcTree; readonly image: EtcTree }
  readonly xattrs: XattrTool
  /** Makes everything written so far outlive a power cut: `sync`. */
  readonly flush: () => Promise<void>
  readonly signal?: AbortSignal
}

const MARKER = '.bistable-release'
/** Owned paths are in place already: the initramfs copies them only into an /etc without this. */
const MERGED = '.bistable-merged'

/**
 * After a power cut at any moment the folder is the old one or the new one. The initramfs knows ".merging" and ".old" as
 * leftovers.
 * @throws ETC_WRITE_FAILED
 */
export async function writeEtc(plan: EtcPlan, target: EtcTarget): Promise<void> {
  const staged = `${target.folder}.merging`
  try {
    await rm(staged, { recursive: true, force: true })
    await mkdir(dirname(target.folder), { recursive: true })
    // Nobody but root sees half of it.
    await mkdir(staged, { mode: 0o700 })
    for (const entry of plan.entries) {
      target.signal?.throwIfAborted()
      await writeEntry(staged, entry, target)
    }
    const withXattrs = plan.entries.filter(({ xattrs, linkTo }) => xattrs.size > 0 && linkTo === undefined)
    const wrong = await target.xattrs.write(staged, new Map(withXattrs.map(({ path, xattrs }) => [path, xattrs])))
    // Without the tools nothing was read either: then there is nothing of the device's to lose.
    if (wrong !== undefined && (await target.xattrs.read(staged)) !== undefined)
      throw etcErrors.ETC_WRITE_FAILED(`${staged}: ${wrong}`)
    for (const [name, text] of [
      [MARKER, `${target.marker}\n`],
      [MERGED, ''],
    ] as const) {
      const file = await open(join(staged, name), 'wx', 0o644)
      await file.writeFile(text).finally(() => file.close())
    }
    // The folders last, the deepest first: writing into one needs its bits to allow it.
    for (const entry of [...plan.entries].reverse())
      if (entry.type === 'dir') await chmod(join(staged, entry.path), entry.mode)
    await target.flush()
    await readBack(staged, plan, withXattrs.length === 0 ? NO_XATTRS : target.xattrs)
    await replace(staged, target)
  } catch (error) {
    await rm(staged, { recursive: true, force: true }).catch(() => undefined)
    if (isBistableError(error) || target.signal?.aborted) throw error
    throw etcErrors.ETC_WRITE_FAILED(`${target.folder}: ${systemReason(error)}`, { cause: error })
  }
}

async function writeEntry(staged: string, entry: EtcPlanned, { sources }: EtcTarget): Promise<void> {
  const path = join(staged, entry.path)
  if (entry.type === 'dir') {
    if (entry.path !== '') mkdirSync(path, { mode: 0o700 })
    chownSync(path, entry.uid, entry.gid)
  } else if (entry.type === 'symlink') {
    symlinkSync(entry.target ?? '', path)
    lchownSync(path, entry.uid, entry.gid)
  } else if (entry.type === 'file' && entry.linkTo !== undefined) {
    linkSync(join(staged, entry.linkTo), path)
  } else if (entry.type === 'file') {
    const content = entry.from === 'made' ? [entry.content ?? new Uint8Array(0)] : sources[entry.from].read(entry.path)
    // Not readable by others before it has its owner; a password file is among them.
    const file = openSync(path, 'wx', 0o600)
    try {
      for await (const piece of content) writeFully(file, piece)
      fchownSync(file, entry.uid, entry.gid)
      fchmodSync(file, entry.mode)
    } finally {
      closeSync(file)
    }
  }
}

function writeFully(file: number, piece: Uint8Array): void {
  for (let at = 0; at < piece.length; ) at += writeSync(file, piece, at)
}

const NO_XATTRS: XattrTool = { read: async () => undefined, write: async () => undefined }

/** Every path, its attributes and content, against the plan. */
async function readBack(staged: string, plan: EtcPlan, tool: XattrTool): Promise<void> {
  const { entries } = await folderTree(staged, tool)
  for (const entry of plan.entries) {
    const found = entries.get(entry.path)
    if (['char', 'block', 'fifo', 'socket'].includes(entry.type)) continue
    const same =
      found?.type === entry.type &&
      (entry.type === 'symlink' || found.mode === entry.mode) &&
      found.uid === entry.uid &&
      found.gid === entry.gid &&
      found.target === entry.target &&
      (entry.digest === undefined || found.digest === entry.digest) &&
      (entry.content === undefined || found.size === entry.content.length) &&
      (found.xattrs === undefined || has(found.xattrs, entry))
    if (!same) throw etcErrors.ETC_WRITE_FAILED(`${staged}/${entry.path} differs from what was to be written`)
  }
}

/** The kernel may add attributes of its own (labels), and writes an ACL that says no more than the mode into the mode. */
function has(found: ReadonlyMap<string, string>, { xattrs }: EtcPlanned): boolean {
  return [...xattrs].every(([name, value]) => name.startsWith('system.') || found.get(name) === value)
}

async function replace(staged: string, { folder, flush }: EtcTarget): Promise<void> {
  const old = `${folder}.old`
  await discard(old)
  await rename(folder, old).catch(async (error: NodeJS.ErrnoException) => {
    if (error.code === 'ENOENT') return
    if (error.code !== 'EPERM') throw error
    // The folder itself is immutable.
    await loosen(folder)
    await rename(folder, old)
  })
  await rename(staged, folder)
  await flush()
  // In place by now: the next merge removes what this one could not. The initramfs has no means to take flags off.
  for (const left of [old, join(dirname(folder), 'stuck')]) await discard(left).catch(() => undefined)
}

/**
 * Before a release that was committed here is tried again: its /etc is as it was left, and the initramfs shall put today's
 * owned paths into it.
 */
export async function carryOwnedAgain(folder: string, flush: () => Promise<void>): Promise<void> {
  await rm(join(folder, MERGED), { force: true })
  await flush()
}
