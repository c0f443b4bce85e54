import type { BackendEdge } from '../../device/agent/backends.ts'

/** A device of which a backend may ask nothing; tests replace what theirs needs. */
export const NO_EDGE: BackendEdge = {
  findBootstate: async () => '/nowhere',
  startedByUboot: () => false,
  bootPartition: () => Promise.reject(new Error('this device has no partition table')),
  bootImage: () => Promise.reject(new Error('this device has no boot images')),
}
