import { compareUtf8 } from '../base/bytes.ts'

/** The "newc" cpio archive that Linux unpacks as initramfs (Documentation/driver-api/early-userspace/buffer-format.rst). */

export type CpioEntry =
  | { readonly path: string; readonly type: 'dir'; readonly mode: number }
  | { readonly path: string; readonly type: 'file'; readonly mode: number; readonly bytes: Uint8Array }
  | { readonly path: string; readonly type: 'symlink'; readonly target: string }
  | { readonly path: string; readonly type: 'char'; readonly mode: number; readonly device: readonly [number, number] }

const TYPE_BITS = { dir: 0o040000, file: 0o100000, symlink: 0o120000, char: 0o020000 } as const

/**
 * Packs entries in byte order of their paths (no leading slash), with the parents that are missing; owner root, time 0,
 * inode numbers from 1. The same entries give the same bytes.
 * @param last first parts of paths that stand behind all others
 */
export function packCpio(entries: readonly CpioEntry[], last: readonly string[] = []): Uint8Array {
  const byPath = new Map<string, CpioEntry>()
  for (const entry of entries) {
    const parts = entry.path.split('/')
    for (let n = 1; n < parts.length; n++) {
      const path = parts.slice(0, n).join('/')
      if (!byPath.has(path)) byPath.set(path, { path, type: 'dir', mode: 0o755 })
    }
    byPath.set(entry.path, entry)
  }
  const rank = ({ path }: CpioEntry): number => (last.includes(path.split('/')[0] ?? '') ? 1 : 0)
  const sorted = [...byPath.values()].sort((a, b) => rank(a) - rank(b) || compareUtf8(a.path, b.path))
  const pieces: Uint8Array[] = []
  for (const [index, entry] of sorted.entries()) member(pieces, index + 1, entry)
  member(pieces, 0, undefined)
  return Buffer.concat(pieces)
}

function member(pieces: Uint8Array[], inode: number, entry: CpioEntry | undefined): void {
  const name = Buffer.from(`${entry?.path ?? 'TRAILER!!!'}\0`)
  const data = contentOf(entry)
  const mode = entry === undefined ? 0 : TYPE_BITS[entry.type] | (entry.type === 'symlink' ? 0o777 : entry.mode)
  const [major, minor] = entry?.type === 'char' ? entry.device : [0, 0]
  const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, major, minor, name.length, 0]
  const head = `070701${fields.map((value) => value.toString(16).padStart(8, '0')).join('')}`
  pieces.push(Buffer.from(head, 'latin1'), name, padding(head.length + name.length), data, padding(data.length))
}

function contentOf(entry: CpioEntry | undefined): Uint8Array {
  if (entry?.type === 'file') return entry.bytes
  return entry?.type === 'symlink' ? Buffer.from(entry.target) : new Uint8Array(0)
}

function padding(length: number): Uint8Array {
  return new Uint8Array((4 - (length % 4)) % 4)
}
