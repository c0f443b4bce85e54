import { isBistableError } from '../../base/errors.ts'
import { trustAnchor, walkRoots } from '../../keys/root.ts'
import type { TrustedRoots } from '../../keys/types.ts'
import type { RecordStore } from '../records/store.ts'

/** What the device trusts when it starts: the anchor in its image, and the roots that it has learnt since. */

const anchors = new WeakMap<Uint8Array, TrustedRoots>()

function anchorOf(bytes: Uint8Array): TrustedRoots {
  const found = anchors.get(bytes) ?? trustAnchor(bytes)
  anchors.set(bytes, found)
  return found
}

/** Checks the anchor ahead of `loadTrust`, while something else is waited for; a bad one is refused there. */
export function prepareTrust(anchor: Uint8Array): void {
  try {
    anchorOf(anchor)
  } catch {
    // Said by `loadTrust`, in its place.
  }
}

/** The anchor of the image, extended by the stored roots. Damaged ones are left out: trust then is older, never wider. */
export async function loadTrust(
  store: RecordStore,
  anchorBytes: Uint8Array,
  problems: string[],
): Promise<TrustedRoots> {
  const anchor = anchorOf(anchorBytes)
  try {
    const stored = await store.roots()
    return stored.length === 0 ? anchor : walkRoots(stored, anchor)
  } catch (error) {
    problems.push(`${isBistableError(error) ? error.code : 'INTERNAL'}: ${(error as Error).message}`)
    return anchor
  }
}
