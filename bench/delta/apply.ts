import { open, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { useHashCrew } from '../../base/hash-crew.ts'
import { readExactly } from '../../base/source.ts'
import { chunkImage } from '../../bundle/chunk-image.ts'
import { readDeltaHead } from '../../bundle/delta/head.ts'
import { indexFrom, inventoryFrom } from '../../bundle/delta/sides.ts'
import { sha256 } from '../../bundle/digest.ts'
import { HINTS_SUFFIX, readHints } from '../../bundle/hints/format.ts'
import { indexByHints } from '../../bundle/hints/index-rows.ts'
import { inventoryByHints, planInventory } from '../../bundle/hints/pages.ts'
import { type AuthenticRelease, inspectBundle, openBundle } from '../../bundle/reader.ts'
import { treeSize } from '../../bundle/tree.ts'
import { type BundleHead, IMAGE_NAMES, type ImageEntry, type ImageName } from '../../bundle/types.ts'
import { decompressExactly } from '../../bundle/zstd.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { openHttpDoor } from '../../device/doors/http.ts'
import { install } from '../../device/install/install.ts'
import { checkPatch } from '../../device/install/patch.ts'
import { openSlotDevice } from '../../device/slots/block.ts'
import { placeAt } from '../../device/slots/find.ts'
import { nodeSys } from '../../device/slots/sys.ts'

// One install over HTTP into slots that are files: FOLDER OLD.bundle NEW-URL [PATCH-URL]. Says what it took.

const [folder = '', oldBundle = '', newUrl = '', patchUrl] = process.argv.slice(2)
const nothing = async (): Promise<void> => undefined

async function slotOf(name: string, image: ImageName, size: number) {
  const path = join(folder, `${name}-${image}`)
  await (await open(path, 'w')).close()
  await truncate(path, size)
  return openSlotDevice(await placeAt(nodeSys(), path))
}

function inventoryOf({ statement, offsets }: BundleHead) {
  const entry = statement.attachments.find(({ name }) => name === 'inventory')
  if (entry === undefined) throw new Error('a release without an inventory')
  return { entry, at: offsets.attachments.inventory ?? 0 }
}

const oldSource = await openFileDoor(oldBundle)
const { head: old } = await inspectBundle(oldSource)
const length = (name: ImageName, of: typeof old): number => of.indexes[name].imageLength
const from = {
  boot: await slotOf('from', 'boot', length('boot', old)),
  rootfs: await slotOf('from', 'rootfs', length('rootfs', old)),
}
for (const name of IMAGE_NAMES) {
  const image = chunkImage(oldSource, old.offsets.data[name], old.indexes[name])
  for (let at = 0; at < length(name, old); at += 1 << 20)
    await from[name].write(at, await image.read(at, Math.min(1 << 20, length(name, old) - at)))
}

const idle = process.memoryUsage.rss()
let peak = idle
const started = performance.now()
let sampled = 0
// Asking takes longer than many a chunk.
const sample = (): void => {
  const now = performance.now()
  if (now - sampled < 5) return
  sampled = now
  peak = Math.max(peak, process.memoryUsage.rss())
}
const sampling = setInterval(sample, 10)
const cpu = process.cpuUsage()
const crewBack = useHashCrew()
const source = await openHttpDoor(newUrl)
const patchSource = patchUrl === undefined ? undefined : await openHttpDoor(patchUrl)
const patchHead = patchSource && (await readDeltaHead(patchSource))
const { trusted } = old
// As the agent does without a patch: what is beside the bundle is asked for what differs.
const hintsSource = patchUrl === undefined ? await openHttpDoor(`${newUrl}${HINTS_SUFFIX}`) : undefined
let hints: Awaited<ReturnType<typeof readHints>> | undefined
const rows = { boot: 0, rootfs: 0 }
const indexOf = async (image: ImageEntry, release: AuthenticRelease) => {
  const { name } = image
  if (patchHead !== undefined) return indexFrom(patchHead.sides[name], old.indexBytes[name], image)
  if (sha256(old.indexBytes[name]) === image.index.sha256) return old.indexBytes[name]
  if (hintsSource === undefined) return undefined
  hints ??= await readHints(hintsSource, release)
  const told = (bytes: number): void => {
    rows[name] += bytes
  }
  return await indexByHints({ source: hintsSource, hints, grain: 1 }, image, [old.indexBytes[name]], told)
}
const head = await openBundle(source, { trusted }, { indexOf })
const room = (name: ImageName): number => length(name, head) + treeSize(length(name, head))
const slot = { boot: await slotOf('to', 'boot', room('boot')), rootfs: await slotOf('to', 'rootfs', room('rootfs')) }
const place = (name: ImageName) => ({ device: from[name], length: length(name, old) })
const onRefused = (error: Error): never => {
  throw error
}
const patch = patchSource &&
  patchHead && {
    source: patchSource,
    head: patchHead,
    from: { boot: place('boot'), rootfs: place('rootfs') },
    onRefused,
  }
if (patchHead !== undefined) checkPatch(patchHead, old.digest, head)
const result = await install({
  ...{ source, head, slot, invalidate: nothing, beforeArm: nothing, arm: nothing },
  reuse: IMAGE_NAMES.map((name) => ({ name, index: old.indexes[name], device: from[name] })),
  ...(patch === undefined ? {} : { patch }),
  onProgress: sample,
})
// As the agent does before it arms: the inventory is kept.
const [was, is] = [inventoryOf(old), inventoryOf(head)]
const stored = await readExactly(oldSource, was.at, was.entry.length)
if (patchHead !== undefined) inventoryFrom(patchHead.sides.inventory, { entry: was.entry, stored }, is.entry)
else if (was.entry.sha256 !== is.entry.sha256) {
  const content = decompressExactly(stored, was.entry.unpacked)
  const plan = hints && planInventory({ hints, grain: 1 }, content, is.entry)
  if (plan === undefined || hintsSource === undefined || hints === undefined)
    await readExactly(source, is.at, is.entry.length)
  else await inventoryByHints({ source: hintsSource, hints, grain: 1 }, content, is.entry, plan)
}
crewBack()
clearInterval(sampling)
const { user, system } = process.cpuUsage(cpu)
const seconds = (performance.now() - started) / 1000
const index = rows.rootfs + (hints?.images.rootfs.shorts.length ?? 0)
const aboveIdleMiB = (peak - idle) / 2 ** 20
console.log(JSON.stringify({ seconds, cpuSeconds: (user + system) / 1e6, aboveIdleMiB, index, ...result }))
process.exit(0)
