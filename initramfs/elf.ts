import { initramfsErrors } from './errors.ts'

/** Reads from an ELF program what it needs to run: its interpreter and its shared libraries. System V gABI, chapter 5. */

export interface ElfNeeds {
  /** PT_INTERP; undefined for a static program or a library. */
  readonly interpreter: string | undefined
  /** DT_NEEDED names, in order. */
  readonly libraries: readonly string[]
}

const PT_LOAD = 1
const PT_DYNAMIC = 2
const PT_INTERP = 3
const DT_NEEDED = 1
const DT_STRTAB = 5
/** More program headers or dynamic entries than any real program has. */
const MAX_HEADERS = 256
const MAX_DYNAMIC = 4096
const MAX_NAME = 4096

interface Segment {
  readonly type: number
  readonly offset: number
  readonly address: number
  readonly size: number
}

/** Parses a 32- or 64-bit little-endian ELF file. Throws INITRAMFS_ELF on anything malformed; `name` is for the message. */
export function readElf(bytes: Uint8Array, name: string): ElfNeeds {
  try {
    return parse(Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength))
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause
    throw initramfsErrors.INITRAMFS_ELF(`/${name}: ${cause.message}`, { cause })
  }
}

function parse(elf: Buffer): ElfNeeds {
  if (elf.length < 52 || elf.readUInt32BE(0) !== 0x7f454c46) throw new RangeError('not an ELF file')
  if (elf[5] !== 1) throw new RangeError('not little-endian')
  if (elf[4] !== 1 && elf[4] !== 2) throw new RangeError('neither 32 nor 64 bit')
  const wide = elf[4] === 2
  const word = (at: number): number => (wide ? safe(elf.readBigUInt64LE(at)) : elf.readUInt32LE(at))

  const segments = readSegments(elf, wide, word)
  const interp = segments.find((s) => s.type === PT_INTERP)
  const dynamic = segments.find((s) => s.type === PT_DYNAMIC)
  return {
    interpreter: interp === undefined ? undefined : text(elf, interp.offset),
    libraries: dynamic === undefined ? [] : readNeeded(elf, dynamic, segments, wide ? 8 : 4, word),
  }
}

function readSegments(elf: Buffer, wide: boolean, word: (at: number) => number): Segment[] {
  const table = word(wide ? 32 : 28)
  const size = elf.readUInt16LE(wide ? 54 : 42)
  const count = elf.readUInt16LE(wide ? 56 : 44)
  if (size !== (wide ? 56 : 32) && count > 0) throw new RangeError(`program headers of ${size} bytes`)
  if (count > MAX_HEADERS) throw new RangeError(`${count} program headers`)
  return Array.from({ length: count }, (_, index) => {
    const at = table + index * size
    const [offset, address, length] = wide ? [8, 16, 32] : [4, 8, 16]
    return {
      type: elf.readUInt32LE(at),
      offset: word(at + offset),
      address: word(at + address),
      size: word(at + length),
    }
  })
}

function readNeeded(
  elf: Buffer,
  dynamic: Segment,
  segments: readonly Segment[],
  wordSize: number,
  word: (at: number) => number,
): string[] {
  const names: number[] = []
  let strings: number | undefined
  const count = Math.min(MAX_DYNAMIC, Math.floor(dynamic.size / (2 * wordSize)))
  for (let index = 0; index < count; index++) {
    const at = dynamic.offset + index * 2 * wordSize
    // Tags that mean nothing here may be any 64-bit number.
    const tag = elf.readUInt32LE(at)
    const high = wordSize === 8 ? elf.readUInt32LE(at + 4) : 0
    if (high !== 0) continue
    if (tag === 0) break
    if (tag === DT_NEEDED) names.push(word(at + wordSize))
    if (tag === DT_STRTAB) strings = word(at + wordSize)
  }
  if (names.length === 0) return []
  const address = strings
  const home = segments.find(
    (s) => s.type === PT_LOAD && address !== undefined && address >= s.address && address < s.address + s.size,
  )
  if (home === undefined || address === undefined) throw new RangeError('its string table is in no segment')
  const base = home.offset + address - home.address
  return names.map((offset) => text(elf, base + offset))
}

function text(elf: Buffer, at: number): string {
  const end = elf.indexOf(0, at)
  if (at >= elf.length || end === -1 || end - at > MAX_NAME) throw new RangeError('a name does not end')
  return elf.toString('latin1', at, end)
}

function safe(value: bigint): number {
  if (value > BigInt(Number.MAX_SAFE_INTEGER)) throw new RangeError(`an offset of ${value}`)
  return Number(value)
}
