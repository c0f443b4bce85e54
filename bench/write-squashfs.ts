import { mkdtemp, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { mergeImage } from '../publisher/oci/merge.ts'
import { openImage } from '../publisher/oci/open.ts'
import { writeSquashfs } from '../publisher/squashfs/write.ts'

// Merges an image, then writes it with our SquashFS writer and prints what the writing alone took, as JSON.
// usage: write-squashfs.ts IMAGE OUTPUT LEVEL BLOCK

const [reference = '', output = '', level = '15', block = '131072'] = process.argv.slice(2)
const work = await mkdtemp(join(tmpdir(), 'bistable-write-'))
try {
  const input = await openImage(reference, { tempDir: work })
  const tree = await mergeImage(input, work)
  const cpu = process.cpuUsage()
  const start = performance.now()
  await writeSquashfs(tree, output, { blockSize: Number(block), level: Number(level), time: 0 })
  const seconds = (performance.now() - start) / 1000
  const { user, system } = process.cpuUsage(cpu)
  const peakMiB = process.resourceUsage().maxRSS / 1024
  const { size } = await stat(output)
  console.log(JSON.stringify({ seconds, cpuSeconds: (user + system) / 1e6, peakMiB, size }))
  tree.close()
  await input.close()
} finally {
  await rm(work, { recursive: true, force: true })
}
