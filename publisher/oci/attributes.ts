import { compareUtf8 } from '../../base/bytes.ts'
import { show } from '../tar/names.ts'
import type { TarEntry } from '../tar/reader.ts'
import type { NodeAttributes } from '../tree.ts'

/** What is kept of an entry's attributes, and what a report says about them. Pure. */

/** Something a person should know, though it is no reason to refuse. */
export interface Finding {
  readonly kind: string
  readonly path: string
  readonly detail: string
}

/** SquashFS holds user., trusted. and security. names; the container engine's own notes mean nothing on a device. */
const KEPT_XATTR = /^(?:user\.(?!overlay\.|containers\.)|security\.)[^\u0000-\u001f\u007f-\u009f]{1,240}$/
const NO_XATTRS: ReadonlyMap<string, Uint8Array> = new Map()

/**
 * Takes over an entry's attributes; what is left out is reported.
 * @param clampTime times above it, in seconds since 1970, are lowered to it
 */
export function attributesOf(
  entry: TarEntry,
  path: string,
  clampTime: number | undefined,
  findings: Finding[],
): NodeAttributes {
  if (entry.acl)
    findings.push({ kind: 'acl-dropped', path, detail: 'its POSIX access control list has no place in SquashFS' })
  for (const name of entry.others)
    if (!entry.xattrs.has(name))
      findings.push({ kind: 'xattr-dropped', path, detail: `${show(name)}, not as SCHILY.xattr` })
  return {
    mode: entry.mode,
    uid: entry.uid,
    gid: entry.gid,
    mtime: clampTime === undefined ? entry.mtime : Math.min(entry.mtime, clampTime),
    xattrs: entry.xattrs.size === 0 ? NO_XATTRS : keptXattrs(entry.xattrs, path, findings),
  }
}

function keptXattrs(
  given: ReadonlyMap<string, Uint8Array>,
  path: string,
  findings: Finding[],
): ReadonlyMap<string, Uint8Array> {
  const kept = new Map<string, Uint8Array>()
  for (const name of [...given.keys()].sort(compareUtf8)) {
    const value = given.get(name)
    if (value !== undefined && KEPT_XATTR.test(name)) kept.set(name, value)
    else findings.push({ kind: 'xattr-dropped', path, detail: show(name) })
  }
  return kept
}

export function sameAttributes(a: NodeAttributes, b: NodeAttributes): boolean {
  if (a.mode !== b.mode || a.uid !== b.uid || a.gid !== b.gid || a.mtime !== b.mtime) return false
  if (a.xattrs.size !== b.xattrs.size) return false
  for (const [name, value] of a.xattrs) {
    const other = b.xattrs.get(name)
    if (other === undefined || Buffer.compare(value, other) !== 0) return false
  }
  return true
}
