import { campaign, FULL, SAMPLE } from '../test/powercut/campaign.ts'

// `npm run powercut [-- --sample] [-- --seed N]`: every power cut of whole updates. Exit code 1 when one of them is lost.

const args = process.argv.slice(2)
const seedAt = args.indexOf('--seed')
const seed = seedAt === -1 ? FULL.seed : Number(args[seedAt + 1])
if (!Number.isSafeInteger(seed)) throw new RangeError('--seed takes a whole number')
// Ends by the same door as always, so that the disks in memory are removed.
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
const began = performance.now()
const outcome = await campaign({ ...(args.includes('--sample') ? SAMPLE : FULL), seed }, console.log)
console.error(`${Math.round((performance.now() - began) / 1000)} s`)
process.exitCode = outcome.ok ? 0 : 1
