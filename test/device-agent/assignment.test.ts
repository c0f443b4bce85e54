import { describe, expect, it } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { encodeAssignment } from '../../bundle/assignment.ts'
import { sha256 } from '../../bundle/digest.ts'
import { assignedState, judgeAssignment } from '../../device/agent/assignment.ts'
import { deviceIdFrom } from '../../device/agent/identity.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { installFrom } from '../../device/agent/work.ts'
import type { Assigned } from '../../device/records/record.ts'
import { ASSIGNMENT, SHA } from '../bundle/fixture.ts'
import { codeOf, codeOfAsync } from '../codes.ts'
import { signedRoot } from '../keys/helpers.ts'
import { assignmentOf, digestOf, type Release, World } from './world.ts'

const never = new AbortController().signal
const quiet = { force: false, onProgress: () => undefined }
const BUNDLE = (counter: number) => `http://updates/bundles/${counter}.bundle`
const outcome = (world: World) =>
  world.core?.body.outcomes.findLast((o) => o.what === 'check' || o.what === 'install' || o.what === 'commit')
const running = (world: World) => world.core?.line.release.counter

/** A device that has committed 5 and holds the security floor 3. */
async function committed(): Promise<World> {
  const world = new World({ counter: 4 })
  await world.publish({ counter: 5, securityFloor: 3 })
  await world.run()
  expect(world.core?.body).toMatchObject({ installFloor: { counter: 5 }, securityFloor: { counter: 3 } })
  return world
}

describe('whose an assignment is, and whether it is new', () => {
  const OTHER = 'cd'.repeat(32) as Sha256
  const judge = (
    sequence: number,
    accepted?: Partial<Assigned>,
    device: string | undefined = 'device-1',
    digest = SHA,
  ) =>
    codeOf(() => {
      const before = { sequence: 5, digest: SHA, release: SHA, number: ASSIGNMENT.number, allowDowngrade: false }
      const known = accepted === undefined ? undefined : { ...before, expires: null, ...accepted }
      judgeAssignment({ statement: { ...ASSIGNMENT, sequence }, digest }, known, device)
    })

  it('A18 A19 goes by device, sequence and digest', () => {
    expect(judge(1)).toBe('accepted')
    expect(judge(1, undefined, 'device-2')).toBe('ASSIGNMENT_OTHER_DEVICE')
    expect(codeOf(() => judgeAssignment({ statement: ASSIGNMENT, digest: SHA }, undefined, undefined))).toBe(
      'ASSIGNMENT_OTHER_DEVICE',
    )
    expect(judge(4, {})).toBe('ASSIGNMENT_REPLAYED')
    expect(judge(5, {})).toBe('accepted')
    expect(judge(5, {}, 'device-1', OTHER)).toBe('ASSIGNMENT_REPLAYED')
    expect(judge(6, {}, 'device-1', OTHER)).toBe('accepted')
  })

  it('goes by time only as far as the time can be known', () => {
    const assigned: Assigned = {
      sequence: 1,
      digest: SHA,
      release: SHA,
      number: ASSIGNMENT.number,
      allowDowngrade: false,
      notBefore: '2026-11-22T00:00:00Z',
      expires: '2026-11-24T00:00:00Z',
    }
    const state = (wall: string, synchronised: boolean, verifiedTime?: string) =>
      assignedState(assigned, verifiedTime === undefined ? {} : { verifiedTime }, {
        wall: new Date(wall),
        synchronised,
      })
    expect(state('2026-11-21T23:59:59Z', true)).toBe('early')
    expect(state('2026-11-22T00:00:00Z', true)).toBe('in-force')
    expect(state('2026-11-24T00:00:00Z', true)).toBe('expired')
    for (const wall of ['1970-01-01T00:00:00Z', '2026-11-23T00:00:00Z', '2106-02-07T00:00:00Z']) {
      expect(state(wall, false)).toBe('early')
      expect(state(wall, false, '2026-11-22T00:00:00Z')).toBe('in-force')
      expect(state(wall, false, '2026-11-24T00:00:00Z')).toBe('expired')
    }
    // Never under the newest verified time, whatever a clock that calls itself set says.
    expect(state('1970-01-01T00:00:00Z', true, '2026-11-24T00:00:00Z')).toBe('expired')
    const always: Assigned = { ...assigned, expires: null }
    expect(assignedState(always, {}, { wall: new Date('2106-02-07T00:00:00Z'), synchronised: true })).toBe('in-force')
  })

  it('a device id follows from machine id and product, and tells neither', () => {
    const machine = '0123456789abcdef0123456789abcdef'
    const id = deviceIdFrom(`${machine}\n`, 'demo')
    expect(id).toMatch(/^[0-9a-f]{32}$/)
    expect(id).not.toBe(machine)
    expect(deviceIdFrom(machine, 'other')).not.toBe(id)
    for (const bad of ['', 'uninitialized\n', '0'.repeat(32), machine.toUpperCase(), `${machine}00`])
      expect(deviceIdFrom(bad, 'demo')).toBeUndefined()
  })
})

describe('directed mode', () => {
  it('an assignment comes before the channel, is kept, and holds when the file is hidden', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 4 })
    await world.assign({ counter: 3 })
    await world.run()
    expect(running(world)).toBe(3)
    expect(world.core?.body.assignment).toMatchObject({ sequence: 1, release: digestOf({ counter: 3 }) })
    world.web.delete('http://updates/assignments/device-1.json')
    await world.run()
    expect(running(world)).toBe(3)
    await world.assign({ counter: 4 }, { sequence: 2 })
    await world.run()
    expect(running(world)).toBe(4)
  })

  it('one that expired sets the device free; one not yet due waits', async () => {
    const world = new World({ counter: 2 })
    world.wall = Date.parse('2026-11-21T12:00:00Z')
    await world.publish({ counter: 4 })
    await world.assign({ counter: 3 }, { notBefore: '2026-11-21T13:00:00Z', expires: '2026-11-21T14:00:00Z' })
    await world.powerOn(200)
    expect(outcome(world)?.message).toBe('waits: 0.3 is assigned, not before 2026-11-21T13:00:00Z')
    expect(world.fetches).toBe(0)
    world.wall = Date.parse('2026-11-21T13:00:00Z')
    await world.run()
    expect(running(world)).toBe(3)
    world.wall = Date.parse('2026-11-21T14:00:00Z')
    await world.run()
    expect(running(world)).toBe(4)
    // Its sequence still counts.
    await world.assign({ counter: 3 }, { sequence: 1, allowDowngrade: true })
    await world.powerOn(60)
    expect(outcome(world)).toMatchObject({ ok: false, code: 'ASSIGNMENT_REPLAYED' })
    expect(running(world)).toBe(4)
  })

  it('another device, a replay, another role, another product: refused by code, and nothing else is done', async () => {
    const cases: [string, (world: World) => Promise<void>][] = [
      ['ASSIGNMENT_OTHER_DEVICE', (w) => w.assign({ counter: 3 }, { sequence: 8, device: 'device-2' })],
      ['ASSIGNMENT_REPLAYED', (w) => w.assign({ counter: 3 }, { sequence: 6 })],
      ['ASSIGNMENT_REPLAYED', (w) => w.assign({ counter: 3 }, { sequence: 7 })],
      ['SIGNATURE_UNKNOWN', (w) => w.assign({ counter: 3 }, { sequence: 8 }, [11])],
      ['SIGNATURE_THRESHOLD', (w) => w.assign({ counter: 3 }, { sequence: 8 }, [])],
      ['ASSIGNMENT_RELEASE', (w) => w.assign({ counter: 3 }, { sequence: 8, product: 'other' })],
      [
        'STATEMENT_TYPE',
        async (w) => {
          const channel = w.web.get('http://updates/channels/stable.json')
          if (channel !== undefined) w.web.set('http://updates/assignments/device-1.json', channel)
        },
      ],
    ]
    for (const [code, attack] of cases) {
      const world = new World({ counter: 2 })
      await world.publish({ counter: 3 })
      await world.assign({ counter: 2 }, { sequence: 7 })
      await world.powerOn(60)
      const before = { ...world.core?.body.assignment }
      await attack(world)
      await world.powerOn(60)
      expect(outcome(world), code).toMatchObject({ ok: false, code })
      expect(world.core?.body.assignment, code).toEqual(before)
      expect(world.fetches, code).toBe(0)
    }
  })

  it('an assignment does not hide that the channel is stale', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 2 }, { issued: '2026-11-01T00:00:00Z', expires: '2026-11-02T00:00:00Z' })
    await world.assign({ counter: 3 })
    await world.powerOn(60)
    expect(outcome(world)).toMatchObject({ code: 'CHANNEL_EXPIRED' })
    expect(world.fetches).toBe(0)
  })

  it('a device without an id follows the channel', async () => {
    const world = new World({ counter: 2 })
    world.deviceId = undefined
    await world.publish({ counter: 4 })
    await world.assign({ counter: 3 })
    await world.run()
    expect(running(world)).toBe(4)
    expect(world.core?.body.assignment).toBeUndefined()
  })

  it('the sequence survives a restart with one record torn, and status shows it', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 2 })
    await world.assign({ counter: 2 }, { sequence: 41 })
    await world.powerOn(60)
    const core = world.core
    if (core === undefined) throw new Error('no agent ran')
    const status = await statusOf(core)
    expect(status).toMatchObject({
      deviceId: 'device-1',
      assignment: { sequence: 41, release: '0.2', state: 'in-force' },
    })
    expect(statusText(status)).toMatch(/^assigned 0\.2 [0-9a-f]{12} {2}sequence 41 {2}in-force$/m)
    expect(statusText(status)).toContain('device id device-1')
    await world.assign({ counter: 3 }, { sequence: 40 })
    await world.powerOn(60)
    expect(outcome(world)?.code).toBe('ASSIGNMENT_REPLAYED')
  })
})

describe('the fleet role replaced as a whole (A8, A13 for the online key)', () => {
  it('A8 a stolen key cannot burn the sequence or the time for good', async () => {
    const world = new World({ counter: 2 })
    world.synchronised = false
    await world.publish({ counter: 2 }, { issued: '2099-01-01T00:00:00Z', expires: '2099-02-01T00:00:00Z' })
    await world.assign({ counter: 2 }, { sequence: Number.MAX_SAFE_INTEGER })
    await world.powerOn(60)
    expect(world.core?.body.assignment?.sequence).toBe(Number.MAX_SAFE_INTEGER)
    const next = { version: 2, root: [1], threshold: 1, fleet: [22] }
    world.web.set('http://updates/roots/2.json', await signedRoot(next, [1]))
    await world.publish({ counter: 3 }, {}, [22])
    await world.assign({ counter: 3 }, { sequence: 2 }, [22])
    await world.powerOn(60)
    expect(world.core?.body).toMatchObject({ assignment: { sequence: 2 }, installFloor: { counter: 2 } })
    expect(world.boot?.trial).toBe('b')
  })

  it('while one key stays, nothing is forgotten: what it signed could be offered again', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 2 })
    await world.assign({ counter: 2 }, { sequence: 9 })
    await world.powerOn(60)
    const next = { version: 2, root: [1], threshold: 1, fleet: [21, 22] }
    world.web.set('http://updates/roots/2.json', await signedRoot(next, [1]))
    await world.publish({ counter: 2 }, {}, [22])
    await world.assign({ counter: 3 }, { sequence: 2 }, [22])
    await world.powerOn(60)
    expect(world.core?.trusted.current.version).toBe(2)
    expect(outcome(world)?.code).toBe('ASSIGNMENT_REPLAYED')
  })
})

describe('going back on purpose', () => {
  // Running and committed is 5; the security floor is 3.
  type Way =
    | 'nothing'
    | 'force'
    | 'assigned'
    | 'permitted'
    | 'permitted to another'
    | 'permitted, expired'
    | 'permitted, early'
  const table: [counter: number, way: Way, want: string][] = [
    [4, 'nothing', 'RELEASE_BELOW_FLOOR'],
    [4, 'force', 'RELEASE_BELOW_FLOOR'],
    [4, 'assigned', 'RELEASE_BELOW_FLOOR'],
    [4, 'permitted', 'accepted'],
    [3, 'permitted', 'accepted'],
    [2, 'permitted', 'RELEASE_BELOW_FLOOR'],
    [0, 'permitted', 'RELEASE_BELOW_FLOOR'],
    [4, 'permitted to another', 'ASSIGNMENT_OTHER_DEVICE'],
    [4, 'permitted, expired', 'ASSIGNMENT_EXPIRED'],
    [4, 'permitted, early', 'ASSIGNMENT_EARLY'],
    [5, 'nothing', 'accepted'],
    [6, 'nothing', 'accepted'],
    [6, 'assigned', 'accepted'],
    [20_000, 'permitted', 'RELEASE_TOO_FAR_AHEAD'],
  ]
  it.each(table)('release %i, %s: %s', async (counter, way, want) => {
    const world = await committed()
    world.agentConfig = {}
    const release: Release = { counter, version: 'again' }
    world.published.set(BUNDLE(counter), release)
    if (way !== 'nothing' && way !== 'force') {
      const statement = assignmentOf(release, {
        allowDowngrade: way.startsWith('permitted'),
        ...(way === 'permitted to another' ? { device: 'device-2' } : {}),
        ...(way === 'permitted, expired' ? { expires: '2026-11-21T00:00:01Z' } : {}),
        ...(way === 'permitted, early' ? { notBefore: '2099-01-01T00:00:00Z' } : {}),
      })
      world.carried.set(BUNDLE(counter), { statement, digest: sha256(encodeAssignment(statement)) })
    }
    let code = ''
    await world.powerOn(20, async (core) => {
      code = await codeOfAsync(() => installFrom(core, BUNDLE(counter), { ...quiet, force: way === 'force' }, never))
    })
    expect(code).toBe(want)
    expect(world.boot?.trial).toBe(want === 'accepted' ? 'a' : undefined)
    expect(world.core?.body.installFloor.counter).toBe(5)
    // What was refused leaves no trace in the sequence.
    if (want !== 'accepted') expect(world.core?.body.assignment).toBeUndefined()
  })

  it('A9 never onto wrong hardware or another product, whatever was assigned', async () => {
    for (const [release, want] of [
      [{ counter: 4, hardware: 'rpi5' }, 'RELEASE_WRONG_HARDWARE'],
      [{ counter: 4, product: 'other' }, 'RELEASE_WRONG_PRODUCT'],
    ] as const) {
      const world = await committed()
      await world.assign(release, { allowDowngrade: true })
      await world.powerOn(60)
      expect(outcome(world)).toMatchObject({ ok: false, code: want })
      expect(world.boot?.trial).toBeUndefined()
    }
  })

  it('by the channel: goes back, commits, keeps its floors, and stays until it is set free', async () => {
    const world = await committed()
    await world.assign({ counter: 4 }, { allowDowngrade: true, expires: '2026-11-21T18:00:00Z' })
    await world.run()
    expect(running(world)).toBe(4)
    expect(world.core?.body).toMatchObject({
      state: { name: 'committed' },
      installFloor: { counter: 5 },
      securityFloor: { counter: 3 },
    })
    await world.powerOn(300)
    expect(running(world)).toBe(4)
    world.wall = Date.parse('2026-11-21T18:00:00Z')
    await world.run()
    expect(running(world)).toBe(5)
  })

  it('an assignment below the security floor is not even fetched', async () => {
    const world = await committed()
    const before = world.fetches
    await world.assign({ counter: 2 }, { allowDowngrade: true })
    await world.powerOn(60)
    expect(outcome(world)?.message).toBe('older: 0.2 is below the security floor 0.3')
    expect(world.fetches).toBe(before)
  })
})
