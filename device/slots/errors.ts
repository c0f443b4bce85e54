import { defineErrors } from '../../base/errors.ts'

export const slotErrors = defineErrors({
  SLOT_CONFIG: {
    family: 'usage',
    meaning: 'The slot paths given by hand are incomplete or name one place twice.',
    next: 'Give a boot and a rootfs path for slot a and for slot b, all different, or none at all.',
  },
  SLOT_DISK_UNKNOWN: {
    family: 'device',
    meaning: 'The disk that holds the running system could not be found.',
    next: 'Run on the device itself, or give the slot paths in the configuration.',
  },
  SLOT_MISSING: {
    family: 'device',
    meaning: 'A slot partition or slot file is not there.',
    next: 'Check the partition names of the disk: boot-a, rootfs-a, boot-b, rootfs-b.',
  },
  SLOT_AMBIGUOUS: {
    family: 'device',
    meaning: 'Two partitions of the disk carry the same slot name.',
    next: 'Rename the partition that is not the slot.',
  },
  SLOT_IN_USE: {
    family: 'device',
    meaning: 'A slot that was to be written is mounted or held by another device.',
    next: 'Unmount it; if it is the slot that runs, do not write it.',
  },
  SLOT_TOO_SMALL: {
    family: 'device',
    meaning: 'An image and its tree do not fit into the slot.',
    next: 'Make the image smaller, or provision the device with larger slots.',
  },
  SLOT_OPEN_FAILED: {
    family: 'storage',
    meaning: 'A slot could not be opened for writing.',
    next: 'Run as root, and check that the medium is not write-protected.',
  },
  SLOT_READ_FAILED: {
    family: 'storage',
    meaning: 'A slot could not be read.',
    next: 'Check the kernel log for errors of the medium; install again, replace the medium if it repeats.',
  },
  SLOT_WRITE_FAILED: {
    family: 'storage',
    meaning: 'A slot could not be written or flushed.',
    next: 'Check the kernel log for errors of the medium; install again, replace the medium if it repeats.',
  },
  SLOT_NO_SPACE: {
    family: 'storage',
    meaning: 'The file system under a slot file is full.',
    next: 'Free space there; reserve the whole slot file when it is made (fallocate).',
  },
})
