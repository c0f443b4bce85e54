import { join } from 'node:path'
import { parseInventory } from '../../bundle/inventory.ts'
import { changeablePlaces } from '../../bundle/mounts.ts'
import type { InventoryEntry } from '../../bundle/types.ts'
import { unpackAttachment } from '../../bundle/verify.ts'
import { type Drift, type DriftEntry, findDrift, showable } from '../drift/drift.ts'
import { driftErrors } from '../drift/errors.ts'
import { diffLines, MAX_DIFF_BYTES } from '../drift/lines.ts'
import { liveInventory } from '../drift/live.ts'
import { attrTools } from '../etc/xattrs.ts'
import type { Core } from './core.ts'
import { keepDrift } from './drift-watch.ts'
import { INVENTORY, slotFolder } from './slot-files.ts'

/** `bistable drift`: the running system against the inventory of its release. */

/** Texts that are shown line by line. */
const MAX_SHOWN = 100

export interface DriftAnswer extends Drift {
  /** By path, of changed text files. */
  readonly diffs?: Readonly<Record<string, string>>
}

/** @throws DRIFT_*, INVENTORY_INVALID, BUNDLE_DIGEST when the record of the release is damaged */
export async function operateDrift(core: Core, signal: AbortSignal, withLines = false): Promise<DriftAnswer> {
  const { config, root = '' } = core.ports
  // First: without it there is nothing to be looked at.
  const release = await releaseInventory(core)
  const tools = (await attrTools.read(`${root}/etc`)) === undefined ? undefined : attrTools
  const folders = ['/etc', ...changeablePlaces(config)]
  const drift = await findDrift({
    folders,
    owned: config.owned,
    xattrs: tools !== undefined,
    release,
    device: liveInventory(root, folders, tools, signal),
  })
  await keepDrift(core, drift)
  return withLines ? { ...drift, diffs: await linesOf(core, drift.entries, root) } : drift
}

async function releaseInventory(core: Core): Promise<AsyncIterable<InventoryEntry>> {
  const { slot } = core.line
  const { engine, files, data } = core.ports
  const stored = await engine.storedRelease(slot)
  const entry = stored?.statement.attachments.find(({ name }) => name === 'inventory')
  const bytes = entry && (await files.read(join(slotFolder(data, slot), INVENTORY), entry.length))
  if (entry === undefined || bytes === undefined)
    throw driftErrors.DRIFT_NO_INVENTORY(`slot ${slot} has no inventory in its record`)
  return parseInventory(unpackAttachment(entry, bytes))
}

async function linesOf(core: Core, entries: readonly DriftEntry[], root: string): Promise<Record<string, string>> {
  const paths = showable(entries, MAX_DIFF_BYTES).slice(0, MAX_SHOWN)
  const released = await core.ports.engine.etc?.released(core.line.slot, paths, MAX_DIFF_BYTES)
  const lines: Record<string, string> = {}
  for (const [path, before] of released ?? []) {
    const now = await core.ports.files.read(`${root}${path}`, MAX_DIFF_BYTES).catch(() => undefined)
    const text = now && diffLines(before, now)
    if (text !== undefined && text !== '') lines[path] = text
  }
  return lines
}
