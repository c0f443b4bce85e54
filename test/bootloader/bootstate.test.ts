import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { bootStateOn, bootstateImage, openBootState } from '../../bootloader/bootstate.ts'
import { biosImages, placeOnDisk } from '../../bootloader/grub-bios.ts'
import { encodeCopy } from '../../bootloader/grub-env.ts'
import { grubImage } from '../../bootloader/grub-image.ts'
import { FILES } from '../../bootloader/layout.ts'
import { arm, commit, freshState, renew } from '../../bootloader/machine.ts'
import type { RawDevice } from '../../bootloader/raw-device.ts'
import { encodeReason } from '../../bootloader/reason.ts'
import { have, run } from '../helpers/run.ts'

const dir = mkdtempSync(join(tmpdir(), 'bistable-bootstate-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
const code = (name: string) => expect.objectContaining({ code: name })
const fresh = freshState('a')

/** A partition in memory that records what is done to it; `lose` throws writes away, `fail` refuses them. */
function recorder(image: Uint8Array): RawDevice & { log: string[]; bytes: Uint8Array; mode: 'keep' | 'lose' | 'fail' } {
  const device = {
    name: 'memory',
    bytes: Uint8Array.from(image),
    log: [] as string[],
    mode: 'keep' as 'keep' | 'lose' | 'fail',
    read: async (offset: number, length: number) => {
      device.log.push(`read ${offset} ${length}`)
      return device.bytes.slice(offset, offset + length)
    },
    write: async (offset: number, bytes: Uint8Array) => {
      device.log.push(`write ${offset} ${bytes.length}`)
      if (device.mode === 'fail') throw new Error('input/output error')
      if (device.mode === 'keep') device.bytes.set(bytes, offset)
    },
    flush: async () => {
      device.log.push('flush')
    },
    close: async () => {},
  }
  return device
}

describe('the partition', () => {
  test.skipIf(!have('fsck.fat', 'mtype'))('is a sound FAT whose files are where the constants say', async () => {
    const path = join(dir, 'bs.img')
    const image = await bootstateImage(arm(fresh, 'b'))
    expect(Buffer.compare(await bootstateImage(arm(fresh, 'b')), image)).toBe(0)
    writeFileSync(path, image)
    expect(run('fsck.fat', ['-n', '-v', path])).toContain('3 files')
    for (const { name, offset } of FILES)
      expect(run('mtype', ['-i', path, `::${name}`])).toBe(
        Buffer.from(image.subarray(offset, offset + 1024)).toString('latin1'),
      )
  })

  test('another file system, a short file and no file are refused', async () => {
    const path = join(dir, 'other.img')
    const image = await bootstateImage(fresh)
    image[600] = 1
    writeFileSync(path, image)
    await expect(openBootState(path)).rejects.toThrow(code('BOOT_STATE_LAYOUT'))
    truncateSync(path, 512)
    await expect(openBootState(path)).rejects.toThrow(code('BOOT_STATE_READ'))
    await expect(openBootState(join(dir, 'missing'))).rejects.toThrow(code('BOOT_STATE_READ'))
  })

  test('states go in and out of a real file, past the cache', async () => {
    const path = join(dir, 'real.img')
    writeFileSync(path, await bootstateImage(fresh))
    const device = await openBootState(path)
    expect(await device.read()).toMatchObject({ state: fresh, source: 0 })
    const armed = arm(fresh, 'b')
    await device.write(armed)
    expect(await device.read()).toMatchObject({ state: armed, source: 1 })
    const done = commit({ ...armed, left: 2 }, 'b')
    await device.write(done)
    expect(await device.read()).toMatchObject({ state: done, source: 0 })
    await device.clearReason('b')
    expect(await device.reason()).toEqual({ starts: { a: 0, b: 0, up: 'b' }, failure: undefined })
    await device.close()
    const image = readFileSync(path)
    expect(image.subarray(FILES[0].offset, FILES[0].offset + 1024).equals(encodeCopy(done))).toBe(true)
  })
})

describe('a write', () => {
  test('is one sector to the copy that does not count, flushed, then read back', async () => {
    const device = recorder(await bootstateImage(fresh))
    const armed = arm(fresh, 'b')
    await bootStateOn(device).write(armed)
    expect(device.log.filter((line) => !line.startsWith('read'))).toEqual([`write ${FILES[1].offset} 512`, 'flush'])
    expect(device.log.at(-1)).toBe(`read ${FILES[1].offset} 1024`)
    device.log.length = 0
    await bootStateOn(device).write(renew(armed))
    expect(device.log.filter((line) => !line.startsWith('read'))).toEqual([`write ${FILES[0].offset} 512`, 'flush'])
  })

  test('goes to the torn copy, and mends its second sector first', async () => {
    const image = await bootstateImage(fresh)
    image.fill(0xa5, FILES[1].offset, FILES[1].offset + 1024)
    const device = recorder(image)
    const boot = bootStateOn(device)
    expect((await boot.read()).copies[1]).toEqual({ kind: 'torn', detail: 'no GRUB environment block' })
    await boot.write(renew(fresh))
    const { offset } = FILES[1]
    expect(device.log.filter((line) => !line.startsWith('read'))).toEqual([
      ...[`write ${offset + 512} 512`, 'flush', `write ${offset} 512`, 'flush'],
    ])
    expect((await boot.read()).copies.map((copy) => copy.kind)).toEqual(['valid', 'valid'])
  })

  test('cut at any byte leaves the old state or the new one', async () => {
    const image = await bootstateImage(fresh)
    const armed = arm(fresh, 'b')
    for (let cut = 0; cut <= 512; cut++) {
      const device = recorder(image)
      device.bytes.set(encodeCopy(armed).subarray(0, cut), FILES[1].offset)
      const { state } = await bootStateOn(device).read()
      expect([fresh, armed]).toContainEqual(state)
      if (cut >= 85) expect(state).toEqual(armed)
    }
  })

  test('that fails or is lost has a name, and the old state still counts', async () => {
    const device = recorder(await bootstateImage(fresh))
    const boot = bootStateOn(device)
    device.mode = 'fail'
    await expect(boot.write(arm(fresh, 'b'))).rejects.toThrow(code('BOOT_STATE_WRITE'))
    device.mode = 'lose'
    await expect(boot.write(arm(fresh, 'b'))).rejects.toThrow(code('BOOT_STATE_NOT_STORED'))
    expect((await boot.read()).state).toEqual(fresh)
  })

  test('needs a higher generation than what is stored', async () => {
    const boot = bootStateOn(recorder(await bootstateImage(fresh)))
    await expect(boot.write(fresh)).rejects.toThrow(code('BOOT_STATE_INVALID'))
  })

  test('starts anew when neither copy can be read', async () => {
    const image = await bootstateImage(fresh)
    for (const { offset } of FILES) image.fill(0, offset, offset + 1024)
    const boot = bootStateOn(recorder(image))
    expect(await boot.read()).toMatchObject({ state: undefined, source: undefined })
    await boot.write(freshState('b'))
    expect((await boot.read()).state).toEqual(freshState('b'))
  })

  test('of a reason happens only when there is something to clear', async () => {
    const device = recorder(await bootstateImage(fresh))
    const boot = bootStateOn(device)
    await boot.clearReason('a')
    expect(device.log.some((line) => line.startsWith('write'))).toBe(false)
    const failure = { slot: 'b', stage: 'verity', text: 'data block 7 is corrupted' } as const
    device.bytes.set(encodeReason({ starts: { a: 1, b: 3, up: 'a' }, failure }), FILES[2].offset)
    expect(await boot.reason()).toEqual({ starts: { a: 1, b: 3, up: 'a' }, failure })
    await boot.clearReason('a')
    expect(await boot.reason()).toEqual({ starts: { a: 0, b: 0, up: 'a' }, failure: undefined })
  })
})

describe('the EFI image', () => {
  test.skipIf(!have('grub-mkimage'))('is the same bytes every time, and differs by its options', async () => {
    const paths = ['1.efi', '2.efi', 'menu.efi', 'closed.efi'].map((name) => join(dir, name))
    const [one = '', two = '', menu = '', closed = ''] = paths
    await grubImage(one)
    await grubImage(two)
    await grubImage(menu, { menuSeconds: 5 })
    await grubImage(closed, { closed: true })
    await expect(grubImage(closed, { closed: true, menuSeconds: 5 })).rejects.toThrow('a closed image has no menu')
    expect(readFileSync(one).equals(readFileSync(two))).toBe(true)
    expect(readFileSync(one).equals(readFileSync(menu))).toBe(false)
    expect(readFileSync(one).subarray(0, 2).toString()).toBe('MZ')
    expect(readFileSync(one).includes('set bs_menu_seconds=0')).toBe(true)
    expect([one, closed].map((path) => readFileSync(path).includes('set bs_closed=1'))).toEqual([false, true])
  })

  test('core.img goes where boot.img looks for it; what is no image of GRUB is refused', () => {
    const core = Buffer.alloc(3 * 512 - 100, 1)
    core.writeUInt16LE(2, 508)
    const placed = placeOnDisk(Buffer.alloc(512, 7), core, 34)
    expect(placed.code.length).toBe(440)
    expect(Buffer.from(placed.code).readBigUInt64LE(0x5c)).toBe(34n)
    expect(placed.core.length).toBe(3 * 512)
    expect(Buffer.from(placed.core).readBigUInt64LE(500)).toBe(35n)
    core.writeUInt16LE(9, 508)
    expect(() => placeOnDisk(Buffer.alloc(512), core, 34)).toThrow('another number of sectors')
    expect(() => placeOnDisk(Buffer.alloc(511), core, 34)).toThrow('not boot.img')
  })

  test('a missing tool has a name', async () => {
    await expect(biosImages(Buffer.alloc(1024), 34, dir)).rejects.toThrow(code('BOOT_TOOL_MISSING'))
    await expect(grubImage(join(dir, 'no/such/folder.efi'))).rejects.toThrow(code('BOOT_TOOL_MISSING'))
  })
})
