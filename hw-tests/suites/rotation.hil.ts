import { copyFile, mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { makeStick } from '../harness/disk.ts'
import { expect, hil } from '../harness/hil.ts'

hil.override('needs', ['stick'])

hil(
  'a stick brings new keys to a device without network and clock; the revoked key installs nothing any more',
  async ({ dut, kit, bench, server }) => {
    const { path, release } = kit.bundle('rotated')
    const stick = join(bench.folder, 'stick')
    await mkdir(stick)
    await copyFile(path, join(stick, 'rotated.bundle'))
    await makeStick(`${stick}.img`, stick, 128)
    expect(await dut.status()).toMatchObject({ rootVersion: 1 })
    await dut.plug(`${stick}.img`)
    const mount = 'for i in $(seq 50); do [ -b /dev/vdb ] && break; sleep 0.2; done; mount -t ext4 -o ro /dev/vdb /mnt'
    expect(await dut.run(mount)).toMatchObject({ code: 0 })
    expect(await dut.bistable('install /mnt/rotated.bundle')).toMatchObject({ code: 0 })
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
