import type { Dut } from '../harness/dut.ts'
import { expect, hil } from '../harness/hil.ts'

// Releases that will not make it. Each is armed when its test begins.

hil.override('begin', 'armed')

/** It runs the old release, names the reason, and will not take the failed one again. */
async function isHome(dut: Dut, from: string, reason: string): Promise<void> {
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

hil.describe('a release that never becomes healthy', () => {
  hil.override('arms', 'unhealthy')

  hil('an unhealthy release is given up after one try', async ({ dut, kit, server }) => {
    const { path, release: from } = kit.bundle('unhealthy')
    await dut.reboot()
    await expect(dut).toFallBack({ to: 'a', from, tries: 1, reason: 'HEALTH_FAILED' })
    await isHome(dut, from, 'HEALTH_FAILED')
    const again = await dut.bistable(`install ${server.offer('/again', { from: path })}`)
    expect(again.error).toBe('RELEASE_BLOCKED')
  })
})

hil.describe('a check that never ends', () => {
  hil.override('arms', 'hangs')

  hil('a release whose health check hangs is given up at its deadline, without a watchdog', async ({ dut, kit }) => {
    const { release: from } = kit.bundle('hangs')
    await dut.reboot()
    await expect(dut).toFallBack({ to: 'a', from, tries: 1, reason: 'HEALTH_FAILED' })
    await isHome(dut, from, 'HEALTH_FAILED')
  })
})

hil.describe('without help of its own', () => {
  hil.override('arms', 'panics')
  hil.override('allow', ['panic'])

  hil(
    'a release whose init panics the kernel is given up after three tries, with no help of its own',
    async ({ dut, kit }) => {
      const { release: from } = kit.bundle('panics')
      await dut.reboot()
      await expect(dut).toFallBack({ to: 'a', from, tries: 3, reason: 'TRY_TRIES_SPENT' })
      expect(dut.console.events.filter((e) => e.kind === 'panic')).toHaveLength(3)
      await isHome(dut, from, 'TRY_TRIES_SPENT')
    },
  )
})
