import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setImmediate } from 'node:timers/promises'
import { openBundle } from '../../bundle/reader.ts'
import { checkSystem } from '../../bundle/system.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { readGpt } from '../../hw-tests/harness/disk.ts'
import type { Kit } from '../../hw-tests/harness/kit.ts'
import { trustAnchor } from '../../keys/root.ts'
import { randomFrom } from '../device-install/model.ts'
import { type CutPlan, cuts } from './cuts.ts'
import { DataPartition } from './data-partition.ts'
import { type Entry, NOTHING_TOLD, type Op, PARTS, type Part } from './disk.ts'
import { Grub } from './grub.ts'
import { Judge, type Kind, type Verdict } from './judge.ts'
import { readLogWrites } from './log-writes.ts'
import type { Recording } from './recording.ts'
import { type Product, type Release, rankOf } from './releases.ts'
import type { CutDisk } from './replay.ts'
import { SlotReader } from './slots.ts'
import type { Recorded } from './stories.ts'

/** Every power cut of a real device's update, from the writes that QEMU recorded: docs/power-cuts.md. */

export interface RecordedPlan extends CutPlan {
  /** Part of the disks on which a second update is made, 0 .. 1. */
  readonly secondUpdates: number
  /** Of the states each so-manyth, from this one on: for several runs side by side. */
  readonly part: { readonly first: number; readonly step: number }
}

export const RECORDED: RecordedPlan = {
  seed: 1,
  keep: 0.02,
  keepBoot: 1,
  exhaustive: 8,
  tornPages: 4,
  pageSubsets: 20,
  secondUpdates: 0.001,
  part: { first: 0, step: 1 },
}

export interface RecordedOutcome {
  readonly states: number
  readonly line: string
  readonly ok: boolean
}

const SHOWN = 20
const PROGRESS = 1000

export async function judgeRecording(
  recording: Recording,
  plan: RecordedPlan,
  say: (line: string) => void,
): Promise<RecordedOutcome> {
  const { seed, part } = plan
  say(`power cuts, recorded ${recording.name}: seed ${seed}, part ${part.first + 1}/${part.step}`)
  const story = await storyOf(recording)
  const product = await productOf(recording.kit)
  const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-recorded-'))
  const grub = new Grub()
  const clear = () => rmSync(dir, { recursive: true, force: true })
  process.once('exit', clear)
  try {
    const data = new DataPartition(dir)
    const reader = new SlotReader(product.releases)
    const judge = await Judge.make(grub.decide, product, reader, () => true)
    const counts: Record<Kind, number> = { unbootable: 0, floor: 0, other: 0 }
    const note = (verdict: Verdict | undefined, what: string) => {
      if (verdict === undefined) return
      counts[verdict.kind]++
      if (counts.unbootable + counts.floor + counts.other <= SHOWN) say(`${verdict.kind}: ${verdict.why} (${what})`)
    }
    const asked = new Map<string, Buffer>()
    for (const cut of distinct(story, plan)) asked.set(cut.bootKey, cut.boot)
    grub.prepare(asked.values())
    let states = 0
    let seconds = 0
    const random = randomFrom(plan.seed + 1)
    for (const cut of distinct(story, plan)) {
      states++
      if (states % PROGRESS === 0) say(`${states} states, ${data.looked} data partitions; ${cut.what}`)
      // All of this is synchronous: a signal gets its turn here.
      if (states % 50 === 0) await setImmediate()
      const found = data.read(cut.dataKey, cut.data)
      if (typeof found === 'string') {
        note({ kind: 'other', why: `/data: ${found}` }, cut.what)
        continue
      }
      const whole = { ...cut, files: found.files, filesKey: found.key }
      note(await judge.judge(whole), cut.what)
      // Behind new keys the kit has no other release that those signed.
      if (random() < plan.secondUpdates && recording.name !== 'repair') {
        seconds++
        note(await judge.secondUpdate(whole), cut.what)
      }
    }
    const { asked: decisions } = grub
    say(
      `distinct: ${decisions} boot states, ${reader.verified} slot contents, ${data.looked} data partitions, ${judge.recovered} starts of an agent; ${seconds} second updates`,
    )
    say(`superblock of /data torn between its sectors and repaired from its copy: ${data.fromCopy} data partitions`)
    for (const difference of grub.differences.slice(0, SHOWN)) say(`difference: ${difference}`)
    const line = `power cuts, recorded ${recording.name}: ${states} states, ${decisions} bootloader decisions, ${counts.unbootable} unbootable, ${counts.floor} floors lowered, ${counts.other} otherwise wrong`
    say(line)
    const ok = counts.unbootable + counts.floor + counts.other + grub.differences.length === 0
    return { states, line, ok }
  } finally {
    grub.close()
    process.removeListener('exit', clear)
    clear()
  }
}

/** The plan's part of the cuts, each disk once. */
function* distinct(story: Recorded, plan: RecordedPlan): Generator<CutDisk> {
  const seen = new Set<string>()
  for (const cut of cuts(story, plan)) {
    if (seen.has(cut.key)) continue
    seen.add(cut.key)
    if ((seen.size - 1) % plan.part.step === plan.part.first) yield cut
  }
}

/** The recording as a story: writes by partition, and a flush of the disk as one of each partition. */
async function storyOf({ name, start: from, log, promises }: Recording): Promise<Recorded> {
  const disk = readFileSync(from)
  const table = readGpt(disk.subarray(0, 64 * 1024))
  const places = PARTS.map((part) => {
    const found = table.find(({ name }) => name === part)
    if (found === undefined) throw new Error(`${from} has no partition ${part}`)
    return { part, start: found.start, end: found.start + found.length }
  })
  const parts = Object.fromEntries(
    places.map(({ part, start, end }) => [part, Buffer.from(disk.subarray(start, end))]),
  ) as Record<Part, Buffer>
  const entries: Entry[] = []
  let n = 0
  for await (const { offset, length, data, flush, fua, discard } of readLogWrites(log)) {
    const told = promises.findLast(({ entry }) => entry <= n)?.told ?? NOTHING_TOLD
    n++
    if (fua || discard)
      throw new Error(`entry ${n} of ${log} is a ${fua ? 'write through' : 'discard'}: not replayed here`)
    if (flush) for (const { part } of places) entries.push({ op: { kind: 'flush', part }, told })
    if (data === undefined) continue
    const place = places.find(({ start, end }) => offset >= start && offset + length <= end)
    if (place === undefined)
      throw new Error(`entry ${n} of ${log} writes ${length} bytes at ${offset}, outside of every partition`)
    const { part, start } = place
    entries.push({ op: { kind: 'write', part, offset: offset - start, bytes: data, by: 'system' }, told })
  }
  return {
    name: `recorded ${name}`,
    start: { parts, files: new Map() },
    log: byWriter(entries),
    told: NOTHING_TOLD,
    boots: [],
  }
}

/** GRUB writes both sectors of a block of its own, one after the other; a system only the first. */
function byWriter(entries: readonly Entry[]): Entry[] {
  const isSecond = ({ op }: Entry, first: Op): boolean =>
    op.kind === 'write' &&
    first.kind === 'write' &&
    op.part === 'bootstate' &&
    first.part === 'bootstate' &&
    op.offset % 1024 === 512 &&
    op.offset === first.offset + first.bytes.length
  return entries.map((entry, n) => {
    const [before, after] = [entries[n - 1], entries[n + 1]]
    const pair =
      (before !== undefined && isSecond(entry, before.op)) || (after !== undefined && isSecond(after, entry.op))
    return pair && entry.op.kind === 'write' ? { ...entry, op: { ...entry.op, by: 'bootloader' } } : entry
  })
}

/** The kit's releases. What is installed after a cut here only has to be another one. */
async function productOf(kit: Kit): Promise<Product> {
  const anchor = readFileSync(join(kit.folder, `keys-${kit.product}`, 'root.json'))
  const releases = new Map<number, Release>()
  for (const name of ['base', 'next', 'unhealthy', 'hangs', 'panics', 'rotated']) {
    const { path } = kit.bundle(name)
    const source = await openFileDoor(path)
    const { statement } = await openBundle(source, { trusted: trustAnchor(anchor) })
    await source.close()
    const rank = rankOf(statement.number)
    const bundle = name === 'base' ? Buffer.alloc(0) : readFileSync(path)
    releases.set(rank, {
      rank,
      securityFloor: rankOf(statement.securityFloor),
      conduct: name === 'panics' ? 'panics' : 'healthy',
      statement,
      bundle,
    })
  }
  const ranks = [...releases.keys()]
  const system = checkSystem({
    product: kit.product,
    hardware: ['qemu-x86_64'],
    health: { deadlineSeconds: 10, required: ['/health/*'], wanted: [] },
    agent: {},
  })
  if ('problems' in system) throw new Error(system.problems.join())
  return { releases, next: ranks.slice(2, 4), system: system.system, anchor }
}
