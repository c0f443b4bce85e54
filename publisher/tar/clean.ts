import { MiB, roundUp } from '../../base/bytes.ts'
import { ociErrors } from '../oci/errors.ts'
import { DEFAULT_LIMITS } from '../oci/limits.ts'
import type { MergedTree, TreeEntry, TreeNode } from '../tree.ts'
import { BLOCK } from './header.ts'
import { show, splitPath } from './names.ts'

/**
 * Writes a merged tree as the one clean tar that a SquashFS builder gets: sorted, numeric owners, every path once,
 * hard links behind their first path, PAX and GNU headers where a plain one does not suffice. The same tree gives the same bytes.
 *
 * The builder's own leniency (sqfstar 4.5.1 cuts long names, keeps the first of two equal paths and crashes on a hard
 * link without target) is never tried: names are checked again here, and links lead only to what was written.
 */

const PIECE = MiB / 4
const TYPES: Readonly<Record<TreeNode['type'], string>> = {
  file: '0',
  symlink: '2',
  char: '3',
  block: '4',
  dir: '5',
  fifo: '6',
}
const HARD_LINK = '1'
const PAX = 'x'
const GNU_LONG_LINK = 'K'
const MAX_OCTAL_ID = 0o7777777
const OCTAL_SIZE = 8 ** 11
const BLOCK_ZEROS = new Uint8Array(BLOCK)

/**
 * Streams the tar in pieces of at most 256 KiB.
 * @throws LAYER_NAME, LAYER_PATH for a path that an image must not hold; IMAGE_STORE_FAILED when a content is not as
 * long as its node says
 */
export async function* cleanTar(tree: MergedTree): AsyncGenerator<Uint8Array> {
  const out = new Pieces()
  const firstPaths = new Map<number, string>()
  for (const entry of tree.entries()) {
    const first = entry.link === undefined ? undefined : firstPaths.get(entry.link)
    if (entry.link !== undefined && first === undefined) firstPaths.set(entry.link, entry.path)
    yield* out.add(headerOf(entry, first))
    if (entry.node.type !== 'file' || first !== undefined) continue
    let written = 0
    for await (const piece of tree.content(entry.node)) {
      written += piece.length
      yield* out.add(piece)
    }
    if (written !== entry.node.size)
      throw ociErrors.IMAGE_STORE_FAILED(`${show(entry.path)} gave ${written} of its ${entry.node.size} bytes`)
    yield* out.add(BLOCK_ZEROS.subarray(0, roundUp(written, BLOCK) - written))
  }
  yield* out.add(new Uint8Array(2 * BLOCK))
  yield* out.rest()
}

/** The header blocks of one entry; `first` is the path that it is a hard link to. */
function headerOf(entry: TreeEntry, first: string | undefined): Uint8Array {
  const { path, node } = entry
  if (path !== '') splitPath(path, false, DEFAULT_LIMITS.depth)
  const name = path === '' ? './' : node.type === 'dir' ? `${path}/` : path
  const link = first ?? (node.type === 'symlink' ? node.target : '')
  const size = node.type === 'file' && first === undefined ? node.size : 0
  const records: Uint8Array[] = []
  const extend = (key: string, value: string | Uint8Array): void => {
    records.push(paxRecord(key, typeof value === 'string' ? Buffer.from(value) : value))
  }
  if (Buffer.byteLength(name) > 100) extend('path', name)
  if (size >= OCTAL_SIZE) extend('size', String(size))
  if (node.uid > MAX_OCTAL_ID) extend('uid', String(node.uid))
  if (node.gid > MAX_OCTAL_ID) extend('gid', String(node.gid))
  if (first === undefined) for (const [key, value] of node.xattrs) extend(`SCHILY.xattr.${key}`, value)
  const header = block({
    name,
    link,
    size: size >= OCTAL_SIZE ? 0 : size,
    type: first === undefined ? TYPES[node.type] : HARD_LINK,
    mode: node.mode,
    uid: node.uid > MAX_OCTAL_ID ? 0 : node.uid,
    gid: node.gid > MAX_OCTAL_ID ? 0 : node.gid,
    mtime: node.mtime,
    rdev: node.type === 'char' || node.type === 'block' ? node.rdev : [0, 0],
  })
  const blocks: Uint8Array[] = []
  if (records.length > 0) blocks.push(extension('PaxHeader', PAX, Buffer.concat(records)))
  // sqfstar 4.5.1 strips leading "/", "./" and "../" from the targets of symbolic links given in PAX, not in this form.
  if (Buffer.byteLength(link) > 100)
    blocks.push(
      extension('././@LongLink', GNU_LONG_LINK, Buffer.concat([Buffer.from(link), BLOCK_ZEROS.subarray(0, 1)])),
    )
  return blocks.length === 0 ? header : Buffer.concat([...blocks, header])
}

/** A header that only carries something about the next entry. */
function extension(name: string, type: string, body: Uint8Array): Uint8Array {
  const plain = { link: '', mode: 0o644, uid: 0, gid: 0, mtime: 0, rdev: [0, 0] as const }
  const padding = BLOCK_ZEROS.subarray(0, roundUp(body.length, BLOCK) - body.length)
  return Buffer.concat([block({ ...plain, name, type, size: body.length }), body, padding])
}

interface Fields {
  readonly name: string
  readonly link: string
  readonly size: number
  readonly type: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly mtime: number
  readonly rdev: readonly [number, number]
}

function block(fields: Fields): Uint8Array {
  const out = Buffer.alloc(BLOCK)
  // What does not fit stands in the PAX header; a name cut here is never read.
  Buffer.from(fields.name).copy(out, 0, 0, 100)
  octal(out, 100, 8, fields.mode)
  octal(out, 108, 8, fields.uid)
  octal(out, 116, 8, fields.gid)
  octal(out, 124, 12, fields.size)
  octal(out, 136, 12, fields.mtime)
  out.fill(' ', 148, 156)
  out.write(fields.type, 156, 'latin1')
  Buffer.from(fields.link).copy(out, 157, 0, 100)
  out.write('ustar\u000000', 257, 'latin1')
  octal(out, 329, 8, fields.rdev[0])
  octal(out, 337, 8, fields.rdev[1])
  let sum = 0
  for (const byte of out) sum += byte
  out.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return out
}

function octal(out: Buffer, at: number, length: number, value: number): void {
  const digits = value.toString(8).padStart(length - 1, '0')
  if (digits.length > length - 1) throw new RangeError(`${value} does not fit ${length - 1} octal digits`)
  out.write(digits, at, 'latin1')
}

/** "LENGTH KEY=VALUE\n" where LENGTH counts its own digits too. */
function paxRecord(key: string, value: Uint8Array): Uint8Array {
  const rest = Buffer.byteLength(key) + value.length + 3
  let length = rest + String(rest).length
  if (rest + String(length).length !== length) length = rest + String(length).length
  return Buffer.concat([Buffer.from(`${length} ${key}=`), value, Buffer.from('\n')])
}

/** Joins small pieces, so that the reader's pipe is not fed in headers. */
class Pieces {
  #buffer = Buffer.allocUnsafeSlow(PIECE)
  #used = 0;

  *add(bytes: Uint8Array): Generator<Uint8Array> {
    for (let at = 0; at < bytes.length; ) {
      const part = bytes.subarray(at, at + PIECE - this.#used)
      this.#buffer.set(part, this.#used)
      this.#used += part.length
      at += part.length
      if (this.#used === PIECE) yield* this.rest()
    }
  }

  *rest(): Generator<Uint8Array> {
    if (this.#used === 0) return
    yield this.#buffer.subarray(0, this.#used)
    // A new buffer: whoever took the last one may still hold it.
    this.#buffer = Buffer.allocUnsafeSlow(PIECE)
    this.#used = 0
  }
}
