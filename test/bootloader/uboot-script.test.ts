import { execFileSync } from 'node:child_process'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import { arm, freshState } from '../../bootloader/machine.ts'
import { encodeUbootCopy } from '../../bootloader/uboot.ts'
import { BOOT_CMD, scriptImage, scriptSettings, ubootScript } from '../../bootloader/uboot-script.ts'
import { have } from '../helpers/run.ts'
import {
  compareUboot,
  flagCases,
  lostCases,
  type NamedCase,
  notedCases,
  startCases,
  stateCases,
  tornCases,
} from '../helpers/uboot-cases.ts'
import { UBOOT_MACHINES, type UbootLab, ubootDecides, ubootLab } from '../helpers/uboot-qemu.ts'

/** boot.cmd under the real U-Boot, state by state against the pure machine: a sample; `npm run uboot` asks about all. */

const dir = mkdtempSync(join(existsSync('/dev/shm') ? '/dev/shm' : tmpdir(), 'bistable-uboot-test-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const args = `bistable.root=${'5'.repeat(64)} console=ttyS0`
const cfg = encodeBootCfg({ release: '0.1', args })

const every = (cases: readonly NamedCase[], step: number, from: number) => cases.filter((_, n) => n % step === from)

describe.each(['x86', 'arm64'] as const)('boot.cmd decides as the machine does, on %s', (name) => {
  const machine = UBOOT_MACHINES[name]
  const ready = have(machine.program, 'sgdisk', 'mkfs.fat', 'mcopy', 'mke2fs') && existsSync(machine.firmware)
  if (!ready && process.env['CI']) throw new Error(`missing on this machine: ${machine.firmware}`)
  let lab: UbootLab
  beforeAll(async () => {
    if (ready) lab = await ubootLab(machine, dir, cfg, 200)
  })

  test.skipIf(!ready)('C7 states, damaged copies, flags, starts, boot images that are not there', () => {
    // Coprime steps, and another phase on each processor: between them every kind of case is met.
    const from = name === 'x86' ? 0 : 3
    const cases = [
      ...every(stateCases(), 17, from),
      ...flagCases([0, 127, 255]),
      ...every(tornCases(8), 13, from),
      ...every(startCases(), 11, from),
      ...every(lostCases(), 5, from),
      ...notedCases(),
    ]
    expect(cases.length).toBeGreaterThan(70)
    const got = ubootDecides(lab, cases)
    for (const [n, each] of cases.entries()) compareUboot(each, got[n] as (typeof got)[number], args)
  })

  test.skipIf(!ready)('a boot state that cannot be written boots the primary', () => {
    const [usual] = every(startCases(), 1000, 0) as [NamedCase]
    const copies = [encodeUbootCopy(freshState('a'), 1), encodeUbootCopy(arm(freshState('a'), 'b'), 2)] as const
    const each = { ...usual, name: 'read-only', copies }
    const [got] = ubootDecides(lab, [each], true)
    expect(got?.fields, got?.text).toMatchObject({ slot: 'a', boot: 'fallback', why: 'counter-unwritable', left: '3' })
    compareUboot(each, got as NonNullable<typeof got>, args, false)
  })

  test.skipIf(!ready)('settings of another disk lead to no write', () => {
    const moved = scriptSettings({ arch: machine.arch, bootstateStart: 0x20_0000 })
    const dry = "setenv bs_boot 'echo dry ${bootargs}'\n"
    const script = scriptImage(Buffer.concat([Buffer.from(moved + dry), readFileSync(BOOT_CMD)]), 0, 0)
    const copies = [encodeUbootCopy(freshState('a'), 1), encodeUbootCopy(arm(freshState('a'), 'b'), 2)] as const
    const each = { ...(startCases()[0] as NamedCase), copies }
    const [got] = ubootDecides({ ...lab, script }, [each])
    expect(got?.fields).toMatchObject({ slot: 'a', boot: 'fallback', why: 'state-unreadable' })
    expect(got?.after.copies).toEqual(copies)
  })
})

describe('boot.scr', () => {
  test.skipIf(!have('mkimage'))('is what mkimage makes of the same text', async () => {
    const text = join(dir, 'text')
    writeFileSync(text, Buffer.concat([Buffer.from('echo first\n'), readFileSync(BOOT_CMD)]))
    const made = join(dir, 'made')
    const options = ['-A', 'arm64', '-O', 'linux', '-T', 'script', '-C', 'none', '-n', 'bistable', '-d', text, made]
    execFileSync('mkimage', options, { stdio: 'ignore', env: { ...process.env, SOURCE_DATE_EPOCH: '1234567890' } })
    expect(Buffer.compare(scriptImage(readFileSync(text), 22, 1_234_567_890), readFileSync(made))).toBe(0)
    expect(Buffer.from(await ubootScript({ arch: 'arm64', bootstateStart: 0x1100000 })).toString('latin1')).toContain(
      'setenv bs_start 8800      \nsetenv bs_state0 0000008a00\nsetenv bs_state1 0000008c00\nsetenv bs_reason 0000008e00\n',
    )
  })

  test('settings that the script could not use are refused', () => {
    expect(() => scriptSettings({ arch: 'arm64', bootstateStart: 100 })).toThrow('multiple of 512')
    expect(() => scriptSettings({ arch: 'arm64', bootstateStart: 0 })).toThrow('multiple of 512')
    expect(() => scriptSettings({ arch: 'arm64', bootstateStart: 4096, memory: 0x40200100 })).toThrow(
      'multiple of 4096',
    )
  })

  test('no command that an x86 U-Boot lacks, and no name of ours that nothing sets', () => {
    const text = readFileSync(BOOT_CMD, 'utf8').replace(/^\s*#.*$/gm, '')
    expect(text).not.toContain('setexpr')
    const settings = scriptSettings({ arch: 'arm64', bootstateStart: 4096 })
    const used = new Set([...text.matchAll(/\$\{(bs_[a-z0-9_]+)\}/g)].map((m) => m[1]))
    const set = new Set(
      [...(settings + text).matchAll(/(?:setenv|for|bootstate|boot-\$\{bs_slot\}) (bs_[a-z0-9_]+)/g)].map((m) => m[1]),
    )
    expect([...used].filter((name) => !set.has(name))).toEqual([])
  })
})
