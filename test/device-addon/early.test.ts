import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, it } from 'vitest'
import { activateEarly, applyAddon, removeAddon, watchAddons } from '../../device/agent/addons.ts'
import type { Core } from '../../device/agent/core.ts'
import { statusOf } from '../../device/agent/status.ts'
import { onDevice, RUNNING } from './device.ts'
import { drop, type MadeAddon, makeAddon, scratchFolder } from './made.ts'

/** Add-ons are over /usr before the agent runs, and one that keeps the agent from running is left out and dropped. */

const folder = scratchFolder()
const never = new AbortController().signal
let fix: MadeAddon

beforeAll(async () => {
  fix = await makeAddon(folder, [RUNNING])
})
afterAll(() => drop(folder))

/** The agent comes up, looks once, and is at rest. */
async function comesUp(core: Core): Promise<void> {
  const stop = new AbortController()
  const { clock } = core.ports
  const { sleep } = clock
  clock.sleep = async () => stop.abort()
  await watchAddons(core, stop.signal)
  clock.sleep = sleep
}

it('what counts is over /usr early; the agent answers, and nothing is recorded twice', async () => {
  await onDevice(async ({ core, over, store }) => {
    expect(await activateEarly(core)).toEqual([])
    await applyAddon(core, fix.file, never)
    for (let start = 1; start <= 5; start++) {
      over.names = []
      const before = core.body
      expect(await activateEarly(core)).toEqual(['addon hotfix is over /usr'])
      expect([over.names, core.body]).toEqual([['hotfix'], before])
      await comesUp(core)
    }
    over.names = []
    over.broken = 'hotfix'
    expect(await activateEarly(core)).toEqual(['addon hotfix is not over /usr: mount: wrong fs type'])
    // What was changed on the disk is not even tried.
    writeFileSync(join(store.image('hotfix'), '../addon.json'), '{}')
    expect(await activateEarly(core)).toEqual([])
    await removeAddon(core, 'hotfix')
  })
})

it('after three starts that no agent answered it is left out; the agent then drops it and says why', async () => {
  await onDevice(async ({ core, over, store }) => {
    await applyAddon(core, fix.file, never)
    for (let start = 1; start <= 3; start++) expect(await activateEarly(core)).toHaveLength(1)
    over.names = []
    expect(await activateEarly(core)).toEqual(['addons are left out: 3 starts with them were not answered'])
    expect(over.names).toEqual([])
    await comesUp(core)
    expect([over.names, await store.list(core.trusted)]).toEqual([[], []])
    const { lastFailure, addons } = await statusOf(core)
    expect([lastFailure?.code, addons]).toEqual(['ADDON_UNANSWERED', []])
    // Applied again, it begins anew.
    await applyAddon(core, fix.file, never)
    expect(await activateEarly(core)).toEqual(['addon hotfix is over /usr'])
  })
})
