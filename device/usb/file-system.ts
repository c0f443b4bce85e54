/** Which file system a disk has, by its first bytes. Pure; nothing is believed beyond the choice of the driver. */

export type FileSystem = 'vfat' | 'exfat' | 'ext4'

/** Bytes that `fileSystemOf` wants to see. */
export const START_BYTES = 2048

/** Of another one, and of a partition table, undefined. ext2 and ext3 are read by the kernel's ext4 driver. */
export function fileSystemOf(start: Uint8Array): FileSystem | undefined {
  const text = (at: number, length: number) => Buffer.from(start.subarray(at, at + length)).toString('latin1')
  // ext: superblock at 1024, its magic 0xef53 at 56.
  if (start[1080] === 0x53 && start[1081] === 0xef) return 'ext4'
  if (start[510] !== 0x55 || start[511] !== 0xaa) return undefined
  if (text(3, 8) === 'EXFAT   ') return 'exfat'
  // A boot sector with a jump, and a plausible count of bytes per sector; the name at 54 or 82 is only a hint.
  const jump = (start[0] === 0xeb && start[2] === 0x90) || start[0] === 0xe9
  const sector = (start[11] ?? 0) + (start[12] ?? 0) * 256
  if (jump && [512, 1024, 2048, 4096].includes(sector) && /^FAT(12|16|32)?/.test(text(54, 5) + text(82, 5)))
    return 'vfat'
  if (jump && text(82, 5) === 'FAT32') return 'vfat'
  return undefined
}

/**
 * Options for mounting a stick: nothing on it is a program, a device or more than data. ext4 read-only does not replay its
 * journal, which would write.
 */
export function mountOptions(type: FileSystem, mode: 'ro' | 'rw'): string {
  return [mode, 'nosuid', 'nodev', 'noexec', ...(type === 'ext4' && mode === 'ro' ? ['noload'] : [])].join(',')
}
