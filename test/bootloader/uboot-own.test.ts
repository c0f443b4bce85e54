import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { countIn } from '../../bootloader/boot-counter.ts'
import { arm, claim, commit, refuse } from '../../bootloader/machine.ts'
import { encodeEnv } from '../../bootloader/uboot-env.ts'
import { parseFwEnvConfig } from '../../bootloader/uboot-own.ts'
import { ownState, withState } from '../../bootloader/uboot-own-names.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { readPlaces } from '../../device/agent/places.ts'
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

const slots = { slotVariable: 'rootpart', a: '2', b: '3' }

/** As SWUpdate leaves a board: the variable of the board's own script, U-Boot's counter, and the way back. */
function swupdateBoard(name: string): {
  readonly config: string
  print(name: string): string
  set(...words: string[]): void
} {
  const { medium, config } = board(name)
  const variables = new Map([
    ['rootpart', '2'],
    ['bootcmd', 'run mmcboot'],
    ['altbootcmd', 'setenv rootpart ${BISTABLE_PRIMARY}; setenv upgrade_available 0; setenv ustate 3; saveenv; boot'],
    ['bootlimit', '1'],
    ['ustate', '0'],
  ])
  const image = readFileSync(medium)
  image.set(encodeEnv({ variables, flag: 1 }, SIZE), 0x400000)
  image.set(encodeEnv({ variables, flag: 0 }, SIZE), 0x400000 + SIZE)
  writeFileSync(medium, image)
  return {
    config,
    print: (variable) => execFileSync('fw_printenv', ['-c', config, '-n', variable], { env, encoding: 'utf8' }).trim(),
    set: (...words) => execFileSync('fw_setenv', ['-c', config, ...words], { env }),
  }
}

/** What U-Boot does at a start (drivers/bootcount/bootcount_env.c, doc/api/bootcount.rst). @returns the slot's name */
function ubootStarts({ print, set }: ReturnType<typeof swupdateBoard>): string {
  if (print('upgrade_available') === '1') {
    const count = Number(print('bootcount')) + 1
    set('bootcount', String(count))
    if (count > Number(print('bootlimit'))) {
      set('rootpart', print('BISTABLE_PRIMARY'))
      set('upgrade_available', '0')
      set('ustate', '3')
    }
  }
  return print('rootpart')
}

describe.skipIf(!have('fw_printenv', 'fw_setenv'))('a board brought up for SWUpdate', () => {
  const openSlots = (config: string) =>
    openBackend(
      { boot: { kind: 'uboot-environment', config, names: { a: '2', b: '3' }, slotVariable: 'rootpart' } },
      NO_EDGE,
    )

  test('is read, armed, tried as often as it was told, and falls back by its own script', async () => {
    const device = swupdateBoard('swupdate')
    const backend = await openSlots(device.config)
    const { state } = await backend.read()
    expect(state).toEqual({ generation: 0, primary: 'a', trial: undefined, left: 0, spare: false })
    if (state === undefined) return
    const armed = arm(claim(state), 'b', 2)
    await backend.write(armed)
    const said = ['rootpart', 'upgrade_available', 'bootcount', 'bootlimit', 'ustate'].map(device.print)
    expect(said).toEqual(['3', '1', '0', '2', '1'])
    for (const left of [1, 0]) {
      expect(ubootStarts(device)).toBe('3')
      expect((await backend.read()).state).toEqual({ ...armed, left })
    }
    expect(ubootStarts(device)).toBe('2')
    expect((await backend.read()).state).toEqual({ ...armed, left: 0 })
    // From now on it is the committed slot's turn, without end.
    for (let start = 0; start < 5; start++) expect(ubootStarts(device)).toBe('2')
    expect(device.print('bootcmd')).toBe('run mmcboot')
    await backend.close()
  })

  test('a try is committed, the next one refused; a count that a committed slot has is taken back', async () => {
    const device = swupdateBoard('swupdate-commit')
    const backend = await openSlots(device.config)
    const { state } = await backend.read()
    if (state === undefined) throw new Error('no state')
    const armed = arm(claim(state), 'b', 3)
    await backend.write(armed)
    ubootStarts(device)
    await backend.clearReason('b')
    expect(device.print('bootcount')).toBe('1')
    const done = commit({ ...armed, left: 2 }, 'b')
    await backend.write(done)
    expect(await backend.read()).toEqual({ state: done, torn: false })
    expect(['rootpart', 'upgrade_available', 'ustate'].map(device.print)).toEqual(['3', '0', '0'])
    device.set('bootcount', '4')
    await backend.clearReason('b')
    expect([device.print('bootcount'), ubootStarts(device)]).toEqual(['0', '3'])
    const again = arm(claim(done), 'a', 3)
    await backend.write(again)
    expect(ubootStarts(device)).toBe('2')
    const given = refuse({ ...again, left: 2 }, 'a')
    await backend.write(given)
    expect((await backend.read()).state).toEqual(given)
    expect([ubootStarts(device), device.print('ustate')]).toEqual(['3', '3'])
    await backend.close()
  })

  test('what SWUpdate itself does meanwhile counts: a try of its own, a commit of its own', async () => {
    const device = swupdateBoard('swupdate-both')
    const backend = await openSlots(device.config)
    device.set('rootpart', '3')
    device.set('upgrade_available', '1')
    device.set('bootcount', '0')
    device.set('ustate', '1')
    expect((await backend.read()).state).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    device.set('upgrade_available', '0')
    device.set('ustate', '0')
    device.set('BISTABLE_PRIMARY', '2')
    expect((await backend.read()).state).toMatchObject({ primary: 'b', trial: undefined, spare: false })
    await backend.close()
  })
})

describe.skipIf(!have('fw_printenv', 'fw_setenv'))('a board that counts in a register', () => {
  /** The register is a file; its programs do what devmem does. */
  function register(name: string, word = '0x00000000') {
    const { config, print, set } = swupdateBoard(name)
    const file = `${config}.register`
    const write = (text: string) => writeFileSync(file, `${text}\n`)
    write(word)
    const counter = {
      read: ['/bin/cat', file] as [string, ...string[]],
      reset: ['/bin/sh', '-c', `echo 0xB0010000 > ${file}`] as [string, ...string[]],
      seconds: 5,
    }
    return { config, print, set, counter, write, read: () => readFileSync(file, 'utf8').trim() }
  }

  const openCounted = ({ config, counter }: ReturnType<typeof register>) =>
    openBackend(
      { boot: { kind: 'uboot-environment', config, names: { a: '2', b: '3' }, slotVariable: 'rootpart', counter } },
      NO_EDGE,
    )

  /** U-Boot counts every start, whatever the environment says, and its limit is the environment's; 0 or none is no limit. */
  function starts({ print, set, read, write }: ReturnType<typeof register>): string {
    const count = (countIn(read()) ?? 0) + 1
    write(`0x${(0xb001_0000 + count).toString(16).toUpperCase()}`)
    const limit = Number(print('bootlimit'))
    if (limit > 0 && count > limit) {
      set('rootpart', print('BISTABLE_PRIMARY'))
      set('upgrade_available', '0')
      set('ustate', '3')
    }
    return print('rootpart')
  }

  test('gives a trial its tries, whatever the register held before, and falls back', async () => {
    const device = register('register', '0xB0010007')
    const backend = await openCounted(device)
    const { state } = await backend.read()
    if (state === undefined) throw new Error('no state')
    const armed = arm(claim(state), 'b', 2)
    await backend.write(armed)
    expect([device.read(), device.print('bootlimit')]).toEqual(['0xB0010000', '2'])
    for (const left of [1, 0]) {
      expect(starts(device)).toBe('3')
      expect((await backend.read()).state).toEqual({ ...armed, left })
    }
    for (let start = 0; start < 3; start++) expect(starts(device)).toBe('2')
    expect((await backend.read()).state).toEqual({ ...armed, left: 0 })
    await backend.clearReason('a')
    expect(device.read()).toBe('0xB0010000')
    await backend.close()
  })

  test('a committed slot starts as often as it has to; the agent that came up sets the count to 0', async () => {
    const device = register('register-commit')
    const backend = await openCounted(device)
    const { state } = await backend.read()
    if (state === undefined) throw new Error('no state')
    const armed = arm(claim(state), 'b', 3)
    await backend.write(armed)
    starts(device)
    // The try's own count is the trial's.
    await backend.clearReason('b')
    expect(device.read()).toBe('0xB0010001')
    const done = commit({ ...armed, left: 2 }, 'b')
    await backend.write(done)
    for (let start = 0; start < 9; start++) expect(starts(device)).toBe('3')
    expect((await backend.read()).state).toEqual(done)
    await backend.clearReason('b')
    expect(device.read()).toBe('0xB0010000')
    await backend.close()
  })

  test('without its register nothing is armed: the environment stays as it was', async () => {
    const device = register('register-broken')
    const broken = { ...device, counter: { ...device.counter, reset: ['/bin/true'] as [string] } }
    const stuck = await openCounted(broken)
    const { state } = await stuck.read()
    if (state === undefined) throw new Error('no state')
    device.write('0xB0010002')
    expect(await codeOfAsync(() => stuck.write(arm(claim(state), 'b')))).toBe('BOOT_STATE_NOT_STORED')
    const silent = await openCounted({ ...device, counter: { ...device.counter, read: ['/bin/true'] } })
    expect(await codeOfAsync(() => silent.write(arm(claim(state), 'b')))).toBe('BOOT_COMMAND_FAILED')
    const failing = await openCounted({ ...device, counter: { ...device.counter, reset: ['/bin/false'] } })
    expect(await codeOfAsync(() => failing.write(arm(claim(state), 'b')))).toBe('BOOT_COMMAND_FAILED')
    expect((await stuck.read()).state).toEqual(state)
    expect(device.print('rootpart')).toBe('2')
    for (const backend of [stuck, silent, failing]) await backend.close()
  })

  test("a count is a number, or a word with U-Boot's magic above it", () => {
    const found = ['0', '3', ' 0xB0010003\n', '0x2', '65535', '0xb001ffff', '0x00000000', '0xB0020003', '2952855555']
    expect(found.map(countIn)).toEqual([0, 3, 3, 2, 65535, 65535, 0, 0, 3])
    for (const text of ['', 'x', '-1', '1 2', '0xB00100031', '4294967296', '99999999999', '1.5'])
      expect(countIn(text), text).toBeUndefined()
  })

  test('a counter without a slot variable is refused', async () => {
    const device = register('register-rauc')
    const { config, counter } = device
    const places = join(dir, 'places.json')
    const boot = { kind: 'uboot-environment', config, counter }
    writeFileSync(places, JSON.stringify({ boot }))
    expect(await codeOfAsync(() => readPlaces(places, nodeFiles))).toBe('CONFIG_INVALID')
    writeFileSync(places, JSON.stringify({ boot: { ...boot, slotVariable: 'rootpart' } }))
    expect((await readPlaces(places, nodeFiles))?.boot).toMatchObject({ counter: { seconds: 5 } })
  })
})

describe('the mapping', () => {
  test('every state goes there and back, whatever the slots are called', () => {
    for (const state of allStates(41))
      for (const called of [names, { a: 'system0', b: 'system1' }, slots])
        expect(ownState(withState(new Map(), state, called), called)).toEqual(state)
  })

  test("SWUpdate's: a slot of strangers is no state; counts are decimal and nothing else", () => {
    expect(ownState(new Map([['rootpart', '7']]), slots)).toBeUndefined()
    expect(ownState(new Map(), slots)).toBeUndefined()
    const trial = { rootpart: '3', upgrade_available: '1', BISTABLE_PRIMARY: '2', bootlimit: '3' }
    for (const [count, left] of [
      ['0', 3],
      ['3', 0],
      ['10', 0],
      ['0x2', 3],
      ['-1', 3],
      ['', 3],
    ] as const)
      expect(ownState(new Map(Object.entries({ ...trial, bootcount: count })), slots)?.left, count).toBe(left)
    expect(ownState(new Map(Object.entries({ ...trial, bootlimit: 'x' })), slots)?.left).toBe(9)
    expect(ownState(new Map(Object.entries({ ...trial, rootpart: '2' })), slots)?.trial).toBeUndefined()
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
