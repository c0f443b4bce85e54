import { existsSync, mkdirSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { ROOM_FILE, roomBytes } from '../../device/space/space.ts'
import { makeBundle } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { have } from '../helpers/run.ts'
import { canMount } from './partition.ts'
import { expectArmed, MiB, settings, squashfs, world } from './world.ts'

/**
 * The system's programs have filled the data partition, to the last block. The device takes the release that mends them all
 * the same: real file systems, the real command, real images with an /etc to be merged.
 */

const ready = have('mksquashfs')

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
    // What cannot be made again takes nothing of what is there.
    rmSync(join(data.folder, 'bistable/small'), { recursive: true })
    await space.keep()
    expect(room()).toBe(roomBytes(256 * MiB))
    const ran = await made.run(['install', bundle.path, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    await expectArmed(device)
  })
})
