import {
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, expect, test } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { imageNeeds } from '../../bundle/state.ts'
import { checkSystem } from '../../bundle/system.ts'
import { checkState } from '../../device/agent/check-state.ts'
import type { Slots } from '../../device/agent/engine-over.ts'
import type { Processes } from '../../device/agent/ports.ts'
import { parseFacts, parseSlotState, parseSnapshot, type StateFacts } from '../../device/state/facts.ts'
import { judgeArm, snapshotBefore, snapshotsToDrop } from '../../device/state/judge.ts'
import { StateOfDevice } from '../../device/state/state.ts'
import { have, run } from '../helpers/run.ts'

const base = mkdtempSync(join(tmpdir(), 'bistable-device-state-'))
afterAll(() => rmSync(base, { recursive: true, force: true }))
const code = (name: string) => expect.objectContaining({ code: name })
const ROOT = 'ab'.repeat(32)

let made = 0
/** A device whose running system is a folder; `btrfs` answers for the program. */
function device(facts: string, btrfs: (args: readonly string[]) => number = () => 0) {
  const partition = join(base, String(made++))
  const [data, run_] = [join(partition, 'bistable'), join(partition, 'run')]
  for (const folder of [data, run_, join(partition, 'snapshots')]) mkdirSync(folder, { recursive: true })
  writeFileSync(join(run_, 'state'), `${facts}\n`)
  const slot = (name: string, text: string) => {
    mkdirSync(join(data, 'slots', name), { recursive: true })
    writeFileSync(join(data, 'slots', name, 'state'), `${text}\n`)
  }
  const processes: Processes = {
    run: async ([, ...args]) => ({ exit: btrfs(args), timedOut: false, said: 'said' }),
    glob: async () => [],
  }
  return { partition, data, slot, state: new StateOfDevice({ partition, data, run: run_ }, nodeFiles, processes) }
}
const back = { slot: 'a', release: '0.1', root: ROOT, running: '0.2', force: false, withState: false } as const

test('what the initramfs wrote is read, and nothing else', () => {
  expect(parseFacts('btrfs 3 2 3\n')).toEqual({ filesystem: 'btrfs', schema: 3, readableBy: 2, own: 3 })
  for (const text of ['', 'xfs 1 1 1', 'ext4 1 1', 'ext4 1 1 x', 'ext4 1 1 1 1', 'ext4 -1 0 0'])
    expect(parseFacts(text)).toBeUndefined()
  expect(parseSlotState(`0.2 ${ROOT} 5 4\n`)).toEqual({ release: '0.2', root: ROOT, schema: 5 })
  for (const text of ['', `0.2 ${ROOT} 5`, `2 ${ROOT} 5 4`, '0.2 x 5 4']) expect(parseSlotState(text)).toBeUndefined()
  expect(parseSnapshot('000007-0.1-0.2')).toMatchObject({ sequence: 7, from: '0.1', before: '0.2' })
  expect(parseSnapshot('000008-0.2-left')).toMatchObject({ from: '0.2', before: undefined })
  expect(parseSnapshot('000001---0.2')).toMatchObject({ from: '-', before: '0.2' })
  for (const name of ['state', '7-0.1-0.2', '000007-0.1', '000007-0.1-0.2.x'])
    expect(parseSnapshot(name)).toBeUndefined()
})

test('a release is armed only when it can live with the data, and its migrations with the room', () => {
  const facts: StateFacts = { filesystem: 'ext4', schema: 5, readableBy: 4, own: 5 }
  const needs = (state: object) => imageNeeds({ state })?.state ?? expect.fail()
  const judge = (state: object, more: Partial<StateFacts> = {}, copied = 0, free = 1e9) =>
    judgeArm({ ...facts, ...more }, needs(state), copied, free)?.code
  expect(judge({ schema: 5 })).toBeUndefined()
  expect(judge({ schema: 4 })).toBeUndefined()
  expect(judge({ schema: 3 })).toBe('STATE_NEWER')
  expect(judge({ schema: 6 })).toBe('STATE_TOO_OLD')
  expect(judge({ schema: 6, migrations: [{ to: 6 }] })).toBeUndefined()
  expect(judge({ schema: 7, migrations: [{ to: 7 }] })).toBe('STATE_TOO_OLD')
  expect(judge({ schema: 7, migrations: [{ to: 6 }, { to: 7 }] }, {}, 5e6, 5e6)).toBe('STATE_NO_SPACE')
  expect(judge({ schema: 7, migrations: [{ to: 6 }, { to: 7 }] }, {}, 5e6, 7e6)).toBeUndefined()
  expect(judge({ schema: 5 }, { filesystem: 'btrfs' })).toBe('STATE_FILE_SYSTEM')
  expect(judge({ schema: 6, btrfs: true, migrations: [{ to: 6 }] }, { filesystem: 'btrfs' }, 5e6, 0)).toBeUndefined()
  // An image newer than this program.
  expect(
    imageNeeds({ state: { schema: 5, moon: true }, mounts: [{ path: '/a', policy: 'new' }], sun: 1 }),
  ).toMatchObject({
    folders: ['/a'],
    state: { schema: 5 },
  })
  expect(imageNeeds({ state: { schema: 'x' } })).toBeUndefined()
})

test('a declaration that cannot be carried out is refused', () => {
  const problems = (more: object) => {
    const found = checkSystem({ product: 'p', hardware: ['h'], ...more })
    return 'problems' in found ? found.problems.length : 0
  }
  const good = {
    schema: 3,
    readableBy: 2,
    migrations: [2, 3].map((to) => ({ to, run: `/m/${to}` })),
    paths: ['/var/lib/app'],
  }
  expect(problems({ state: good })).toBe(0)
  expect(problems({ state: { ...good, readableBy: 4 } })).toBe(1)
  expect(problems({ state: { ...good, migrations: [{ to: 2, run: '/m/2' }] } })).toBe(1)
  expect(problems({ state: { ...good, paths: [] } })).toBe(1)
  expect(problems({ state: { ...good, shema: 3 } })).toBe(1)
  for (const path of ['/opt/app', '/etc/x', '/var', '/opt/x/*'])
    expect(problems({ state: { ...good, paths: [path] } }), path).toBe(1)
  const mounts = [
    { path: '/opt/app', policy: 'overlay' },
    { path: '/opt/fresh', policy: 'overlay', release: 'reset' },
  ]
  const places = { mounts: [...mounts, { path: '/var/cache', policy: 'tmpfs' }], writable: ['/opt/logs'] }
  for (const path of ['/opt/app', '/opt/logs', '/opt/logs/x'])
    expect(problems({ ...places, state: { ...good, paths: [path] } }), path).toBe(0)
  for (const path of ['/opt/app/x', '/opt/fresh', '/var/cache/x'])
    expect(problems({ ...places, state: { ...good, paths: [path] } }), path).toBe(1)
})

test('a roll back to a release that cannot read the data is refused beforehand, unless forced or with the state', async () => {
  const { state, slot, data } = device('ext4 5 4 5')
  slot('a', `0.1 ${ROOT} 3 3`)
  expect(await state.verdict('a', '0.1', '0.2')).toEqual({ reads: false, snapshot: null })
  await expect(state.allowRollBack(back)).rejects.toThrow(code('STATE_NEWER'))
  await state.allowRollBack({ ...back, force: true })
  await expect(state.allowRollBack({ ...back, withState: true })).rejects.toThrow(code('STATE_NO_SNAPSHOT'))
  slot('a', `0.1 ${ROOT} 4 4`)
  await state.allowRollBack(back)
  // What stands there is of another release: nothing is known of this one.
  slot('a', `0.0 ${ROOT} 5 5`)
  await expect(state.allowRollBack(back)).rejects.toThrow(code('STATE_NEWER'))
  expect(readdirSync(data)).toEqual(['slots'])
})

test('with the state: the newest snapshot of that release from before the running one, asked of the next start', async () => {
  const { state, slot, data, partition } = device('btrfs 5 5 5')
  slot('a', `0.1 ${ROOT} 3 3`)
  for (const name of ['000001-0.1-0.2', '000003-0.1-0.2', '000004-0.1-0.3', '000005-0.2-left', 'x'])
    mkdirSync(join(partition, 'snapshots', name))
  expect(await state.verdict('a', '0.1', '0.2')).toEqual({ reads: false, snapshot: '000003-0.1-0.2' })
  await state.allowRollBack({ ...back, withState: true })
  expect(readFileSync(join(data, 'state/request'), 'utf8')).toBe(`a 0.1 ${ROOT} 000003-0.1-0.2\n`)
  // Without it, an older request is void.
  await state.allowRollBack({ ...back, force: true })
  expect(readdirSync(join(data, 'state'))).toEqual([])
  expect(snapshotBefore([], '0.1', '0.2')).toBeUndefined()
})

test('snapshots stay by number and by room; a commit drops what was kept for the way back', async () => {
  const names = [1, 2, 3, 4, 5].map((n) => `00000${n}-0.${n}-0.${n + 1}`)
  const all = names.map((name) => parseSnapshot(name) ?? expect.fail())
  const dropped = (keep: number, short: boolean) => snapshotsToDrop(all, keep, short).map(({ sequence }) => sequence)
  expect([dropped(3, false), dropped(9, false), dropped(9, true), dropped(2, true)]).toEqual([
    [1, 2],
    [],
    [1],
    [1, 2, 3],
  ])

  const asked: string[] = []
  let fails = false
  const { state, data, partition } = device('btrfs 0 0 0', (args) => {
    asked.push(args.slice(0, 2).join(' '))
    const path = args.at(-1) ?? ''
    if (args[1] === 'delete' && !fails) rmSync(path, { recursive: true })
    return fails ? 1 : 0
  })
  for (const name of names) mkdirSync(join(partition, 'snapshots', name))
  expect(await state.prune({ keep: 3, freePercent: 0 })).toEqual(names.slice(0, 2))
  expect(asked).toEqual(['subvolume delete', 'subvolume delete', 'subvolume sync'])
  fails = true
  await expect(state.prune({ keep: 1, freePercent: 0 })).rejects.toThrow(code('STATE_WRITE_FAILED'))

  mkdirSync(join(data, 'state/copies'), { recursive: true })
  writeFileSync(join(data, 'state/undo'), `b 0.2 ${ROOT} changed copy\n0 0\n`)
  // Of another release: it could not be undone yet.
  await state.committed('a', '0.1')
  expect(readdirSync(join(data, 'state'))).toEqual(['copies', 'undo'])
  await state.committed('b', '0.2')
  await state.committed('b', '0.2')
  expect(readdirSync(join(data, 'state'))).toEqual([])
})

test.skipIf(!have('mksquashfs'))(
  'the image in the slot is asked before it is armed; one that cannot be read is refused',
  async () => {
    const { state } = device('ext4 5 5 5')
    const image = join(base, 'image')
    const check = async (system: string | undefined, facts = state) => {
      const tree = join(base, 'tree')
      for (const path of [tree, image]) rmSync(path, { recursive: true, force: true })
      mkdirSync(join(tree, 'usr/lib/bistable'), { recursive: true })
      if (system !== undefined) writeFileSync(join(tree, 'usr/lib/bistable/system.json'), system)
      run('mksquashfs', [tree, image, '-quiet', '-no-progress', '-all-root', '-comp', 'zstd'])
      if (system === 'torn') writeFileSync(image, 'x'.repeat(4096))
      const fd = openSync(image, 'r')
      const forReuse: Slots['forReuse'] = async (slot) => ({
        name: slot,
        size: statSync(image).size,
        read: async (offset, into) => void readSync(fd, into, 0, into.length, offset),
        close: async () => undefined,
      })
      const slots = { forReuse, forWriting: () => expect.fail(), forVerifying: () => expect.fail() } as unknown as Slots
      const statement = { images: [{ name: 'rootfs', length: statSync(image).size }] }
      await checkState(facts, slots, 'a', statement as never, base)
    }
    await check('{"state":{"schema":5}}')
    await expect(check('{}')).rejects.toThrow(code('STATE_NEWER'))
    await expect(check(undefined)).rejects.toThrow(code('STATE_UNREADABLE'))
    await expect(check('{')).rejects.toThrow(code('STATE_UNREADABLE'))
    await expect(check('{"state":{"schema":-1}}')).rejects.toThrow(code('STATE_UNREADABLE'))
    const seeds = { writable: ['/opt/app/logs', '/usr/lib'], mounts: [{ path: '/usr/lib/bistable/system.json' }] }
    await expect(
      check(JSON.stringify({ ...seeds, state: { schema: 6, migrations: [{ to: 6, run: '/m' }] } })),
    ).rejects.toThrow(
      expect.objectContaining({
        code: 'STATE_SEED_MISSING',
        details: { missing: ['/opt/app/logs', '/usr/lib/bistable/system.json', '/m'] },
      }),
    )
    await expect(check('torn')).rejects.toThrow(
      expect.objectContaining({ code: expect.stringMatching(/^(SQUASHFS|STATE)_/) }),
    )
    // What its migrations change is measured here; a hole takes no room.
    mkdirSync(join(base, 'var/lib/app'), { recursive: true })
    writeFileSync(join(base, 'var/lib/app/db'), new Uint8Array(100_000))
    expect(await state.sizeOf(base, ['/var/lib/app', '/var/none'])).toBeGreaterThanOrEqual(100_000)
    const system = { schema: 6, migrations: [{ to: 6, run: '/usr/lib/bistable/system.json' }], paths: ['/var/lib/app'] }
    await check(JSON.stringify({ state: system }))
    const full = Object.assign(device('ext4 5 5 5').state, { free: async () => 1000 })
    await expect(check(JSON.stringify({ state: system }), full)).rejects.toThrow(code('STATE_NO_SPACE'))
    // An initramfs from before all this: nothing is asked.
    await check('{', device('').state)
  },
)
