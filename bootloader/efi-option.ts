import type { GptPartition } from './gpt.ts'

/** EFI load options (UEFI specification 3.1.3): what a `Boot####` variable holds. Pure. */

export interface LoadOption {
  readonly description: string
  readonly partition: GptPartition
  /** "\\vmlinuz" */
  readonly file: string
  /** Handed to the program: of a Linux kernel its command line. */
  readonly arguments: string
}

const ACTIVE = 1
const MEDIA = 4
const HARD_DRIVE = 1
const FILE_PATH = 4

const text = (value: string): Buffer => Buffer.from(`${value}\0`, 'utf16le')

function node(type: number, subtype: number, content: Uint8Array): Buffer {
  const head = Buffer.alloc(4)
  head[0] = type
  head[1] = subtype
  head.writeUInt16LE(content.length + 4, 2)
  return Buffer.concat([head, content])
}

export function encodeLoadOption({ description, partition, file, arguments: words }: LoadOption): Uint8Array {
  const drive = Buffer.alloc(38)
  drive.writeUInt32LE(partition.number, 0)
  drive.writeBigUInt64LE(partition.start, 4)
  drive.writeBigUInt64LE(partition.sectors, 12)
  drive.set(partition.guid, 20)
  drive[36] = 2 // GPT
  drive[37] = 2 // its signature is a GUID
  const path = Buffer.concat([
    node(MEDIA, HARD_DRIVE, drive),
    node(MEDIA, FILE_PATH, text(file)),
    node(0x7f, 0xff, Buffer.alloc(0)),
  ])
  const head = Buffer.alloc(6)
  head.writeUInt32LE(ACTIVE, 0)
  head.writeUInt16LE(path.length, 4)
  return new Uint8Array(Buffer.concat([head, text(description), path, text(words)]))
}

/** Undefined for one that is not of this form: somebody else's. */
export function decodeLoadOption(bytes: Uint8Array): LoadOption | undefined {
  const all = Buffer.from(bytes)
  if (all.length < 8) return undefined
  const end = endOfText(all, 6)
  const path = end === undefined ? undefined : all.subarray(end, end + all.readUInt16LE(4))
  if (end === undefined || path === undefined || path.length < 50 || path[0] !== MEDIA || path[1] !== HARD_DRIVE)
    return undefined
  const drive = path.subarray(4, 42)
  const name = path.subarray(42)
  if (name[0] !== MEDIA || name[1] !== FILE_PATH || name.length < 8) return undefined
  const partition = {
    number: drive.readUInt32LE(0),
    start: drive.readBigUInt64LE(4),
    sectors: drive.readBigUInt64LE(12),
    guid: Uint8Array.from(drive.subarray(20, 36)),
  }
  const file = name.toString('utf16le', 4, name.readUInt16LE(2)).replace(/\0.*$/s, '')
  const words = all.toString('utf16le', end + path.length).replace(/\0.*$/s, '')
  return { description: all.toString('utf16le', 6, end - 2), partition, file, arguments: words }
}

/** Position behind the terminating zero. */
function endOfText(all: Buffer, from: number): number | undefined {
  for (let at = from; at + 1 < all.length; at += 2) if (all.readUInt16LE(at) === 0) return at + 2
  return undefined
}
