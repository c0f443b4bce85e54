import { defineErrors } from '../../base/errors.ts'

export const installErrors = defineErrors({
  INSTALL_READBACK_MISMATCH: {
    family: 'storage',
    meaning: 'The slot does not hold what was written and flushed. Nothing was armed.',
    next: 'Install again; if it repeats, the medium is worn out or lies.',
  },
  INSTALL_CANCELLED: {
    family: 'device',
    meaning: 'The install was cancelled before arming; the running system is untouched.',
    next: 'Install again when wanted; what has arrived is kept.',
  },
})
