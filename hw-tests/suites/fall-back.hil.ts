import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'
import type { Kit } from '../harness/kit.ts'
import type { TestServer } from '../harness/server.ts'

interface Parts {
  readonly dut: Dut
  readonly kit: Kit
  readonly server: TestServer
}

/** Installs a release that will not make it and reboots into its first try. */
async function tryRelease({ dut, kit, server }: Parts, name: string): Promise<string> {
  const { path, release } = kit.bundle(name)
  const address = server.offer(`/${name}.bundle`, { from: path })
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
  await dut.reboot()
  return release
}

/** It runs the old release, names the reason, and will not take the failed one again. */
async function isHome({ dut }: Parts, from: string, reason: string): Promise<void> {
  const status = await dut.status()
  expect(status).toMatchObject({
    state: 'fallen-back',
    running: { slot: 'a', release: '1.2', boot: expect.stringMatching(/committed|fallback/) },
    slots: { a: { role: 'primary' }, b: { release: from } },
    reason: { code: reason },
    blocked: [{ number: from }],
    installFloor: '1.2',
  })
}

hil('an unhealthy release is given up after one try', async ({ dut, kit, server }) => {
  const parts = { dut, kit, server }
  const from = await tryRelease(parts, 'unhealthy')
  await expect(dut).toFallBack({ to: 'a', from, tries: 1, reason: 'HEALTH_FAILED' })
  await isHome(parts, from, 'HEALTH_FAILED')
  const again = await dut.bistable(`install ${server.offer('/again', { from: kit.bundle('unhealthy').path })}`)
  expect(again.error).toBe('RELEASE_BLOCKED')
})

hil(
  'a release whose health check hangs is given up at its deadline, without a watchdog',
  async ({ dut, kit, server }) => {
    const parts = { dut, kit, server }
    const from = await tryRelease(parts, 'hangs')
    await expect(dut).toFallBack({ to: 'a', from, tries: 1, reason: 'HEALTH_FAILED' })
    await isHome(parts, from, 'HEALTH_FAILED')
  },
)

hil.describe('without help of its own', () => {
  hil.override('allow', ['panic'])

  hil(
    'a release whose init panics the kernel is given up after three tries, with no help of its own',
    async ({ dut, kit, server }) => {
      const parts = { dut, kit, server }
      const from = await tryRelease(parts, 'panics')
      await expect(dut).toFallBack({ to: 'a', from, tries: 3, reason: 'TRY_TRIES_SPENT' })
      expect(dut.console.events.filter((e) => e.kind === 'panic')).toHaveLength(3)
      await isHome(parts, from, 'TRY_TRIES_SPENT')
    },
  )
})
