import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { arm, claim, commit, refuse } from '../../bootloader/machine.ts'
import { encodeEnv } from '../../bootloader/uboot-env.ts'
import { ownState, parseFwEnvConfig, withState } from '../../bootloader/uboot-own.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'
import { have } from '../helpers/run.ts'
import { allStates } from '../helpers/uboot-cases.ts'

/** A board's own environment: what its script and libubootenv's tools see of what the agent writes, and the other way. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-uboot-own-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const SIZE = 0x20000
const env = { PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
const names = { a: 'A', b: 'B' }

/** A medium as a board with RAUC has it: two copies behind the bootloader, a script's variables beside the order. */
function board(name: string): { readonly medium: string; readonly config: string } {
  const medium = join(dir, name)
  const config = `${medium}.config`
  const variables = new Map([
    ['BOOT_ORDER', 'A B'],
    ['BOOT_A_LEFT', '3'],
    ['BOOT_B_LEFT', '3'],
    ['bootcmd', 'run rauc_boot'],
    ['ethaddr', '02:00:00:00:00:01'],
  ])
  const image = Buffer.alloc(0x400000 + 2 * SIZE)
  image.set(encodeEnv({ variables, flag: 7 }, SIZE), 0x400000)
  image.set(encodeEnv({ variables, flag: 6 }, SIZE), 0x400000 + SIZE)
  writeFileSync(medium, image)
  writeFileSync(config, `# the board's\n${medium} 0x400000 0x20000\n${medium} 0x420000 0x20000\n`)
  return { medium, config }
}

const open = (config: string) => openBackend({ boot: { kind: 'uboot-environment', config, names } }, NO_EDGE)

describe.skipIf(!have('fw_printenv', 'fw_setenv'))('a board brought up for RAUC', () => {
  test('is read, armed, tried by its script, committed; its own variables stay', async () => {
    const { config } = board('rauc')
    const print = (name: string) =>
      execFileSync('fw_printenv', ['-c', config, '-n', name], { env, encoding: 'utf8' }).trim()
    const set = (...args: string[]) => execFileSync('fw_setenv', ['-c', config, ...args], { env })
    const backend = await open(config)
    const found = (await backend.read()).state
    expect(found).toEqual({ generation: 0, primary: 'a', trial: undefined, left: 0, spare: true })
    if (found === undefined) return
    const armed = arm(claim(found), 'b')
    await backend.write(claim(found))
    expect([print('BOOT_ORDER'), print('BOOT_B_LEFT')]).toEqual(['A', '0'])
    await backend.write(armed)
    expect([print('BOOT_ORDER'), print('BOOT_A_LEFT'), print('BOOT_B_LEFT')]).toEqual(['B A', '3', '3'])
    // What the script does at the first try.
    set('BOOT_B_LEFT', '2')
    expect((await backend.read()).state).toEqual({ ...armed, left: 2 })
    const done = commit({ ...armed, left: 2 }, 'b')
    await backend.write(done)
    expect([print('BOOT_ORDER'), print('BOOT_A_LEFT'), print('BOOT_B_LEFT')]).toEqual(['B A', '3', '3'])
    expect(await backend.read()).toEqual({ state: done, torn: false })
    // The script takes tries of a committed slot too; the agent that came up gives them back.
    set('BOOT_B_LEFT', '1')
    await backend.clearReason('b')
    expect(print('BOOT_B_LEFT')).toBe('3')
    expect((await backend.read()).state).toEqual(done)
    expect([print('bootcmd'), print('ethaddr')]).toEqual(['run rauc_boot', '02:00:00:00:00:01'])
    expect(backend.describe().place).toContain('environment on')
    await backend.close()
  })

  test('a try that is refused leaves the old slot first in turn', async () => {
    const { config } = board('refused')
    const backend = await open(config)
    const { state } = await backend.read()
    if (state === undefined) throw new Error('no state')
    const armed = arm(state, 'b')
    await backend.write(armed)
    await backend.write(refuse(armed, 'b'))
    expect((await backend.read()).state).toEqual({ ...refuse(armed, 'b') })
    expect(execFileSync('fw_printenv', ['-c', config, '-n', 'BOOT_B_LEFT'], { env, encoding: 'utf8' }).trim()).toBe('0')
    await backend.close()
  })

  test('a write goes to the other copy; one damaged copy is told and healed, two stop every write', async () => {
    const { medium, config } = board('damaged')
    const image = readFileSync(medium)
    image.fill(0, 0x420000, 0x420010)
    writeFileSync(medium, image)
    writeFileSync(config, `${medium} 0x400000 0x20000\n${medium} -0x20000 0x20000\n`)
    const backend = await open(config)
    const { state, torn } = await backend.read()
    expect(torn).toBe(true)
    if (state === undefined) throw new Error('no state')
    await backend.write(claim(state))
    expect(Buffer.compare(readFileSync(medium).subarray(0, 0x420000), image.subarray(0, 0x420000))).toBe(0)
    expect((await backend.read()).torn).toBe(false)
    expect(await codeOfAsync(() => backend.write(state))).toBe('BOOT_STATE_INVALID')
    writeFileSync(medium, Buffer.alloc(image.length))
    expect(await backend.read()).toEqual({ state: undefined, torn: false })
    expect(await codeOfAsync(() => backend.write(claim(state)))).toBe('BOOT_STATE_READ')
    expect(readFileSync(medium).every((byte) => byte === 0)).toBe(true)
    await backend.close()
  })
})

describe('the mapping', () => {
  test('every state goes there and back, whatever the slots are called', () => {
    for (const state of allStates(41))
      for (const called of [names, { a: 'system0', b: 'system1' }])
        expect(ownState(withState(new Map(), state, called), called)).toEqual(state)
  })

  test('an order of strangers is no state; tries are hexadecimal', () => {
    expect(ownState(new Map([['BOOT_ORDER', 'X Y']]), names)).toBeUndefined()
    const trial = new Map([
      ['BOOT_ORDER', 'B A'],
      ['BISTABLE_PRIMARY', 'A'],
    ])
    for (const [text, left] of [
      ['0x2', 2],
      ['9', 9],
      ['a', 9],
      ['', 0],
      ['x', 0],
    ] as const)
      expect(ownState(new Map([...trial, ['BOOT_B_LEFT', text]]), names)?.left, text).toBe(left)
  })

  test('fw_env.config: comments, hexadecimal, the end of the device; one copy, raw flash and odd places are refused', () => {
    expect(parseFwEnvConfig('# x\n/dev/mmcblk0 -0x4000 0x2000 # first\n\n/dev/mmcblk0 8192 0x2000 0x2000 1\n')).toEqual(
      [
        { device: '/dev/mmcblk0', offset: -0x4000, size: 0x2000 },
        { device: '/dev/mmcblk0', offset: 8192, size: 0x2000 },
      ],
    )
    const line = '/dev/mmcblk0 0x0 0x2000\n'
    const two = (other: string) => line + other
    for (const bad of [
      '',
      line,
      line + line + line,
      two('/dev/mmcblk0 0x0 0x4000'),
      two('/dev/mmcblk0 1 0x2000'),
      two('mtd 0 0x2000'),
      two('/dev/mtd0 0x0 0x2000'),
      two('/dev/x 0x0'),
      two('/dev/x 0x0 0x200000'),
    ])
      expect(
        codeOf(() => parseFwEnvConfig(bad)),
        bad,
      ).toBe('BOOT_ENV_CONFIG')
  })
})
