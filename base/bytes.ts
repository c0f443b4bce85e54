/** Small helpers over bytes, used by every room. */

export type Brand<T, Name extends string> = T & { readonly __brand: Name }
/** A SHA-256 digest as 64 lower-case hexadecimal characters. */
export type Sha256 = Brand<string, 'sha256'>

export const KiB = 1024
export const MiB = 1024 * 1024

export function isSha256(text: unknown): text is Sha256 {
  return typeof text === 'string' && /^[0-9a-f]{64}$/.test(text)
}

export function hex(bytes: Uint8Array): string {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength).toString('hex')
}

export function fromHex(text: string): Uint8Array {
  if (!/^(?:[0-9a-f]{2})*$/.test(text)) throw new TypeError('not lower-case hexadecimal of even length')
  return new Uint8Array(Buffer.from(text, 'hex'))
}

/** Byte-wise order, as `memcmp` gives it: the one sort order of this project. */
export function compareBytes(a: Uint8Array, b: Uint8Array): number {
  return Buffer.compare(a, b)
}

/** Orders two strings by their UTF-8 bytes, whatever the locale. */
export function compareUtf8(a: string, b: string): number {
  return Buffer.compare(Buffer.from(a, 'utf8'), Buffer.from(b, 'utf8'))
}

/** Rounds `value` up to a multiple of `step`, both non-negative safe integers. */
export function roundUp(value: number, step: number): number {
  return Math.ceil(value / step) * step
}

/** "1.5 MiB": for people; machines get the number. */
export function humanBytes(bytes: number): string {
  const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB']
  let value = bytes
  let unit = 0
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024
    unit++
  }
  return unit === 0 ? `${value} B` : `${value.toFixed(value < 10 ? 1 : 0)} ${units[unit]}`
}
