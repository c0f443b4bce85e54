import { execFileSync } from 'node:child_process'
import { lstatSync, mkdirSync, readdirSync, readFileSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { EMPTY_BODY } from '../../device/records/record.ts'
import { openRecords } from '../../device/records/store.ts'
import { DataSpace, ROOM_FILE } from '../../device/space/space.ts'
import { type Made, makeBundle } from '../bundle/fixture.ts'
import { noise } from '../bundle/tools.ts'
import { makeTree } from '../device-etc/trees.ts'
import { deviceLab, TestDevice } from '../helpers/device.ts'
import { run } from '../helpers/run.ts'
import { type FileSystem, Partition } from './partition.ts'

/** A device whose data partition is a real file system, with an /etc to be merged. */

export const MiB = 1 << 20
let opened: Awaited<ReturnType<typeof deviceLab>> | undefined
beforeAll(async () => {
  opened = await deviceLab()
})
afterAll(() => opened?.remove())
const lab = () => {
  if (opened === undefined) throw new Error('the lab is made before the tests')
  return opened
}

let images = 0
export function squashfs(etc: Readonly<Record<string, string>>): Buffer {
  const base = join(lab().base, `image-${images++}`)
  makeTree(join(base, 'tree/etc'), etc)
  execFileSync('mksquashfs', [join(base, 'tree'), join(base, 'img'), '-comp', 'zstd', '-quiet', '-no-progress'])
  return readFileSync(join(base, 'img'))
}

/** An /etc of this many KiB. */
export const settings = (kib: number, more: Readonly<Record<string, string>> = {}) => ({
  ...Object.fromEntries(Array.from({ length: kib / 8 }, (_, i) => [`app/${i}.conf`, `${'x'.repeat(8000)}${i}`])),
  motd: 'one',
  ...more,
})

export interface World {
  readonly made: TestDevice
  readonly data: Partition
  readonly bundle: Made
  readonly space: DataSpace
  readonly room: () => number
}

export async function world(
  kind: FileSystem,
  bytes: number,
  { etc = 512, inventory = 200_000, mkfs = [] as string[] } = {},
) {
  const made = await TestDevice.make(lab().base, lab().program, { slotBytes: 4 * MiB })
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
export async function expectArmed({ made, bundle }: World): Promise<void> {
  expect(await made.bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
  const kept = readdirSync(join(made.root, 'data/bistable/slots/b')).sort()
  expect(kept).toEqual(['boot.idx', 'inventory.zst', 'release.json', 'rootfs.idx', 'roots'])
  const at = (path: string) => readFileSync(join(made.root, 'data/etc/b', path), 'utf8')
  expect([at('motd'), at('mine')]).toEqual(['two', 'of the device'])
  expect(readdirSync(join(made.root, 'data/etc'))).toEqual(['a', 'b'])
  expect(bundle.bytes.length).toBeGreaterThan(0)
  expect((await made.run(['status', '--json'])).json).toMatchObject({ state: 'armed', problems: [] })
}
