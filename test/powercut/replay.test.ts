import { describe, expect, test } from 'vitest'
import { bootstateImage } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { cuts } from './cuts.ts'
import { NOTHING_TOLD, RecordedDisk } from './disk.ts'
import { type CutDisk, Replay } from './replay.ts'

/** The model itself: what a cut may take, and what it may not. */

const plan = { seed: 3, keep: 1, keepBoot: 1, exhaustive: 8, tornPages: 64, pageSubsets: 20 }

async function disk(): Promise<RecordedDisk> {
  const slot = Buffer.alloc(16 * 1024, 'o')
  const bootstate = Buffer.from(await bootstateImage(freshState('a')))
  const parts = { bootstate, 'boot-a': slot, 'rootfs-a': slot, 'boot-b': slot, 'rootfs-b': slot, data: Buffer.alloc(0) }
  return new RecordedDisk({ parts, files: new Map([['/d/x', Buffer.from('old')]]) })
}

async function outcomes<T>(write: (disk: RecordedDisk) => Promise<void>, look: (cut: CutDisk) => T): Promise<T[]> {
  const start = await disk()
  const device = await disk()
  await write(device)
  const story = { name: 'test', start: start.settled(), log: device.log, told: NOTHING_TOLD, boots: [] }
  const seen: T[] = []
  for (const cut of cuts(story, plan)) seen.push(look(cut))
  return seen
}

const text = (cut: CutDisk): string => cut.files.get('/d/x')?.toString() ?? 'nothing'

describe('files', () => {
  test('written beside, flushed, renamed, flushed: the old bytes or the new ones', async () => {
    const all = await outcomes(async (device) => {
      const files = device.files()
      await files.write('/d/.x.new', Buffer.from('new'))
      await files.sync('/d/.x.new')
      await files.rename('/d/.x.new', '/d/x')
      await files.syncDir('/d')
    }, text)
    expect(new Set(all)).toEqual(new Set(['old', 'new']))
    expect(all.at(-1)).toBe('new')
  })

  test('a rename without a flush may leave nothing, a part, or zeros under the new name', async () => {
    const all = await outcomes(async (device) => {
      const files = device.files()
      await files.write('/d/.x.new', Buffer.from('new'))
      await files.rename('/d/.x.new', '/d/x')
      await files.syncDir('/d')
    }, text)
    expect(new Set(all)).toEqual(new Set(['old', 'new', '', 'n', 'ne', '\0\0\0', 'n\0\0', 'ne\0']))
  })

  test('a removed file may come back until its directory is flushed', async () => {
    const all = await outcomes(async (device) => {
      await device.files().remove('/d/x')
      await device.files().syncDir('/d')
    }, text)
    expect(new Set(all)).toEqual(new Set(['old', 'nothing']))
    expect(all.at(-1)).toBe('nothing')
  })
})

describe('partitions', () => {
  test('a write that no flush covered may be lost, kept or torn in any page; a flushed one is there', async () => {
    const write = async (device: RecordedDisk) => {
      device.write('rootfs-b', 4096, Buffer.alloc(8192, 'n'))
      device.flush('rootfs-b')
    }
    const seen = await outcomes(write, (cut) => {
      const bytes = cut.slot('b').rootfs()
      const letters = [0, 1, 2, 3].map((page) => bytes.toString('latin1', page * 4096, page * 4096 + 1)).join('')
      return { what: cut.what, letters, torn: bytes.toString('latin1', 4096 + 2047, 4096 + 2049) }
    })
    const letters = seen.map((one) => one.letters)
    for (const wanted of ['oooo', 'onno', 'onoo', 'oono']) expect(letters).toContain(wanted)
    expect(letters.every((word) => word.startsWith('o') && word.endsWith('o'))).toBe(true)
    expect(seen.filter((one) => one.torn === 'no').length).toBeGreaterThan(0)
    expect(letters.at(-1)).toBe('onno')
  })

  test('a flush of one partition says nothing about another', async () => {
    const device = await disk()
    device.write('boot-b', 0, Buffer.alloc(4096, 'n'))
    device.flush('rootfs-b')
    const replay = new Replay('test', (await disk()).settled())
    for (const { op } of device.log) replay.take(op)
    expect(replay.units.length).toBe(1)
    expect(replay.medium['boot-b'].toString('latin1', 0, 1)).toBe('o')
  })

  test('equal contents have one key: kept by a cut or flushed, and flushed once more; others have others', async () => {
    const write = async (device: RecordedDisk) => {
      for (const letter of 'no') {
        device.write('rootfs-b', 4096, Buffer.alloc(8192, letter))
        device.flush('rootfs-b')
        device.flush('rootfs-b')
      }
    }
    const seen = await outcomes(write, (cut) => ({
      prefix: /everything arrived|nothing unflushed arrived/.test(cut.what),
      key: cut.slot('b').key,
      bytes: cut.slot('b').rootfs().toString(),
    }))
    const grouped = (by: 'key' | 'bytes', one: 'key' | 'bytes', from: typeof seen) =>
      [...new Set(from.map((cut) => cut[by]))].map(
        (value) => new Set(from.filter((cut) => cut[by] === value).map((cut) => cut[one])).size,
      )
    expect(new Set(grouped('key', 'bytes', seen))).toEqual(new Set([1]))
    // With 'n' in it; and with 'o', as it was and written again.
    const prefixes = seen.filter(({ prefix }) => prefix)
    expect(grouped('bytes', 'key', prefixes)).toEqual([1, 2])
  })

  test('the same seed gives the same disks', async () => {
    const write = async (device: RecordedDisk) => device.write('boot-b', 100, Buffer.alloc(9000, 'n'))
    const keys = () => outcomes(write, (cut) => cut.key)
    expect(await keys()).toEqual(await keys())
  })

  test('a write outside of the three files of the boot state is refused at once', async () => {
    const device = await disk()
    expect(() => device.write('bootstate', 0, Buffer.alloc(512))).toThrow('outside of its three files')
  })
})
