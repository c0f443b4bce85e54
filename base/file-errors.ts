import { defineErrors } from './errors.ts'

/** Refusals of durable writes (`durable.ts`). */
export const fileErrors = defineErrors({
  FILE_FULL: {
    family: 'storage',
    meaning: 'A file could not be written because the file system is full.',
    next: 'Free space on that file system, then do it again.',
  },
  FILE_FAILED: {
    family: 'storage',
    meaning: 'A file or directory could not be read, written or flushed.',
    next: 'Check the path and its permissions, that the file system is writable, and the disk for errors.',
  },
  FILE_TOO_LARGE: {
    family: 'input',
    meaning: 'A file is larger than anything that belongs in its place.',
    next: 'Find out what wrote it; a proper file there is small.',
  },
  FILE_READBACK: {
    family: 'storage',
    meaning: 'A file does not hold what was just written and flushed.',
    next: 'Check the disk: it loses or changes writes.',
  },
})
