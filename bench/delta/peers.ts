import { createHash } from 'node:crypto'
import { mkdir, open, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { measure, together, tool } from '../measure.ts'
import { type Both, cost, type Found, sizeOf } from './found.ts'

/** What a device fetches from one image to the next by other programs, and what making and applying take. */

const BLOCK = 4096
/** A window as large as the images: xdelta3 and zstd at their best. */
const XDELTA = ['-f', '-B', '1073741824']

type Command = (old: string, next: string, patch: string) => readonly string[]
interface Patcher {
  readonly make: Command
  readonly apply: Command
}

const xdelta: Patcher = {
  make: (old, next, patch) => ['xdelta3', '-e', '-9', ...XDELTA, '-s', old, next, patch],
  apply: (old, next, patch) => ['xdelta3', '-d', ...XDELTA, '-s', old, patch, next],
}
const bsdiff: Patcher = {
  make: (old, next, patch) => ['bsdiff', old, next, patch],
  apply: (old, next, patch) => ['bspatch', old, next, patch],
}
const patchFrom: Patcher = {
  make: (old, next, patch) => ['zstd', '-q', '-f', '-19', '--long=31', '-T1', `--patch-from=${old}`, next, '-o', patch],
  apply: (old, next, patch) => ['zstd', '-q', '-f', '-d', '--long=31', `--patch-from=${old}`, patch, '-o', next],
}

export type Technique = (both: Both) => Promise<Found>

export const peers: Readonly<Record<string, Technique>> = {
  'full image': async ({ next }) => ({ bytes: await sizeOf(next.squashfs), requests: 1 }),
  'RAUC block-hash-index (counted)': ({ old, next }) => countBlocks(old.squashfs, next.squashfs),
  'casync, 64 KiB chunks': (both) => casync(both, 65_536),
  'casync, 16 KiB chunks': (both) => casync(both, 16_384),
  zchunk,
  'ostree static delta': ostree,
  'xdelta3 on SquashFS': (both) => patched(both, xdelta, 'squashfs'),
  'zstd --patch-from on SquashFS': (both) => patched(both, patchFrom, 'squashfs'),
  'xdelta3 on uncompressed': (both) => patched(both, xdelta, 'plain'),
  'zstd --patch-from on uncompressed': (both) => patched(both, patchFrom, 'plain'),
  'bsdiff on uncompressed': (both) => patched(both, bsdiff, 'plain'),
  'bsdiff on SquashFS': (both) => patched(both, bsdiff, 'squashfs'),
}

/** Makes a patch and applies it; what comes out must be the new one. */
async function patched(
  { folder, old, next }: Both,
  { make, apply }: Patcher,
  which: 'squashfs' | 'plain',
): Promise<Found> {
  const patch = join(folder, 'peer.patch')
  const out = join(folder, 'peer.out')
  const run = async (command: readonly string[]) => cost(await measure(command[0] ?? '', command.slice(1)))
  const made = await run(make(old[which], next[which], patch))
  const applied = await run(apply(old[which], out, patch))
  await tool('cmp', [out, next[which]])
  const bytes = await sizeOf(patch)
  await rm(out)
  await rm(patch)
  return { bytes, make: made, apply: applied, requests: 1 }
}

/** RAUC's adaptive update reuses 4 KiB blocks of either slot at block borders; its index has 32 bytes for each. */
async function countBlocks(old: string, next: string): Promise<Found> {
  const known = new Set<string>()
  for await (const digest of blockDigests(old)) known.add(digest)
  let fetched = 0
  let blocks = 0
  let runs = 0
  let running = false
  for await (const digest of blockDigests(next)) {
    blocks++
    const lacking = !known.has(digest)
    if (lacking) fetched++
    if (lacking && !running) runs++
    running = lacking
    known.add(digest)
  }
  return { bytes: fetched * BLOCK + blocks * 32, requests: 1 + runs }
}

async function* blockDigests(path: string): AsyncGenerator<string> {
  const file = await open(path)
  try {
    for await (const piece of file.createReadStream({ highWaterMark: 256 * BLOCK }) as AsyncIterable<Buffer>)
      for (let at = 0; at < piece.length; at += BLOCK)
        yield createHash('sha256')
          .update(piece.subarray(at, at + BLOCK))
          .digest('base64')
  } finally {
    await file.close()
  }
}

/** Chunks that the old store has not, as stored, and the index; one request each. */
async function casync({ folder, old, next }: Both, size: number): Promise<Found> {
  const before = join(folder, 'casync-old')
  const store = join(folder, 'casync-next')
  const index = `${store}.caibx`
  const make = (to: string, image: string) =>
    measure('casync', ['make', `--chunk-size=${size}`, `--store=${to}`, `${to}.caibx`, image])
  await make(before, old.squashfs)
  const made = await make(store, next.squashfs)
  const had = new Set((await files(before)).map(({ name }) => name))
  const lacking = (await files(store)).filter(({ name }) => !had.has(name))
  const out = join(folder, 'peer.out')
  const applied = await measure('casync', ['extract', `--store=${store}`, `--seed=${old.squashfs}`, index, out])
  await tool('cmp', [out, next.squashfs])
  const bytes = (await sizeOf(index)) + lacking.reduce((sum, { length }) => sum + length, 0)
  for (const path of [before, `${before}.caibx`, store, index, out]) await rm(path, { recursive: true })
  return { bytes, make: cost(made), apply: cost(applied), requests: 1 + lacking.length }
}

async function files(folder: string): Promise<readonly { readonly name: string; readonly length: number }[]> {
  const found: { readonly name: string; readonly length: number }[] = []
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true }))
    if (entry.isFile()) found.push({ name: entry.name, length: await sizeOf(join(entry.parentPath, entry.name)) })
  return found
}

async function zchunk({ folder, old, next }: Both): Promise<Found> {
  const [before, after] = [join(folder, 'old.zck'), join(folder, 'next.zck')]
  await tool('zck', ['-o', before, old.squashfs])
  const made = await measure('zck', ['-o', after, next.squashfs])
  const said = await tool('zck_delta_size', [before, after])
  const found = /would download (\d+) of \d+ bytes/i.exec(said)?.[1]
  if (found === undefined) throw new Error(`zck_delta_size said: ${said}`)
  await rm(before)
  await rm(after)
  return { bytes: Number(found), make: cost(made) }
}

/** A static delta between two commits: of files, not of an image. Applied to a repository that has the old commit. */
async function ostree({ folder, old, next }: Both): Promise<Found> {
  const repo = join(folder, 'ostree')
  const device = join(folder, 'ostree-device')
  for (const path of [repo, device]) await rm(path, { recursive: true, force: true })
  const at = (where: string) => `--repo=${where}`
  await tool('ostree', ['init', at(repo), '--mode=bare'])
  const commit = async (tree: string): Promise<string> =>
    (await tool('ostree', ['commit', at(repo), '--branch=system', '--timestamp=@0', `--tree=dir=${tree}`])).trim()
  const [from, to] = [await commit(old.tree), await commit(next.tree)]
  const delta = join(folder, 'ostree-delta')
  await mkdir(delta, { recursive: true })
  const file = join(delta, 'superblock')
  // Whole files above 4 MB would else stay on a server, and the delta could not be applied by itself.
  const named = [`--from=${from}`, `--to=${to}`, '--min-fallback-size=0', `--filename=${file}`]
  const args = ['static-delta', 'generate', at(repo), ...named]
  const made = await measure('ostree', args)
  const parts = await files(delta)
  await tool('ostree', ['init', at(device), '--mode=bare'])
  await tool('ostree', ['pull-local', at(device), repo, from])
  const applied = await measure('ostree', ['static-delta', 'apply-offline', at(device), file])
  await tool('ostree', ['show', at(device), to])
  for (const path of [repo, device, delta]) await rm(path, { recursive: true })
  const bytes = parts.reduce((sum, { length }) => sum + length, 0)
  return { bytes, make: cost(together([made])), apply: cost(applied), requests: parts.length }
}
