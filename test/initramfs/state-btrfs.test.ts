import { spawnSync } from 'node:child_process'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { realProcesses } from '../../device/agent/real.ts'
import { parseSnapshot } from '../../device/state/facts.ts'
import { StateOfDevice } from '../../device/state/state.ts'
import { have, run } from '../helpers/run.ts'
import { type Release, StateWorld } from './state-world.ts'

/** The same on a real btrfs, on a loop device: root only, with a kernel that has both. */

const ready =
  have('setsid', 'busybox', 'timeout', 'btrfs', 'mkfs.btrfs', 'losetup') &&
  process.getuid?.() === 0 &&
  existsSync('/dev/loop-control') &&
  readFileSync('/proc/filesystems', 'utf8').includes('\tbtrfs\n')

const dir = mkdtempSync(join(tmpdir(), 'bistable-btrfs-'))
const partition = join(dir, 'partition')
const A: Release = { slot: 'a', number: '0.1', schema: 0 }
const B: Release = {
  slot: 'b',
  number: '0.2',
  schema: 1,
  migrations: { 1: 'step mv db db1\nstep mkdir index\necho one >index/1\nstep test -e db1\n' },
}
const BEFORE = { db: 'rows' }
const AFTER = { db1: 'rows', 'index/1': 'one' }
const ROOT = 'ab'.repeat(32)

let world: StateWorld
let count = 0

beforeAll(() => {
  if (!ready) return
  writeFileSync(`${partition}.img`, '')
  truncateSync(`${partition}.img`, 256 * 1024 * 1024)
  run('mkfs.btrfs', ['-q', `${partition}.img`])
  mkdirSync(partition)
  run('mount', ['-o', 'loop,noatime', `${partition}.img`, partition])
})
afterAll(() => {
  if (ready) spawnSync('umount', [partition])
  rmSync(dir, { recursive: true, force: true })
})
beforeEach(() => {
  if (!ready) return
  // A data partition of its own for each test would be the same file system made again: a folder of it serves.
  world = new StateWorld(join(dir, String(count)), 'btrfs', join(partition, String(count++)))
  world.start(A)
  world.put(BEFORE)
})

const snapshots = () => readdirSync(join(world.data, 'snapshots')).sort()
const undo = () => existsSync(join(world.data, 'bistable/state/undo'))
const asks = (slot: string, release: string, name: string) =>
  writeFileSync(join(world.data, 'bistable/state/request'), `${slot} ${release} ${ROOT} ${name}\n`)

/** The agent's part, on the same partition. */
const agent = () =>
  new StateOfDevice(
    { partition: world.data, data: join(world.data, 'bistable'), run: join(world.base, 'run/bistable') },
    nodeFiles,
    realProcesses(''),
  )

/** A piece of the story, cut at each of its programs in turn, and then told to its end. */
function cutEverywhere(story: (cutAt: number) => boolean): number {
  let cuts = 0
  while (story(cuts + 1)) cuts++
  return cuts
}

describe.skipIf(!ready)('state on btrfs', () => {
  test('a snapshot before each trial; undone by it, with what the trial wrote put aside', () => {
    world.start(B, { boot: 'try' })
    expect([world.files(), snapshots()]).toEqual([AFTER, ['000001-0.1-0.2']])
    const kept = join(world.data, 'snapshots/000001-0.1-0.2/var/lib/app/db')
    expect(() => writeFileSync(kept, 'x')).toThrow(/EROFS/)
    expect(world.start(A, { boot: 'fallback' }).said).toBe(
      'note the state is as it was before release 0.2\nbtrfs 0 0 0\n',
    )
    expect([world.files(), snapshots(), undo()]).toEqual([BEFORE, ['000001-0.1-0.2', '000002-0.2-left'], false])
    expect(readFileSync(join(world.data, 'snapshots/000002-0.2-left/var/lib/app/db1'), 'utf8')).toBe('rows\n')
  })

  test('the power goes at every program of a trial, of its second try, and of the way back', () => {
    const cuts = cutEverywhere((cutAt) => {
      const { cut } = world.start(B, { boot: 'try', cutAt })
      if (cutAt % 2 === 0) {
        world.start(B, { boot: 'try' })
        expect(world.files(), String(cutAt)).toEqual(AFTER)
      }
      const back = world.start(A, { boot: 'fallback', cutAt })
      if (back.cut) world.start(A, { boot: 'fallback' })
      expect([world.files(), undo()], String(cutAt)).toEqual([BEFORE, false])
      return cut
    })
    expect(cuts).toBeGreaterThan(8)
    const stepped = world.start(B, { boot: 'try', stepAt: '1.3' })
    expect([stepped.cut, world.start(B, { boot: 'try' }).said]).toEqual([true, expect.stringContaining('begins again')])
    expect(world.files()).toEqual(AFTER)
  })

  test('a person rolls back with the state; not committed, it is undone like a migration', async () => {
    world.start(B, { boot: 'try' })
    world.start(B)
    world.put({ later: 'written by release 2' })
    const later = world.files()
    const [name = ''] = snapshots()
    const cuts = cutEverywhere((cutAt) => {
      asks('a', '0.1', name)
      const { cut } = world.start(A, { boot: 'try', cutAt })
      if (cut) world.start(A, { boot: 'try' })
      expect(world.files(), String(cutAt)).toEqual(BEFORE)
      world.start(B, { boot: 'fallback' })
      expect([world.files(), undo()], String(cutAt)).toEqual([later, false])
      return cut
    })
    expect(cuts).toBeGreaterThan(5)
    world.start(B)
    const call = { slot: 'a', release: '0.1', root: ROOT, running: '0.2', force: false } as const
    expect(await agent().verdict('a', '0.1', '0.2')).toEqual({ reads: false, snapshot: name })
    await agent().allowRollBack({ ...call, withState: true })
    world.start(A, { boot: 'try' })
    await agent().committed('a', '0.1')
    expect(undo()).toBe(false)
    expect(world.start(A).said).toBe('btrfs 0 0 0\n')
    expect([world.files(), undo()]).toEqual([BEFORE, false])
    // The way forward again: what release 2 left before this.
    const left = snapshots()
      .map(parseSnapshot)
      .findLast((found) => found?.from === '0.2' && found.before === '0.1')
    expect(readdirSync(join(world.data, 'snapshots', left?.name ?? '', 'var/lib/app'))).toContain('later')
    // One that nobody follows any more is forgotten.
    asks('b', '0.2', name)
    world.start(A)
    expect(existsSync(join(world.data, 'bistable/state/request'))).toBe(false)
  })

  test('the agent drops snapshots beyond those that stay, and further ones while room is short', async () => {
    for (let n = 0; n < 3; n++) {
      world.start(B, { boot: 'try' })
      world.start(A, { boot: 'fallback' })
    }
    expect(snapshots()).toHaveLength(6)
    const state = agent()
    expect(await state.prune({ keep: 2, freePercent: 0 })).toHaveLength(4)
    expect(snapshots()).toEqual(['000005-0.1-0.2', '000006-0.2-left'])
    // More than the partition has: all go.
    expect(await state.prune({ keep: 2, freePercent: 90 })).toEqual(['000005-0.1-0.2', '000006-0.2-left'])
    expect(world.files()).toEqual(BEFORE)
  })

  test('a full partition ends the trial; the old release finds everything as it was', () => {
    const filler = join(world.data, 'filler')
    spawnSync('dd', ['if=/dev/zero', `of=${filler}`, 'bs=1M', 'oflag=sync'])
    truncateSync(filler, statSync(filler).size - 16 * 1024 * 1024)
    run('sync', ['-f', partition])
    const greedy = { ...B, migrations: { 1: 'while step cat /bin/busybox >>more; do :; done\nexit 1\n' } }
    expect(world.start(greedy, { boot: 'try' }).said).toMatch(/fail: migration .* ended with 1 .*No space left/)
    world.start(A, { boot: 'fallback' })
    expect(world.files()).toEqual(BEFORE)
    rmSync(filler)
  })
})
