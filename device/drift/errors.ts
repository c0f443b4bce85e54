import { defineErrors } from '../../base/errors.ts'

/** Refusals of `bistable drift`. */
export const driftErrors = defineErrors({
  DRIFT_NO_INVENTORY: {
    family: 'device',
    meaning: 'Nothing is recorded about what the running release holds.',
    next: 'Install a bundle that carries an inventory; every bundle made by this publisher does.',
  },
  DRIFT_TOO_LARGE: {
    family: 'storage',
    meaning: 'A folder has more paths than are compared.',
    next: 'Keep data out of /etc and of writable folders of the image.',
  },
  DRIFT_UNREADABLE: {
    family: 'storage',
    meaning: 'A path could not be read.',
    next: 'Run as root; check the disk if it is not a matter of rights.',
  },
})
