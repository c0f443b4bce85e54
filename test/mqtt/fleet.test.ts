import { describe, expect, it } from 'vitest'
import { measureFleet } from '../../scripts/mqtt-fleet.ts'

// What many devices want is sent once. 'npm run mqtt-fleet' does the same with a hundred devices; docs/mqtt.md has its figures.

describe('a fleet that installs together', () => {
  it.each(['embedded'] as const)(
    'over %s: each piece is sent at most 1.2 times, and to a late one only what it lacks',
    async (broker) => {
      const plan = { devices: 10, mib: 8, processes: 0, broker, spreadMs: 300, uneven: 1.5 }
      const { sentEach, pieces } = await measureFleet({ ...plan, late: false })
      expect(pieces).toBe(256)
      expect(sentEach).toBeGreaterThanOrEqual(1)
      expect(sentEach).toBeLessThanOrEqual(1.2)
      const { lateHeard, lateLacked } = await measureFleet({ ...plan, devices: 3, late: true })
      // A message is its data and 44 bytes.
      expect(lateHeard).toBeGreaterThanOrEqual(lateLacked)
      expect(lateHeard).toBeLessThanOrEqual(lateLacked * 1.1)
    },
  )
})
