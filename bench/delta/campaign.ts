import { existsSync } from 'node:fs'
import { chmod, cp, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { measure, tool } from '../measure.ts'
import { type Goal, goal, type Report, type Row } from '../report.ts'
import { PRODUCT, type Workshop } from '../workshop.ts'
import type { Both, Found, Side } from './found.ts'
import { sizeOf } from './found.ts'
import { type Pair, pairs, systemFile } from './images.ts'
import { chunks, patch } from './ours.ts'
import { peers } from './peers.ts'
import { recut } from './recut.ts'

/**
 * Bytes that a device fetches to go from one release to the next, and what that takes, by every technique that is to be had.
 * Takes an hour and more; so each step's result is kept, and a run goes on where the last one ended.
 */

export const OURS = {
  chunks: 'bistable, chunks',
  patch: 'bistable, patch',
  quick: 'bistable, patch, images at zstd 9',
} as const
/** Our patch once more, between images whose blocks cost the device less. */
const QUICK = { level: 9, pairs: ['security'] }

/** What is known of a pair so far. */
export interface PairFound {
  readonly name: string
  readonly what: string
  readonly image?: number
  readonly plain?: number
  readonly found: Readonly<Record<string, Found>>
}

export interface CampaignOptions {
  /** Where images and results stay. */
  readonly folder: string
  /** No step is begun later than this after the start, and none that is known to be slow later than half of it. */
  readonly seconds: number
  readonly only: readonly string[] | undefined
  /** Steps whose names hold one of these are taken again. */
  readonly again: readonly string[]
}

export async function benchDelta(workshop: Workshop, options: CampaignOptions): Promise<Report> {
  const { folder, seconds, only, again } = options
  const started = performance.now()
  const go: Go = (slow) => performance.now() - started < (slow ? seconds / 2 : seconds) * 1000
  const shared = join(folder, 'shared')
  await mkdir(shared, { recursive: true })
  const all: Steps[] = []
  for (const pair of pairs(shared, workshop.say)) {
    if (only !== undefined && !only.includes(pair.name)) continue
    const steps = new Steps(join(folder, pair.name), pair)
    await steps.open(again)
    all.push(steps)
  }
  let left = 0
  for (const rank of [0, 1, 2] as const) for (const steps of all) left += await steps.run(workshop, rank, go)
  if (left > 0) workshop.say(`delta: ${left} steps left: run it again`)
  return reportOf(
    all.map(({ known }) => known),
    left,
  )
}

/** Whether a step may still begin. */
type Go = (slow: boolean) => boolean

/** These sort, or search, all of the content: the last ones of all pairs. */
const SLOW = [['zstd --patch-from on uncompressed', 'bsdiff on uncompressed'], ['bsdiff on SquashFS']]
type Rank = 0 | 1 | 2
/** Pairs of which so much changed that ostree searches for minutes. */
const MUCH = ['large', 'debian13']
const rankOf = (pair: string, what: string): number =>
  what.startsWith('ostree') && MUCH.includes(pair) ? 2 : 1 + SLOW.findIndex((whats) => whats.includes(what))

class Steps {
  known: PairFound
  readonly #folder: string
  readonly #pair: Pair

  constructor(folder: string, pair: Pair) {
    this.#folder = folder
    this.#pair = pair
    this.known = { name: pair.name, what: pair.what, found: {} }
  }

  get #file(): string {
    return `${this.#folder}.json`
  }

  async open(again: readonly string[]): Promise<void> {
    const text = await readFile(this.#file, 'utf8').catch(() => undefined)
    if (text === undefined) return
    const known = JSON.parse(text) as PairFound
    const keep = Object.entries(known.found).filter(([what]) => !again.some((part) => what.includes(part)))
    this.known = { ...known, found: Object.fromEntries(keep) }
  }

  /** @returns how many steps of one rank are left */
  async run(workshop: Workshop, rank: Rank, go: Go): Promise<number> {
    const techniques: Readonly<Record<string, (both: Both) => Promise<Found>>> = {
      [OURS.chunks]: (both) => chunks(workshop, both),
      [OURS.patch]: (both) => patch(workshop, both),
      ...peers,
      ...(QUICK.pairs.includes(this.#pair.name) && { [OURS.quick]: (both: Both) => quick(workshop, both) }),
    }
    const openOnes = () =>
      Object.entries(techniques).filter(
        ([what]) => this.known.found[what] === undefined && rankOf(this.#pair.name, what) === rank,
      )
    if (openOnes().length === 0) return 0
    const both = await this.#sides(workshop, go)
    // Ours are open again where the bundles had to be made anew.
    const open = openOnes()
    if (both === undefined) return open.length
    for (const [n, [what, run]] of open.entries()) {
      if (!go(rank > 0)) return open.length - n
      const found = await run(both)
      workshop.say(`delta: ${this.#pair.name}: ${what}: ${found.bytes} bytes`)
      await this.#note({ found: { ...this.known.found, [what]: found } })
    }
    return 0
  }

  async #forget(whats: readonly string[]): Promise<void> {
    await this.#note({
      found: Object.fromEntries(Object.entries(this.known.found).filter(([what]) => !whats.includes(what))),
    })
  }

  async #note(more: Partial<PairFound>): Promise<void> {
    this.known = { ...this.known, ...more }
    await writeFile(`${this.#file}.new`, `${JSON.stringify(this.known, null, 2)}\n`)
    await rename(`${this.#file}.new`, this.#file)
  }

  /** The two releases, as far as there is time. */
  async #sides(workshop: Workshop, go: Go): Promise<Both | undefined> {
    const folder = this.#folder
    await mkdir(folder, { recursive: true })
    const there = (name: string) =>
      stat(join(folder, name)).then(
        () => true,
        () => false,
      )
    const had = async (name: string) => (await there(`${name}.tar`)) || (await there(`${name}.ready`))
    if (!(await had('old')) || !(await had('next'))) {
      if (!go(true)) return undefined
      workshop.say(`delta: pair ${this.#pair.name}: ${this.#pair.what}`)
      await this.#pair.make(folder)
    }
    const sides: Side[] = []
    for (const [i, name] of ['old', 'next'].entries()) {
      if (!(await there(`${name}.ready`))) {
        if (!go(true)) return undefined
        await makeSide(workshop, folder, name, i + 1)
        await writeFile(join(folder, `${name}.ready`), '')
      }
      const side = sideIn(folder, name)
      if (await recut(workshop, side)) {
        workshop.say(`delta: ${this.#pair.name}: ${name}.bundle has other chunks now`)
        await this.#forget(Object.values(OURS))
      }
      sides.push(side)
    }
    const [old, next] = sides as [Side, Side]
    await this.#note({ image: await sizeOf(next.squashfs), plain: await sizeOf(next.plain) })
    return { folder, old, next }
  }
}

const sideIn = (folder: string, name: string): Side => ({
  bundle: join(folder, `${name}.bundle`),
  squashfs: join(folder, `${name}.build`, 'rootfs.img'),
  plain: join(folder, `${name}.plain`),
  tree: join(folder, `${name}.tree`),
})

async function makeSide(workshop: Workshop, folder: string, name: string, counter: number): Promise<void> {
  const side = sideIn(folder, name)
  const { squashfs, plain, tree } = side
  for (const path of [plain, tree]) await rm(path, { recursive: true, force: true })
  const tar = join(folder, `${name}.tar`)
  await makeRelease(workshop, folder, tar, side, { counter, level: workshop.level })
  await tool('unsquashfs', ['-quiet', '-no-progress', '-d', tree, squashfs])
  const none = ['-noI', '-noD', '-noF', '-noX', '-noId']
  await measure('mksquashfs', [tree, plain, ...none, '-reproducible', '-no-progress', '-quiet'])
  await rm(tar)
}

/** A bundle, and its build folder, from a tar. */
async function makeRelease(
  workshop: Workshop,
  folder: string,
  tar: string,
  { bundle, squashfs }: Pick<Side, 'bundle' | 'squashfs'>,
  { counter, level }: { readonly counter: number; readonly level: number },
): Promise<void> {
  const build = dirname(squashfs)
  for (const path of [build, bundle]) await rm(path, { recursive: true, force: true })
  // A real one is 120 MB that do not change, and would only make every other program slower.
  const node = join(folder, 'node')
  await writeFile(node, '#!/bin/sh\necho stands for Node.js\n')
  await chmod(node, 0o755)
  const parts = [
    '--agent',
    await agentOf(workshop, join(dirname(workshop.rootStatement), '..', 'shared', 'agent')),
    '--node',
    node,
  ]
  const system = await systemFile(folder, PRODUCT)
  const release = ['--version', `${counter}`, '--counter', `${counter}`, '--level', `${level}`]
  const trust = ['--system', system, '--root', workshop.rootStatement]
  await workshop.bistable(['build', `rootfs:${tar}`, '--output', build, ...release, ...parts, ...trust])
  await workshop.signAndPack(build, bundle)
}

/** A patch between the same trees as images at another level. */
async function quick(workshop: Workshop, both: Both): Promise<Found> {
  const folder = join(both.folder, `level-${QUICK.level}`)
  await rm(folder, { recursive: true, force: true })
  await mkdir(folder)
  const again = async (name: 'old' | 'next', counter: number): Promise<Side> => {
    const side = { ...sideIn(folder, name), tree: both[name].tree }
    const tar = join(folder, `${name}.tar`)
    await tool('tar', ['--sort=name', '--numeric-owner', '--xattrs', '-cf', tar, '-C', side.tree, '.'])
    // The kernel stands in the boot image alone.
    const [version] = await readdir(join(side.tree, 'usr/lib/modules'))
    const kernel = join('boot', `vmlinuz-${version}`)
    await mkdir(join(folder, 'boot'), { recursive: true })
    const boot = join(dirname(both[name].squashfs), 'boot.img')
    await tool('mcopy', ['-o', '-i', boot, '::/vmlinuz', join(folder, kernel)])
    const plain = ['--owner=0', '--group=0', '--mode=0644', '--mtime=@0']
    await tool('tar', [...plain, '-rf', tar, '-C', folder, `./${kernel}`])
    await makeRelease(workshop, folder, tar, side, { counter, level: QUICK.level })
    return side
  }
  const sides = { folder, old: await again('old', 1), next: await again('next', 2) }
  const found = { ...(await patch(workshop, sides)), image: await sizeOf(sides.next.squashfs) }
  await rm(folder, { recursive: true })
  return found
}

/** The agent of the first run, for all sides: what a pair is about is all that differs. */
async function agentOf(workshop: Workshop, kept: string): Promise<string> {
  if (!existsSync(kept)) await cp(dirname(workshop.device.agent), kept, { recursive: true })
  return kept
}

function reportOf(all: readonly PairFound[], left: number): Report {
  const rows: Row[] = []
  const goals: Goal[] = []
  const notes: string[] = []
  for (const { name, what, image, plain, found } of all) {
    for (const [technique, { bytes, apply, make }] of Object.entries(found))
      for (const [verb, took] of Object.entries({ make, apply }))
        rows.push({
          what: `${name}: ${technique}, ${verb}`,
          bytes,
          ...(took && {
            seconds: { median: took.seconds, min: took.seconds, max: took.seconds },
            cpuSeconds: took.cpuSeconds,
            peakMiB: took.peakMiB,
          }),
        })
    goals.push(...goalsOf(name, found, image ?? 0))
    notes.push(`${name}: ${what}; image ${image} bytes, uncompressed ${plain}`)
  }
  notes.push('of the root file system; what our install moves besides, statement, framing, boot image, is in the JSON')
  if (left > 0) notes.push(`not complete: ${left} steps are left`)
  return { name: 'delta', runs: 1, rows, goals, notes }
}

/** The goals of one pair, as far as their parts are known. Pure. */
export function goalsOf(pair: string, found: Readonly<Record<string, Found>>, image: number): readonly Goal[] {
  const goals: Goal[] = []
  const bytes = (what: string): number | undefined => found[what]?.bytes
  const add = (what: string, ours: number | undefined, theirs: number | undefined, atMost: number): void => {
    if (ours !== undefined && theirs !== undefined) goals.push(goal(`${pair}: ${what}`, ours / theirs, '', atMost))
  }
  const [byPatch, byChunks] = [bytes(OURS.patch), bytes(OURS.chunks)]
  add('patch / bsdiff on uncompressed', byPatch, bytes('bsdiff on uncompressed'), 1.1)
  add('patch / xdelta3 on SquashFS', byPatch, bytes('xdelta3 on SquashFS'), 1 / 3)
  for (const peer of ['casync, 64 KiB chunks', 'casync, 16 KiB chunks', 'zchunk', 'RAUC block-hash-index (counted)'])
    add(`chunks / ${peer}`, byChunks, bytes(peer), 1)
  if (pair === 'times') add('patch / image', byPatch, image, 0.01)
  if (pair === 'debian13') add('patch / image', byPatch, image, 1)
  const { make } = found[OURS.patch] ?? {}
  add(
    'CPU of making / zstd --patch-from',
    make?.cpuSeconds,
    found['zstd --patch-from on uncompressed']?.make?.cpuSeconds,
    3,
  )
  for (const [technique, at] of [
    [OURS.patch, ''],
    [OURS.quick, `, at zstd ${QUICK.level}`],
  ] as const) {
    const { apply, installed = image } = found[technique] ?? {}
    add(`CPU of applying / images at 50 MB/s${at}`, apply?.cpuSeconds, installed / 50e6, 1)
  }
  return goals
}
