import { expect, test } from 'vitest'
import { rollBackNow } from '../../device/agent/roll-back.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { stateErrors } from '../../device/state/errors.ts'
import type { RollBack } from '../../device/state/state.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from './world.ts'

/** What the agent asks and tells of the state, at its place in an update. */

function worldWithState() {
  const world = new World()
  const said: string[] = []
  const asked: RollBack[] = []
  world.state = {
    facts: async () => ({ filesystem: 'btrfs', schema: 3, readableBy: 3, own: 3 }),
    snapshots: async () => [{ name: '000001-0.2-0.3', sequence: 1, from: '0.2', before: '0.3' }],
    verdict: async (_, release, running) => ({ reads: false, snapshot: `000001-${release}-${running}` }),
    allowRollBack: async (call) => {
      asked.push(call)
      if (!call.force && !call.withState) throw stateErrors.STATE_NEWER('too old')
    },
    committed: async (slot, release) => void said.push(`committed ${slot} ${release}`),
    prune: async ({ keep }) => {
      said.push(`prune to ${keep}`)
      return keep === 3 && said.length < 5 && said.length > 2 ? ['000000-0.1-0.2'] : []
    },
  }
  return { world, said, asked }
}

test('a commit ends what would be undone, drops snapshots and says so; a start looks for more', async () => {
  const { world, said } = worldWithState()
  await world.publish({ counter: 3 })
  await world.run()
  expect(world.boot?.primary).toBe('b')
  // The start before the update; the commit; the rest of that start.
  const twice = ['committed b 0.3', 'prune to 3']
  expect(said).toEqual(['committed a 0.2', 'prune to 3', ...twice, ...twice])
  expect(world.lines.filter((line) => line.includes('snapshot'))).toEqual(['bistable: snapshot 000000-0.1-0.2 dropped'])
})

test('what a roll back would meet is told before, and refused before anything is armed', async () => {
  const { world, asked } = worldWithState()
  await world.publish({ counter: 3 })
  await world.run()
  await world.powerOn(1, async (core) => {
    const status = await statusOf(core)
    expect(status.data).toEqual({
      ...{ filesystem: 'btrfs', schema: 3, readableBy: 3, own: 3 },
      snapshots: ['000001-0.2-0.3'],
      rollBack: { slot: 'a', reads: false, snapshot: '000001-0.2-0.3' },
    })
    expect(statusText(status)).toContain(
      'data  schema 3, for releases of 3 and newer  btrfs  snapshots 1\n' +
        '  a roll back to slot a is refused without --with-state or --force: its release cannot read these data\n',
    )
    expect(await codeOfAsync(() => rollBackNow(core))).toBe('STATE_NEWER')
    expect([world.boot?.trial, core.body.state.name]).toEqual([undefined, 'committed'])
    await rollBackNow(core, { withState: true })
    expect(world.boot?.trial).toBe('a')
  })
  expect(asked.at(-1)).toMatchObject({ slot: 'a', release: '0.2', running: '0.3', force: false, withState: true })
})

test('with /data in memory nothing is installed: the try would be ended and forgotten, and begin again for ever', async () => {
  const { world } = worldWithState()
  const { state } = world
  if (state === undefined) throw new Error('there is one')
  world.state = Object.assign(state, {
    facts: async () => ({ filesystem: 'tmpfs', schema: 3, readableBy: 3, own: 3 }),
  })
  await world.publish({ counter: 3 })
  await world.run(4)
  expect([world.boots, world.fetches, world.boot]).toEqual([['a'], 0, expect.objectContaining({ trial: undefined })])
  expect(world.core?.body.outcomes.filter(({ code }) => code === 'STATE_IN_MEMORY')).toHaveLength(1)
})

test('what this start had to do without, and settings that do not count, stand in status and in the history', async () => {
  const world = new World()
  const ports = world.ports.bind(world)
  world.ports = async (...args) => {
    const made = await ports(...args)
    return {
      ...made,
      startNotes: ['/var cannot be seeded: no space?', '/etc is in memory until the next start'],
      config: { ...made.config, problems: ['/etc/bistable/agent.json: not JSON; it does not count'] },
    }
  }
  await world.powerOn(1, async (core) => {
    const { problems } = await statusOf(core)
    expect(problems).toEqual([
      'CONFIG_INVALID: /etc/bistable/agent.json: not JSON; it does not count',
      'START_TROUBLE: /var cannot be seeded: no space?; /etc is in memory until the next start',
    ])
  })
  expect(world.core?.body.outcomes.filter(({ code }) => code === 'START_TROUBLE')).toMatchObject([
    { what: 'agent', message: '/var cannot be seeded: no space?; /etc is in memory until the next start' },
  ])
  expect(world.lines).toContain(
    'bistable: START_TROUBLE: /var cannot be seeded: no space?; /etc is in memory until the next start',
  )
})
