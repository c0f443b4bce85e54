import { afterAll, describe, expect, it, vi } from 'vitest'
import { useHashCrew } from '../../base/hash-crew.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { trustAnchor } from '../../keys/root.ts'
import { makeBundle, memorySource } from '../bundle/fixture.ts'
import { codeOfAsync } from '../codes.ts'
import { Link, MANNERS, type Manner, type Place } from './link.ts'
import { ANCHOR, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// The link is cut for two hours, at every kind of byte, in every manner: the agent is back at work within five minutes of
// its return, and has said what happened. Real agent, real bundle, real install; clock, slots and link are in memory.

// Agents by the hundred: the second thread of the first one serves them all.
afterAll(useHashCrew())

const HOUR = 3_600_000
const BACK_MS = 300_000

interface Subject {
  readonly bytes: Uint8Array
  readonly head: BundleHead
  readonly places: Readonly<Record<string, Place>>
}

let subject: Promise<Subject> | undefined

async function prepare(): Promise<Subject> {
  const { bytes } = await makeBundle({ roots: [ANCHOR] })
  const head = await openBundle(memorySource(bytes), { trusted: trustAnchor(ANCHOR) })
  const { boot, rootfs } = head.offsets.data
  const byte = (at: number): Place => ({ byte: Math.floor(at) })
  const places = {
    'the assignment': { file: '/assignments/device-1.json' },
    'the channel file': { file: '/channels/stable.json' },
    'the first byte': byte(0),
    'the format marker': byte(520),
    'the roots and the statement': byte(boot / 4),
    'the indexes': byte((boot * 3) / 4),
    'the last byte before the data': byte(boot - 1),
    'the first chunk of boot': byte(boot),
    'the middle of boot': byte((boot + rootfs) / 2),
    'the first chunk of rootfs': byte(rootfs),
    'the middle of rootfs': byte((rootfs + bytes.length) / 2),
  }
  return { bytes, head, places }
}

async function cut({ bytes, head }: Subject, place: Place, manner: Manner, scheme: string) {
  const world = new World()
  const channel = `${scheme}://updates/channels/stable.json`
  world.agentConfig = { channel, pollSeconds: 3600, apply: 'reboot' }
  const { number } = head.statement
  await world.publish({ counter: number.counter }, { number, release: head.digest, size: bytes.length })
  const file = world.web.get('http://updates/channels/stable.json')
  if (file !== undefined) world.web.set(channel, file)
  const link = new Link(world, bytes, place, manner, 2 * HOUR)
  world.engine = link.engine()
  let ends = 0
  while (!world.rebootAsked && world.mono < 6 * HOUR) {
    // Init starts it again when it ends by itself.
    const code = await codeOfAsync(() => world.powerOn((6 * HOUR - world.mono) / 1000))
    if (code === 'accepted') break
    expect(code).toBe('AGENT_STUCK')
    ends++
  }
  return { world, link, ends }
}

describe.each(['http', 'mqtt'])('a link over %s that is cut for two hours', (scheme) => {
  for (const manner of MANNERS)
    it(`${manner}: work goes on within five minutes, wherever it was cut`, async () => {
      let worst = 0
      subject ??= prepare()
      const known = await subject
      for (const [name, place] of Object.entries(known.places)) {
        // Of a file that is not there nothing can be changed.
        if (name === 'the assignment' && ['short', 'wrong', 'endless'].includes(manner)) continue
        const { world, link, ends } = await cut(known, place, manner, scheme)
        const said = `${name}, ${manner}`
        expect(link.brokenAt, said).toBeDefined()
        expect(world.rebootAsked, said).toBe(true)
        // The install itself takes no time here.
        worst = Math.max(worst, world.mono - link.backAt)
        expect(world.mono - link.backAt, said).toBeLessThanOrEqual(BACK_MS)
        const failed = world.core?.body.outcomes.filter((outcome) => !outcome.ok) ?? []
        // Of the data, all that was asked for is there before the rest without end, which nobody asks for.
        const harmless = manner === 'endless' && 'byte' in place && place.byte >= known.head.offsets.data.boot
        if (!harmless) expect(failed.length, said).toBeGreaterThan(0)
        for (const { code } of failed)
          expect(code, said).toMatch(
            /^(TRANSPORT|AGENT|BUNDLE|SIGNATURE|ENVELOPE|INDEX|DSSE|ASSIGNMENT|FRESHNESS|STATEMENT|ROOT)_/,
          )
        expect(ends > 0, said).toBe(manner === 'deaf' && 'byte' in place)
      }
      expect(worst).toBeGreaterThan(Number.NEGATIVE_INFINITY)
    })
})
