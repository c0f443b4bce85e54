import { roundUp } from '../base/bytes.ts'

/** The strict ustar subset of docs/format.md: a header is a pure function of (name, size). */

export const TAR_BLOCK = 512
/** The end of the archive: two blocks of zeros. */
export const TAR_END = 1024
/** From here on the size no longer fits eleven octal digits. */
const BASE_256_FROM = 8 ** 11

/** The only header a member of this name and size may have. `name`: 1 .. 100 ASCII bytes; `size`: a safe integer. */
export function tarHeader(name: string, size: number): Uint8Array {
  if (!/^[\x21-\x7e]{1,100}$/.test(name)) throw new RangeError(`'${name}' does not fit a member header`)
  if (!Number.isSafeInteger(size) || size < 0) throw new RangeError(`${size} is not a member size`)
  const header = Buffer.alloc(TAR_BLOCK)
  header.write(name, 0, 'latin1')
  header.write('0000644\0' + '0000000\0' + '0000000\0', 100, 'latin1')
  if (size < BASE_256_FROM) header.write(`${size.toString(8).padStart(11, '0')}\0`, 124, 'latin1')
  else {
    header[124] = 0x80
    header.writeBigUInt64BE(BigInt(size), 128)
  }
  header.write('00000000000\0', 136, 'latin1')
  header.write('        ', 148, 'latin1')
  header.write('0', 156, 'latin1')
  header.write('ustar\0', 257, 'latin1')
  header.write('00', 263, 'latin1')
  header.write('0000000\0' + '0000000\0', 329, 'latin1')
  const sum = header.reduce((total, byte) => total + byte, 0)
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}

/** The name and size a header claims; undefined unless it is byte for byte the one header for them. */
export function parseTarHeader(header: Uint8Array): { readonly name: string; readonly size: number } | undefined {
  const bytes = Buffer.from(header.buffer, header.byteOffset, header.byteLength)
  if (bytes.length !== TAR_BLOCK) return undefined
  const name = bytes.toString('latin1', 0, 100).replace(/\0+$/, '')
  const octal = bytes.toString('latin1', 124, 135)
  const size =
    bytes[124] === 0x80
      ? Number(bytes.readBigUInt64BE(128))
      : /^[0-7]{11}$/.test(octal)
        ? Number.parseInt(octal, 8)
        : Number.NaN
  if (!/^[\x21-\x7e]{1,100}$/.test(name) || !Number.isSafeInteger(size)) return undefined
  return bytes.equals(tarHeader(name, size)) ? { name, size } : undefined
}

/** Zero bytes between a content of `size` bytes and the next header. */
export function tarPadding(size: number): number {
  return roundUp(size, TAR_BLOCK) - size
}

/** Bytes a member takes in the file: header, content, padding. */
export function tarMemberSize(size: number): number {
  return TAR_BLOCK + size + tarPadding(size)
}
