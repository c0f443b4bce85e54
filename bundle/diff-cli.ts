import { humanBytes } from '../base/bytes.ts'
import { cliErrors, type Invocation, stringOption, type Verb } from '../base/cli.ts'
import { printable } from '../base/printable.ts'
import { type ByteSource, readExactly } from '../base/source.ts'
import { chunkImage } from './chunk-image.ts'
import { contentsErrors } from './contents-errors.ts'
import { diffFiles, diffPackages, type FileDifference, type PackageDifferences } from './diff.ts'
import { formatNumber } from './fields.ts'
import { fileSource } from './file-source.ts'
import { buildInventory } from './inventory.ts'
import { type Package, readPackages } from './packages.ts'
import { inspectBundle } from './reader.ts'
import { openSquashfs, type Squashfs } from './squashfs/image.ts'
import { blockReaderOf } from './squashfs/reader.ts'
import type { InventoryEntry } from './types.ts'

/** `diff A B`: what differs between the root file systems of two bundles or SquashFS images. */

/** Differences shown to people, and given to programs, unless told. */
const SHOWN = 40
const GIVEN = 100_000
const MAX_LIMIT = 1_000_000

export const diffVerbs: readonly Verb[] = [
  {
    name: 'diff',
    usage: 'diff A B [--limit N]',
    summary: 'Show what differs between the root file systems of two bundles (or SquashFS images).',
    options: {
      limit: { type: 'string', value: 'N', help: `list at most N differences (${SHOWN}; with --json ${GIVEN})` },
    },
    run: diff,
  },
]

async function diff(call: Invocation): Promise<number> {
  const [first, second, ...more] = call.positionals
  if (first === undefined || second === undefined || more.length > 0) throw cliErrors.USAGE('wanted two files: A B')
  const limit = limitOf(call)
  return await withSide(first, call.signal, (a) =>
    withSide(second, call.signal, async (b) => {
      const files = await collectFiles(a.image, b.image, limit, call.signal)
      const packages = diffPackages(await readPackages(a.image), await readPackages(b.image))
      const facts = { a: a.facts, b: b.facts, boot: bootChange(a.facts, b.facts), files, packages }
      if (call.json) call.terminal.out(JSON.stringify({ ok: true, authenticated: false, ...facts }))
      else for (const line of report(facts, limit)) call.terminal.out(printable(line))
      return 0
    }),
  )
}

function limitOf(call: Invocation): number {
  const text = stringOption(call, 'limit')
  if (text === undefined) return call.json ? GIVEN : SHOWN
  if (!/^[0-9]{1,7}$/.test(text) || Number(text) > MAX_LIMIT)
    throw cliErrors.USAGE(`--limit is '${text}', wanted a number up to ${MAX_LIMIT}`)
  return Number(text)
}

interface SideFacts {
  readonly file: string
  readonly kind: 'bundle' | 'squashfs'
  readonly product?: string
  readonly release?: string
  readonly version?: string
  readonly digest?: string
  /** Root hash of the boot image. */
  readonly bootRoot?: string
}

interface Side {
  readonly facts: SideFacts
  readonly image: Squashfs
}

async function withSide<T>(file: string, signal: AbortSignal, use: (side: Side) => Promise<T>): Promise<T> {
  const source = await fileSource(file)
  try {
    return await use(await openSide(source, file, signal))
  } finally {
    await source.close()
  }
}

async function openSide(source: ByteSource, file: string, signal: AbortSignal): Promise<Side> {
  const start = Buffer.from(await readExactly(source, 0, Math.min(16, source.size), { signal })).toString('latin1')
  if (start.startsWith('hsqs'))
    return { facts: { file, kind: 'squashfs' }, image: await openSquashfs(blockReaderOf(source), source.size) }
  if (!start.startsWith('bistable-bundle'))
    throw contentsErrors.DIFF_INPUT(`${file} starts neither as a bundle nor as a SquashFS image does`)
  const { head } = await inspectBundle(source, { signal })
  const { product, number, version, images } = head.statement
  const index = head.indexes.rootfs
  const image = await openSquashfs(chunkImage(source, head.offsets.data.rootfs, index), index.imageLength)
  const bootRoot = images.find(({ name }) => name === 'boot')?.root
  const release = formatNumber(number)
  const facts = { file, kind: 'bundle' as const, product, release, version, digest: head.digest }
  return { facts: { ...facts, ...(bootRoot !== undefined && { bootRoot }) }, image }
}

interface Files {
  readonly counts: Readonly<Record<FileDifference['kind'], number>>
  /** The first ones, up to the limit. */
  readonly list: readonly FileDifference[]
}

async function collectFiles(a: Squashfs, b: Squashfs, limit: number, signal: AbortSignal): Promise<Files> {
  const counts = { added: 0, removed: 0, changed: 0 }
  const list: FileDifference[] = []
  for await (const difference of diffFiles(buildInventory(a, { signal }), buildInventory(b, { signal }))) {
    counts[difference.kind]++
    if (list.length < limit) list.push(difference)
  }
  return { counts, list }
}

function bootChange(a: SideFacts, b: SideFacts): 'same' | 'changed' | 'unknown' {
  if (a.bootRoot === undefined || b.bootRoot === undefined) return 'unknown'
  return a.bootRoot === b.bootRoot ? 'same' : 'changed'
}

interface Facts {
  readonly a: SideFacts
  readonly b: SideFacts
  readonly boot: string
  readonly files: Files
  readonly packages: PackageDifferences
}

function* report({ a, b, boot, files, packages }: Facts, limit: number): Generator<string> {
  yield sideLine('A', a)
  yield sideLine('B', b)
  if (boot !== 'unknown') yield `boot image: ${boot}`
  const { added, removed, changed } = packages
  yield `packages: ${added.length} added, ${removed.length} removed, ${changed.length} changed`
  yield* limited(packageLines(packages), added.length + removed.length + changed.length, limit)
  const { counts, list } = files
  yield `files: ${counts.added} added, ${counts.removed} removed, ${counts.changed} changed`
  yield* limited(list.map(fileLine), counts.added + counts.removed + counts.changed, limit)
  yield 'NOT AUTHENTICATED: this is what the files say. Use verify --root on each bundle first.'
}

function sideLine(letter: string, side: SideFacts): string {
  const release = side.release === undefined ? '' : `: ${side.product} ${side.release} (version ${side.version})`
  return `${letter} ${side.file}${release}`
}

function* limited(lines: Iterable<string>, total: number, limit: number): Generator<string> {
  let shown = 0
  for (const line of lines) {
    if (shown === limit) break
    shown++
    yield line
  }
  if (shown < total) yield `  and ${total - shown} more (--limit)`
}

function* packageLines({ added, removed, changed }: PackageDifferences): Generator<string> {
  for (const { before, after } of changed) yield `  ~ ${packageName(after)} ${before.version} -> ${after.version}`
  for (const one of added) yield `  + ${packageName(one)} ${one.version}`
  for (const one of removed) yield `  - ${packageName(one)} ${one.version}`
}

function packageName({ name, arch }: Package): string {
  return `${name}:${arch}`
}

function fileLine(difference: FileDifference): string {
  if (difference.kind !== 'changed')
    return `  ${difference.kind === 'added' ? '+' : '-'} ${entryText(difference.entry)}`
  const { aspects, before, after } = difference
  const details = aspects.map((aspect) => {
    if (aspect === 'type') return `${before.type} -> ${after.type}`
    if (aspect === 'mode') return `mode ${octal(before)} -> ${octal(after)}`
    if (aspect === 'owner') return `owner ${before.uid}:${before.gid} -> ${after.uid}:${after.gid}`
    if (aspect === 'content') return `content ${humanBytes(before.size ?? 0)} -> ${humanBytes(after.size ?? 0)}`
    return aspect
  })
  return `  ~ ${after.path} (${details.join(', ')})`
}

function entryText(entry: InventoryEntry): string {
  return `${entry.path} (${entry.type}${entry.size === undefined ? '' : `, ${humanBytes(entry.size)}`})`
}

function octal(entry: InventoryEntry): string {
  return entry.mode.toString(8).padStart(4, '0')
}
