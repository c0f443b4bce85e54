import { afterAll, describe, expect, it, vi } from 'vitest'
import { useHashCrew } from '../../base/hash-crew.ts'
import { openBundle } from '../../bundle/reader.ts'
import { engineOver } from '../../device/agent/engine-over.ts'
import { trustAnchor } from '../../keys/root.ts'
import { makeBundle, memorySource } from '../bundle/fixture.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { brokers, embedded, publisher, publishFolder } from '../mqtt/tools.ts'
import { memorySlots } from './link.ts'
import { type Packet, type Part, Relay, type RelayBreak } from './relay.ts'
import { ANCHOR, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// The real MQTT door, a real broker and publisher, the real agent and a real bundle; the device's clock is the world's. The
// link is cut for two hours at each kind of byte that a broker sends: the agent is back at work within five minutes. A sample;
// DOORS=all for every part of every packet in every manner.

// Agents by the hundred: the second thread of the first one serves them all.
afterAll(useHashCrew())

const HOUR = 3_600_000
const BACK_MS = 300_000
const PACKETS: readonly Packet[] = ['CONNACK', 'SUBACK', 'the channel file', 'the answer', 'a piece']
const PARTS: readonly Part[] = ['nothing', 'one byte', 'half', 'all but one byte']
const BREAKS: readonly RelayBreak[] = ['reset', 'silent', 'lies']

async function cut(packet: Packet, part: Part, how: RelayBreak) {
  const { bytes } = await makeBundle({ roots: [ANCHOR], rootfs: noise(4096 * 40, 'rootfs') })
  const head = await openBundle(memorySource(bytes), { trusted: trustAnchor(ANCHOR) })
  const world = new World()
  const { number } = head.statement
  await world.publish({ counter: number.counter }, { number, release: head.digest, size: bytes.length })
  const channel = world.web.get('http://updates/channels/stable.json')
  if (!(channel instanceof Uint8Array)) throw new Error('no channel')
  const bundle = `bundles/${number.counter}.bundle`
  const folder = publishFolder(scratch(), { 'channels/stable.json': channel, [bundle]: bytes })
  const broker = await embedded()
  await publisher(folder, broker.url, { gatherMs: 0 })
  const relay = await Relay.start(world, broker.port, packet, part, how, 2 * HOUR)
  world.settle = () => relay.settle()
  world.agentConfig = {
    ...{ channel: `mqtt://127.0.0.1:${relay.port}/channels/stable.json`, pollSeconds: 3600, apply: 'reboot' },
  }
  const clock = { now: () => world.mono, sleep: (ms: number, signal?: AbortSignal) => world.sleep(ms, signal) }
  const slots = memorySlots()
  const made = brokers('device-1', { clock, presence: true, backoff: { firstMs: 10_000, maxMs: 120_000 } })
  world.engine = (memory, data) => engineOver(data, memory, slots, undefined, undefined, made)
  const code = await codeOfAsync(() => world.powerOn(6 * 3600))
  if (code !== 'accepted') throw new Error(`${code}\n${world.lines.join('\n')}`)
  // What still sleeps on a clock that stands is not waited for.
  void made.close()
  return { world, relay }
}

describe('the MQTT door on real sockets, cut for two hours', () => {
  for (const [n, how] of BREAKS.entries())
    it(`${how}: the agent is back at work within five minutes, wherever it was cut`, async () => {
      for (const [m, packet] of PACKETS.entries())
        for (const [k, part] of PARTS.entries()) {
          if (process.env['DOORS'] !== 'all' && (3 * n + 2 * m + k) % 8 !== 0) continue
          const { world, relay } = await cut(packet, part, how)
          const said = `${packet}, ${part}, ${how}\n${world.lines.join('\n')}`
          expect(relay.brokenAt, said).toBeDefined()
          expect(world.rebootAsked, said).toBe(true)
          expect(world.mono - relay.backAt, said).toBeLessThanOrEqual(BACK_MS)
          const failed = world.core?.body.outcomes.filter((outcome) => !outcome.ok) ?? []
          if (world.mono >= 2 * HOUR) expect(failed.length, said).toBeGreaterThan(0)
          for (const { code } of failed)
            expect(code, said).toMatch(
              /^(TRANSPORT|AGENT|BUNDLE|SIGNATURE|ENVELOPE|INDEX|DSSE|FRESHNESS|STATEMENT|ROOT)_/,
            )
        }
    }, 600_000)
})
