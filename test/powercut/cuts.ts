import { randomFrom } from '../device-install/model.ts'
import type { Entry, Op, Told } from './disk.ts'
import { type Choice, type CutDisk, type Inode, inodeOf, PAGE, Replay, type Unit } from './replay.ts'
import type { Recorded } from './stories.ts'

/** Every disk that a power cut during a recorded story can leave. Deterministic by its seed. */

export interface CutPlan {
  readonly seed: number
  /** Part of the disks that is looked at, 0 .. 1; whole prefixes always are. */
  readonly keep: number
  /** The same for torn writes of boot state, each of which is a question to the bootloader. */
  readonly keepBoot: number
  /** Up to this many things on their way, every subset of them is tried; beyond, 2 to this power are sampled. */
  readonly exhaustive: number
  /** Pages of one write that are torn; of a larger write so many are drawn. */
  readonly tornPages: number
  /** Random subsets of the pages on their way to a slot, per write. */
  readonly pageSubsets: number
}

/** First bytes of a 512-byte sector of boot state that arrive: each within the words, and some beyond. */
const BOOT_SECTOR_CUTS = [0, 1, 7, 19, ...Array.from({ length: 100 }, (_, n) => n + 20), 128, 255, 256, 384, 510, 511]
const SLOT_SECTOR_CUTS = [1, 64, 256, 448, 511]
const PAGE_CUTS = [0, 1, 60, 84, 511, 512, 513, 1023, 1024, 2048, 4095]
const FILE_CUTS = [1, 7, 80, 511, 512, 513]

type Chosen = Choice & { readonly what: string; readonly always?: boolean }

export function* cuts(story: Recorded, plan: CutPlan): Generator<CutDisk> {
  const replay = new Replay(story.name, story.start)
  for (const [index, { op, told }] of story.log.entries()) {
    replay.take(op)
    const where = `${story.name}, ${index + 1} of ${story.log.length}, ${nameOf(op)}`
    const random = randomFrom(plan.seed * 7919 + index * 104_729 + hashOf(story.name))
    const sieve = randomFrom(plan.seed * 31 + index * 15_485_863 + hashOf(story.name))
    yield* looked(replay, chosen(replay, op, random, plan), where, told, sieve, plan)
    // The moment behind this operation, when more may have been promised.
    const after = story.log[index + 1]?.told ?? told
    if (after !== told || isFlush(op)) yield* looked(replay, whole(replay), where, after, sieve, plan)
    if (different(after, told)) yield* looked(replay, subsets(replay, [], random, plan), where, after, sieve, plan)
  }
}

function* looked(
  replay: Replay,
  choices: Iterable<Chosen>,
  where: string,
  told: Told,
  sieve: () => number,
  plan: CutPlan,
): Generator<CutDisk> {
  for (const choice of choices)
    if (sieve() < (choice.torn?.part === 'bootstate' ? plan.keepBoot : plan.keep) || choice.always === true)
      yield replay.disk(choice, `${where}: ${choice.what}`, told)
}

function* chosen(replay: Replay, op: Op, random: () => number, plan: CutPlan): Generator<Chosen> {
  if (isFlush(op)) return
  yield* whole(replay)
  const write = replay.units.at(-1)?.write
  const fresh = op.kind === 'write' ? replay.units.filter((unit) => unit.write === write) : []
  yield* subsets(replay, fresh, random, plan)
  if (op.kind === 'write') {
    yield* tornUnits(replay, fresh, random, plan.tornPages)
    if (op.part !== 'bootstate') yield* pageSubsets(replay, random, plan)
  } else yield* tornFiles(replay)
}

/** Everything arrived; nothing that was not flushed did. */
function* whole(replay: Replay): Generator<Chosen> {
  yield { what: 'everything arrived', units: replay.units, names: replay.names, always: true }
  const lost = lostContents(replay.unsafe())
  yield { what: 'nothing unflushed arrived', units: [], names: [], contents: lost, always: true }
}

/** Subsets of what is on its way, of which `fresh` is always kept: the others were tried when they came. */
function* subsets(replay: Replay, fresh: readonly Unit[], random: () => number, plan: CutPlan): Generator<Chosen> {
  const writes = [...new Set(replay.units.filter((unit) => !fresh.includes(unit)).map((unit) => unit.write))]
  const inodes = replay.unsafe()
  const count = writes.length + replay.names.length + inodes.length
  const exhaustive = count <= plan.exhaustive
  const tries = 2 ** Math.min(count, plan.exhaustive)
  for (let n = 0; n < tries; n++) {
    const bits = exhaustive ? Array.from({ length: count }, (_, i) => (n >> i) & 1) : flips(count, random)
    const kept = new Set(writes.filter((_, i) => bits[i] === 1))
    const names = replay.names.filter((_, i) => bits[writes.length + i] === 1)
    const gone = inodes.filter((_, i) => bits[writes.length + replay.names.length + i] === 0)
    const units = replay.units.filter((unit) => kept.has(unit.write) || fresh.includes(unit))
    yield { what: `subset ${bits.join('')}`, units, names, contents: lostContents(gone) }
  }
}

/** Each sector of a write torn: first bytes new, then what was there, or garbage; all others arrived, or none did. */
function* tornUnits(replay: Replay, fresh: readonly Unit[], random: () => number, most: number): Generator<Chosen> {
  const others = replay.units.filter((unit) => !fresh.includes(unit))
  const garbage = garbagePage(random)
  const share = most / fresh.length
  for (const [n, unit] of fresh.entries()) {
    if (share < 1 && random() >= share) continue
    const boot = unit.part === 'bootstate'
    const page = Math.floor(unit.offset / PAGE)
    for (const all of [true, false]) {
      const before = [...(all ? others : []), ...(boot || all ? fresh.slice(0, n) : [])]
      const context = {
        units: before,
        names: all ? replay.names : [],
        contents: all ? undefined : lostContents(replay.unsafe()),
      }
      const old = replay.page(unit.part, page, before)
      const next = replay.page(unit.part, page, [...before, unit])
      const tear = (bytes: Buffer, what: string): Chosen | undefined => {
        if (bytes.equals(old) || bytes.equals(next)) return undefined
        const { contents, ...plain } = context
        const words = `${what} of page ${page} of ${unit.part}, the rest ${all ? 'arrived' : 'did not'}`
        const torn = { part: unit.part, page, bytes }
        return { what: words, ...plain, ...(contents === undefined ? {} : { contents }), torn }
      }
      // ext4 is built on whole sectors, each old or new: no more is asked of it.
      if (unit.part === 'data') {
        for (let k = 512; k < PAGE; k += 512) {
          const torn = tear(Buffer.concat([next.subarray(0, k), old.subarray(k)]), `${k} bytes of 4096`)
          if (torn !== undefined) yield torn
        }
        continue
      }
      for (const tail of ['old', 'garbage'] as const) {
        for (const [sector, k] of sectorCuts(unit, boot)) {
          const at = sector * 512
          const bytes = Buffer.concat([next.subarray(0, at + k), old.subarray(at + k)])
          if (tail === 'garbage') garbage.copy(bytes, at + k, at + k, at + 512)
          const torn = tear(bytes, `${k} bytes of 512 and an ${tail} tail in sector ${sector}`)
          if (torn !== undefined) yield torn
        }
        for (const k of PAGE_CUTS) {
          const bytes = Buffer.concat([next.subarray(0, k), old.subarray(k)])
          if (tail === 'garbage') garbage.copy(bytes, k, k)
          const torn = tear(bytes, `${k} bytes of 4096 and an ${tail} tail`)
          if (torn !== undefined) yield torn
        }
      }
    }
  }
}

function sectorCuts(unit: Unit, boot: boolean): (readonly [number, number])[] {
  const first = Math.floor((unit.offset % PAGE) / 512)
  const sectors = Math.ceil((unit.bytes.length + (unit.offset % 512)) / 512)
  const sizes = boot ? BOOT_SECTOR_CUTS : SLOT_SECTOR_CUTS
  return Array.from({ length: sectors }, (_, n) => first + n).flatMap((sector) =>
    sizes.map((k) => [sector, k] as const),
  )
}

function* pageSubsets(replay: Replay, random: () => number, plan: CutPlan): Generator<Chosen> {
  for (let n = 0; n < plan.pageSubsets; n++) {
    const part = [0.05, 0.5, 0.95][n % 3] ?? 0.5
    const units = replay.units.filter(() => random() < part)
    yield {
      what: `${units.length} of ${replay.units.length} pages`,
      units,
      names: replay.names.filter(() => random() < 0.5),
    }
  }
}

/** Contents that no flush has covered: cut short, or of full length with zeros from there on. */
function* tornFiles(replay: Replay): Generator<Chosen> {
  for (const inode of replay.unsafe()) {
    const { bytes } = inode
    const sizes = [
      ...FILE_CUTS,
      ...Array.from({ length: Math.ceil(bytes.length / 512) }, (_, n) => n * 512),
      bytes.length - 1,
    ]
    for (const k of new Set(sizes.filter((size) => size >= 0 && size < bytes.length))) {
      const zeros = Buffer.from(bytes).fill(0, k)
      const short = bytes.subarray(0, k)
      for (const [how, torn] of [
        ['nothing', short],
        ['zeros', zeros],
      ] as const) {
        const contents = new Map([[inode, inodeOf(torn, false)]])
        yield { what: `${k} bytes of ${bytes.length}, then ${how}`, units: replay.units, names: replay.names, contents }
      }
    }
  }
}

const lostContents = (inodes: readonly Inode[]) =>
  new Map(inodes.map((inode) => [inode, inodeOf(Buffer.alloc(0), false)]))

const flips = (count: number, random: () => number) => Array.from({ length: count }, () => (random() < 0.5 ? 1 : 0))

/** A page of garbage; the same one for every tear of a write, so that equal boot states stay equal. */
function garbagePage(random: () => number): Buffer {
  const bytes = Buffer.alloc(PAGE)
  for (let at = 0; at < PAGE; at += 4) bytes.writeUInt32LE(Math.floor(random() * 2 ** 32), at)
  return bytes
}

const isFlush = (op: Op): boolean => op.kind === 'flush' || op.kind === 'file-sync' || op.kind === 'sync-dir'

const different = (a: Told, b: Told): boolean =>
  a.installFloor !== b.installFloor || a.securityFloor !== b.securityFloor || a.rootVersion !== b.rootVersion

function nameOf(op: Entry['op']): string {
  if (op.kind === 'write') return `write of ${op.bytes.length} at ${op.offset} of ${op.part}`
  return op.kind === 'flush' ? `flush of ${op.part}` : `${op.kind} ${op.path}`
}

function hashOf(text: string): number {
  let sum = 0
  for (const letter of text) sum = (sum * 33 + letter.charCodeAt(0)) >>> 0
  return sum
}
