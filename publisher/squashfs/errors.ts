import { defineErrors } from '../../base/errors.ts'

/** What the SquashFS writer refuses. */
export const squashWriterErrors = defineErrors({
  SQUASHFS_IDS: {
    family: 'input',
    meaning: 'The files of the image belong to more users and groups than SquashFS can number.',
    next: 'Give the files fewer owners: SquashFS holds 65,535 different user and group ids together.',
  },
  SQUASHFS_ATTRIBUTE: {
    family: 'input',
    meaning: 'A file of the image has an attribute that SquashFS cannot hold.',
    next: 'Change the attribute of the path that the message names.',
  },
  SQUASHFS_LIMIT: {
    family: 'input',
    meaning: 'The image exceeds a limit of the SquashFS format or of its writer.',
    next: 'Split the content, or report the limit that was met if the image is a real one.',
  },
  SQUASHFS_WRITE: {
    family: 'storage',
    meaning: 'The SquashFS image cannot be written.',
    next: 'Free disk space, and see that the output folder can be written.',
  },
  SQUASHFS_WORKER: {
    family: 'internal',
    meaning: 'A compression thread of the SquashFS writer failed.',
    next: 'See that the machine has memory left, and run the command again; report it if it comes back.',
  },
})

/** A compression thread's end as an error of the writer. */
export const workerFailed = (cause: Error): Error =>
  squashWriterErrors.SQUASHFS_WORKER(`a compression thread failed: ${cause.message}`, { cause })
