import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it } from 'vitest'
import { have, run } from '../helpers/run.ts'
import { canMount } from './partition.ts'
import { expectArmed, MiB, world } from './world.ts'

// No emulator; it writes small files until btrfs takes no more, which takes a minute.

describe.skipIf(!have('mksquashfs') || !canMount('btrfs'))('a btrfs data partition that is full', () => {
  it('of names takes one, too, while statfs says that there is room', async () => {
    const device = await world('btrfs', 120 * MiB)
    const { made, data, bundle, space } = device
    await space.keep()
    mkdirSync(join(data.folder, 'queue'))
    const job = Buffer.alloc(1900, 1)
    // A commit of btrfs gives back what it had set aside: full is what takes none behind one, either.
    let jobs = 0
    let before = 0
    do {
      before = jobs
      expect(() => {
        for (; jobs < 100_000; jobs++)
          writeFileSync(join(data.folder, 'queue', `${jobs}`), job, { flush: jobs % 1000 === 0 })
      }).toThrow(/ENOSPC/)
      run('sync', ['-f', data.folder])
    } while (jobs > before)
    expect(data.free).toBeGreaterThan(4 * MiB)
    const ran = await made.run(['install', bundle.path, '--json'])
    expect(ran.json, ran.err + ran.out).toMatchObject({ ok: true, slot: 'b' })
    await expectArmed(device)
  })
})
