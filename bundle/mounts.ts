import * as v from 'valibot'
import { isWithin, plainPlace } from './plain-path.ts'

/**
 * What stands at a path of the running system: the field `mounts` of system.json, and `writable`, its short form for
 * `data`. Read by lint, by the builder of the initramfs, and by drift.
 */

/** Folders that something else is mounted on, or that have rules of their own. /var is the device's: see `mountProblems`. */
const TAKEN = ['data', 'proc', 'sys', 'dev', 'run', 'tmp', 'etc', 'boot']

export const writablePlace = v.pipe(
  plainPlace,
  v.check(
    (path) => ![...TAKEN, 'var'].includes(path.split('/')[1] ?? ''),
    'is in a folder that bistable or the system mounts already',
  ),
)

const place = v.pipe(
  plainPlace,
  v.check(
    (path) => path !== '/var' && !TAKEN.includes(path.split('/')[1] ?? ''),
    'is a folder that bistable or the system mounts already, or in one',
  ),
)

export const mountSchema = v.variant('policy', [
  /** Read-only, always as the running release has it: also inside a place with another policy, and below /var. */
  v.strictObject({ path: place, policy: v.literal('image') }),
  /** Seeded from the image once, then the device's. Below /var that is so without a word. */
  v.strictObject({ path: writablePlace, policy: v.literal('data') }),
  /** In memory, made from the image at every boot. */
  v.strictObject({
    path: place,
    policy: v.literal('tmpfs'),
    /** Unless said, as the kernel does: half the memory. */
    sizeMiB: v.exactOptional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(65_536))),
  }),
  /** The image's files, with what is written kept over them on the data partition. */
  v.strictObject({
    // overlayfs takes "," and ":" in the names of its layers for separators.
    path: v.pipe(
      place,
      v.check((path) => !/[,:]/.test(path), 'has a "," or ":", which overlayfs does not take'),
    ),
    policy: v.literal('overlay'),
    /** What was written, when another release runs: stays, or begins anew in each release. */
    release: v.optional(v.picklist(['keep', 'reset']), 'keep'),
  }),
])

export type Mount = v.InferOutput<typeof mountSchema>

interface Declared {
  readonly writable: readonly string[]
  readonly mounts: readonly Mount[]
}

/** All of them, each after those it lies in. Pure. */
export function mountsOf({ writable, mounts }: Declared): readonly Mount[] {
  return [...writable.map((path): Mount => ({ path, policy: 'data' })), ...mounts].sort((a, b) =>
    a.path < b.path ? -1 : a.path > b.path ? 1 : 0,
  )
}

/** The innermost other place that holds `mount`. */
function outerOf(mount: Mount, all: readonly Mount[]): Mount | undefined {
  return all.findLast((other) => other !== mount && isWithin(mount.path, other.path))
}

/** What is wrong with the places together, one sentence each. Pure. */
export function mountProblems(declared: Declared): readonly string[] {
  const all = mountsOf(declared)
  const problems: string[] = []
  for (const mount of all) {
    const outer = outerOf(mount, all)
    if (outer?.path === mount.path) problems.push(`mounts: ${mount.path} is listed twice`)
    else if (outer?.policy === mount.policy)
      problems.push(`mounts: ${mount.path} lies inside ${outer.path}, which is ${outer.policy} already`)
  }
  return [...new Set(problems)]
}

/** Those the initramfs has to do something for: what is the image's outside all others is there by itself. Pure. */
export function mountsToMake(declared: Declared): readonly Mount[] {
  const all = mountsOf(declared)
  return all.filter(
    (mount) => mount.policy !== 'image' || outerOf(mount, all) !== undefined || isWithin(mount.path, '/var'),
  )
}

/** Places whose content may differ from the image for longer than a boot, none inside another; /var is not among them. */
export function changeablePlaces(declared: Declared): readonly string[] {
  const kept = mountsOf(declared)
    .filter(({ policy, path }) => (policy === 'data' || policy === 'overlay') && !isWithin(path, '/var'))
    .map(({ path }) => path)
  return kept.filter((path) => !kept.some((other) => other !== path && isWithin(path, other)))
}
