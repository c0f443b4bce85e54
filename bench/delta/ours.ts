import { createReadStream, existsSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { basename, join, resolve } from 'node:path'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import { fileSource } from '../../bundle/file-source.ts'
import { HINTS_SUFFIX } from '../../bundle/hints/format.ts'
import { inspectBundle } from '../../bundle/reader.ts'
import type { InstallResult } from '../../device/install/types.ts'
import { makeHints, writeHints } from '../../publisher/hints.ts'
import { measure, tool } from '../measure.ts'
import type { Workshop } from '../workshop.ts'
import { type Both, cost, type Found, sizeOf } from './found.ts'

/** Our two ways: an install over HTTP by the device's own code in a process of its own, the server in this one. */

interface Applied {
  readonly seconds: number
  readonly cpuSeconds: number
  readonly aboveIdleMiB: number
  readonly images: InstallResult['images']
  /** Bytes that the root file system's chunk index took: short digests and rows. */
  readonly index: number
}

/** Chunks that the old release has not, and what their index takes with the hints beside the bundle. */
export async function chunks(workshop: Workshop, both: Both): Promise<Found> {
  return installed(workshop, both, undefined)
}

/** A patch from `bistable delta`. */
export async function patch(workshop: Workshop, both: Both): Promise<Found> {
  const { folder, old, next } = both
  const file = join(folder, 'ours.delta')
  const made = await workshop.bistable(['delta', old.bundle, next.bundle, '--output', file])
  return { ...(await installed(workshop, both, file)), make: cost(made) }
}

async function installed(workshop: Workshop, { folder, old, next }: Both, delta: string | undefined): Promise<Found> {
  const program = await deviceProgram(workshop)
  const beside = delta ?? (await hintsBeside(next.bundle))
  const web = await serveFiles([next.bundle, beside])
  try {
    const urls = [next.bundle, ...(delta === undefined ? [] : [delta])].map((path) => web.url(path))
    const ran = await measure(workshop.device.node, [program, folder, old.bundle, ...urls])
    const { seconds, cpuSeconds, aboveIdleMiB, index, images } = JSON.parse(
      ran.out.trim().split('\n').at(-1) ?? '',
    ) as Applied
    const bytes = delta === undefined ? index + (await lackingBytes(old.bundle, next.bundle)) : await patchBytes(delta)
    return {
      bytes,
      besides: web.sent() - bytes,
      installed: Object.values(images)
        .flatMap(({ kept, reused, fetched, patched = 0 }) => [kept, reused, fetched, patched])
        .reduce((sum, part) => sum + part, 0),
      apply: { seconds, cpuSeconds, peakMiB: aboveIdleMiB },
      requests: web.requests(),
    }
  } finally {
    await web.close()
    for (const slot of ['from-boot', 'from-rootfs', 'to-boot', 'to-rootfs'])
      await rm(join(folder, slot), { force: true })
  }
}

/** `apply.ts` as one file, with the threads' program and the addon beside it, as an agent is. */
async function deviceProgram({ folder }: Workshop): Promise<string> {
  const dist = join(folder, 'apply')
  const program = join(dist, 'device', 'apply.mjs')
  const root = resolve(import.meta.dirname, '..', '..')
  if (!existsSync(program))
    await tool(process.execPath, [join(root, 'scripts', 'build.mjs'), dist, join(import.meta.dirname, 'apply.ts')])
  return program
}

/** Of the root file system, which is all that the others have. */
async function lackingBytes(old: string, next: string): Promise<number> {
  const [before, after] = [await headOf(old), await headOf(next)]
  const known = new Set(before.indexes.rootfs.chunks.map(({ digest }) => digest))
  return after.indexes.rootfs.chunks.reduce(
    (sum, { digest, storedLength }) => (known.has(digest) ? sum : sum + storedLength),
    0,
  )
}

/** As `publish` puts them there. */
async function hintsBeside(bundle: string): Promise<string> {
  const source = await fileSource(bundle)
  try {
    const path = `${bundle}${HINTS_SUFFIX}`
    await writeHints(path, await makeHints(source, (await inspectBundle(source)).head), `${path}.new`)
    return path
  } finally {
    await source.close()
  }
}

/** Units of the root file system, and the head with indexes and inventory. */
async function patchBytes(delta: string): Promise<number> {
  const source = await fileSource(delta)
  const { length, units } = await readDeltaHead(source).finally(() => source.close())
  return units.reduce((sum, { image, stored }) => (image === 'rootfs' ? sum + stored : sum), length)
}

async function headOf(bundle: string) {
  const source = await fileSource(bundle)
  try {
    return (await inspectBundle(source)).head
  } finally {
    await source.close()
  }
}

/** A static server with ranges, which counts. */
async function serveFiles(paths: readonly string[]) {
  const sizes = new Map<string, { readonly path: string; readonly size: number }>()
  for (const path of paths) sizes.set(`/${basename(path)}`, { path, size: await sizeOf(path) })
  let sent = 0
  let requests = 0
  const server = createServer((request, response) => {
    const file = sizes.get(request.url ?? '')
    requests++
    if (file === undefined) return void response.writeHead(404).end()
    const [, from = '0', to = ''] = /^bytes=(\d+)-(\d*)$/.exec(request.headers.range ?? '') ?? []
    const end = Math.min(to === '' ? file.size - 1 : Number(to), file.size - 1)
    sent += end - Number(from) + 1
    const about = { 'content-length': end - Number(from) + 1, etag: `"${file.size}"`, 'accept-ranges': 'bytes' }
    const ranged = request.headers.range !== undefined
    const range = ranged ? { 'content-range': `bytes ${from}-${end}/${file.size}` } : {}
    response.writeHead(ranged ? 206 : 200, { ...about, ...range })
    createReadStream(file.path, { start: Number(from), end })
      .on('error', () => response.destroy())
      .pipe(response)
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  return {
    url: (path: string) => `http://127.0.0.1:${port}/${basename(path)}`,
    sent: () => sent,
    requests: () => requests,
    close: async () => {
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  }
}
