import { execFileSync } from 'node:child_process'
import { join } from 'node:path'
import { nodeFiles } from '../base/durable.ts'
import { openSquashfs } from '../bundle/squashfs/image.ts'
import { openImageFile } from '../bundle/squashfs/reader.ts'
import { prepareEtc } from '../device/etc/prepare.ts'
import { attrTools } from '../device/etc/xattrs.ts'

// One merge, timed; argument: the folder that bench/etc.ts made. Prints one line of JSON.

const [, , folder = ''] = process.argv
const open = async (name: string) => {
  const file = await openImageFile(join(folder, `${name}.squashfs`))
  return await openSquashfs(file, file.size)
}
const around = {
  running: join(folder, 'running'),
  folders: join(folder, 'data/etc'),
  rules: join(folder, 'none.json'),
  owned: [],
  report: join(folder, 'data/report.json'),
  files: nodeFiles,
  xattrs: attrTools,
  flush: async () => {
    execFileSync('sync', ['-f', join(folder, 'data')])
  },
}
const target = { slot: 'b', number: { epoch: 1, counter: 2 }, root: 'f'.repeat(64) } as const
const before = process.cpuUsage()
const start = performance.now()
const images = { old: await open('old'), image: await open('image') }
const report = await prepareEtc(around, images, target, new AbortController().signal)
const seconds = (performance.now() - start) / 1000
const { user, system } = process.cpuUsage(before)
const peakMiB = process.resourceUsage().maxRSS / 1024
const { conflicts, notes } = report
console.log(JSON.stringify({ seconds, cpuSeconds: (user + system) / 1e6, peakMiB, conflicts, notes }))
process.exit()
