import { describe, expect, it } from 'vitest'
import type { BootState } from '../../bootloader/state.ts'
import { parseBootLine } from '../../device/agent/cmdline.ts'
import { Core } from '../../device/agent/core.ts'
import { decide, type Event, type Machine, type Now } from '../../device/agent/machine.ts'
import { type BootFacts, reconcile } from '../../device/agent/reconcile.ts'
import type { Limits } from '../../device/agent/states.ts'
import { decodeRecord, EMPTY_BODY, encodeRecord, type Job, type RecordBody } from '../../device/records/record.ts'
import { SHA } from '../bundle/fixture.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from './world.ts'

const AT = '2026-11-21T00:00:00.000Z'
const NOW: Now = { mono: 1000, wall: AT, bootId: 'now' }
const LIMITS: Limits = {
  stall: 600_000,
  arm: 60_000,
  tryFor: 60_000,
  hold: 3_600_000,
  reboot: 120_000,
  rest: 7_200_000,
}
const number = (counter: number) => ({ epoch: 0, counter })
const job: Job = {
  kind: 'update',
  slot: 'b',
  digest: SHA,
  number: number(3),
  version: '3',
  source: 'x',
  forced: false,
  started: AT,
}
const boot = (change: Partial<BootState> = {}): BootState => ({
  generation: 5,
  primary: 'a',
  trial: undefined,
  left: 0,
  spare: false,
  ...change,
})
const line = (change: Partial<BootFacts['line']> = {}): BootFacts['line'] => ({
  slot: 'a',
  release: number(2),
  boot: 'committed',
  left: 0,
  why: 'ok',
  floor: number(1),
  ...change,
})
const ALL: BootFacts = {
  body: EMPTY_BODY,
  boot: boot(),
  bootProblem: undefined,
  torn: false,
  line: line(),
  reason: undefined,
  onDisk: {},
}
const find = (facts: Partial<BootFacts>) => reconcile({ ...ALL, ...facts }, NOW, LIMITS)
const inState = (state: RecordBody['state']): RecordBody => ({ ...EMPTY_BODY, state })
const armed = (bootId = 'before') => inState({ name: 'armed', job, since: AT, bootId })
const tryLine = line({ slot: 'b', release: number(3), boot: 'try', left: 2 })
const codes = (body: RecordBody) => body.outcomes.map((o) => o.code)

describe('the kernel command line', () => {
  it('is read, the last word winning; anything else is not a slot', () => {
    const text =
      'quiet bistable.slot=b bistable.release=1.7 bistable.floor=1.2 bistable.boot=menu bistable.boot=try bistable.left=2 bistable.why=ok'
    expect(parseBootLine(text)).toEqual({
      slot: 'b',
      release: { epoch: 1, counter: 7 },
      boot: 'try',
      left: 2,
      why: 'ok',
      floor: { epoch: 1, counter: 2 },
    })
    for (const bad of [
      '',
      'quiet',
      'bistable.slot=c bistable.release=1.1',
      'bistable.slot=a',
      'bistable.slot=a bistable.release=1.1 bistable.boot=maybe',
    ])
      expect(parseBootLine(bad), bad).toBeUndefined()
  })

  it('without a slot ends with a code', async () => {
    const ports = await new World().ports('quiet', { counter: 1 })
    expect(await codeOfAsync(() => Core.open(ports))).toBe('AGENT_NOT_A_DEVICE')
  })
})

describe('what happened since the last record', () => {
  it('always tells the bootloader that the agent came up, first of all effects', () => {
    for (const facts of [{}, { boot: boot({ trial: 'b', left: 2 }), line: tryLine, body: armed() }])
      expect(find(facts).effects[0]).toEqual({ do: 'came-up' })
  })

  it('a try is a try, with a deadline', () => {
    const step = find({ boot: boot({ trial: 'b', left: 2 }), line: tryLine, body: armed() })
    expect(step.body.state).toMatchObject({ name: 'trying', job })
    expect(step.deadline).toBe(61_000)
  })

  it('a try whose agent dies again and again before its deadline is given up all the same', () => {
    const facts = { boot: boot({ trial: 'b', left: 2 }), line: tryLine }
    const at = (mono: number, bootId = 'now'): Now => ({ ...NOW, mono, bootId })
    const start = (body: RecordBody, now: Now) =>
      reconcile({ ...ALL, ...facts, body: decodeRecord(encodeRecord({ generation: 1, body }), 'x').body }, now, LIMITS)
    let step = start(armed(), at(5000.4))
    for (const mono of [50_000, 110_000, 160_000]) step = start(step.body, at(mono))
    // Three deadlines after the first start, however often the agent began anew.
    expect([step.body.state.name, step.deadline]).toEqual(['trying', 185_000])
    const ended = start(step.body, at(185_000))
    expect(ended.effects.slice(1)).toEqual([{ do: 'write-boot', change: 'refuse' }, { do: 'reboot' }])
    expect(ended.body.state).toMatchObject({ failed: { code: 'HEALTH_FAILED' } })
    // The next try is another boot.
    expect(start(step.body, at(7000, 'next'))).toMatchObject({ deadline: 67_000, body: { state: { name: 'trying' } } })
  })

  it('a verdict that was recorded before a cut is carried out', () => {
    const failed = { code: 'HEALTH_FAILED', message: 'x' }
    const body = inState({ name: 'trying', job, since: AT, failed })
    const step = find({ boot: boot({ trial: 'b', left: 1 }), line: tryLine, body })
    expect(step.effects.slice(1)).toEqual([{ do: 'write-boot', change: 'refuse' }, { do: 'reboot' }])
    const after = find({
      boot: boot({ trial: 'b', left: 0 }),
      line: line({ boot: 'fallback', why: 'tries-spent' }),
      body,
    })
    expect(after.body.state).toMatchObject({ name: 'fallen-back', failed })
  })

  it('a commit that was written but not recorded is recorded, with its floors', () => {
    const body = inState({ name: 'trying', job, since: AT })
    const step = find({ boot: boot({ primary: 'b', spare: true }), line: tryLine, body })
    expect(step.body).toMatchObject({ state: { name: 'committed' }, installFloor: number(3), securityFloor: number(1) })
    expect(find({ boot: boot({ primary: 'b', spare: true }), line: tryLine, body: step.body }).body).toEqual(step.body)
  })

  it('armed in this boot is armed, even when this boot was a fall-back of an older release', () => {
    const facts = { boot: boot({ trial: 'b', left: 3 }), line: line({ boot: 'fallback', why: 'tries-spent' }) }
    expect(find({ ...facts, body: armed('now') }).body.state.name).toBe('armed')
    const verified = inState({ name: 'verified', job, since: AT, bootId: 'now' })
    expect(find({ ...facts, body: verified }).body.state.name).toBe('armed')
    // In a later boot the same words mean that it was passed over.
    expect(find({ ...facts, body: armed('before') }).body.state.name).toBe('fallen-back')
  })

  it('a fall back is told once; every later boot says what runs', () => {
    const facts = { boot: boot({ trial: 'b', left: 0 }), line: line({ boot: 'fallback', why: 'tries-spent' }) }
    const first = find({ ...facts, body: armed('before') })
    expect(first.lines).toEqual([expect.stringMatching(/^bistable: fell back to slot=a /)])
    const next = find({ ...facts, body: first.body })
    expect(next.lines).toEqual([expect.stringMatching(/^bistable: running slot=a .* why=tries-spent$/)])
    expect(next.body).toEqual(first.body)
  })

  it('every reason of the bootloader has its code', () => {
    const cases = [
      ['tries-spent', 'TRY_TRIES_SPENT', 0],
      ['counter-unwritable', 'TRY_COUNTER_UNWRITABLE', 3],
      ['image-unreadable', 'TRY_IMAGE_UNREADABLE', 2],
      ['something-new', 'TRY_TRIES_SPENT', 0],
    ] as const
    for (const [why, code, left] of cases) {
      const step = find({ boot: boot({ trial: 'b', left }), line: line({ boot: 'fallback', why }), body: armed() })
      expect(step.body.state).toMatchObject({ name: 'fallen-back', failed: { code } })
      expect(step.body.blocked).toMatchObject([{ digest: SHA }])
      const refused = step.effects.some((e) => e.do === 'write-boot' && e.change === 'refuse')
      expect(refused, why).toBe(left > 0)
    }
  })

  it("the initramfs's word is kept: as the reason of a fall-back, else as a note", () => {
    const reason = { slot: 'b', stage: 'verity', text: 'root hash' } as const
    const fell = find({
      boot: boot({ trial: 'b' }),
      line: line({ boot: 'fallback', why: 'tries-spent' }),
      body: armed(),
      reason,
    })
    expect(fell.body.state).toMatchObject({ failed: { code: 'TRY_INITRAMFS', message: 'verity: root hash' } })
    const second = find({ boot: boot({ trial: 'b', left: 1 }), line: tryLine, body: armed(), reason })
    expect(codes(second.body)).toEqual(['TRY_INITRAMFS'])
    const stray = find({ reason: { slot: 'a', stage: 'data', text: 'fsck' } })
    expect(codes(stray.body)).toEqual(['TRY_INITRAMFS'])
  })

  it('with lost records a fall-back is blocked by what the data partition says is in the slot', () => {
    const onDisk = { b: { digest: SHA, number: number(3), version: '3', committed: false } }
    const facts = { boot: boot({ trial: 'b' }), line: line({ boot: 'fallback', why: 'tries-spent' }) }
    expect(find({ ...facts, onDisk }).body.blocked).toMatchObject([{ digest: SHA }])
    expect(codes(find(facts).body)).toEqual(['TRY_TRIES_SPENT'])
  })

  it('a try that nobody knows is given up', () => {
    const step = find({ boot: boot({ trial: 'b', left: 2 }), line: tryLine })
    expect(codes(step.body)).toEqual(['VERIFY_NO_RELEASE'])
    expect(step.effects).toContainEqual({ do: 'write-boot', change: 'refuse' })
  })

  it('a try is of the release that was armed, not of one whose install had only begun over it', () => {
    // Release 3 is armed in b; release 4 was announced, and the agent ended before the first byte was written.
    const newer: Job = { ...job, digest: 'f'.repeat(64) as typeof SHA, number: number(4), version: '4' }
    const facts = { digest: SHA, number: number(3), version: '3', committed: false }
    const body = { ...inState({ name: 'downloading', job: newer, since: AT }), slots: { b: facts } }
    const tried = find({ boot: boot({ trial: 'b', left: 2 }), line: tryLine, body })
    expect(tried.body.state).toMatchObject({ name: 'trying', job: { digest: SHA, number: number(3) } })
    // The agent alone was started anew.
    const waits = find({ boot: boot({ trial: 'b', left: 3 }), body })
    expect(waits.body.state).toMatchObject({ name: 'armed', job: { digest: SHA, number: number(3) } })
    // Passed over: it is release 3 that is blocked, and release 4 that is not.
    const fell = find({ boot: boot({ trial: 'b' }), line: line({ boot: 'fallback', why: 'tries-spent' }), body })
    expect(fell.body.blocked).toMatchObject([{ digest: SHA }])
    // Nobody knows the release that runs: it is given up.
    const unknown = find({ boot: boot({ trial: 'b', left: 2 }), line: tryLine, body: { ...body, slots: {} } })
    expect(codes(unknown.body)).toEqual(['VERIFY_NO_RELEASE'])
  })

  it('a lost boot state is written anew when a committed system runs, never for a try', () => {
    const fallback = line({ boot: 'fallback', why: 'state-unreadable' })
    const lost = find({ boot: undefined, line: fallback })
    expect(codes(lost.body)).toEqual(['TRY_STATE_UNREADABLE'])
    expect(lost.effects).toContainEqual({ do: 'write-boot', change: 'fresh' })
    const trial = find({ boot: undefined, line: { ...tryLine, boot: 'fallback' }, body: armed() })
    expect(trial.body.state.name).toBe('trying')
    expect(trial.effects).toEqual([{ do: 'came-up' }])
    const problem = { code: 'BOOT_STATE_READ', message: 'no such device' }
    const broken = find({ boot: undefined, bootProblem: problem, line: fallback })
    expect(broken.effects).toEqual([{ do: 'came-up' }])
    expect(codes(broken.body)).toContain('BOOT_STATE_READ')
  })

  it('a spare that runs because the primary does not come up is adopted; one chosen in the menu is not', () => {
    const state = boot({ primary: 'b', spare: true })
    const broken = find({ boot: state, line: line({ boot: 'fallback', why: 'primary-broken' }) })
    expect(broken.effects).toContainEqual({ do: 'write-boot', change: 'adopt' })
    expect(codes(broken.body)).toEqual(['TRY_PRIMARY_BROKEN'])
    expect(find({ boot: state, line: line({ boot: 'menu' }) }).effects).toEqual([{ do: 'came-up' }])
  })

  it('an install that was cut short ends in idle with a word', () => {
    for (const state of [
      { name: 'downloading', job, since: AT },
      { name: 'verified', job, since: AT, bootId: 'before' },
    ] as const) {
      const { body } = find({ body: inState(state) })
      expect(body.state.name).toBe('idle')
      expect(codes(body)).toEqual(['AGENT_INTERRUPTED'])
      expect(body.blocked).toEqual([])
    }
  })

  it('is the same when asked again', () => {
    const all: Partial<BootFacts>[] = [
      {},
      { body: armed(), boot: boot({ trial: 'b' }), line: line({ boot: 'fallback', why: 'tries-spent' }) },
      { body: armed(), boot: boot({ trial: 'b', left: 3 }) },
      { body: inState({ name: 'downloading', job, since: AT }) },
      { boot: undefined, line: line({ boot: 'fallback', why: 'state-unreadable' }) },
      { boot: boot({ primary: 'b', spare: true }), line: line({ boot: 'fallback', why: 'primary-broken' }) },
      { reason: { slot: 'a', stage: 'x', text: 'y' } },
    ]
    for (const facts of all) {
      const { body } = find(facts)
      expect(find({ ...facts, body }).body).toEqual(body)
    }
  })
})

describe('the machine', () => {
  const failure = { code: 'X', message: 'y' }
  const events: Event[] = [
    { kind: 'begin', job },
    { kind: 'begin-rollback', job },
    { kind: 'progress' },
    { kind: 'filling' },
    { kind: 'verified' },
    { kind: 'armed' },
    { kind: 'disarmed' },
    { kind: 'failed', failure, lasting: false },
    { kind: 'healthy' },
    { kind: 'boot-committed', securityFloor: number(1) },
    { kind: 'unhealthy', failure },
    { kind: 'tick' },
  ]
  const states: RecordBody['state'][] = [
    { name: 'idle' },
    { name: 'downloading', job, since: AT },
    { name: 'verified', job, since: AT, bootId: 'now' },
    { name: 'armed', job, since: AT, bootId: 'now' },
    { name: 'trying', job, since: AT },
    { name: 'committed', job, since: AT },
    { name: 'fallen-back', job, since: AT, failed: failure },
  ]

  it('moves only along its arrows', () => {
    const arrows = new Set<string>()
    for (const state of states)
      for (const event of events) {
        const machine: Machine = { body: inState(state), deadline: 0 }
        const next = decide(machine, event, NOW, LIMITS).body.state.name
        if (next !== state.name) arrows.add(`${state.name} -> ${next}`)
      }
    expect([...arrows].sort()).toEqual([
      'armed -> downloading',
      'armed -> idle',
      'armed -> verified',
      'committed -> downloading',
      'committed -> verified',
      'downloading -> idle',
      'downloading -> verified',
      'fallen-back -> downloading',
      'fallen-back -> verified',
      'idle -> downloading',
      'idle -> verified',
      'trying -> committed',
      'verified -> armed',
      'verified -> idle',
    ])
  })

  it('ends every working state that makes no progress, with a reason', () => {
    for (const state of states.filter((s) => ['downloading', 'verified', 'trying'].includes(s.name))) {
      const step = decide({ body: inState(state), deadline: 1000 }, { kind: 'tick' }, NOW, LIMITS)
      expect(step.effects.length, state.name).toBeGreaterThan(0)
      const early = decide({ body: inState(state), deadline: 1001 }, { kind: 'tick' }, NOW, LIMITS)
      expect(early.effects).toEqual([])
    }
  })

  it('keeps a verdict of any length in a record', () => {
    const said = Array.from({ length: 64 }, (_, n) => `/usr/lib/bistable/health.d/required/${n} (${'x'.repeat(400)})`)
    const verdict = { code: 'HEALTH_FAILED', message: `required checks did not pass: ${said.join('; ')}` }
    const machine = { body: inState({ name: 'trying', job, since: AT }), deadline: 0 }
    const { body } = decide(machine, { kind: 'unhealthy', failure: verdict }, NOW, LIMITS)
    expect(() => encodeRecord({ generation: 1, body })).not.toThrow()
    const fell = find({
      boot: boot({ trial: 'b' }),
      line: line({ boot: 'fallback', why: 'tries-spent' }),
      body,
    })
    expect(fell.body.state).toMatchObject({ name: 'fallen-back', failed: { code: 'HEALTH_FAILED' } })
  })

  it('blocks bytes that can never be installed', () => {
    const machine = { body: inState({ name: 'downloading', job, since: AT }), deadline: 0 }
    expect(decide(machine, { kind: 'failed', failure, lasting: true }, NOW, LIMITS).body.blocked).toMatchObject([
      { digest: SHA },
    ])
    expect(decide(machine, { kind: 'failed', failure, lasting: false }, NOW, LIMITS).body.blocked).toEqual([])
  })
})
