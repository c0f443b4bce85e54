import { closeSync, openSync, readFileSync, readSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { run } from './run.ts'

/** A small GPT disk with the layout of docs/architecture.md, made with sgdisk; partition sizes in KiB. */

export const PARTITIONS = ['esp', 'bootstate', 'boot-a', 'rootfs-a', 'boot-b', 'rootfs-b', 'data'] as const
export type PartitionName = (typeof PARTITIONS)[number]

export interface Disk {
  readonly path: string
  /** Byte offsets. */
  readonly offsets: Readonly<Record<PartitionName, number>>
}

export function makeDisk(path: string, sizes: Readonly<Record<PartitionName, number>>): Disk {
  const total = PARTITIONS.reduce((sum, name) => sum + sizes[name], 0)
  writeFileSync(path, '')
  truncateSync(path, (total + 2048) * 1024)
  const args: string[] = ['-a', '8']
  const offsets: Record<string, number> = {}
  let at = 1024
  for (const [index, name] of PARTITIONS.entries()) {
    const n = index + 1
    args.push('-n', `${n}:${at * 2}:${(at + sizes[name]) * 2 - 1}`, '-c', `${n}:${name}`)
    if (name === 'esp') args.push('-t', `${n}:ef00`)
    offsets[name] = at * 1024
    at += sizes[name]
  }
  run('sgdisk', [...args, path])
  return { path, offsets: offsets as Record<PartitionName, number> }
}

export function writeAt(path: string, offset: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+')
  try {
    writeSync(fd, bytes, 0, bytes.length, offset)
  } finally {
    closeSync(fd)
  }
}

export function readAt(path: string, offset: number, length: number): Uint8Array {
  const fd = openSync(path, 'r')
  try {
    const bytes = new Uint8Array(length)
    readSync(fd, bytes, 0, length, offset)
    return bytes
  } finally {
    closeSync(fd)
  }
}

export function copyInto(disk: Disk, partition: PartitionName, file: string): void {
  writeAt(disk.path, disk.offsets[partition], readFileSync(file))
}
