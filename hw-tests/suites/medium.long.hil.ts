import { expect, hil } from '../harness/hil.ts'
import type { DiskFault } from '../harness/qemu.ts'

// A medium that takes no write at all, from one moment on: a card that protects itself at its end of life. The bad cell and the boot
// state alone: medium.hil.ts.

hil.override('needs', ['bad-medium'])
// The kernel says each refused write.
hil.override('allow', ['filesystem-error'])

const PROTECTED: readonly DiskFault[] = [{ on: 'write', errno: 5 }]

hil.describe('a medium that is write-protected', () => {
  hil.override('faults', { make: async () => PROTECTED })

  hil(
    'an install is refused and arms nothing; the device goes on, boots what it ran, and installs when it may write again',
    async ({ dut, kit, server }) => {
      const { path, release } = kit.bundle('next')
      const address = server.offer('/next', { from: path })
      const refused = (code: string) => ({ ok: false, error: { code, next: expect.stringMatching(/\w/) } })
      const old = { running: { slot: 'a', release: '1.2' }, slots: { a: { role: 'primary' }, b: { role: 'other' } } }
      // The agent's own record is the first write.
      expect((await dut.bistable(`install ${address}`)).body).toMatchObject(refused('FILE_FAILED'))
      expect(await dut.status()).toMatchObject(old)

      await dut.powerCut()
      await dut.powerOn({ faults: PROTECTED })
      await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
      await expect(dut).toRun({ slot: 'a', release: '1.2' })
      // The data partition did not mount: what is in memory could neither be tried nor remembered as failed.
      expect((await dut.bistable(`install ${address}`)).body).toMatchObject(refused('STATE_IN_MEMORY'))
      expect(await dut.status()).toMatchObject(old)

      await dut.powerCut()
      await dut.powerOn()
      await expect(dut).toBoot({ slot: 'a', boot: 'committed', why: 'ok' })
      await expect(dut).toRun({ slot: 'a', release: '1.2' })
      expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0 })
      expect(await dut.status()).toMatchObject({ state: 'armed', slots: { b: { role: 'trial', release } } })
    },
  )
})
