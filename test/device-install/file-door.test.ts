import { truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { readExactly } from '../../base/source.ts'
import { openFileDoor } from '../../device/doors/file.ts'
import { installLocal } from '../../device/install/local.ts'
import { noise, run, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import { makeBundle } from '../helpers/bundle.ts'

describe('file door', () => {
  it('reads any range exactly', async () => {
    const path = join(scratch(), 'file')
    const bytes = noise(3_000_000)
    writeFileSync(path, bytes)
    const door = await openFileDoor(path)
    onTestFinished(() => door.close())
    expect(door.size).toBe(bytes.length)
    for (const [from, length] of [
      [0, 3_000_000],
      [999_999, 1_500_000],
      [2_999_999, 1],
      [3_000_000, 0],
    ] as const) {
      const got = await readExactly(door, from, length)
      expect(Buffer.compare(got, bytes.subarray(from, from + length))).toBe(0)
    }
    expect(await codeOfAsync(() => readExactly(door, 2_999_999, 2))).toBe('TRANSPORT_SHORT')
    const abort = new AbortController()
    const reason = new Error('enough')
    abort.abort(reason)
    await expect(readExactly(door, 0, 10, { signal: abort.signal })).rejects.toBe(reason)
  })

  it('names a file that is missing, not a file, or cut while it is read', async () => {
    const dir = scratch()
    expect(await codeOfAsync(() => openFileDoor(join(dir, 'none')))).toBe('TRANSPORT_MISSING')
    expect(await codeOfAsync(() => openFileDoor(dir))).toBe('TRANSPORT_FILE_FAILED')
    run('mkfifo', join(dir, 'fifo'))
    expect(await codeOfAsync(() => openFileDoor(join(dir, 'fifo')))).toBe('TRANSPORT_FILE_FAILED')
    const path = join(dir, 'file')
    writeFileSync(path, noise(100_000))
    const door = await openFileDoor(path)
    onTestFinished(() => door.close())
    truncateSync(path, 50_000)
    expect(await codeOfAsync(() => readExactly(door, 0, 100_000))).toBe('TRANSPORT_FILE_FAILED')
  })
})

describe('local install', () => {
  it('installs a bundle file into slot files, and again without a write', async () => {
    const dir = scratch()
    const bundle = await makeBundle(dir, 'one', { boot: noise(4096 * 20), rootfs: noise(4096 * 600, 'r') })
    const slot = { boot: join(dir, 'boot'), rootfs: join(dir, 'rootfs') }
    writeFileSync(slot.boot, Buffer.alloc(4096 * 30))
    writeFileSync(slot.rootfs, Buffer.alloc(4096 * 700))
    const order: string[] = []
    const request = { bundle: bundle.path, slot, trusted: bundle.trusted, arm: async () => void order.push('arm') }
    const first = await installLocal(request)
    expect(first.fetched).toBe(4096 * 620)
    expect(first.head.statement.version).toBe('2.0.0')
    const second = await installLocal(request)
    expect(second.fetched).toBe(0)
    expect(order).toEqual(['arm', 'arm'])
  })

  it('refuses before any write: policy, and a slot too small', async () => {
    const dir = scratch()
    const bundle = await makeBundle(dir, 'one', { boot: noise(4096), rootfs: noise(4096 * 10, 'r') })
    const slot = { boot: join(dir, 'boot'), rootfs: join(dir, 'rootfs') }
    writeFileSync(slot.boot, Buffer.alloc(4096))
    writeFileSync(slot.rootfs, Buffer.alloc(4096 * 10))
    const request = { bundle: bundle.path, slot, trusted: bundle.trusted }
    expect(await codeOfAsync(() => installLocal(request))).toBe('SLOT_TOO_SMALL')
    const check = () => {
      throw new Error('not here')
    }
    await expect(installLocal({ ...request, check })).rejects.toThrow('not here')
  })
})
