import { crc32 } from 'node:zlib'

/**
 * U-Boot's environment as it stands on a medium, byte for byte as U-Boot and libubootenv read it: CRC-32 (little-endian,
 * over the data only), in a redundant pair one flag byte, then `name=value` strings, each ended by NUL, the list ended by
 * an empty one. Bytes behind the list mean nothing; we write zeros.
 */

export interface Environment {
  readonly variables: ReadonlyMap<string, string>
  /** Undefined in an environment that stands alone. */
  readonly flag: number | undefined
}

export type EnvLayout = 'single' | 'redundant'

const HEADER: Readonly<Record<EnvLayout, number>> = { single: 4, redundant: 5 }

/** Reads an environment of exactly `bytes.length` bytes; undefined when its checksum is wrong. */
export function decodeEnv(bytes: Uint8Array, layout: EnvLayout): Environment | undefined {
  const header = HEADER[layout]
  if (bytes.length <= header) return undefined
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
  const data = view.subarray(header)
  if (crc32(data) !== view.readUInt32LE(0)) return undefined
  const variables = new Map<string, string>()
  for (let at = 0; at < data.length && data[at] !== 0; ) {
    const found = data.indexOf(0, at)
    const end = found === -1 ? data.length : found
    const text = data.toString('latin1', at, end)
    const equals = text.indexOf('=')
    // A later assignment replaces an earlier one, as in U-Boot's hash table.
    if (equals > 0) variables.set(text.slice(0, equals), text.slice(equals + 1))
    at = end + 1
  }
  return { variables, flag: layout === 'redundant' ? view.readUInt8(4) : undefined }
}

/**
 * The `size` bytes of an environment; the flag is 0 unless given.
 * @throws RangeError when the variables do not fit, or when a name or value cannot stand in an environment
 */
export function encodeEnv({ variables, flag }: Environment, size: number): Uint8Array {
  const header = HEADER[flag === undefined ? 'single' : 'redundant']
  const bytes = Buffer.alloc(size)
  let at = header
  for (const [name, value] of variables) {
    if (!/^[^=\0]+$/.test(name) || /[\0\u0100-\uffff]/.test(name + value))
      throw new RangeError(`${JSON.stringify(name)} cannot stand in an environment`)
    const text = `${name}=${value}\0`
    // One more byte for the NUL that ends the list.
    if (at + text.length + 1 > size) throw new RangeError(`the variables take more than ${size} bytes`)
    bytes.write(text, at, 'latin1')
    at += text.length
  }
  bytes.writeUInt32LE(crc32(bytes.subarray(header)), 0)
  if (flag !== undefined) bytes.writeUInt8(flag, 4)
  return new Uint8Array(bytes)
}

export const nextFlag = (flag: number): number => (flag + 1) % 256

/**
 * Which of a redundant pair counts, as U-Boot's env_import_redund and libubootenv decide: the only good one; of two the
 * one with the higher flag, where 0 follows 255; of equal flags the first.
 */
export function chooseEnv(pair: readonly [Environment | undefined, Environment | undefined]): 0 | 1 | undefined {
  const [first, second] = pair
  if (first === undefined) return second === undefined ? undefined : 1
  if (second === undefined) return 0
  const a = first.flag ?? 0
  const b = second.flag ?? 0
  if (a === 255 && b === 0) return 1
  if (a === 0 && b === 255) return 0
  return b > a ? 1 : 0
}
