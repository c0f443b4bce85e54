import { keyErrors } from './errors.ts'
import type { PublicKey, Role, RoleRule, Root } from './types.ts'

export interface RootChange {
  readonly add: readonly { readonly role: Role; readonly key: PublicKey }[]
  readonly remove: readonly PublicKey[]
  readonly thresholds: Readonly<Partial<Record<Role, number>>>
  /** Opens a new epoch: honest release counters start again at 1, burnt ones no longer matter. */
  readonly raiseEpoch: boolean
}

/**
 * The root that follows: one version up, keys added and removed. It must be signed by a threshold of the old root and
 * of itself. The caller encodes it, which checks its rules.
 * @throws ROOT_INVALID when a key to remove is not listed
 */
export function nextRoot(root: Root, change: RootChange, issued: string): Root {
  const listed = new Set(Object.values(root.roles).flatMap(({ keys }) => keys))
  for (const key of change.remove)
    if (!listed.has(key)) throw keyErrors.ROOT_INVALID(`key ${key} is not listed in root ${root.version}`)
  const rule = (role: Role): RoleRule => ({
    threshold: change.thresholds[role] ?? root.roles[role].threshold,
    keys: [
      ...root.roles[role].keys.filter((key) => !change.remove.includes(key)),
      ...change.add.filter((added) => added.role === role).map(({ key }) => key),
    ],
  })
  return {
    ...root,
    version: root.version + 1,
    epoch: root.epoch + (change.raiseEpoch ? 1 : 0),
    issued,
    roles: { root: rule('root'), release: rule('release'), fleet: rule('fleet') },
  }
}
