import { defineErrors } from '../../base/errors.ts'

/** Refusals of patches. None of them stops an install: what a patch does not give comes as chunks. */
export const deltaErrors = defineErrors({
  DELTA_INVALID: {
    family: 'input',
    meaning: 'A patch is not in its one exact form, or asks for what is not there. It is not used.',
    next: 'Nothing: the install takes chunks instead. Make the patch again with the present version.',
  },
  DELTA_DIGEST: {
    family: 'authenticity',
    meaning: 'Bytes of a patch do not have the digest that was announced for them. They are not used.',
    next: 'Nothing: the install takes chunks instead. Check the server; publish again if its files are damaged.',
  },
  DELTA_WRONG_RELEASE: {
    family: 'device',
    meaning: 'A patch leads from another release than the running one, or to another than the one to install.',
    next: 'Nothing: the install takes chunks instead.',
  },
  DELTA_THREAD: {
    family: 'internal',
    meaning: 'A thread that rebuilds blocks of a patch failed.',
    next: 'Nothing: the install takes chunks instead. See that the device has memory left; report it if it comes back.',
  },
  DELTA_CODEC: {
    family: 'device',
    meaning: 'A patch was made with another version of the compressor, whose blocks cannot be rebuilt here.',
    next: 'Nothing: the install takes chunks instead. Publish with the version of bistable that the devices run.',
  },
})
