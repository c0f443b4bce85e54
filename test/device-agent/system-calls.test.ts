import { rmSync } from 'node:fs'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from 'vitest'
import { makeBundle } from '../helpers/bundle.ts'
import { deviceLab, TestDevice } from '../helpers/device.ts'
import { have } from '../helpers/run.ts'
import { type Call, readCalls, straceArgs } from '../helpers/system-calls.ts'
import { changes, faults, type Places, stateWrites } from '../helpers/write-order.ts'

// The order of writes as the kernel sees it: the real command under strace, on slots and a boot state that are files.

const ready = have('strace')
let lab: Awaited<ReturnType<typeof deviceLab>>
let device: TestDevice
let places: Places

beforeAll(async () => {
  if (!ready) return
  lab = await deviceLab()
  device = await TestDevice.make(lab.base, lab.program)
  const disk = (name: string) => join(device.root, 'disk', name)
  const slot = (name: string) => [disk(`boot-${name}`), disk(`rootfs-${name}`)]
  places = { bootstate: disk('bootstate'), slot: slot('b'), running: slot('a'), data: join(device.root, 'data') }
})
afterAll(() => lab?.remove())

async function watched(args: readonly string[]): Promise<Call[]> {
  const log = join(lab.base, 'calls')
  const ran = await device.run(args, ['strace', ...straceArgs(log)])
  expect(ran.exit, ran.err).toBe(0)
  const calls = readCalls(log)
  rmSync(log)
  return calls
}

const noise = (length: number, seed: number) => Uint8Array.from({ length }, (_, i) => (i * seed + (i >> 8) * 7) & 255)
const at = (index: number, calls: readonly Call[]): Call => {
  const call = calls.at(index)
  if (call === undefined) throw new Error(`no call ${index}`)
  return call
}
/** As if `call` had not been made. */
const without = (calls: readonly Call[], call: Call) => calls.filter((one) => one !== call)
/** As if `call` had been made right before `before`. */
const moved = (calls: readonly Call[], call: Call, before: Call) =>
  without(calls, call).flatMap((one) =>
    one === before ? [{ ...call, began: before.began - 0.5, ended: before.began - 0.4 }, one] : [one],
  )

describe.skipIf(!ready)('the system calls of the agent', () => {
  let calls: Call[]

  test('an install: claim, slot, flush, read back, records, and arming as the last write to any partition', async () => {
    const plan = { boot: noise(64 * 1024, 3), rootfs: noise(512 * 1024, 5), number: { epoch: 0, counter: 3 } }
    const { path } = await makeBundle(lab.base, 'next', plan)
    calls = await watched(['install', path])
    expect(faults(calls, places)).toEqual([])
    const parts = changes(calls, places).filter((call) => !call.path.startsWith(places.data))
    const [claim, arm] = stateWrites(calls, places)
    expect(stateWrites(calls, places)).toHaveLength(2)
    expect([parts[0], parts.at(-1)]).toEqual([claim, arm])
    expect(claim?.offset).not.toBe(arm?.offset)
    // Behind it comes only the record that says so.
    const behind = changes(calls, places).filter((call) => call.began > at(-1, parts).ended)
    expect(behind.map((call) => call.path.slice(places.data.length))).toEqual([
      expect.stringMatching(/^\/bistable\/records\/\.[01]\.new$/),
      expect.stringMatching(/^\/bistable\/records\/[01]$/),
    ])
    expect((await device.bootState())?.trial).toBe('b')
  }, 60_000)

  test('each flush that is left out, and each read back, is missed by the rules', () => {
    const parts = [places.bootstate, ...places.slot]
    const flushes = calls.filter(({ name, path }) => /^f(data)?sync$/.test(name) && parts.includes(path))
    expect(flushes.length).toBeGreaterThanOrEqual(6)
    const files = calls.filter(({ name, path }) => name === 'fsync' && /\.new$/.test(path))
    expect(files.length).toBeGreaterThanOrEqual(8)
    for (const flush of [...flushes, ...files])
      expect(faults(without(calls, flush), places), flush.path).not.toEqual([])
    const last = calls.filter(({ name, path }) => name === 'pread64' && path === places.bootstate).at(-1)
    expect(faults(without(calls, last as Call), places)).toEqual([expect.stringContaining('is not read back')])
  })

  test('an order that loses to a power cut is told', () => {
    const slot = changes(calls, places).filter(({ path }) => places.slot.includes(path))
    const [claim, arm] = stateWrites(calls, places) as [Call, Call]
    const early = moved(calls, arm, at(-1, slot))
    expect(faults(early, places)).toContainEqual(expect.stringContaining('comes behind arming'))
    const late = moved(calls, claim, at(-1, slot))
    expect(faults(late, places)).toContainEqual(expect.stringContaining('before the boot state stops naming it'))
    const twice = calls.map((call) => (call === arm ? { ...call, offset: claim.offset } : call))
    expect(faults(twice, places)).toContainEqual(expect.stringContaining('in a row'))
    const wide = calls.map((call) => (call === arm ? { ...call, result: 1024 } : call))
    expect(faults(wide, places)).toContainEqual(expect.stringContaining('1024 bytes'))
    const running = calls.map((call) => (call === slot[0] ? { ...call, path: places.running[0] ?? '' } : call))
    expect(faults(running, places)).toContainEqual(expect.stringContaining('which runs'))
  })

  test('a commit: boot state, then the record, then the floor for the initramfs, then the old slot is no spare', async () => {
    // The second update, so that the agent knows what is in the other slot.
    const boots = async (slot: string, release: string, floor: string) => {
      await device.countDown()
      const words = `bistable.slot=${slot} bistable.release=${release} bistable.floor=${floor}`
      device.boots(`${words} bistable.boot=try bistable.left=2 bistable.why=ok`)
    }
    await boots('b', '0.3', '0.1')
    expect(await device.run(['commit'])).toMatchObject({ exit: 0 })
    const plan = { boot: noise(64 * 1024, 11), rootfs: noise(512 * 1024, 13), number: { epoch: 0, counter: 4 } }
    expect(await device.run(['install', (await makeBundle(lab.base, 'last', plan)).path])).toMatchObject({ exit: 0 })
    await boots('a', '0.4', '0.4')
    const made = await watched(['commit'])
    expect(faults(made, places)).toEqual([])
    const order = changes(made, places).map(({ name, path }) => `${name} ${path.slice(device.root.length)}`)
    const record = (n: number) => [`write /data/bistable/records/.${n}.new`, `rename /data/bistable/records/${n}`]
    expect(order).toEqual([
      // It came up: a record, and no starts unanswered.
      ...[...record(1), 'pwrite64 /disk/bootstate'],
      ...['pwrite64 /disk/bootstate', ...record(0)],
      ...['write /data/bistable/.floor.new', 'rename /data/bistable/floor', 'pwrite64 /disk/bootstate'],
      // The note for GRUB, last: what it says is true by now.
      'pwrite64 /data/bistable/committed',
    ])
    expect(await device.bootState()).toMatchObject({ primary: 'a', trial: undefined, spare: false })
  }, 60_000)
})
