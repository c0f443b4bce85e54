import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { FILES } from '../../bootloader/layout.ts'
import { arm, commit, freshState } from '../../bootloader/machine.ts'
import { openRawDevice } from '../../bootloader/raw-device.ts'
import { decodeUbootCopy, isUbootPartition, ubootBootstateImage, ubootStateOn } from '../../bootloader/uboot.ts'
import { chooseEnv, decodeEnv, encodeEnv } from '../../bootloader/uboot-env.ts'
import { stateFrom, stateVariables } from '../../bootloader/uboot-state.ts'
import { have } from '../helpers/run.ts'
import { allStates } from '../helpers/uboot-cases.ts'

/** The environment codec against libubootenv's fw_printenv and fw_setenv, on the same bytes. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-uboot-env-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const tools = have('fw_printenv', 'fw_setenv')
const SIZE = 512
const PATH = `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`

/** One file with two copies side by side, and its fw_env.config. */
const pair = join(dir, 'pair')
const config = join(dir, 'fw_env.config')
writeFileSync(config, `${pair} 0x0 0x200\n${pair} 0x200 0x200\n`)
const nothing = join(dir, 'nothing')
writeFileSync(nothing, '')

/** `which=0` or `which=1`; undefined when libubootenv finds no environment. */
function asks(first: Uint8Array, second: Uint8Array): string | undefined {
  writeFileSync(pair, Buffer.concat([first, second]))
  const done = spawnSync('fw_printenv', ['-c', config, '-f', nothing, '-n', 'which'], {
    encoding: 'latin1',
    env: { PATH },
  })
  return done.status === 0 ? done.stdout.trim() : undefined
}

const copy = (which: string, flag: number, good: boolean): Uint8Array => {
  const bytes = encodeEnv({ variables: new Map([['which', which]]), flag }, SIZE)
  if (!good) bytes[SIZE - 1] = 1
  return bytes
}

describe.skipIf(!tools)('libubootenv', () => {
  test('reads the copy that we read, over flags and checksums good and bad', () => {
    const flags = [0, 1, 2, 127, 128, 129, 254, 255]
    let asked = 0
    for (const a of flags)
      for (const b of flags)
        for (const good of [
          [true, true],
          [true, false],
          [false, true],
        ] as const) {
          // With one bad copy the flags do not matter; a few are enough.
          if (!(good[0] && good[1]) && (a + b) % 5 !== 0) continue
          const copies = [copy('0', a, good[0]), copy('1', b, good[1])] as const
          const ours = chooseEnv([decodeEnv(copies[0], 'redundant'), decodeEnv(copies[1], 'redundant')])
          expect(asks(...copies), `flags ${a} ${b} good ${good}`).toBe(String(ours))
          asked++
        }
    expect(asked).toBeGreaterThan(80)
    expect(asks(copy('0', 1, false), copy('1', 2, false)) ?? '').toBe('')
  })

  test('what fw_setenv writes we read, and our next copy replaces it', async () => {
    const partition = join(dir, 'partition')
    writeFileSync(partition, ubootBootstateImage(freshState('a')))
    const own = join(dir, 'own.config')
    writeFileSync(own, `${partition} 0x40000 0x200\n${partition} 0x80000 0x200\n`)
    const print = () =>
      execFileSync('fw_printenv', ['-c', own], { encoding: 'latin1', env: { PATH } }).trim().split('\n').sort()
    const wanted = (state: Parameters<typeof stateVariables>[0]) =>
      [...stateVariables(state)].map(([k, v]) => `${k}=${v}`).sort()
    expect(print()).toEqual(wanted(freshState('a')))
    const backend = ubootStateOn(await openRawDevice(partition))
    const armed = arm(freshState('a'), 'b')
    await backend.write(armed)
    expect(print()).toEqual(wanted(armed))
    execFileSync('fw_setenv', ['-c', own, 'BOOT_B_LEFT', '1'], { env: { PATH } })
    expect((await backend.read()).state).toEqual({ ...armed, left: 1 })
    const done = commit({ ...armed, left: 1 }, 'b')
    await backend.write(done)
    expect(print()).toEqual(wanted(done))
    // A variable of somebody else's costs nothing but is not kept.
    execFileSync('fw_setenv', ['-c', own, 'note', 'hello'], { env: { PATH } })
    expect(await backend.read()).toEqual({ state: done, torn: false })
    await backend.close()
  })
})

describe('the codec', () => {
  test('every bit flipped is noticed, save in the flag', () => {
    const good = encodeEnv({ variables: stateVariables(freshState('a')), flag: 7 }, SIZE)
    for (let bit = 0; bit < SIZE * 8; bit++) {
      const bad = Uint8Array.from(good)
      bad[bit >> 3] = (bad[bit >> 3] ?? 0) ^ (1 << (bit & 7))
      const got = decodeEnv(bad, 'redundant')
      if (bit >> 3 === 4) expect(got?.variables).toEqual(new Map(stateVariables(freshState('a'))))
      else expect(got, `bit ${bit}`).toBeUndefined()
    }
  })

  test('single and redundant, full and overfull', () => {
    const fits = new Map([['n', 'x'.repeat(SIZE - 4 - 4)]])
    expect(decodeEnv(encodeEnv({ variables: fits, flag: undefined }, SIZE), 'single')?.variables).toEqual(fits)
    expect(() => encodeEnv({ variables: fits, flag: 0 }, SIZE)).toThrow('more than 512 bytes')
    expect(() => encodeEnv({ variables: new Map([['a=b', 'c']]), flag: 0 }, SIZE)).toThrow('cannot stand')
    expect(() => encodeEnv({ variables: new Map([['a', 'b\0c']]), flag: 0 }, SIZE)).toThrow('cannot stand')
    expect(decodeEnv(new Uint8Array(4), 'single')).toBeUndefined()
  })

  test('every state goes there and back, and takes one sector', () => {
    for (const state of allStates(9_999_999_999 - 1)) {
      expect(stateFrom(new Map<string, string>(stateVariables(state)))).toEqual(state)
      expect(encodeEnv({ variables: stateVariables(state), flag: 255 }, SIZE).length).toBe(SIZE)
    }
  })
})

describe('the partition', () => {
  test('says that it is U-Boot’s, and holds a state and where it came up', async () => {
    const path = join(dir, 'fresh')
    writeFileSync(path, ubootBootstateImage(freshState('b')))
    const device = await openRawDevice(path)
    expect(await isUbootPartition(device)).toBe(true)
    const backend = ubootStateOn(device)
    expect(await backend.read()).toEqual({ state: freshState('b'), torn: false })
    expect((await backend.reason()).starts).toEqual({ a: 0, b: 0, up: 'b' })
    await backend.close()
  })

  test('a write goes to the other copy, one sector, and a damaged copy is healed', async () => {
    const path = join(dir, 'heal')
    const image = ubootBootstateImage(freshState('a'))
    image.fill(0xaa, FILES[1].offset, FILES[1].offset + 100)
    writeFileSync(path, image)
    const backend = ubootStateOn(await openRawDevice(path))
    expect(await backend.read()).toEqual({ state: freshState('a'), torn: true })
    await expect(backend.write(freshState('a'))).rejects.toMatchObject({ code: 'BOOT_STATE_INVALID' })
    const armed = arm(freshState('a'), 'b')
    await backend.write(armed)
    expect(await backend.read()).toEqual({ state: armed, torn: false })
    const after = readFileSync(path)
    const changed = after.findIndex((byte, n) => byte !== image[n])
    expect(changed).toBe(FILES[1].offset)
    expect(Buffer.compare(after.subarray(changed + 512), image.subarray(changed + 512))).toBe(0)
    expect(decodeUbootCopy(after.subarray(changed, changed + 512))?.env.flag).toBe(2)
    await backend.close()
  })
})
