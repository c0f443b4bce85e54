import { endure } from '../test/endurance/endurance.ts'

// `npm run endurance [-- --updates N]`: updates back and forth in one process. Exit code 1 when something grew.

const args = process.argv.slice(2)
const at = args.indexOf('--updates')
const updates = at === -1 ? 500 : Number(args[at + 1])
if (!Number.isSafeInteger(updates) || updates < 1) throw new RangeError('--updates takes a whole number')
for (const signal of ['SIGINT', 'SIGTERM'] as const) process.once(signal, () => process.exit(1))
const began = performance.now()
const { grew } = await endure({ updates, failEvery: 20, lookEvery: 25 }, console.log)
console.error(`${Math.round((performance.now() - began) / 1000)} s`)
process.exitCode = grew.length === 0 ? 0 : 1
