import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { KiB, MiB } from '../../base/bytes.ts'
import { blocksPerGroup, makeData } from '../../publisher/disk/data.ts'
import { have, run } from '../helpers/run.ts'
import { DataPartition } from './data-partition.ts'
import { DATA } from './device.ts'

const dir = mkdtempSync(join(tmpdir(), 'bistable-data-partition-'))
afterAll(() => rmSync(dir, { recursive: true }))

describe.skipIf(!have('mke2fs', 'e2fsck', 'debugfs'))('a data partition behind a cut', () => {
  const content = join(dir, 'content')
  mkdirSync(join(content, 'bistable/records'), { recursive: true })
  writeFileSync(join(content, 'bistable/records/0'), 'old')
  writeFileSync(join(content, 'bistable/floor'), 'floor')
  const path = join(dir, 'image')
  run('mke2fs', [
    '-q',
    '-t',
    'ext4',
    '-b',
    '1024',
    '-E',
    'hash_seed=8b5bd7f6-2a35-4c80-9d3c-5e4d0a1b2c3d',
    '-d',
    content,
    path,
    '4M',
  ])
  const image = readFileSync(path)
  const reader = () => new DataPartition(mkdtempSync(join(dir, 'reader-')))
  const text = (found: ReturnType<DataPartition['read']>) =>
    typeof found === 'string'
      ? found
      : Object.fromEntries([...found.files].map(([name, bytes]) => [name, bytes.toString()]))

  test('its files come out, and equal contents have equal keys', () => {
    const one = reader()
    const found = one.read('a', () => image)
    expect(text(found)).toEqual({ [`${DATA}/records/0`]: 'old', [`${DATA}/floor`]: 'floor' })
    expect(one.read('a', () => Buffer.alloc(0))).toBe(found)
    expect(one.read('b', () => image)).toEqual(found)
    expect(one.looked).toBe(2)
  })

  test('what stands only in the journal comes out too', () => {
    // The block of records/0, overwritten in a transaction that was committed and not written back.
    const block = /\(0\):(\d+)/.exec(run('debugfs', ['-R', 'stat /bistable/records/0', path]))?.[1]
    const next = join(dir, 'next')
    writeFileSync(next, Buffer.concat([Buffer.from('new'), Buffer.alloc(1021)]))
    const commands = join(dir, 'commands')
    writeFileSync(commands, `journal_open\njournal_write -b ${block} ${next}\njournal_close\n`)
    const cut = join(dir, 'cut')
    writeFileSync(cut, image)
    run('debugfs', ['-w', '-f', commands, cut])
    const bytes = readFileSync(cut)
    expect(bytes.includes('new')).toBe(true)
    expect(bytes.subarray(Number(block) * 1024, Number(block) * 1024 + 3).toString()).toBe('old')
    expect(text(reader().read('c', () => bytes))).toMatchObject({ [`${DATA}/records/0`]: 'new' })
  })

  test('a file system that the device could not mount is told', () => {
    expect(text(reader().read('d', () => Buffer.alloc(image.length)))).toMatch(/e2fsck -p ended with 8/)
    const torn = Buffer.from(image)
    // The group descriptors and what follows.
    torn.fill(0xa5, 2048, 40_960)
    expect(text(reader().read('e', () => torn))).toMatch(/e2fsck/)
  })

  describe('whose superblock is torn between its sectors', () => {
    const SECOND = 1024 + 512

    /** As the publisher makes it, and a little later: its superblock was written once more. */
    const made = async (size: number): Promise<{ image: Buffer; before: Buffer; path: string }> => {
      const folder = mkdtempSync(join(dir, 'made-'))
      const path = join(folder, 'image')
      writeFileSync(path, '')
      truncateSync(path, size)
      const files = [{ path: 'bistable/floor', bytes: Buffer.from('floor') }]
      const uuid = '8b5bd7f6-2a35-4c80-9d3c-5e4d0a1b2c3d'
      await makeData(path, files, { offset: 0, size, uuid, time: 1_700_000_000, workDir: folder })
      const before = Buffer.from(readFileSync(path).subarray(0, 4 * KiB))
      run('debugfs', ['-w', '-R', 'set_super_value mnt_count 7', path])
      return { image: readFileSync(path), before, path }
    }
    const torn = (image: Buffer, before: Buffer): Buffer => {
      const bytes = Buffer.from(image)
      before.copy(bytes, SECOND, SECOND, SECOND + 512)
      expect(bytes.equals(image)).toBe(false)
      return bytes
    }

    test.each([32 * MiB, 64 * MiB])('%i bytes: it comes from its copy, with all files', async (size) => {
      const { image, before } = await made(size)
      expect(image.readUInt32LE(1024 + 32)).toBe(blocksPerGroup(size))
      const one = reader()
      expect(text(one.read('whole', () => image))).toEqual({ [`${DATA}/floor`]: 'floor' })
      expect(one.fromCopy).toBe(0)
      expect(text(one.read('torn', () => torn(image, before)))).toEqual({ [`${DATA}/floor`]: 'floor' })
      expect(one.fromCopy).toBe(1)
      // Nothing of it is left, as after a medium that loses 4096 bytes at once.
      const lost = Buffer.from(image).fill(0, 0, 4 * KiB)
      expect(text(one.read('lost', () => lost))).toEqual({ [`${DATA}/floor`]: 'floor' })
    })

    test('and what stands only in the journal comes out too', async () => {
      const { before, path } = await made(32 * MiB)
      const block = /\(0\):(\d+)/.exec(run('debugfs', ['-R', 'stat /bistable/floor', path]))?.[1]
      const next = join(dir, 'next-floor')
      writeFileSync(next, Buffer.concat([Buffer.from('later'), Buffer.alloc(4091)]))
      const commands = join(dir, 'commands-floor')
      writeFileSync(commands, `journal_open\njournal_write -b ${block} ${next}\njournal_close\n`)
      run('debugfs', ['-w', '-f', commands, path])
      expect(text(reader().read('journal', () => torn(readFileSync(path), before)))).toEqual({
        [`${DATA}/floor`]: 'later',
      })
    })

    test('what only looks like a copy is left alone', async () => {
      const { image, before } = await made(32 * MiB)
      const bytes = torn(image, before)
      const copy = blocksPerGroup(bytes.length) * 4 * KiB
      // The number of its group, as a file system within a file would have it.
      bytes.writeUInt16LE(0, copy + 90)
      expect(text(reader().read('other', () => bytes))).toMatch(/e2fsck -p ended with 8/)
    })

    test('a usual file system of one group has no copy, and is told', () => {
      const bytes = Buffer.from(image)
      bytes.fill(0xa5, SECOND, 2048)
      expect(text(reader().read('one group', () => bytes))).toMatch(/e2fsck -p ended with 8/)
    })

    test('from 1 GiB on the groups are the usual ones', () => {
      expect([1024 * MiB - 1, 1024 * MiB].map(blocksPerGroup)).toEqual([4096, 32_768])
    })
  })
})
