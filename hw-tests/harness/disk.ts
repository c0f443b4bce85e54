import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import { type FileHandle, open } from 'node:fs/promises'
import { promisify } from 'node:util'
import { LabError } from './lab-error.ts'

/** The medium of a device, looked at and damaged from outside. Partitions are found by name, in a GPT of 512-byte sectors. */

export interface Partition {
  readonly name: string
  /** Bytes. */
  readonly start: number
  readonly length: number
}

const SECTOR = 512
const PIECE = 1024 * 1024

/** Copies an image with its holes. @throws LabError */
export async function copyImage(from: string, to: string): Promise<void> {
  await promisify(execFile)('cp', ['--sparse=always', '--reflink=auto', from, to]).catch(broken)
}

/** A disk of this machine that is full says nothing about the device. */
function broken(cause: unknown): never {
  throw new LabError(cause instanceof Error ? cause.message : '', { cause })
}

/** The used entries of the GPT at the start of a disk. Pure. @throws LabError */
export function readGpt(start: Buffer): Partition[] {
  const header = start.subarray(SECTOR, 2 * SECTOR)
  if (header.toString('latin1', 0, 8) !== 'EFI PART') throw new LabError('the disk has no GPT')
  const size = header.readUInt32LE(84)
  const count = header.readUInt32LE(80)
  const from = Number(header.readBigUInt64LE(72)) * SECTOR
  if (size < 128 || size > 4096 || from + size * count > start.length)
    throw new LabError(`a GPT with ${count} entries of ${size} bytes at ${from}`)
  const partitions: Partition[] = []
  for (let at = from; at < from + size * count; at += size) {
    const first = Number(start.readBigUInt64LE(at + 32))
    const last = Number(start.readBigUInt64LE(at + 40))
    if (first === 0) continue
    const name = start.toString('utf16le', at + 56, at + 128).replace(/\0.*$/s, '')
    partitions.push({ name, start: first * SECTOR, length: (last - first + 1) * SECTOR })
  }
  return partitions
}

async function partition(file: FileHandle, name: string): Promise<Partition> {
  const start = Buffer.alloc(64 * 1024)
  await file.read(start, 0, start.length, 0)
  const found = readGpt(start).find((p) => p.name === name)
  if (found === undefined) throw new LabError(`the disk has no partition ${name}`)
  return found
}

/** SHA-256 of a whole partition. */
export async function partitionDigest(image: string, name: string): Promise<string> {
  await using file = await open(image, 'r')
  const { start, length } = await partition(file, name)
  const hash = createHash('sha256')
  const piece = Buffer.alloc(PIECE)
  for (let at = 0; at < length; at += PIECE) {
    const { bytesRead } = await file.read(piece, 0, Math.min(PIECE, length - at), start + at)
    hash.update(piece.subarray(0, bytesRead))
  }
  return hash.digest('hex')
}

/** Turns one bit over, `offset` bytes into a partition. The device must be off. */
export async function flipBit(image: string, name: string, offset: number): Promise<void> {
  await using file = await open(image, 'r+')
  const { start } = await partition(file, name)
  const byte = Buffer.alloc(1)
  await file.read(byte, 0, 1, start + offset)
  byte.writeUInt8(byte.readUInt8(0) ^ 1)
  await file.write(byte, 0, 1, start + offset)
  await file.sync()
}

/** Where a partition starts, in bytes. */
export async function partitionStart(image: string, name: string): Promise<number> {
  await using file = await open(image, 'r')
  return (await partition(file, name)).start
}

/** Overwrites a part of a partition with zeros. The device must be off. */
export async function wipe(image: string, name: string, offset: number, length: number): Promise<void> {
  await using file = await open(image, 'r+')
  const { start, length: whole } = await partition(file, name)
  if (offset + length > whole) throw new LabError(`partition ${name} ends before byte ${offset + length}`)
  await file.write(Buffer.alloc(length), 0, length, start + offset)
  await file.sync()
}

/** Offset in a partition of the first occurrence of `bytes`. @throws LabError when there is none */
export async function findIn(image: string, name: string, bytes: Buffer): Promise<number> {
  await using file = await open(image, 'r')
  const { start, length } = await partition(file, name)
  const whole = Buffer.alloc(length)
  await file.read(whole, 0, length, start)
  const at = whole.indexOf(bytes)
  if (at < 0) throw new LabError(`partition ${name} does not hold the ${bytes.length} bytes looked for`)
  return at
}

/** The first `length` bytes of a file in a FAT partition. */
export async function startOfFile(image: string, name: string, file: string, length: number): Promise<Buffer> {
  await using disk = await open(image, 'r')
  const { start } = await partition(disk, name)
  const options = { encoding: 'buffer', maxBuffer: 256 * 1024 * 1024 } as const
  const { stdout } = await promisify(execFile)('mcopy', ['-i', `${image}@@${start}`, `::${file}`, '-'], options)
  return stdout.subarray(0, length)
}

/** A stick: an ext4 file system with the files of a folder. @throws LabError */
export async function makeStick(image: string, folder: string, mib: number): Promise<void> {
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
  await promisify(execFile)('mke2fs', ['-q', '-F', '-t', 'ext4', '-d', folder, image, `${mib}M`], { env }).catch(broken)
}
