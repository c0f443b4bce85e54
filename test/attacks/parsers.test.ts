import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { mutate, numbersFrom } from './fuzz/mutate.ts'
import { TARGETS, tryInput } from './fuzz/targets.ts'

// The targets of `npm run fuzz`, for a moment each: typed refusals or readings that hold their invariants, nothing else.

describe('parsers of bytes from outside', () => {
  it.each(TARGETS.map((target) => [target.name, target] as const))('%s', async (_, target) => {
    const seeds = await target.seeds()
    for (const seed of seeds) expect(await tryInput(target, seed)).toMatchObject({ kind: 'read' })
    await fc.assert(
      fc.asyncProperty(fc.integer({ min: 1 }), async (number) => {
        const random = numbersFrom(number)
        const pick = () => seeds[random() % seeds.length] ?? new Uint8Array()
        const outcome = await tryInput(target, mutate(pick(), pick(), random))
        if (outcome.kind === 'finding') throw outcome.error
      }),
      { numRuns: target.name.includes('bundle') || target.name.startsWith('layer-') ? 25 : 60 },
    )
    await fc.assert(
      fc.asyncProperty(fc.uint8Array({ maxLength: 300 }), async (bytes) => {
        const outcome = await tryInput(target, bytes)
        if (outcome.kind === 'finding') throw outcome.error
      }),
      { numRuns: 20 },
    )
  })
})
