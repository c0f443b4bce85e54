import { expect, hil } from '../harness/hil.ts'

hil.override('needs', ['stick'])

hil(
  'a stick brings new keys to a device without network and clock; the revoked key installs nothing any more',
  async ({ dut, kit, stick, server }) => {
    const { path, release } = kit.bundle('rotated')
    expect(await dut.status()).toMatchObject({ rootVersion: 1 })
    const mounted = await stick.plug({ 'rotated.bundle': path })
    expect(await dut.bistable(`install ${mounted}/rotated.bundle`)).toMatchObject({ code: 0 })
    await dut.reboot()
    await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
    await expect(dut).toRun({ slot: 'b', release })
    expect(await dut.status()).toMatchObject({ state: 'committed', rootVersion: 2, installFloor: release })

    // Signed by the key that is revoked now, and good before.
    const old = await dut.bistable(`install ${server.offer('/old', { from: kit.bundle('hangs').path })}`)
    expect(old.error).toMatch(/^SIGNATURE_/)
    expect(await dut.status()).toMatchObject({
      running: { slot: 'b' },
      slots: { b: { role: 'primary' } },
      rootVersion: 2,
    })
  },
)
