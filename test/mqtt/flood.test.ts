import { describe, expect, it } from 'vitest'
import { measureFlood } from '../../bench/mqtt-flood.ts'
import { countRefusals } from '../attacks/refused.ts'
import { noMosquitto } from './tools.ts'

// npm run mqtt-flood does the same for longer and prints how many messages a second it came to.

const MiB = 1024

describe.skipIf(noMosquitto())('messages as fast as Mosquitto takes them, in the configuration that we ship', () => {
  it('A27 floods: the publisher sends what it would, the agent checks once, and neither grows', async () => {
    const { atPublisher, atAgent, brokerKiB } = await measureFlood({ messages: 30_000, settle: false, afterMs: 1500 })
    // Five pieces were asked for 30,000 times: each is sent once for all these asks, and again for what came after it.
    expect(atPublisher.piecesSent).toBeGreaterThan(0)
    expect(atPublisher.piecesSent).toBeLessThanOrEqual(5 * 4)
    expect(atPublisher.rssKiB.after - atPublisher.rssKiB.before).toBeLessThan(64 * MiB)
    // The agent's own first one may fall into the same seconds.
    expect(atAgent.checks).toBeLessThanOrEqual(2)
    expect(atAgent.rssKiB.after - atAgent.rssKiB.before).toBeLessThan(16 * MiB)
    expect(brokerKiB.after - brokerKiB.before).toBeLessThan(16 * MiB)
    countRefusals(2)
  })
})
