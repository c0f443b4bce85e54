import { defineErrors } from '../../base/errors.ts'

export const installErrors = defineErrors({
  INSTALL_STORED_DIGEST: {
    family: 'authenticity',
    meaning: 'A chunk that came through the door is not the one the signed index names.',
    next: 'Fetch the bundle again; if it repeats, the file at the source is damaged.',
  },
  INSTALL_CONTENT_DIGEST: {
    family: 'authenticity',
    meaning: 'A chunk unpacks to other bytes than the signed index names.',
    next: 'Build and sign the release again; this bundle can never be installed.',
  },
  INSTALL_READBACK_MISMATCH: {
    family: 'storage',
    meaning: 'The slot does not hold what was written and flushed. Nothing was armed.',
    next: 'Install again; if it repeats, the medium is worn out or lies.',
  },
  INSTALL_ROOT_MISMATCH: {
    family: 'authenticity',
    meaning: 'The chunks are all as the signed index says, but their tree has another root than the statement. Nothing was armed.',
    next: 'Build and sign the release again; this bundle can never be installed.',
  },
  INSTALL_SHORT_SOURCE: {
    family: 'transport',
    meaning: 'The source ended in the middle of a chunk.',
    next: 'Fetch the bundle again; what has arrived is kept.',
  },
  INSTALL_CANCELLED: {
    family: 'device',
    meaning: 'The install was cancelled before arming; the running system is untouched.',
    next: 'Install again when wanted; what has arrived is kept.',
  },
})
