import { describe, expect, it } from 'vitest'
import { brokerRestart, stories } from '../scripts/herd-model.ts'

// npm run herd prints the same and draws docs/herd.svg.

describe('a fleet of 10,000 devices', () => {
  it('stays under the stated limits, whatever goes away and comes back', () => {
    for (const { name, tries, peak, limit } of stories(10_000)) {
      expect(peak, name).toBeGreaterThan(0)
      expect(peak, name).toBeLessThanOrEqual(limit)
      expect(
        tries.reduce((sum, n) => sum + n, 0),
        name,
      ).toBeGreaterThanOrEqual(10_000)
    }
  })

  it('comes back to a broker that takes a fiftieth of it a second, and to one that takes all within two minutes', () => {
    expect(brokerRestart(10_000, 5, Number.POSITIVE_INFINITY).done).toBeLessThanOrEqual(120)
    expect(brokerRestart(10_000, 60, 200).done).toBeLessThanOrEqual(60 + 300)
  })
})
