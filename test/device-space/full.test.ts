import { execFileSync } from 'node:child_process'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { EMPTY_BODY } from '../../device/records/record.ts'
import { openRecords } from '../../device/records/store.ts'
import { DataSpace, ROOM_FILE, roomBytes } from '../../device/space/space.ts'
import { type Made, makeBundle } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { makeTree } from '../device-etc/trees.ts'
import { deviceLab, TestDevice } from '../helpers/device.ts'
import { have, run } from '../helpers/run.ts'
import { canMount, type FileSystem, Partition } from './partition.ts'

/**
 * The system's programs have filled the data partition, to the last block. The device takes the release that mends them all
 * the same: real file systems, the real command, real images with an /etc to be merged.
 */

const MiB = 1 << 20
const ready = have('mksquashfs')
let lab: Awaited<ReturnType<typeof deviceLab>>
beforeAll(async () => {
  lab = await deviceLab()
})
afterAll(() => lab.remove())

let images = 0
function squashfs(etc: Readonly<Record<string, string>>): Buffer {
  const base = join(lab.base, `image-${images++}`)
  makeTree(join(base, 'tree/etc'), etc)
  execFileSync('mksquashfs', [join(base, 'tree'), join(base, 'img'), '-comp', 'zstd', '-quiet', '-no-progress'])
  return readFileSync(join(base, 'img'))
}

/** An /etc of this many KiB. */
const settings = (kib: number, more: Readonly<Record<string, string>> = {}) => ({
  ...Object.fromEntries(Array.from({ length: kib / 8 }, (_, i) => [`app/${i}.conf`, `${'x'.repeat(8000)}${i}`])),
  motd: 'one',
  ...more,
})

interface World {
  readonly made: TestDevice
  readonly data: Partition
  readonly bundle: Made
  readonly space: DataSpace
  readonly room: () => number
}

async function world(kind: FileSystem, bytes: number, { etc = 512, inventory = 200_000, mkfs = [] as string[] } = {}) {
  const made = await TestDevice.make(lab.base, lab.program, { slotBytes: 4 * MiB })
  const data = new Partition(join(made.root, 'data'), kind, bytes, mkfs)
  onTestFinished(() => data.end())
  // The merge flushes the partition.
  symlinkSync(execFileSync('which', ['sync'], { encoding: 'utf8' }).trim(), join(made.root, 'usr/bin/sync'))
  const old = squashfs(settings(etc))
  writeFileSync(join(made.root, 'disk/rootfs-a'), old)
  truncateSync(join(made.root, 'disk/rootfs-a'), 4 * MiB)
  for (const folder of ['etc', 'data/etc/a'])
    makeTree(join(made.root, folder), settings(etc, { mine: 'of the device' }))
  mkdirSync(join(made.root, 'data/bistable'), { recursive: true })
  // As they are since it was first used.
  const store = await openRecords(join(made.root, 'data/bistable'), undefined, nodeFiles)
  for (let n = 0; n < 2; n++) await store.save(EMPTY_BODY)
  expect((await made.run(['health'])).exit).toBe(0)
  const bundle = await makeBundle({
    rootfs: squashfs(settings(etc, { motd: 'two' })),
    attachments: { inventory: noise(inventory) },
  })
  const space = new DataSpace({
    partition: data.folder,
    data: join(data.folder, 'bistable'),
    flush: async () => run('sync', ['-f', data.folder]),
    dropSnapshot: async () => false,
  })
  const room = () => lstatSync(join(data.folder, 'bistable', ROOM_FILE), { throwIfNoEntry: false })?.size ?? 0
  return { made, data, bundle, space, room } satisfies World
}

/** Armed, with everything that is kept about a release, and its /etc. */
async function expectArmed({ made, bundle }: World): Promise<void> {
  expect(await made.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
  const kept = readdirSync(join(made.root, 'data/bistable/slots/b')).sort()
  expect(kept).toEqual(['boot.idx', 'inventory.zst', 'release.json', 'rootfs.idx', 'roots'])
  const at = (path: string) => readFileSync(join(made.root, 'data/etc/b', path), 'utf8')
  expect([at('motd'), at('mine')]).toEqual(['two', 'of the device'])
  expect(readdirSync(join(made.root, 'data/etc'))).toEqual(['a', 'b'])
  expect(bundle.bytes.length).toBeGreaterThan(0)
  expect((await made.run(['status', '--json'])).json).toMatchObject({ state: 'armed', problems: [] })
}

describe.skipIf(!ready || !canMount('ext4'))('a data partition that is full', () => {
  it('takes an update in the room that was kept for it, which is made again', async () => {
    const device = await world('ext4', 64 * MiB)
    const { made, data, bundle, space, room } = device
    await space.keep()
    expect(room()).toBe(roomBytes(64 * MiB))
    data.fill()
    expect(data.free).toBe(0)
    const ran = await made.run(['install', bundle.path, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    await expectArmed(device)
    // What a release keeps for good is gone from it, and no more than that.
    const gone = roomBytes(64 * MiB) - room()
    expect(gone).toBeGreaterThan(0)
    expect(gone).toBeLessThan(2 * MiB)
    // The next one is no larger: it stands in the place of this one.
    expect((await made.run(['cancel', '--json'])).exit).toBe(0)
    const next = await makeBundle({
      rootfs: squashfs(settings(512, { motd: 'two', extra: 'x' })),
      release: { number: { epoch: 0, counter: 8 } },
      attachments: { inventory: noise(200_000) },
    })
    const before = room()
    expect((await made.run(['install', next.path, '--json'])).json).toMatchObject({ ok: true })
    await expectArmed({ ...device, bundle: next })
    expect(room()).toBeGreaterThan(before - 256 * 1024)
    // Somebody made room.
    rmSync(join(data.folder, 'var'), { recursive: true })
    await space.keep()
    expect(room()).toBe(roomBytes(64 * MiB))
  })

  it('takes one without that room, too, where the release before it was larger', async () => {
    const device = await world('ext4', 32 * MiB, { inventory: 700_000 })
    const { made, data, bundle, room } = device
    expect((await made.run(['install', bundle.path, '--json'])).json).toMatchObject({ ok: true })
    expect((await made.run(['cancel', '--json'])).exit).toBe(0)
    const next = await makeBundle({
      rootfs: squashfs(settings(256, { motd: 'two' })),
      release: { number: { epoch: 0, counter: 8 } },
      attachments: { inventory: noise(100_000) },
    })
    rmSync(join(data.folder, 'bistable', ROOM_FILE), { force: true })
    data.fill()
    const ran = await made.run(['install', next.path, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    await expectArmed({ ...device, bundle: next })
    expect(room()).toBeLessThan(roomBytes(32 * MiB))
  })

  it('without any says before the slot is touched how much is wanted, and what has the room', async () => {
    const { made, data, bundle } = await world('ext4', 32 * MiB)
    mkdirSync(join(data.folder, 'bind/opt/app'), { recursive: true })
    writeFileSync(join(data.folder, 'bind/opt/app/cache'), noise(3 * MiB))
    data.fill('var/lib/app/logs')
    const before = made.digests()
    const ran = await made.run(['install', bundle.path, '--json'])
    expect(ran.exit).not.toBe(0)
    const { error } = ran.json as { error: { code: string; message: string; details: Record<string, unknown> } }
    expect(error.code).toBe('INSTALL_NO_SPACE')
    expect(error.message).toMatch(
      /\/data has \d+(\.\d)? (B|KiB) free, 1\.\d MiB are needed .*; biggest there: \S+\/data\/var\/lib\/app\/logs\/0\.log \d\d MiB, \S+\/data\/bind\/opt\/app\/cache 3\.\d MiB, /,
    )
    expect(error.details).toMatchObject({
      path: data.folder,
      biggest: [{ path: join(data.folder, 'var/lib/app/logs/0.log') }, {}, {}],
    })
    expect(Number(error.details['need'])).toBeGreaterThan(Number(error.details['free']))
    expect(made.digests()).toEqual(before)
  })

  it('of files says so', async () => {
    const { made, data, bundle } = await world('ext4', 32 * MiB, { mkfs: ['-N', '256'] })
    mkdirSync(join(data.folder, 'queue'))
    expect(() => {
      for (let n = 0; n < 1000; n++) writeFileSync(join(data.folder, 'queue', `${n}`), '')
    }).toThrow(/ENOSPC/)
    await expect(nodeFiles.makeDir(join(data.folder, 'new/folder'))).rejects.toMatchObject({ code: 'FILE_FULL' })
    const ran = await made.run(['install', bundle.path, '--json'])
    expect((ran.json as { error: unknown }).error).toMatchObject({
      code: 'INSTALL_NO_SPACE',
      message: expect.stringMatching(/room for \d+ files, 1\d\d are needed/),
    })
  })

  it('gives no room in memory and leaves the last room to others', async () => {
    const { data, space, room } = await world('ext4', 32 * MiB)
    data.fill()
    truncateSync(join(data.folder, 'var/log/0.log'), statSync(join(data.folder, 'var/log/0.log')).size - MiB)
    await space.keep()
    expect(existsSync(join(data.folder, 'bistable/reserve'))).toBe(true)
    expect(room()).toBeGreaterThan(0)
    expect(room()).toBeLessThan(MiB)
    expect(data.free).toBeGreaterThan(64 * 1024)
  })
})

describe.skipIf(!ready || !canMount('btrfs'))('a btrfs data partition that is full', () => {
  it('takes an update in the room that was kept for it', async () => {
    const device = await world('btrfs', 256 * MiB)
    const { made, data, bundle, space, room } = device
    await space.keep()
    expect(room()).toBe(roomBytes(256 * MiB))
    data.fill()
    const ran = await made.run(['install', bundle.path, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    await expectArmed(device)
  })
})
