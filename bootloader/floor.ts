import { createHash } from 'node:crypto'
import { bootErrors } from './errors.ts'

/**
 * `/data/bistable/floor`: the security floor, for the initramfs. Two lines: "EPOCH.COUNTER" and the SHA-256 of the first
 * line without its newline. The agent's records are the truth; it rewrites this file whenever the two differ.
 */
export interface FloorRelease {
  readonly epoch: number
  readonly counter: number
}

export const FLOOR_PATH = '/data/bistable/floor'

export function encodeFloor({ epoch, counter }: FloorRelease): Uint8Array {
  for (const value of [epoch, counter])
    if (!Number.isSafeInteger(value) || value < 0 || value > 999_999_999_999_999)
      throw bootErrors.BOOT_FLOOR_INVALID(`floor numbers must be 0 .. 10^15-1, not ${value}`)
  const line = `${epoch}.${counter}`
  return Buffer.from(`${line}\n${createHash('sha256').update(line).digest('hex')}\n`, 'latin1')
}

/** Reads what `encodeFloor` wrote; throws BOOT_FLOOR_INVALID on anything else. */
export function decodeFloor(bytes: Uint8Array): FloorRelease {
  const match = /^(\d{1,15})\.(\d{1,15})\n/.exec(Buffer.from(bytes.subarray(0, 128)).toString('latin1'))
  if (match === null) throw bootErrors.BOOT_FLOOR_INVALID('the floor file does not start with EPOCH.COUNTER')
  const floor = { epoch: Number(match[1]), counter: Number(match[2]) }
  if (Buffer.compare(encodeFloor(floor), bytes) !== 0)
    throw bootErrors.BOOT_FLOOR_INVALID('the floor file does not match its checksum')
  return floor
}
