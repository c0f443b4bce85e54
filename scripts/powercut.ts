import { campaign, FULL, SAMPLE } from '../test/powercut/campaign.ts'

// `npm run powercut [-- --sample] [-- --seed N]`: every power cut of whole updates on a model of the disk.
// `npm run powercut -- --kill N [--seed N]`: N cuts of an emulated device at random moments.
// Exit code 1 when one of them is lost.

const args = process.argv.slice(2)
function number(name: string, otherwise: number): number {
  const at = args.indexOf(name)
  const value = at === -1 ? otherwise : Number(args[at + 1])
  if (!Number.isSafeInteger(value) || value < 0) throw new RangeError(`${name} takes a whole number`)
  return value
}

// Ends by the same door as always, so that the disks in memory are removed.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
const began = performance.now()
let ok: boolean
if (args.includes('--kill')) {
  const { kills } = await import('../test/powercut/kills.ts')
  const { stranded, wrong } = await kills(number('--kill', 200), number('--seed', Date.now() % 2 ** 31), console.log)
  ok = stranded + wrong === 0
} else {
  const plan = { ...(args.includes('--sample') ? SAMPLE : FULL), seed: number('--seed', FULL.seed) }
  ok = (await campaign(plan, console.log)).ok
}
console.error(`${Math.round((performance.now() - began) / 1000)} s`)
process.exitCode = ok ? 0 : 1
