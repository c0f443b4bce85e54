import { contentsErrors } from '../contents-errors.ts'

/**
 * Reads the rows of one table of an SQLite database that is wholly in memory: as much of the file format
 * (sqlite.org/fileformat2.html) as an rpm database needs. Nothing the file says is believed.
 */

const MAGIC = 'SQLite format 3\0'
const LEAF = 0x0d
const INTERIOR = 0x05
/** Real ones have three or four levels. */
const MAX_DEPTH = 20
const MAX_COLUMNS = 64

export type SqliteValue = null | number | string | Uint8Array

/**
 * The rows of `table`, as their columns in order, in row id order.
 * @param name of the file, for messages
 * @throws PACKAGES_INVALID when the file is damaged or is no such database, or has no such table
 */
export function* sqliteRows(file: Uint8Array, table: string, name: string): Generator<readonly SqliteValue[]> {
  const database = new Database(Buffer.from(file.buffer, file.byteOffset, file.byteLength), name)
  for (const [type, tableName, , root] of database.rows(1)) {
    if (type !== 'table' || tableName !== table || typeof root !== 'number') continue
    yield* database.rows(root)
    return
  }
  throw contentsErrors.PACKAGES_INVALID(`/${name} has no table ${table}`)
}

class Database {
  readonly #file: Buffer
  readonly #name: string
  readonly #pageSize: number
  /** Bytes of a page that are used; the rest is reserved for extensions. */
  readonly #usable: number

  constructor(file: Buffer, name: string) {
    this.#file = file
    this.#name = name
    if (file.length < 512 || file.toString('latin1', 0, 16) !== MAGIC) throw this.#bad('it is not an SQLite file')
    const size = file.readUInt16BE(16)
    this.#pageSize = size === 1 ? 65_536 : size
    if (this.#pageSize < 512 || (this.#pageSize & (this.#pageSize - 1)) !== 0) throw this.#bad(`pages of ${size} bytes`)
    this.#usable = this.#pageSize - file.readUInt8(20)
    if (this.#usable < 480) throw this.#bad('the pages have no room')
    if (![0, 1].includes(file.readUInt32BE(56))) throw this.#bad('its text is not UTF-8')
  }

  *rows(root: number): Generator<readonly SqliteValue[]> {
    // Each page once: a tree that meets itself would have no end.
    yield* this.#walk(root, new Set(), 0)
  }

  *#walk(number: number, seen: Set<number>, depth: number): Generator<readonly SqliteValue[]> {
    if (seen.has(number) || depth > MAX_DEPTH) throw this.#bad(`page ${number} is met again`)
    seen.add(number)
    const page = this.#page(number)
    const start = number === 1 ? 100 : 0
    const type = page.readUInt8(start)
    if (type !== LEAF && type !== INTERIOR) throw this.#bad(`page ${number} has the type ${type}`)
    const cells = page.readUInt16BE(start + 3)
    const pointers = start + (type === LEAF ? 8 : 12)
    if (pointers + 2 * cells > this.#usable) throw this.#bad(`page ${number} has ${cells} cells`)
    for (let i = 0; i < cells; i++) {
      const at = page.readUInt16BE(pointers + 2 * i)
      if (at + 4 > this.#usable) throw this.#bad(`page ${number} has a cell at ${at}`)
      if (type === INTERIOR) yield* this.#walk(page.readUInt32BE(at), seen, depth + 1)
      else yield this.#record(this.#payload(page, at, seen))
    }
    if (type === INTERIOR) yield* this.#walk(page.readUInt32BE(start + 8), seen, depth + 1)
  }

  #page(number: number): Buffer {
    const end = number * this.#pageSize
    if (number < 1 || end > this.#file.length) throw this.#bad(`there is no page ${number}`)
    return this.#file.subarray(end - this.#pageSize, end)
  }

  /** The bytes of a row: in its cell, and what does not fit there in a chain of pages. */
  #payload(page: Buffer, at: number, seen: Set<number>): Buffer {
    const length = this.#varint(page, at)
    const rowId = this.#varint(page, length.next)
    const most = this.#usable - 35
    const least = Math.floor(((this.#usable - 12) * 32) / 255) - 23
    const some = least + ((length.value - least) % (this.#usable - 4))
    const local = length.value <= most ? length.value : some <= most ? some : least
    const parts = [this.#slice(page, rowId.next, local)]
    let rest = length.value - local
    if (length.value > this.#file.length) throw this.#bad(`a row claims ${length.value} bytes`)
    let next = rest === 0 ? 0 : this.#slice(page, rowId.next + local, 4).readUInt32BE(0)
    while (rest > 0) {
      if (seen.has(next)) throw this.#bad(`page ${next} is met again`)
      seen.add(next)
      const more = this.#page(next)
      const take = Math.min(rest, this.#usable - 4)
      parts.push(more.subarray(4, 4 + take))
      rest -= take
      next = more.readUInt32BE(0)
    }
    return Buffer.concat(parts)
  }

  #record(payload: Buffer): readonly SqliteValue[] {
    const header = this.#varint(payload, 0)
    const values: SqliteValue[] = []
    let at = header.next
    let data = header.value
    while (at < header.value) {
      const type = this.#varint(payload, at)
      at = type.next
      const { value, size } = this.#value(payload, data, type.value)
      values.push(value)
      data += size
      if (values.length > MAX_COLUMNS) throw this.#bad(`a row has more than ${MAX_COLUMNS} columns`)
    }
    return values
  }

  #value(payload: Buffer, at: number, type: number): { readonly value: SqliteValue; readonly size: number } {
    if (type >= 12) {
      const size = Math.floor((type - 12) / 2)
      const bytes = this.#slice(payload, at, size)
      return { value: type % 2 === 0 ? bytes : bytes.toString('utf8'), size }
    }
    if (type === 0) return { value: null, size: 0 }
    if (type >= 8) return { value: type - 8, size: 0 }
    const size = [0, 1, 2, 3, 4, 6, 8, 8][type] ?? 0
    const bytes = this.#slice(payload, at, size)
    // Only small integers matter here; floats and what JavaScript cannot hold are not looked at.
    return { value: type === 7 ? null : size <= 6 ? bytes.readIntBE(0, size) : Number(bytes.readBigInt64BE(0)), size }
  }

  #slice(bytes: Buffer, at: number, length: number): Buffer {
    if (at + length > bytes.length) throw this.#bad(`a row ends beyond its page`)
    return bytes.subarray(at, at + length)
  }

  #varint(bytes: Buffer, at: number): { readonly value: number; readonly next: number } {
    let value = 0
    for (let i = 0; i < 8; i++) {
      const byte = bytes[at + i]
      if (byte === undefined) break
      value = value * 128 + (byte & 0x7f)
      if ((byte & 0x80) === 0 && Number.isSafeInteger(value)) return { value, next: at + i + 1 }
    }
    throw this.#bad('a number is too large')
  }

  #bad(what: string): Error {
    return contentsErrors.PACKAGES_INVALID(`/${this.#name}: ${what}`)
  }
}
