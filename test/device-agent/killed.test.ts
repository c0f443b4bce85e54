import { describe, expect, it, vi } from 'vitest'
import { checkState } from '../../bootloader/machine.ts'
import type { Core } from '../../device/agent/core.ts'
import { type Release, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// The agent is killed (by the kernel when memory is short, by a person) at every change that it makes, and started again in the
// same boot; or the power goes there. What is committed is what ran, and the newest release is there in the end.

const never = () => new Promise<never>(() => undefined)

/** @returns lines that say a commit of a release that had not run by then */
function watched(world: World): string[] {
  const ran = new Set<string>()
  const wrong: string[] = []
  const ports = world.ports.bind(world)
  world.ports = async (cmdline: string, release: Release) => {
    ran.add(`0.${release.counter}`)
    const made = await ports(cmdline, release)
    const say: typeof made.say = (line) => {
      const [, committed] = /^bistable: committed slot=. release=(\S+)/.exec(line) ?? []
      if (committed !== undefined && !ran.has(committed)) wrong.push(line)
      made.say(line)
    }
    return { ...made, say }
  }
  return wrong
}

/** Release 3 is armed and waits for a reboot when release 4 is announced; then somebody reboots. */
async function play(
  cut: number,
  how: 'killed' | 'power',
): Promise<{ readonly world: World; readonly wrong: string[] }> {
  const world = new World()
  const wrong = watched(world)
  world.agentConfig = { ...world.agentConfig, apply: 'install', pollSeconds: 30 }
  world.cutAt = cut
  await world.publish({ counter: 3 })
  const announce = async (core: Core) => {
    while (core.body.state.name !== 'armed') await core.ports.clock.sleep(1000)
    await world.publish({ counter: 4 })
    await never()
  }
  await world.powerOn(200, announce)
  if (world.dead) {
    await world.publish({ counter: 4 })
    if (how === 'killed') await world.restart(200)
  }
  world.agentConfig = { ...world.agentConfig, apply: 'reboot' }
  for (let n = 0; n < 3; n++) {
    await world.run(10, 100)
    // Killed on trial.
    if (world.dead && how === 'killed') await world.restart(100)
  }
  return { world, wrong }
}

function check({ world, wrong }: Awaited<ReturnType<typeof play>>, said: string): void {
  const { body } = world.core ?? expect.fail(said)
  if (world.boot === undefined) expect.fail(said)
  checkState(world.boot)
  const { primary } = world.boot
  const told = `${said}: ${world.boots.join(' ')}\n${world.lines.join('\n')}`
  expect(world.slots[primary], told).toMatchObject({ counter: 4 })
  expect(body.slots[primary], told).toMatchObject({ number: { counter: 4 }, committed: true })
  expect([body.installFloor.counter, body.blocked], told).toEqual([4, []])
  expect(wrong, told).toEqual([])
}

describe('an agent that is ended at any change, with an update under way over an armed one', () => {
  for (const how of ['killed', 'power'] as const)
    it(`${how}: commits what ran, and the newest release in the end`, async () => {
      const smooth = await play(Number.POSITIVE_INFINITY, how)
      check(smooth, 'smooth')
      const { changes } = smooth.world
      expect(changes).toBeGreaterThan(60)
      for (let cut = 1; cut <= changes; cut++) check(await play(cut, how), `${how} at ${cut}`)
    })
})
