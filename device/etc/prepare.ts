import { join } from 'node:path'
import { KiB, roundUp } from '../../base/bytes.ts'
import { type Files, writeFileDurably } from '../../base/durable.ts'
import type { Slot } from '../../bootloader/state.ts'
import { formatNumber } from '../../bundle/fields.ts'
import type { Squashfs } from '../../bundle/squashfs/image.ts'
import type { ReleaseNumber } from '../../bundle/types.ts'
import type { Taken } from '../space/biggest.ts'
import { choicesOf, declaredBy, readDeviceRules } from './choices.ts'
import { decideEtc, type EtcTrees } from './decide.ts'
import { etcErrors } from './errors.ts'
import { systemUserFindings } from './system-users.ts'
import { folderTree, imageTree } from './trees.ts'
import type { EtcFinding, EtcMode, EtcPlan } from './types.ts'
import { writeEtc } from './write.ts'
import type { XattrTool } from './xattrs.ts'

/** Makes the /etc of the slot that is about to be armed, and keeps what there is to say about it. */

export interface EtcSurroundings {
  /** The running /etc. */
  readonly running: string
  /** Where each slot's /etc is kept: "/data/etc". */
  readonly folders: string
  /** The device's rules: "/etc/bistable/etc.json". */
  readonly rules: string
  /** Owned paths that the running image declares. */
  readonly owned: readonly string[]
  /** Where the report is kept: "/data/bistable/etc-report.json". */
  readonly report: string
  readonly files: Files
  readonly xattrs: XattrTool
  /** Makes everything written outlive a power cut. */
  readonly flush: () => Promise<void>
  /** Makes room on the data partition. */
  readonly makeRoom?: (wanted: Taken) => Promise<void>
  /** True when the running /etc was made in memory for this start: what the device made of it is not in it. */
  readonly inMemory?: () => Promise<boolean>
}

/** The running slot's image, and the one to be merged with. */
export interface EtcImages {
  readonly old: Squashfs
  readonly image: Squashfs
}

export interface EtcReport {
  readonly mode: EtcMode
  /** False: a tool is missing (package attr), extended attributes are neither compared nor carried. */
  readonly xattrs: boolean
  readonly notes: number
  readonly conflicts: number
  readonly refused: number
  /** At most 1,000: those that were refused first, then conflicts, then notes. */
  readonly findings: readonly EtcFinding[]
}

interface Planned {
  readonly plan: EtcPlan
  readonly trees: EtcTrees
  readonly report: EtcReport
}

const MAX_FINDINGS = 1000
export const MAX_REPORT_BYTES = 4 * 1024 * 1024

/**
 * Decides the merge and writes nothing.
 * @throws ETC_TOO_LARGE, ETC_UNREADABLE, ETC_RULES_INVALID, SQUASHFS_*
 */
export async function planEtc(around: EtcSurroundings, images: EtcImages, signal: AbortSignal): Promise<Planned> {
  const declared = await declaredBy(images.image)
  const device = await readDeviceRules(around.rules, around.files)
  const choices = choicesOf(device, declared.etc, [...new Set([...around.owned, ...declared.owned])])
  // A program of its own: it reads while the images are read here.
  const listed = around.xattrs.read(around.running)
  // Met when it is awaited; an image may fail to be read before.
  listed.catch(() => undefined)
  const running: XattrTool = { ...around.xattrs, read: () => listed }
  const trees = {
    old: await imageTree(images.old, '/etc of the running image', signal),
    local: await folderTree(around.running, running, signal),
    image: await imageTree(images.image, '/etc of the new image', signal),
  }
  const decided = await decideEtc(trees, choices)
  const unnamed = (trees.local.unnamed ?? []).map((path): EtcFinding => {
    const finding = { path: `/etc/${path}`, kind: 'not-carried', level: 'conflict', taken: 'none' } as const
    return { ...finding, rule: 'default', detail: 'its name is not UTF-8' }
  })
  const users = await systemUserFindings(images, trees, decided)
  const plan = { ...decided, findings: [...decided.findings, ...unnamed, ...users] }
  const xattrs = trees.local.entries.get('')?.xattrs !== undefined
  return { plan, trees, report: reportOf(plan.findings, choices.mode, xattrs) }
}

/** Counts everything and keeps the most important. Pure. */
export function reportOf(findings: readonly EtcFinding[], mode: EtcMode, xattrs: boolean): EtcReport {
  const at = (level: EtcFinding['level']) => findings.filter((finding) => finding.level === level)
  const [refused, conflicts, notes] = [at('refused'), at('conflict'), at('note')]
  return {
    mode,
    xattrs,
    notes: notes.length,
    conflicts: conflicts.length,
    refused: refused.length,
    findings: [...refused, ...conflicts, ...notes].slice(0, MAX_FINDINGS),
  }
}

/**
 * The slot's /etc, merged and in place; the running one is only read. Undefined where the device has no /etc per slot, and
 * where the initramfs makes it at every boot.
 * @throws as `planEtc`; ETC_REFUSED when nothing decides about a path, ETC_UNREADABLE when /etc is in memory, ETC_WRITE_FAILED
 */
export async function prepareEtc(
  around: EtcSurroundings,
  images: EtcImages,
  target: { readonly slot: Slot; readonly number: ReleaseNumber; readonly root: string },
  signal: AbortSignal,
): Promise<EtcReport> {
  const { plan, trees, report } = await planEtc(around, images, signal)
  await around.makeRoom?.(roomFor(plan, trees))
  const text = Buffer.from(JSON.stringify({ release: formatNumber(target.number), slot: target.slot, ...report }))
  await writeFileDurably(around.report, text.length > MAX_REPORT_BYTES ? shortened(report) : text, around.files)
  const refused = report.findings.filter(({ level }) => level === 'refused')
  if (report.refused > 0) {
    const named = refused.slice(0, 5).map(({ path, kind, detail }) => `${path} (${detail ?? kind})`)
    const more = report.refused > named.length ? ` and ${report.refused - named.length} more` : ''
    throw etcErrors.ETC_REFUSED(`${named.join(', ')}${more}`, { details: { paths: refused.map(({ path }) => path) } })
  }
  if (report.mode === 'transient') return report
  if ((await around.inMemory?.()) === true)
    throw etcErrors.ETC_UNREADABLE(
      `${around.running} is in memory since this start; what this device changed is elsewhere`,
      {
        next: 'Make room on the data partition and reboot; then install again.',
      },
    )
  await writeEtc(plan, {
    folder: join(around.folders, target.slot),
    marker: `${formatNumber(target.number)} ${target.root}`,
    sources: { local: trees.local, image: trees.image },
    xattrs: around.xattrs,
    flush: around.flush,
    signal,
  })
  return report
}

const BLOCK = 4 * KiB
/** The report, marks, and folders that grow. */
const BESIDE = 64 * KiB

/** What the merged tree takes beside the one that it replaces. Pure. */
export function roomFor({ entries }: EtcPlan, { local, image }: EtcTrees): Taken {
  const sources = { local, image }
  let bytes = BESIDE
  for (const { path, type, from, content } of entries) {
    const size = content?.length ?? (from === 'made' ? 0 : (sources[from].entries.get(path)?.size ?? 0))
    bytes += type === 'dir' ? BLOCK : roundUp(size, BLOCK)
  }
  return { bytes, files: entries.length + 4 }
}

const shortened = (report: EtcReport) => Buffer.from(JSON.stringify({ ...report, findings: [] }))
