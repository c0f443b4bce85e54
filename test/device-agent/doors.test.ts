import { describe, expect, it, vi } from 'vitest'
import { openBundle } from '../../bundle/reader.ts'
import type { BundleHead } from '../../bundle/types.ts'
import { engineOver } from '../../device/agent/engine-over.ts'
import type { HttpDoorOptions } from '../../device/doors/http.ts'
import { trustAnchor } from '../../keys/root.ts'
import { makeBundle, memorySource } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { memorySlots } from './link.ts'
import { type Break, type Fault, type Where, Wire } from './wire.ts'
import { ANCHOR, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// The real web door on real sockets, the real agent and a real bundle; the clock is the world's. The link is cut for two
// hours at each kind of byte, in each manner: the agent is back at work within five minutes of its return. A sample;
// DOORS=all for every answer at every place in every manner.

const HOUR = 3_600_000
const BACK_MS = 300_000

interface Subject {
  readonly bytes: Uint8Array
  readonly head: BundleHead
}
let subject: Promise<Subject> | undefined

async function prepare(): Promise<Subject> {
  const { bytes } = await makeBundle({ roots: [ANCHOR], rootfs: noise(4096 * 40, 'rootfs') })
  return { bytes, head: await openBundle(memorySource(bytes), { trusted: trustAnchor(ANCHOR) }) }
}

const ANSWERS: Readonly<Record<string, Fault['of']>> = {
  'the assignment': (path) => path.startsWith('/assignments/'),
  'the channel file': (path) => path.startsWith('/channels/'),
  "the bundle's head": (path, from) => path.startsWith('/bundles/') && from === 0,
  "the bundle's data": (path, from) => path.startsWith('/bundles/') && from > 0,
}
const PLACES: readonly Where[] = ['nothing', 'status line', 'headers', 'end of headers', 'body', 'last byte']
const BREAKS: readonly Break[] = ['reset', 'ends', 'silent', 'crawls', 'lies']

async function cut(of: Fault['of'], where: Where, how: Break) {
  subject ??= prepare()
  const { bytes, head } = await subject
  const world = new World()
  const { number } = head.statement
  await world.publish({ counter: number.counter }, { number, release: head.digest, size: bytes.length })
  const channel = world.web.get('http://updates/channels/stable.json')
  if (!(channel instanceof Uint8Array)) throw new Error('no channel')
  const files = new Map([
    ['/channels/stable.json', channel],
    [`/bundles/${number.counter}.bundle`, bytes],
  ])
  const wire = await Wire.start(world, files, { of, where, how, forMs: 2 * HOUR })
  world.settle = () => wire.settle()
  world.agentConfig = {
    ...{ channel: `http://127.0.0.1:${wire.port}/channels/stable.json`, pollSeconds: 3600, apply: 'reboot' },
  }
  const clock: HttpDoorOptions['clock'] = { now: () => world.mono, sleep: (ms, signal) => world.sleep(ms, signal) }
  const slots = memorySlots()
  const door: HttpDoorOptions = { clock, random: () => 0.5 }
  world.engine = (memory, data) => engineOver(data, memory, slots, undefined, async () => door)
  while (!world.rebootAsked && world.mono < 6 * HOUR) {
    const code = await codeOfAsync(() => world.powerOn((6 * HOUR - world.mono) / 1000))
    if (code !== 'accepted') throw new Error(`${code}\n${world.lines.join('\n')}`)
    if (!world.rebootAsked) break
  }
  return { world, wire }
}

describe('the web door on real sockets, cut for two hours', () => {
  for (const [n, how] of BREAKS.entries())
    it(`${how}: the agent is back at work within five minutes, wherever it was cut`, async () => {
      for (const [m, [name, of]] of Object.entries(ANSWERS).entries())
        for (const [k, where] of PLACES.entries()) {
          // Every answer meets every place and every manner, not every pair of them with the third.
          if (process.env['DOORS'] !== 'all' && (n + m + k) % 6 !== 0) continue
          // One byte that takes ten seconds is no cut.
          if (where === 'last byte' && how === 'crawls') continue
          // What is not there has no body, and what is said of it by a liar is "not there" too.
          if (name === 'the assignment' && (where === 'body' || where === 'last byte' || how === 'lies')) continue
          const { world, wire } = await cut(of, where, how)
          const said = `${name}, ${where}, ${how}\n${world.lines.join('\n')}`
          expect(wire.brokenAt, said).toBeDefined()
          expect(world.rebootAsked, said).toBe(true)
          expect(world.mono - wire.backAt, said).toBeLessThanOrEqual(BACK_MS)
          expect(world.mono, said).toBeGreaterThanOrEqual(2 * HOUR)
          const failed = world.core?.body.outcomes.filter((outcome) => !outcome.ok) ?? []
          expect(failed.length, said).toBeGreaterThan(0)
          for (const { code } of failed)
            expect(code, said).toMatch(
              /^(TRANSPORT|AGENT|BUNDLE|SIGNATURE|ENVELOPE|INDEX|DSSE|FRESHNESS|STATEMENT|ROOT)_/,
            )
        }
    }, 600_000)
})
