import { open, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { chunkImage } from '../bundle/chunk-image.ts'
import { readDeltaHead } from '../bundle/delta/head.ts'
import { inspectBundle, openBundle } from '../bundle/reader.ts'
import { treeSize } from '../bundle/tree.ts'
import { IMAGE_NAMES, type ImageName } from '../bundle/types.ts'
import { openFileDoor } from '../device/doors/file.ts'
import { install } from '../device/install/install.ts'
import { checkPatch } from '../device/install/patch.ts'
import { openSlotDevice } from '../device/slots/block.ts'
import { placeAt } from '../device/slots/find.ts'
import { nodeSys } from '../device/slots/sys.ts'

// One install from a patch into slots that are files: OLD.bundle NEW.bundle PATCH FOLDER. Says what it took.

const [oldBundle = '', newBundle = '', patchFile = '', folder = ''] = process.argv.slice(2)
const nothing = async (): Promise<void> => undefined

async function slotOf(name: string, image: ImageName, size: number) {
  const path = join(folder, `${name}-${image}`)
  await (await open(path, 'a')).close()
  await truncate(path, size)
  return openSlotDevice(await placeAt(nodeSys(), path))
}

const oldSource = await openFileDoor(oldBundle)
const { head: old } = await inspectBundle(oldSource)
const source = await openFileDoor(newBundle)
const { head: seen } = await inspectBundle(source)
const head = await openBundle(source, { trusted: seen.trusted })
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
const room = (name: ImageName): number => length(name, head) + treeSize(length(name, head))
const slot = { boot: await slotOf('to', 'boot', room('boot')), rootfs: await slotOf('to', 'rootfs', room('rootfs')) }
const patchSource = await openFileDoor(patchFile)
const patchHead = await readDeltaHead(patchSource)
checkPatch(patchHead, old.digest, head)
const place = (name: ImageName) => ({ device: from[name], length: length(name, old) })
const idle = process.memoryUsage().rss
let peak = idle
const sampling = setInterval(() => {
  peak = Math.max(peak, process.memoryUsage().rss)
}, 10)
const started = performance.now()
const cpu = process.cpuUsage()
const result = await install({
  ...{ source, head, slot, invalidate: nothing, beforeArm: nothing, arm: nothing },
  reuse: IMAGE_NAMES.map((name) => ({ name, index: old.indexes[name], device: from[name] })),
  patch: {
    source: patchSource,
    head: patchHead,
    from: { boot: place('boot'), rootfs: place('rootfs') },
    onRefused: (error) => {
      throw error
    },
  },
  onProgress: () => {
    peak = Math.max(peak, process.memoryUsage().rss)
  },
})
clearInterval(sampling)
const { user, system } = process.cpuUsage(cpu)
const seconds = (performance.now() - started) / 1000
console.log(
  JSON.stringify({ seconds, cpuSeconds: (user + system) / 1e6, aboveIdleMiB: (peak - idle) / 2 ** 20, ...result }),
)
process.exit(0)
