import { isBistableError } from '../../base/errors.ts'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import type { RecordStore } from '../records/store.ts'

/** What the device trusts when it starts: the anchor in its image, and the roots that it has learnt since. */

/** The anchor of the image, extended by the stored roots. Damaged ones are left out: trust then is older, never wider. */
export async function loadTrust(
  store: RecordStore,
  anchorBytes: Uint8Array,
  problems: string[],
): Promise<TrustedRoots> {
  const anchor = trustAnchor(anchorBytes)
  try {
    const stored = await store.roots()
    return stored.length === 0 ? anchor : walkRoots(stored, anchor)
  } catch (error) {
    problems.push(`${isBistableError(error) ? error.code : 'INTERNAL'}: ${(error as Error).message}`)
    return anchor
  }
}
