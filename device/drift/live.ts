import { lstatSync, readdirSync, readlinkSync, type Stats } from 'node:fs'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { compareUtf8 } from '../../base/bytes.ts'
import { systemReason } from '../../base/errors.ts'
import { filePieces } from '../../base/file-pieces.ts'
import { fileTypeOf } from '../../base/file-type.ts'
import { fsverityOf } from '../../bundle/fsverity.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import type { XattrTool } from '../etc/xattrs.ts'
import { driftErrors } from './errors.ts'

/** The running system's paths, described as a release's inventory describes its own. */

/** Paths under one folder. */
const MAX_PATHS = 200_000
/** Files between two turns of the event loop. */
const BREATH = 64

/**
 * Folders and all below them, in the order of an inventory; other file systems mounted inside are part of it.
 * @param root before every path: "" on a device
 * @param folders "/etc", …: none inside another
 * @param xattrs undefined: none are listed
 * @param most paths under one folder
 * @throws DRIFT_TOO_LARGE, DRIFT_UNREADABLE
 */
export async function* liveInventory(
  root: string,
  folders: readonly string[],
  xattrs: XattrTool | undefined,
  signal: AbortSignal,
  most = MAX_PATHS,
): AsyncGenerator<InventoryEntry> {
  const known = new Map<string, ReadonlyMap<string, string>>()
  for (const folder of folders)
    for (const [path, names] of (await xattrs?.read(join(root, folder))) ?? [])
      known.set(path === '' ? folder : `${folder}/${path}`, names)
  // All at once: "/opt/app-x" stands between "/opt/app" and what is in it.
  const paths = folders.flatMap((folder) => listPaths(root, folder, most)).sort(compareUtf8)
  for (const [n, path] of paths.entries()) {
    signal.throwIfAborted()
    if (n % BREATH === 0) await setImmediate()
    const stat = lstatSync(join(root, path), { throwIfNoEntry: false })
    if (stat !== undefined) yield await describe(join(root, path), path, stat, known.get(path))
  }
}

function listPaths(root: string, folder: string, most: number): string[] {
  const found: string[] = []
  const visit = (path: string) => {
    const stat = lstatSync(join(root, path), { throwIfNoEntry: false })
    if (stat === undefined) return
    found.push(path)
    if (found.length > most) throw driftErrors.DRIFT_TOO_LARGE(`${folder} has more than ${most} paths`)
    if (stat.isDirectory()) for (const name of readdirSync(join(root, path))) visit(`${path}/${name}`)
  }
  try {
    visit(folder)
  } catch (error) {
    throw unreadable(folder, error)
  }
  return found
}

async function describe(
  full: string,
  path: string,
  stat: Stats,
  xattrs: ReadonlyMap<string, string> | undefined,
): Promise<InventoryEntry> {
  const type = fileTypeOf(stat)
  try {
    return {
      path,
      type,
      mode: type === 'symlink' ? 0o777 : stat.mode & 0o7777,
      uid: stat.uid,
      gid: stat.gid,
      ...(type === 'file' && { size: stat.size, digest: await fsverityOf(filePieces(full, stat.size)) }),
      ...(type === 'symlink' && { target: readlinkSync(full) }),
      ...((type === 'char' || type === 'block') && { rdev: numbersOf(stat.rdev) }),
      ...(xattrs !== undefined && xattrs.size > 0 && { xattrs: Object.fromEntries(xattrs) }),
    }
  } catch (error) {
    throw unreadable(full, error)
  }
}

function unreadable(path: string, error: unknown): unknown {
  if (!(error instanceof Error && 'errno' in error)) return error
  return driftErrors.DRIFT_UNREADABLE(`${path}: ${systemReason(error)}`, { cause: error })
}

/** Linux, new_decode_dev(): 12 bits of major, 20 of minor. */
const numbersOf = (rdev: number): [number, number] => [(rdev >>> 8) & 0xfff, (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)]
