import * as v from 'valibot'
import { type Mount, mountsOf } from './mounts.ts'
import { isWithin, plainPlace } from './plain-path.ts'

/**
 * What outlives the slots: which schema the data have, and how a release brings older data to its own. The field `state` of
 * system.json; carried out by initramfs/state.sh before anything of the system runs.
 */

/** Migrations of one release, and paths that they change. */
const MOST = 64

const schemaNumber = v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(1_000_000))

export const stateSchema = v.strictObject({
  /** Of the data that this release writes. 0: never declared. */
  schema: schemaNumber,
  /** The oldest schema whose releases can still read these data; unless said, only this one. */
  readableBy: v.exactOptional(schemaNumber),
  /** Each brings data of schema `to - 1` to `to`; one after the other, up to `schema`. */
  migrations: v.optional(
    v.pipe(
      v.array(v.strictObject({ to: v.pipe(schemaNumber, v.minValue(1)), run: plainPlace })),
      v.maxLength(MOST),
      v.readonly(),
    ),
    [],
  ),
  /** All that migrations change: kept before, and put back when the release is not committed. */
  paths: v.optional(v.pipe(v.array(plainPlace), v.maxLength(MOST), v.readonly()), []),
  /** Time limit of one migration. */
  seconds: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(3600)), 300),
  /** The release runs from a btrfs data partition, too. */
  btrfs: v.optional(v.boolean(), false),
  /** Read-only snapshots that stay, on btrfs. */
  snapshots: v.optional(
    v.strictObject({
      /** So many, the newest. */
      keep: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1), v.maxValue(100)), 3),
      /** Fewer while less of the partition than this is free. */
      freePercent: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(90)), 10),
    }),
    {},
  ),
})

export type DeclaredState = v.InferOutput<typeof stateSchema>

interface Declared {
  readonly writable: readonly string[]
  readonly mounts: readonly Mount[]
  readonly state: DeclaredState
}

/** The oldest schema whose releases can read what this one writes. Pure. */
export const readableByOf = ({ schema, readableBy }: Pick<DeclaredState, 'schema' | 'readableBy'>): number =>
  readableBy ?? schema

/** What is wrong with the declaration, one sentence each. Pure. */
export function stateProblems(declared: Declared): readonly string[] {
  const { state } = declared
  const { migrations, schema } = state
  const problems: string[] = []
  if (readableByOf(state) > schema)
    problems.push(`state.readableBy: ${state.readableBy} is above the release's own schema ${schema}`)
  for (const [i, { to }] of migrations.entries()) {
    const wanted = schema - migrations.length + 1 + i
    if (to !== wanted)
      problems.push(`state.migrations: number ${i + 1} leads to schema ${to}, wanted ${wanted} on the way to ${schema}`)
  }
  if (migrations.length > 0 && state.paths.length === 0)
    problems.push('state.paths: empty, so what the migrations change could not be put back')
  for (const path of state.paths)
    if (backingOf(declared, path) === undefined)
      problems.push(`state.paths: ${path} is neither below /var, nor in a place of the data partition`)
  return problems
}

/**
 * Where what stands at `path` is kept, relative to the state; undefined when it is not kept there.
 * A part of an overlay is not a thing by itself: only the whole place is.
 */
export function backingOf(declared: Pick<Declared, 'writable' | 'mounts'>, path: string): string | undefined {
  const place = mountsOf(declared).findLast((mount) => isWithin(path, mount.path))
  if (place === undefined) return path.startsWith('/var/') ? path.slice(1) : undefined
  if (place.policy === 'data') return `bind${path}`
  if (place.policy === 'overlay' && place.release === 'keep' && place.path === path)
    return `overlay/kept/${path.replaceAll('/', '=')}`
  return undefined
}

/** The lowest schema of data that this release can start from. Pure. */
export const oldestSchema = ({ migrations, schema }: StateNeeds): number => (migrations[0]?.to ?? schema + 1) - 1

const loose = v.object({
  schema: schemaNumber,
  migrations: v.optional(v.array(v.object({ to: schemaNumber, run: v.optional(plainPlace) })), []),
  paths: v.optional(v.array(plainPlace), []),
  btrfs: v.optional(v.boolean(), false),
})

/** What a device has to know of a release's data before it tries it. */
export type StateNeeds = v.InferOutput<typeof loose>

const looseSystem = v.object({
  writable: v.optional(v.array(plainPlace), []),
  mounts: v.optional(v.array(v.object({ path: plainPlace })), []),
  state: v.optional(loose, { schema: 0 }),
})

export interface ImageNeeds {
  readonly state: StateNeeds
  /** Folders that must be in the image: something is made of them. */
  readonly folders: readonly string[]
  /** Migrations. */
  readonly programs: readonly string[]
}

/**
 * The needs in the parsed system.json of an image that may be newer than this program: what it does not know is no error.
 * Undefined when the part that counts is wrong.
 */
export function imageNeeds(value: unknown): ImageNeeds | undefined {
  const found = v.safeParse(looseSystem, value)
  if (!found.success) return undefined
  const { writable, mounts, state } = found.output
  return {
    state,
    folders: [...writable, ...mounts.map(({ path }) => path)],
    programs: state.migrations.flatMap(({ run }) => run ?? []),
  }
}
