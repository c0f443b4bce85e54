import { execFileSync } from 'node:child_process'
import {
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  statfsSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { pageAligned } from '../../base/aligned.ts'
import { MiB } from '../../base/bytes.ts'
import { openForReuse, openSlotDevice } from '../../device/slots/block.ts'
import { openDirect } from '../../device/slots/direct.ts'
import {
  checkNotInUse,
  findRunningDisk,
  findSlots,
  parseMountInfo,
  placeAt,
  slotPathsFromEnv,
} from '../../device/slots/find.ts'
import { nodeSys } from '../../device/slots/sys.ts'
import type { SlotPlace } from '../../device/slots/types.ts'
import { createSlotWriter } from '../../device/slots/writer.ts'
import { haveTool, noise, run, scratch } from '../bundle/tools.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { ioError, Machine, ModelDevice, randomFrom } from './model.ts'

/** A made-up /sys and /proc: disk vda with partitions, and what is mounted. */
function machine(partitions: readonly string[], mountinfo: string, disk = 'vda'): string {
  const root = scratch()
  const write = (path: string, text: string): void => {
    mkdirSync(dirname(join(root, path)), { recursive: true })
    writeFileSync(join(root, path), text)
  }
  const add = (name: string, device: string, at: string, uevent: string): void => {
    write(`${at}/uevent`, uevent)
    write(`${at}/dev`, `${device}\n`)
    write(`${at}/size`, '2048\n')
    mkdirSync(join(root, at, 'holders'), { recursive: true })
    mkdirSync(join(root, at, 'slaves'), { recursive: true })
    for (const link of [`sys/class/block/${name}`, `sys/dev/block/${device}`]) {
      mkdirSync(dirname(join(root, link)), { recursive: true })
      symlinkSync(join(root, at), join(root, link))
    }
  }
  add(disk, '254:0', `sys/devices/pci/block/${disk}`, `DEVNAME=${disk}\nDEVTYPE=disk\n`)
  for (const [i, name] of partitions.entries()) {
    const at = `sys/devices/pci/block/${disk}/${disk}${i + 1}`
    add(
      `${disk}${i + 1}`,
      `254:${i + 1}`,
      at,
      `DEVNAME=${disk}${i + 1}\nDEVTYPE=partition\nPARTN=${i + 1}\nPARTNAME=${name}\n`,
    )
    write(`${at}/partition`, `${i + 1}\n`)
  }
  add('dm-0', '253:0', 'sys/devices/virtual/block/dm-0', 'DEVNAME=dm-0\nDEVTYPE=disk\n')
  write('proc/self/mountinfo', mountinfo)
  return root
}

const LAYOUT = ['esp', 'bootstate', 'boot-a', 'rootfs-a', 'boot-b', 'rootfs-b', 'data']
const MOUNTS = '21 1 253:0 / / ro - squashfs /dev/dm-0 ro\n22 21 254:7 / /data rw,relatime - ext4 /dev/vda7 rw\n'

describe('finding slots', () => {
  it('finds the four places by partition name, with their sizes', async () => {
    const sys = nodeSys(machine(LAYOUT, MOUNTS))
    const place = (name: string) => ({ path: `/dev/${name}`, kind: 'block', size: 1024 * 1024, kernelName: name })
    expect(await findSlots(sys, 'vda')).toEqual({
      a: { boot: place('vda3'), rootfs: place('vda4') },
      b: { boot: place('vda5'), rootfs: place('vda6') },
    })
  })

  it('looks on the running disk only', async () => {
    const sys = nodeSys(machine(LAYOUT, MOUNTS, 'sdb'))
    expect(await codeOfAsync(() => findSlots(sys, 'vda'))).toBe('SLOT_MISSING')
    expect(await codeOfAsync(() => findSlots(sys, undefined))).toBe('SLOT_DISK_UNKNOWN')
  })

  it('refuses a missing and a doubled name', async () => {
    const missing = nodeSys(
      machine(
        LAYOUT.filter((name) => name !== 'rootfs-b'),
        MOUNTS,
      ),
    )
    await expect(findSlots(missing, 'vda')).rejects.toMatchObject({
      code: 'SLOT_MISSING',
      message: 'disk vda has no partition named rootfs-b; it has: esp, bootstate, boot-a, rootfs-a, boot-b, data',
    })
    const doubled = nodeSys(machine([...LAYOUT, 'boot-b'], MOUNTS))
    expect(await codeOfAsync(() => findSlots(doubled, 'vda'))).toBe('SLOT_AMBIGUOUS')
  })

  it('finds the running disk through device-mapper, else through /data', async () => {
    const root = machine(LAYOUT, MOUNTS)
    expect(await findRunningDisk(nodeSys(root))).toBe('dm-0')
    symlinkSync(join(root, 'sys/devices/pci/block/vda/vda4'), join(root, 'sys/devices/virtual/block/dm-0/slaves/vda4'))
    expect(await findRunningDisk(nodeSys(root))).toBe('vda')
    const overlay = machine(LAYOUT, MOUNTS.replace('253:0', '0:31'))
    expect(await findRunningDisk(nodeSys(overlay))).toBe('vda')
    expect(await findRunningDisk(nodeSys(machine(LAYOUT, '')))).toBeUndefined()
    expect(parseMountInfo('x\n\n36 35 98:0 /mnt1 /mnt2 rw - ext3 /dev/root rw\n')).toEqual([
      { device: '98:0', point: '/mnt2' },
    ])
  })

  it('refuses places that are mounted, held, or behind a loop device', async () => {
    const root = machine(LAYOUT, MOUNTS)
    const sys = nodeSys(root)
    const { a, b } = await findSlots(sys, 'vda')
    expect(await codeOfAsync(() => checkNotInUse(sys, b.rootfs))).toBe('accepted')
    mkdirSync(join(root, 'sys/devices/pci/block/vda/vda4/holders/dm-0'))
    await expect(checkNotInUse(sys, a.rootfs)).rejects.toMatchObject({ message: '/dev/vda4 is in use: held by dm-0' })
    const data: SlotPlace = { ...a.rootfs, path: '/dev/vda7', kernelName: 'vda7' }
    await expect(checkNotInUse(sys, data)).rejects.toMatchObject({
      code: 'SLOT_IN_USE',
      message: '/dev/vda7 is in use: mounted on /data',
    })
    const file = join(scratch(), 'slot.img')
    writeFileSync(file, '')
    mkdirSync(join(root, 'sys/class/block/loop3/loop'), { recursive: true })
    writeFileSync(join(root, 'sys/class/block/loop3/loop/backing_file'), `${file}\n`)
    expect(await codeOfAsync(async () => checkNotInUse(sys, await placeAt(sys, file)))).toBe('SLOT_IN_USE')
  })

  it('takes paths given by hand: all four, all different, all there', async () => {
    const dir = scratch()
    const path = (name: string) => join(dir, name)
    for (const name of ['ab', 'ar', 'bb', 'br']) writeFileSync(path(name), noise(4096 * name.charCodeAt(0)))
    const paths = { a: { boot: path('ab'), rootfs: path('ar') }, b: { boot: path('bb'), rootfs: path('br') } }
    const found = await findSlots(nodeSys(), undefined, paths)
    expect(found.b.rootfs).toEqual({ path: path('br'), kind: 'file', size: 4096 * 98, kernelName: undefined })
    symlinkSync(path('ab'), path('link'))
    const doubled = { ...paths, b: { boot: path('link'), rootfs: path('br') } }
    expect(await codeOfAsync(() => findSlots(nodeSys(), undefined, doubled))).toBe('SLOT_CONFIG')
    for (const wrong of ['nothing', '.'])
      expect(
        await codeOfAsync(() =>
          findSlots(nodeSys(), undefined, { ...paths, b: { boot: path(wrong), rootfs: path('br') } }),
        ),
      ).toBe('SLOT_MISSING')
    const env = {
      BISTABLE_SLOT_A_BOOT: '1',
      BISTABLE_SLOT_A_ROOTFS: '2',
      BISTABLE_SLOT_B_BOOT: '3',
      BISTABLE_SLOT_B_ROOTFS: '4',
    }
    expect(slotPathsFromEnv(env)).toEqual({ a: { boot: '1', rootfs: '2' }, b: { boot: '3', rootfs: '4' } })
    expect(slotPathsFromEnv({})).toBeUndefined()
    expect(codeOf(() => slotPathsFromEnv({ ...env, BISTABLE_SLOT_B_BOOT: '' }))).toBe('SLOT_CONFIG')
  })
})

async function fileDevice(bytes: Uint8Array) {
  const path = join(scratch(), 'slot')
  writeFileSync(path, bytes)
  const device = await openSlotDevice(await placeAt(nodeSys(), path))
  onTestFinished(() => device.close())
  return { path, device }
}

describe('slot devices', () => {
  it('reads from the medium at any place and length, as through the cache', async () => {
    const bytes = noise(3_000_000)
    const { device, path } = await fileDevice(bytes)
    // tmpfs keeps files in memory: there is no medium to read from.
    if (statfsSync(path).type !== 0x01021994) expect(device.freshness).toBe('direct')
    for (const [offset, length] of [
      [0, 4096],
      [1, 1],
      [4095, 2],
      [1_000_000, 1_048_577],
      [2_999_990, 10],
      [0, 3_000_000],
      [7, 0],
    ] as const)
      for (const fresh of [true, false]) {
        const into = new Uint8Array(length)
        await device.read(offset, into, { fresh })
        expect(Buffer.compare(into, bytes.subarray(offset, offset + length)), `${offset} ${length}`).toBe(0)
      }
    await expect(device.read(2_999_999, new Uint8Array(2), { fresh: true })).rejects.toThrow(RangeError)
    await expect(device.write(2_999_999, new Uint8Array(2))).rejects.toThrow(RangeError)
  })

  it('finds its alignment also when the file begins with a hole', async () => {
    const path = join(scratch(), 'slot')
    writeFileSync(path, '')
    truncateSync(path, 4 * 1024 * 1024)
    const device = await openSlotDevice(await placeAt(nodeSys(), path))
    onTestFinished(() => device.close())
    const bytes = noise(2_000_000)
    await device.write(1000, bytes)
    await device.flush()
    const into = new Uint8Array(bytes.length)
    await device.read(1000, into, { fresh: true })
    expect(Buffer.compare(into, bytes)).toBe(0)
  })

  it('writes past the page cache what is aligned, around it the rest, and both are there', async () => {
    const size = 2 * MiB
    const expected = noise(size)
    const { path, device } = await fileDevice(expected)
    const memory = pageAligned(MiB)
    const direct = await openDirect(path, size, 'r+')
    onTestFinished(() => direct?.close())
    // The head of a block, whole blocks, the tail of one; memory that is aligned as the place is, and other memory.
    for (const [offset, phase, length] of [
      [0, 0, MiB],
      [4096, 0, 8192],
      [5000, 5000 % 4096, 20_000],
      [300_000, 300_000 % 4096, 100],
      [400_001, 400_001 % 4096, 4095],
      [512_000, 0, 12_288],
      [512_001, 0, 12_288],
      [2 * MiB - 5000, 5000, 5000],
    ] as const) {
      const bytes = memory.subarray(phase, phase + length)
      bytes.set(noise(length, String(offset)))
      await device.write(offset, bytes)
      expected.set(bytes, offset)
      const into = new Uint8Array(length)
      for (const fresh of [false, true]) {
        await device.read(offset, into, { fresh })
        expect(Buffer.compare(into, bytes), `${offset} fresh ${fresh}`).toBe(0)
      }
    }
    await device.flush()
    expect(readFileSync(path).equals(expected)).toBe(true)
    if (direct === undefined) return
    expect(direct.cachedFirst(0, memory)).toBe(0)
    expect(direct.cachedFirst(1, memory.subarray(1))).toBe(4095)
    expect(direct.cachedFirst(0, memory.subarray(1))).toBe(MiB - 1)
    expect(direct.cachedFirst(4096, memory.subarray(0, 4095))).toBe(4095)
    expect(direct.cachedFirst(0, noise(8192))).toBe(8192)
    expect(await direct.write(0, memory.subarray(0, 10_000))).toBe(8192)
  })

  it('says when a slot shrank, vanished, or is something else', async () => {
    const { path, device } = await fileDevice(noise(100_000))
    truncateSync(path, 5000)
    for (const fresh of [true, false])
      expect(await codeOfAsync(() => device.read(8192, new Uint8Array(10), { fresh }))).toBe('SLOT_READ_FAILED')
    const place: SlotPlace = { path: join(dirname(path), 'gone'), kind: 'file', size: 10, kernelName: undefined }
    expect(await codeOfAsync(() => openSlotDevice(place))).toBe('SLOT_MISSING')
    expect(await codeOfAsync(() => openForReuse(place))).toBe('SLOT_MISSING')
    expect(await codeOfAsync(() => openSlotDevice({ ...place, path, kind: 'block' }))).toBe('SLOT_OPEN_FAILED')
    expect(await openDirect(place.path, 10, 'r')).toBeUndefined()
  })

  it.skipIf(process.getuid?.() !== 0 || !haveTool('losetup'))(
    'claims a block device, and is refused one in use',
    async () => {
      const image = join(scratch(), 'disk')
      writeFileSync(image, noise(2 * 1024 * 1024))
      const loop = run('losetup', '--find', '--show', image).trim()
      onTestFinished(() => void run('losetup', '-d', loop))
      const sys = nodeSys()
      const place = await placeAt(sys, loop)
      expect(place).toMatchObject({ kind: 'block', size: 2 * 1024 * 1024 })
      // The file behind it is in use now.
      expect(await codeOfAsync(async () => checkNotInUse(sys, await placeAt(sys, image)))).toBe('SLOT_IN_USE')
      const device = await openSlotDevice(place)
      expect(device.freshness).toBe('direct')
      expect(await codeOfAsync(() => openSlotDevice(place))).toBe('SLOT_IN_USE')
      const bytes = noise(300_001, 'x')
      await device.write(77, bytes)
      await device.flush()
      const into = new Uint8Array(bytes.length)
      await device.read(77, into, { fresh: true })
      expect(Buffer.compare(into, bytes)).toBe(0)
      await device.close()
      const again = await openForReuse(place)
      await again.read(77, into, { fresh: false })
      await again.close()
      expect(Buffer.compare(into, bytes)).toBe(0)
    },
  )

  it.skipIf(process.getuid?.() !== 0 || !haveTool('mount'))(
    'says that the file system under a slot file is full',
    async () => {
      const dir = scratch()
      execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=256k', 'none', dir])
      onTestFinished(() => void execFileSync('umount', [dir]))
      const path = join(dir, 'slot')
      closeSync(openSync(path, 'w'))
      truncateSync(path, 1024 * 1024)
      const device = await openSlotDevice(await placeAt(nodeSys(), path))
      expect(await codeOfAsync(() => device.write(0, noise(512 * 1024)))).toBe('SLOT_NO_SPACE')
      await device.close()
    },
  )
})

describe('slot writer', () => {
  it('gathers into pieces that end on 1 MiB, flushes in between, and loses nothing', async () => {
    const random = randomFrom(3)
    const size = 40 * 1024 * 1024
    const machine = new Machine()
    const device = new ModelDevice('d', Buffer.alloc(size), machine)
    const expected = Buffer.alloc(size)
    const writer = createSlotWriter(device, () => 0)
    const piece = noise(300_000)
    let at = 5
    while (at < size - 600_000) {
      const bytes = piece.subarray(0, 1 + Math.floor(random() * piece.length))
      await writer.write(at, bytes)
      expected.set(bytes, at)
      at += bytes.length + (random() < 0.1 ? 10_000 : 0)
    }
    await writer.finish()
    expect(device.medium.equals(expected)).toBe(true)
    const writes = machine.events.filter((event) => event.kind === 'write')
    for (const event of writes) {
      const end = event.offset + event.length
      expect(Math.floor(event.offset / 2 ** 20)).toBe(Math.floor((end - 1) / 2 ** 20))
    }
    expect(writes.filter((event) => event.length === 2 ** 20).length).toBeGreaterThan(15)
    // Never more than twice 16 MiB, and a piece, since the last flush but one.
    expect(machine.events.filter((event) => event.kind === 'flush').length).toBeGreaterThanOrEqual(3)
    expect(machine.events.at(-1)?.kind).toBe('flush')
  })

  it('keeps the first failure and writes no more', async () => {
    const device = new ModelDevice('d', Buffer.alloc(16 * 1024 * 1024), new Machine())
    let count = 0
    device.faults.onWrite = () => {
      count++
      throw ioError('EIO')
    }
    const writer = createSlotWriter(device, () => 0)
    const bytes = new Uint8Array(1024 * 1024)
    // Told when as many pieces as may wait are there, at the latest.
    const goOn = async () => {
      for (let at = 0; at < 9; at++) await writer.write(at * bytes.length, bytes)
    }
    await expect(goOn()).rejects.toThrow('EIO')
    await expect(writer.write(0, bytes)).rejects.toThrow('EIO')
    await expect(writer.finish()).rejects.toThrow('EIO')
    expect(count).toBe(1)
  })
})

it('a slot file holds what was written', async () => {
  const { path, device } = await fileDevice(Buffer.alloc(10_000))
  await device.write(9_000, noise(1000))
  await device.flush()
  expect(readFileSync(path).subarray(9_000).equals(noise(1000))).toBe(true)
})
