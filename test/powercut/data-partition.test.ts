import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
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
})
