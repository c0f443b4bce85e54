import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { campaign, FULL, SAMPLE } from '../test/powercut/campaign.ts'

// `npm run powercut [-- --sample] [-- --seed N] [-- --part K/N]`: every power cut of whole updates on a model of the disk;
// with a part, only each Nth story and broken writer, for runs side by side.
// `npm run powercut -- --kill N [--seed N] [--seconds N]`: N cuts of an emulated device (`HIL_PLACE`) at random moments;
// with seconds, fewer where they take longer.
// `npm run powercut -- --recorded [FOLDER] [--life NAME] [--part K/N]`: every cut of what an emulated device (`HIL_PLACE`) does, from
// the writes that the emulator records; with FOLDER the recordings are kept there, and judged again when they are there
// already; with a part, only each Nth state.
// `npm run powercut -- --uboot [--sample] [--machine x86|arm64] [--part K/N]`: the cuts of U-Boot's boot state, decided by
// the real U-Boot; a part asks it about each Nth boot state.
// `npm run powercut -- --sum FILE…`: the closing lines in these outputs of runs that were parts of one, added up.
// Exit code 1 when one of them is lost.

const args = process.argv.slice(2)
function number(name: string, otherwise: number): number {
  const at = args.indexOf(name)
  const value = at === -1 ? otherwise : Number(args[at + 1])
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${name} takes a whole number`)
  return value
}

const [k = 1, n = 1] = args.includes('--part') ? (args[args.indexOf('--part') + 1] ?? '').split('/').map(Number) : []
if (!(Number.isSafeInteger(n) && k >= 1 && k <= n)) throw new RangeError('--part takes K/N, as in 2/4')
const part = { first: k - 1, step: n }

// Ends by the same door as always, so that the disks in memory are removed.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
const began = performance.now()
let ok: boolean
if (args.includes('--sum')) {
  const { sumOf } = await import('../test/powercut/sum.ts')
  const sum = sumOf(args.slice(args.indexOf('--sum') + 1).map((file) => readFileSync(file, 'utf8')))
  for (const line of sum.lines) console.log(line)
  ok = sum.ok
} else if (args.includes('--kill')) {
  const { kills } = await import('../test/powercut/kills.ts')
  const limits = {
    ...(args.includes('--seconds') ? { most: number('--seconds', 0) } : {}),
    ...(process.env['HIL_PLACE'] === undefined ? {} : { where: process.env['HIL_PLACE'] }),
  }
  const seed = number('--seed', Date.now() % 2 ** 31)
  const { stranded, wrong } = await kills(number('--kill', 200), seed, console.log, limits)
  ok = stranded + wrong === 0
} else if (args.includes('--recorded')) {
  const { judgeRecording, RECORDED } = await import('../test/powercut/recorded.ts')
  const { openRecording, RECORDINGS, record } = await import('../test/powercut/recording.ts')
  const folder = args[args.indexOf('--recorded') + 1]
  const place =
    folder === undefined || folder.startsWith('--') ? mkdtempSync(join(tmpdir(), 'bistable-writes-')) : folder
  ok = true
  const only = args.includes('--life') ? args[args.indexOf('--life') + 1] : undefined
  if (only !== undefined && !RECORDINGS.some((name) => name === only))
    throw new RangeError(`--life takes one of ${RECORDINGS.join(', ')}`)
  for (const name of RECORDINGS.filter((name) => only === undefined || name === only)) {
    const recording =
      (await openRecording(place, name)) ?? (await record(place, name, console.log, process.env['HIL_PLACE']))
    const plan = { ...RECORDED, seed: number('--seed', RECORDED.seed), part }
    ok = (await judgeRecording(recording, plan, console.log)).ok && ok
  }
  if (place !== folder && ok) rmSync(place, { recursive: true })
  else console.log(`the recordings are in ${place}`)
} else if (args.includes('--uboot')) {
  const { machineOf, UBOOT_FULL, UBOOT_SAMPLE, ubootCampaign } = await import('../test/powercut/uboot.ts')
  const machines = args.includes('--machine') ? [machineOf(args[args.indexOf('--machine') + 1])] : UBOOT_FULL.machines
  const full = { ...UBOOT_FULL, machines, askEach: part.step, askFrom: part.first }
  ok = (await ubootCampaign(args.includes('--sample') ? UBOOT_SAMPLE : full, console.log)).ok
} else {
  const plan = { ...(args.includes('--sample') ? SAMPLE : FULL), seed: number('--seed', FULL.seed), part }
  ok = (await campaign(plan, console.log)).ok
}
console.error(`${Math.round((performance.now() - began) / 1000)} s`)
process.exitCode = ok ? 0 : 1
