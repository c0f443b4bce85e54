import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { decodeAutoboot, encodeAutoboot } from '../../bootloader/autoboot.ts'
import { arm, claim, commit, freshState, refuse } from '../../bootloader/machine.ts'
import { NO_REASON } from '../../bootloader/reason.ts'
import type { BootState } from '../../bootloader/state.ts'
import { flagAt, trybootBackend } from '../../bootloader/tryboot.ts'
import { openBackend } from '../../device/agent/backends.ts'
import { readPlaces } from '../../device/agent/places.ts'
import { NO_EDGE } from '../helpers/backend-edge.ts'
import { anyMove, picker } from '../helpers/boot-moves.ts'

/** `autoboot.txt` against what Raspberry Pi's documentation says of it; no emulator runs that firmware. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-tryboot-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const partitions = { a: 2, b: 3 }
const file = join(dir, 'autoboot.txt')
const reasons = { reason: async () => NO_REASON, clearReason: async () => undefined }
const backend = (inTryboot = false) => trybootBackend({ file, partitions, inTryboot: async () => inTryboot, reasons })

/** The partition that the firmware starts, read as its documentation says: sections hold or do not, the last line wins. */
function firmware(tryboot: boolean): number | undefined {
  let applies = true
  let partition: number | undefined
  let ab = false
  for (const line of readFileSync(file, 'latin1').split('\n')) {
    if (line.startsWith('[')) applies = line === '[all]' || (line === '[tryboot]' && tryboot)
    else if (applies && line === 'tryboot_a_b=1') ab = true
    else if (applies && line.startsWith('boot_partition=')) partition = Number(line.slice(15))
  }
  return tryboot && !ab ? undefined : partition
}

const now = async (): Promise<BootState> => (await backend().read()).state ?? freshState('a')

describe('autoboot.txt', () => {
  it('follows an update that is committed, and one that is not', async () => {
    writeFileSync(file, '')
    expect(await backend().read()).toEqual({ state: undefined, torn: false })
    await backend().write(freshState('a'))
    expect([firmware(false), firmware(true)]).toEqual([2, 2])
    await backend().write(arm(claim(await now()), 'b', 1))
    expect([firmware(false), firmware(true)]).toEqual([2, 3])
    // A power cut before the reboot: nothing was tried, it is still armed.
    expect(await now()).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    expect(await backend().rebootArgument?.()).toBe('0 tryboot')
    expect(readFileSync(file).length).toBe(512)
    // In the try, by the firmware's flag; and after it, without the flag.
    expect((await backend(true).read()).state).toMatchObject({ primary: 'a', trial: 'b', left: 1 })
    expect(await now()).toMatchObject({ primary: 'a', trial: 'b', left: 0 })
    // A reboot out of the try is an ordinary one.
    expect(await backend(true).rebootArgument?.()).toBeUndefined()
    await backend(true).write(refuse(await now(), 'b'))
    expect((await backend(true).read()).state).toMatchObject({ trial: 'b', left: 0 })

    await backend().write(arm(claim(await now()), 'b', 1))
    await backend().rebootArgument?.()
    await backend(true).write(commit((await backend(true).read()).state ?? freshState('a'), 'b'))
    expect([firmware(false), firmware(true)]).toEqual([3, 3])
    expect(await now()).toMatchObject({ primary: 'b', trial: undefined, spare: true })
    expect(await backend().rebootArgument?.()).toBeUndefined()
    await expect(backend().write(freshState('a'))).rejects.toMatchObject({ code: 'BOOT_STATE_INVALID' })
  })

  it('holds every state that a chain of moves leads to, in one sector', async () => {
    writeFileSync(file, 'boot_partition=1\n'.repeat(80))
    await backend().write(freshState('a'))
    const pick = picker(5)
    for (let n = 0; n < 100; n++) {
      const state = await now()
      const next = anyMove(state, pick, () => 1, 1)
      await backend().write(next)
      expect(await now()).toEqual(next)
      expect(firmware(false)).toBe(partitions[next.primary])
      expect(firmware(true)).toBe(partitions[next.trial ?? next.primary])
      expect(readFileSync(file).length).toBe(512)
    }
  })

  it('what the firmware would start counts, whatever the comment says', () => {
    const state = arm(freshState('a'), 'b', 1)
    const text = Buffer.from(encodeAutoboot({ state, underWay: false }, partitions)).toString('latin1')
    const read = (changed: string) => decodeAutoboot(Buffer.from(changed), partitions)
    expect(read(text)).toEqual({ state, underWay: false })
    expect(read(text.replace('boot_partition=2', 'boot_partition=3'))?.state).toMatchObject({
      primary: 'b',
      trial: undefined,
    })
    expect(read(text.replace('boot_partition=3', 'boot_partition=2'))?.state).toMatchObject({
      primary: 'a',
      trial: undefined,
    })
    expect(read(text.replace(/^#.*$/m, ''))?.state).toMatchObject({ primary: 'a', trial: undefined, spare: false })
    expect(read(text.replace('boot_partition=2', 'boot_partition=9'))).toBeUndefined()
    expect(read('')).toBeUndefined()
    for (let cut = 0; cut < text.length; cut++)
      expect(read(text.slice(0, cut))?.state.primary ?? 'a', `cut at ${cut}`).toBe('a')
  })

  it('is chosen by places.json; wrong settings and a file that cannot be read are named', async () => {
    const places = join(dir, 'places.json')
    const given = async (boot: object) => {
      writeFileSync(places, JSON.stringify({ boot: { kind: 'tryboot', file, partitions, ...boot } }))
      return await openBackend(await readPlaces(places, nodeFiles), NO_EDGE)
    }
    expect((await given({})).describe()).toEqual({ name: 'tryboot', place: file, maxTries: 1 })
    await expect(given({ partitions: { a: 2, b: 2 } })).rejects.toMatchObject({ code: 'CONFIG_INVALID' })
    await expect((await given({ file: join(dir, 'none') })).read()).rejects.toMatchObject({ code: 'BOOT_STATE_READ' })
    const flag = join(dir, 'flag')
    expect(await flagAt(flag)).toBe(false)
    writeFileSync(flag, Uint8Array.from([0, 0, 0, 1]))
    expect(await flagAt(flag)).toBe(true)
  })
})
