import { keyErrors } from './errors.ts'
import { ROLES } from './root.ts'
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

/**
 * Root 1 from public keys. Two root keys must sign unless told or unless there is one only; one key of the others.
 * The caller encodes it, which checks its rules.
 */
export function firstRoot(
  product: string,
  keys: readonly { readonly role: Role; readonly key: PublicKey }[],
  thresholds: Readonly<Partial<Record<Role, number>>>,
  issued: string,
): Root {
  const rule = (role: Role, most: number): RoleRule => {
    const own = keys.filter((entry) => entry.role === role).map(({ key }) => key)
    return { threshold: thresholds[role] ?? Math.max(1, Math.min(most, own.length)), keys: own }
  }
  const roles = { root: rule('root', 2), release: rule('release', 1), fleet: rule('fleet', 1) }
  return { type: 'root', product, version: 1, epoch: 1, issued, roles }
}

/**
 * Refuses a change that could never be signed, or that leaves a role without enough keys for its threshold.
 * @param lost keys that cannot sign any more
 * @throws ROOT_UNREACHABLE
 */
export function requireReachable(old: Root, next: Root, lost: readonly PublicKey[]): void {
  for (const role of ROLES) {
    const { threshold, keys } = next.roles[role]
    if (keys.length < threshold)
      throw keyErrors.ROOT_UNREACHABLE(
        `root ${next.version} would list ${keys.length} ${role} keys, and ${threshold} must sign`,
      )
  }
  const { threshold, keys } = old.roles.root
  const left = keys.filter((key) => !lost.includes(key)).length
  if (left < threshold)
    throw keyErrors.ROOT_UNREACHABLE(
      `${threshold} root keys of version ${old.version} must sign the change, and without the revoked ones ${left} are left`,
      {
        next: 'If the revoked keys can still sign, give --still-held. If they are lost, devices must be given a new root by hand.',
      },
    )
}
