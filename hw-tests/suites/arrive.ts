import type { Dut } from '../harness/dut.ts'
import { expect } from '../harness/hil.ts'

/** A release comes through a door and is installed, tried and committed; where there is none, the device says so first. */
export async function arrives(
  dut: Dut,
  { address, missing, release }: { readonly address: string; readonly missing: string; readonly release: string },
): Promise<void> {
  expect(await dut.bistable(`install ${missing}`)).toMatchObject({
    code: 7,
    body: { error: { code: 'TRANSPORT_MISSING' } },
  })
  expect(await dut.bistable(`install ${address}`)).toMatchObject({ code: 0, body: { ok: true } })
  expect(await dut.status()).toMatchObject({
    state: 'armed',
    slots: { a: { role: 'primary' }, b: { role: 'trial', release, triesLeft: 3 } },
  })
  await dut.reboot()
  await expect(dut).toBoot({ slot: 'b', boot: 'try', why: 'ok' })
  await expect(dut).toRun({ slot: 'b', release })
  expect(await dut.bistable('verify')).toMatchObject({ code: 0 })
}
