import { defineErrors } from '../../base/errors.ts'

export const installErrors = defineErrors({
  INSTALL_READBACK_MISMATCH: {
    family: 'storage',
    meaning: 'The slot does not hold what was written and flushed. Nothing was armed.',
    next: 'Install again; if it repeats, the medium is worn out or lies.',
  },
  INSTALL_NO_SPACE: {
    family: 'storage',
    meaning:
      'The data partition lacks room for what is kept there about a release, beyond what is kept for updates. Nothing was armed.',
    next: 'Remove some of what the message names, or what else the data partition can do without; then install again.',
  },
  INSTALL_BUDGET: {
    family: 'policy',
    meaning: 'The install would fetch more bytes than it may. Nothing of the images was fetched beyond that.',
    next: "See 'bistable install --plan' for what would be fetched; raise --max-bytes (or policy.download.maxBytes), or bring the release on a stick.",
  },
  INSTALL_CANCELLED: {
    family: 'device',
    meaning: 'The install was cancelled before arming; the running system is untouched.',
    next: 'Install again when wanted; what has arrived is kept.',
  },
})
