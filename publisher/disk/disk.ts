import { createReadStream } from 'node:fs'
import { type FileHandle, mkdtemp, open, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { MiB, type Sha256 } from '../../base/bytes.ts'
import { nodeFiles, storageFailure } from '../../base/durable.ts'
import { writeAll } from '../../base/write-all.ts'
import { COMMITTED_NOTE, encodeNote } from '../../bootloader/committed-note.ts'
import type { BiosImages } from '../../bootloader/grub-bios.ts'
import { createTreeHasher } from '../../bundle/tree.ts'
import { IMAGE_NAMES, type ImageName } from '../../bundle/types.ts'
import { publisherErrors } from '../errors.ts'
import { type FatFile, fatSize, makeFat } from '../fat.ts'
import { runTool } from '../tools.ts'
import { makeBtrfs } from './btrfs.ts'
import { type DataFile, makeData } from './data.ts'
import {
  type DataFileSystem,
  type DiskPlan,
  type DiskSizes,
  derivedUuid,
  type PartitionName,
  partition,
  planDisk,
} from './plan.ts'

/** A flashable GPT image: a sparse file made as an ordinary user, without loop devices; equal bytes for equal input. */

export interface DiskImage {
  /** Bytes. */
  readonly length: number
  readonly root: Sha256
  /** The image from its first byte to its last; read once. */
  content(): AsyncIterable<Uint8Array>
}

export interface DiskParts {
  readonly images: Readonly<Record<ImageName, DiskImage>>
  /** Go to /bistable/slots/a of the data partition. */
  readonly slotFiles: readonly DataFile[]
  /** What goes into partition 1, given where partition 2 starts (bytes). Asked twice; lengths must not differ. */
  readonly firmware: (bootstateStart: number) => Promise<readonly FatFile[]>
  /** Of the data partition; ext4 unless said. */
  readonly dataFileSystem?: DataFileSystem
  /** The content of partition 2. */
  readonly bootstate: Uint8Array
  /** What a PC's BIOS starts: the program in the first sector, and the content of partition 8. */
  readonly bios?: BiosImages
  /** Names the release; every GUID follows from it. */
  readonly identity: string
  /** Seconds since 1970. */
  readonly time: number
}

/** What a bootloader needs, and room for a second program during a provisioning update. */
const ESP_SIZE = 16 * MiB

/**
 * Makes the disk image at `output`, by rename at the end: a failure leaves nothing there.
 * @throws IMAGE_TOO_LARGE, DISK_TOO_SMALL, TOOL_MISSING, TOOL_FAILED, IMAGE_READBACK_DIFFERS, FILE_*
 */
export async function makeDisk(
  parts: DiskParts,
  sizes: DiskSizes,
  output: string,
  options: { readonly signal?: AbortSignal } = {},
): Promise<DiskPlan> {
  const { bios, dataFileSystem } = parts
  const needs = {
    boot: parts.images.boot.length,
    rootfs: parts.images.rootfs.length,
    bios: bios !== undefined,
    ...(dataFileSystem && { dataFileSystem }),
  }
  // Refused before any work is done.
  planDisk({ ...needs, esp: ESP_SIZE, bootstate: parts.bootstate.length }, sizes)
  const work = await mkdtemp(join(dirname(output), '.disk-'))
  try {
    const run = { workDir: work, time: parts.time, ...options }
    const esp = join(work, 'esp')
    const fat = { ...run, label: 'ESP', atLeast: ESP_SIZE }
    const layout = (espSize: number) => planDisk({ ...needs, esp: espSize, bootstate: parts.bootstate.length }, sizes)
    const start = (plan: DiskPlan) => partition(plan, 'bootstate').start
    // A boot script says where its state is, so it is known only when its own partition is laid out.
    const first = layout(await fatSize(await parts.firmware(MiB), ESP_SIZE))
    const plan = layout(await makeFat(await parts.firmware(start(first)), esp, fat))
    if (start(plan) !== start(first)) throw new RangeError('the boot files changed their length')
    const image = join(work, 'disk')
    const file = await open(image, 'wx+')
    try {
      await file.truncate(plan.size)
      await writeGpt(image, plan, parts.identity, options.signal)
      await writeSparse(file, partition(plan, 'esp').start, createReadStream(esp))
      await writeSparse(file, partition(plan, 'bootstate').start, [parts.bootstate])
      if (bios !== undefined) await writeBios(file, plan, bios)
      for (const name of IMAGE_NAMES)
        await writeSlot(file, partition(plan, `${name}-a`).start, name, parts.images[name])
      const data = partition(plan, 'data')
      const slotFiles = parts.slotFiles.map(({ path, bytes }) => ({ path: `bistable/slots/a/${path}`, bytes }))
      const uuid = derivedUuid(parts.identity, 'data-filesystem')
      const note = { path: `bistable/${COMMITTED_NOTE}`, bytes: encodeNote('a') }
      if (dataFileSystem === 'btrfs') {
        const made = await makeBtrfs([...slotFiles, note], { ...run, size: data.size, uuid })
        await writeSparse(file, data.start, createReadStream(made))
      } else {
        await makeData(image, [...slotFiles, note], { ...run, offset: data.start, size: data.size, uuid })
      }
      await file.sync()
    } finally {
      await file.close()
    }
    await rename(image, output)
    await nodeFiles.syncDir(dirname(output))
    return plan
  } catch (cause) {
    throw storageFailure('write', output, cause)
  } finally {
    await rm(work, { recursive: true, force: true })
  }
}

async function writeBios(file: FileHandle, plan: DiskPlan, { code, core }: BiosImages): Promise<void> {
  const { start, size } = partition(plan, 'bios')
  if (core.length > size)
    throw publisherErrors.IMAGE_TOO_LARGE(`GRUB's core image is ${core.length} bytes, its partition has ${size}`)
  await writeAll(file, code, 0)
  await writeAll(file, core, start)
}

const SECTOR = 512
const TYPES: Partial<Record<PartitionName, string>> = { esp: 'EF00', bios: 'EF02' }

async function writeGpt(
  image: string,
  plan: DiskPlan,
  identity: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  const args = [`--disk-guid=${derivedUuid(identity, 'disk')}`]
  for (const { number, name, start, size } of plan.partitions)
    args.push(
      `--set-alignment=${start % MiB === 0 ? 2048 : 1}`,
      `--new=${number}:${start / SECTOR}:${(start + size) / SECTOR - 1}`,
      `--change-name=${number}:${name}`,
      `--typecode=${number}:${TYPES[name] ?? '8300'}`,
      `--partition-guid=${number}:${derivedUuid(identity, name)}`,
    )
  await runTool('sgdisk', [...args, image], signal === undefined ? {} : { signal })
}

/** Writes an image and its tree behind it; the root must come out as the signed one. */
async function writeSlot(file: FileHandle, start: number, name: ImageName, image: DiskImage): Promise<void> {
  const hasher = createTreeHasher()
  const length = await writeSparse(file, start, image.content(), (piece) => hasher.update(piece))
  const tree = hasher.finish()
  if (length !== image.length || tree.root !== image.root)
    throw publisherErrors.IMAGE_READBACK_DIFFERS(
      `the ${name} image is ${length} bytes with root ${tree.root}, the statement says ${image.length} and ${image.root}`,
    )
  await writeSparse(file, start + image.length, tree.writeTree())
}

const HOLE = 4096

/** Writes a stream at `start`, leaving holes for blocks of zeros; returns its length. */
async function writeSparse(
  file: FileHandle,
  start: number,
  pieces: AsyncIterable<Uint8Array> | Iterable<Uint8Array>,
  each: (piece: Uint8Array) => void = () => {},
): Promise<number> {
  let at = start
  for await (const piece of pieces) {
    each(piece)
    for (let from = 0; from < piece.length; ) {
      // Runs of zero and of other blocks take turns; only the others are written.
      let to = from
      while (to < piece.length && !isZero(piece.subarray(to, to + HOLE))) to += HOLE
      to = Math.min(to, piece.length)
      await writeAll(file, piece.subarray(from, to), at + from)
      while (to < piece.length && isZero(piece.subarray(to, to + HOLE))) to += HOLE
      from = to
    }
    at += piece.length
  }
  return at - start
}

const ZEROS = Buffer.alloc(HOLE)
const isZero = (bytes: Uint8Array): boolean => ZEROS.subarray(0, bytes.length).equals(bytes)
