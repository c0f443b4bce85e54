import { describe, expect, it } from 'vitest'
import { checkHealthPlan, NO_PLAN } from '../../bundle/health-plan.ts'
import { operate } from '../../device/agent/operations.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { commitNow } from '../../device/agent/work.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from '../device-agent/world.ts'

// Soak and held commit, with the whole agent.

const never = new AbortController().signal
const BUNDLE = 'http://updates/bundles/3.bundle'

/** Armed with --hold by a person, and not rebooted. */
async function armed(
  plan: Parameters<typeof checkHealthPlan>[0] = {},
  health?: (run: number) => object,
): Promise<World> {
  const world = new World({ counter: 2 })
  const checked = checkHealthPlan(plan)
  world.healthPlan = 'plan' in checked ? checked.plan : NO_PLAN
  world.agentConfig = {}
  await world.publish({ counter: 3, ...(health && { health }) })
  const install = async (core: NonNullable<World['core']>) => {
    await operate(core, 'install', { source: BUNDLE, hold: true }, () => undefined, never)
    await operate(core, 'reboot', {}, () => undefined, never)
  }
  await world.powerOn(100, install)
  expect(world.boot).toMatchObject({ trial: 'b', left: 3 })
  return world
}

describe('a held commit', () => {
  it('waits for its person, says so, and is kept by bistable commit', async () => {
    const world = await armed({ holdSeconds: 600 }, () => ({ exit: 0 }))
    let seen: Awaited<ReturnType<typeof statusOf>> | undefined
    await world.powerOn(500, async (core) => {
      await world.sleep(300_000)
      seen = await statusOf(core)
      await commitNow(core)
    })
    expect(seen).toMatchObject({ state: 'trying', waiting: { code: 'COMMIT_HELD' }, health: { ok: true } })
    expect(world.boot).toMatchObject({ primary: 'b', trial: undefined })
    expect(world.core?.body.state.name).toBe('committed')
    // Asked all the time, not once.
    expect(world.healthRuns).toBeGreaterThan(10)
  })

  it('goes back when nobody commits, with that reason', async () => {
    const world = await armed({ holdSeconds: 60 })
    await world.powerOn(500)
    expect(world.rebootAsked).toBe(true)
    await world.powerOn(100)
    expect(world.boots).toEqual(['a', 'b?', 'a'])
    expect(world.core?.body.state).toMatchObject({ name: 'fallen-back', failed: { code: 'COMMIT_HELD' } })
  })

  it('goes back when a check fails meanwhile', async () => {
    const world = await armed({ holdSeconds: 600 }, (run) => ({ exit: run > 3 ? 1 : 0 }))
    await world.powerOn(500)
    await world.powerOn(100)
    expect(world.core?.body.state).toMatchObject({ name: 'fallen-back', failed: { code: 'HEALTH_FAILED' } })
    const status = await statusOf(world.core as NonNullable<World['core']>)
    expect(status.health).toMatchObject({ ok: false, release: '0.3', checks: [{ runs: 4, failures: 1 }] })
    expect(statusText(status)).toContain('release 0.3  not healthy  1 checks, failed: /health/app')
  })

  it('needs something armed', async () => {
    const world = new World({ counter: 2 })
    world.agentConfig = {}
    let code = ''
    await world.powerOn(10, async (core) => {
      code = await codeOfAsync(() => operate(core, 'reboot', { hold: true }, () => undefined, never))
    })
    expect([code, world.rebootAsked]).toEqual(['AGENT_STATE', false])
  })
})

describe('a soak', () => {
  const soak = async (health: (run: number) => object) => {
    const world = new World({ counter: 2 })
    world.healthPlan = { ...NO_PLAN, soakSeconds: 120 }
    await world.publish({ counter: 3, health })
    await world.run()
    return world
  }

  it('commits what stays healthy, after the soak and not before', async () => {
    const world = await soak(() => ({ exit: 0 }))
    expect(world.core?.body.state.name).toBe('committed')
    expect(world.healthRuns).toBeGreaterThanOrEqual(12)
  })

  it('gives up what passes once and fails then', async () => {
    const world = await soak((run) => ({ exit: run === 5 ? 1 : 0, said: 'out of memory' }))
    expect(world.boots).toEqual(['a', 'b?', 'a'])
    const failed = world.core?.body.state
    expect(failed).toMatchObject({ name: 'fallen-back', failed: { code: 'HEALTH_FAILED' } })
    expect(JSON.stringify(failed)).toMatch(/passed, and failed \d+ s later: exit 1: out of memory/)
  })
})
