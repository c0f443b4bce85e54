import { defineErrors } from '../../base/errors.ts'

/** Refusals of the SquashFS reader. */
export const squashErrors = defineErrors({
  SQUASHFS_FORMAT: {
    family: 'input',
    meaning: 'The file is not a SquashFS 4.0 image.',
    next: 'Give a SquashFS image, for example one made by mksquashfs or sqfstar.',
  },
  SQUASHFS_COMPRESSION: {
    family: 'input',
    meaning: 'The SquashFS image is compressed in a way that is not supported.',
    next: 'Build the image with zstd (preferred) or gzip compression.',
  },
  SQUASHFS_TRUNCATED: {
    family: 'input',
    meaning: 'The SquashFS image is shorter than it says of itself.',
    next: 'Fetch or build the image again.',
  },
  SQUASHFS_CORRUPT: {
    family: 'input',
    meaning: 'A structure inside the SquashFS image is damaged or contradicts another one.',
    next: 'Build the image again; check the disk it was stored on.',
  },
  SQUASHFS_LOOP: {
    family: 'input',
    meaning: 'An inode of the SquashFS image is reached more often than its link count allows, or a directory twice.',
    next: 'Build the image again.',
  },
  SQUASHFS_TOO_LARGE: {
    family: 'input',
    meaning: 'The SquashFS image exceeds a limit of this reader.',
    next: 'Split the content, or report the limit that was met if the image is a real one.',
  },
  SQUASHFS_NAME: {
    family: 'input',
    meaning: 'A name in the SquashFS image is not UTF-8, or cannot be the name of a file.',
    next: 'Rename the file and build the image again.',
  },
})
