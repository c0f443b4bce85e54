import { describe, expect, it, vi } from 'vitest'
import type { Core } from '../../device/agent/core.ts'
import { cancelNow, installFrom } from '../../device/agent/work.ts'
import { makeBundle } from '../bundle/fixture.ts'
import { codeOfAsync } from '../codes.ts'
import { Link } from './link.ts'
import { ANCHOR, type Release, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// `cancel` at every point of an install: each line of the journal, each change of disk and boot state, each progress, each
// range that is asked of the door. Real agent, real bundle, real install; clock, slots and door are in memory.

const BUNDLE = 'http://updates/bundles/x.bundle'
const never = new AbortController().signal

interface Ran {
  readonly world: World
  readonly points: readonly string[]
  /** What cancel answered, and how the install ended. */
  readonly answer: string
  readonly code: string
  /** After a second cancel, if the first came too late to stop the work. */
  readonly again: string
}

async function run(
  bytes: Uint8Array,
  cancelAt: number,
  rest: (core: Core, world: World) => Promise<void>,
): Promise<Ran> {
  const world = new World()
  world.agentConfig = {}
  world.engine = new Link(world, bytes, { file: '/none' }, 'refuses', 0).engine()
  const points: string[] = []
  let answer = 'never asked'
  let core: Core | undefined
  let counts = false
  let asked: Promise<void> | undefined
  const point = (name: string): void => {
    if (!counts || points.push(name) !== cancelAt || core === undefined) return
    asked = cancelNow(core).then(
      (said) => {
        answer = said
      },
      (error: unknown) => {
        answer = `refused: ${error}`
      },
    )
  }
  const change = world.change.bind(world)
  world.change = () => {
    point('a change of disk or boot state')
    change()
  }
  let over = false
  world.done = () => over
  let code = ''
  let again = ''
  await world.powerOn(1000, async (opened) => {
    core = opened
    counts = true
    const options = {
      force: false,
      onProgress: () => point('progress'),
      journal: (line: string) => point(line),
    }
    code = await codeOfAsync(
      () =>
        core?.exclusive('install', never, (signal) => installFrom(opened, BUNDLE, options, signal)) ??
        Promise.resolve(),
    )
    counts = false
    await asked
    again = await codeOfAsync(() => cancelNow(opened))
    await rest(opened, world).finally(() => {
      over = true
    })
  })
  return { world, points, answer, code, again }
}

describe('cancel', () => {
  it('at every point of an install: nothing is armed, the reason is kept, and the next install works', async () => {
    const { bytes } = await makeBundle({ roots: [ANCHOR] })
    const smooth = await run(bytes, 0, async () => undefined)
    expect(smooth.code).toBe('accepted')
    expect(smooth.points.length).toBeGreaterThan(20)
    expect(smooth.points.filter((name) => name.includes('verified'))).not.toEqual([])
    const ends: Record<string, number> = {}
    for (let at = 1; at <= smooth.points.length; at++) {
      let second = ''
      const { world, answer, code, again } = await run(bytes, at, async (core, { boot }) => {
        const said = `at ${at}, ${smooth.points[at - 1]}`
        expect(core.body.state.name, said).toBe('idle')
        expect(boot, said).toMatchObject({ primary: 'a', trial: undefined })
        expect(core.body.outcomes.at(-1), said).toMatchObject({ what: 'install', ok: false, code: 'AGENT_CANCELLED' })
        expect(core.body.blocked, said).toEqual([])
        expect(core.activity.busyWith, said).toBeUndefined()
        const options = { force: false, onProgress: () => undefined }
        second = await codeOfAsync(() => core.exclusive('install', never, (s) => installFrom(core, BUNDLE, options, s)))
        expect(core.body.state.name, said).toBe('armed')
      })
      const said = `at ${at}, ${smooth.points[at - 1]}: ${world.lines.join('\n')}`
      expect(answer, said).toBe('the running work is being stopped')
      expect(second, said).toBe('accepted')
      expect(
        world.lines.filter((line) => line.startsWith('during:')),
        said,
      ).toEqual([])
      // Stopped, or armed already when it came: then the second one takes it back.
      expect([code, again], said).toSatisfy(
        (ended: string[]) => ended.join() === 'AGENT_CANCELLED,AGENT_IDLE' || ended.join() === 'accepted,accepted',
      )
      ends[code] = (ends[code] ?? 0) + 1
      // The power goes: what was cancelled does not come back, what was armed anew is tried.
      expect(world.boot, said).toMatchObject({ primary: 'a', trial: 'b' })
    }
    console.log(
      `cancel: ${smooth.points.length} points, ${ends['AGENT_CANCELLED']} stopped, ${ends['accepted'] ?? 0} taken back`,
    )
    expect(ends['AGENT_CANCELLED']).toBeGreaterThan((smooth.points.length * 3) / 4)
  })

  it.each<[string, Release, string]>([
    ['idle', { counter: 2 }, 'AGENT_IDLE'],
    ['armed', { counter: 3 }, 'accepted'],
    ['trying', { counter: 3, health: () => ({ exit: 1 }) }, 'AGENT_IDLE'],
    ['committed', { counter: 3 }, 'AGENT_IDLE'],
    ['fallen-back', { counter: 3, panics: true }, 'AGENT_IDLE'],
  ])('in state %s it says what it did, and changes nothing else', async (state, release, expected) => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, pollSeconds: 3600, apply: state === 'armed' ? 'install' : 'reboot' }
    await world.publish(release)
    let met = false
    for (let boot = 0; boot < 8 && !met; boot++)
      await world.powerOn(200, async (core) => {
        for (let waited = 0; core.body.state.name !== state && waited < 150; waited++) await world.sleep(1000)
        if (core.body.state.name !== state) return
        // What polls by itself is not what is asked about here.
        while (core.activity.busyWith !== undefined && state !== 'trying') await world.sleep(100)
        met = true
        const before = { body: JSON.stringify(core.body), boot: JSON.stringify(world.boot) }
        expect(await codeOfAsync(() => cancelNow(core))).toBe(expected)
        if (expected === 'accepted') {
          expect(core.body.state.name).toBe('idle')
          expect(world.boot).toMatchObject({ primary: 'a', trial: undefined })
        } else expect({ body: JSON.stringify(core.body), boot: JSON.stringify(world.boot) }).toEqual(before)
      })
    expect(met).toBe(true)
    expect(world.lines.filter((line) => line.startsWith('during:'))).toEqual([])
  })
})
