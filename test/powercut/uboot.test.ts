import { existsSync } from 'node:fs'
import { describe, expect, test } from 'vitest'
import { have } from '../helpers/run.ts'
import { UBOOT_MACHINES } from '../helpers/uboot-qemu.ts'
import { UBOOT_SAMPLE, ubootCampaign } from './uboot.ts'

const { program, firmware } = UBOOT_MACHINES.x86
const ready = have(program, 'sgdisk', 'mkfs.fat', 'mcopy', 'mke2fs') && existsSync(firmware)
if (!ready && process.env['CI']) throw new Error(`missing on this machine: ${firmware}`)

describe.skipIf(!ready)("power cuts of U-Boot's boot state", () => {
  test('a sample: every cut boots what it may, the real U-Boot decides alike, every broken writer is caught', async () => {
    const said: string[] = []
    const outcome = await ubootCampaign(UBOOT_SAMPLE, (line) => said.push(line))
    console.log(said.at(-1))
    expect(outcome.wrong, said.join('\n')).toBe(0)
    expect(outcome.states).toBeGreaterThan(2000)
    expect(outcome.decisions).toBeGreaterThan(30)
    expect([...outcome.caught].filter(([, why]) => why === undefined)).toEqual([])
    expect(outcome.ok).toBe(true)
  }, 300_000)
})
