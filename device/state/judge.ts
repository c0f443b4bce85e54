import { humanBytes } from '../../base/bytes.ts'
import type { BistableError } from '../../base/errors.ts'
import { oldestSchema, type StateNeeds } from '../../bundle/state.ts'
import { stateErrors } from './errors.ts'
import type { Snapshot, StateFacts } from './facts.ts'

/** What may be tried with the data as they are, and which snapshots stay. Pure. */

/** Beyond the copies: for the records of an update, and so that the old system is not left without any room. */
const RESERVE = 1024 * 1024

/**
 * Why a verified release must not be armed; undefined when it may.
 * @param copied bytes of what its migrations change
 * @param free bytes free on the data partition
 */
export function judgeArm(
  facts: StateFacts,
  declared: StateNeeds,
  copied: number,
  free: number,
): BistableError | undefined {
  const { filesystem, schema, readableBy } = facts
  if (filesystem === 'btrfs' && !declared.btrfs)
    return stateErrors.STATE_FILE_SYSTEM('the data partition is btrfs; state.btrfs of the release is not true')
  if (declared.schema < readableBy)
    return stateErrors.STATE_NEWER(
      `the data have schema ${schema}, for releases of schema ${readableBy} and newer; the release has ${declared.schema}`,
    )
  if (declared.schema <= schema) return undefined
  if (schema < oldestSchema(declared))
    return stateErrors.STATE_TOO_OLD(
      `the data have schema ${schema}; the migrations of the release begin with ${oldestSchema(declared)}`,
    )
  if (filesystem !== 'btrfs' && copied + RESERVE > free)
    return stateErrors.STATE_NO_SPACE(
      `${humanBytes(free)} are free on the data partition, ${humanBytes(copied + RESERVE)} are needed to keep what the migrations change`,
      { details: { free, need: copied + RESERVE } },
    )
  return undefined
}

/** Whether a release of schema `target` can run with the data as they are. */
export function canRead(facts: StateFacts, target: number): boolean {
  return target >= facts.readableBy
}

/** The state as release `to` left it right before `running` was tried for the first time: the newest such. */
export function snapshotBefore(snapshots: readonly Snapshot[], to: string, running: string): Snapshot | undefined {
  return snapshots
    .filter(({ from, before }) => from === to && before === running)
    .sort(byAge)
    .at(-1)
}

/**
 * Snapshots that go, oldest first, to keep the newest `keep`; then one at a time while room is short.
 * @param short less is free than `freePercent`
 */
export function snapshotsToDrop(snapshots: readonly Snapshot[], keep: number, short: boolean): readonly Snapshot[] {
  const byTime = [...snapshots].sort(byAge)
  const surplus = byTime.slice(0, Math.max(0, byTime.length - keep))
  return surplus.length === 0 && short ? byTime.slice(0, 1) : surplus
}

const byAge = (a: Snapshot, b: Snapshot) => a.sequence - b.sequence
