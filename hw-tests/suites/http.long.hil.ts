import { expect, hil } from '../harness/hil.ts'

// A release that comes over HTTP, from its first byte to the commit. A stick: install.hil.ts; a broker: mqtt.long.hil.ts.

hil('a release on a web server is installed, tried and committed', async ({ dut, kit, server }) => {
  const next = kit.bundle('next')
  const address = server.offer('/bundles/next.bundle', { from: next.path })
  expect(await dut.bistable(`install ${address.replace('next.bundle', 'none.bundle')}`)).toMatchObject({
    code: 7,
    body: { error: { code: 'TRANSPORT_MISSING' } },
  })
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0, body: { ok: true } })
  expect(await dut.status()).toMatchObject({
    state: 'armed',
    slots: { a: { role: 'primary' }, b: { role: 'trial', release: next.release, triesLeft: 3 } },
  })
  await dut.reboot()
  await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
  await expect(dut).toRun({ slot: 'b', release: next.release })
  expect(await dut.bistable('verify')).toMatchObject({ code: 0 })
})
