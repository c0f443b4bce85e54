import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { decide, type Machine, type Now } from '../../device/agent/machine.ts'
import { deadlineOf, type Limits, STATES } from '../../device/agent/states.ts'
import { EMPTY_BODY, type Job, type RecordBody, type State } from '../../device/records/record.ts'
import { SHA } from '../bundle/fixture.ts'

// No state without a deadline and a successor: in the table, in the machine and on the page.

const LIMITS: Limits = {
  stall: 240_000,
  arm: 60_000,
  tryFor: 75_000,
  hold: 3_600_000,
  reboot: 120_000,
  rest: 4_260_000,
}
const NOW: Now = { mono: 1_000_000, wall: '2026-11-21T00:00:00.000Z', bootId: 'boot-1' }
const job: Job = {
  kind: 'update',
  slot: 'b',
  digest: SHA,
  number: { epoch: 0, counter: 3 },
  version: '1.3',
  source: 'x',
  forced: false,
  started: NOW.wall,
}
const names = Object.keys(STATES) as State['name'][]

function inState(name: State['name']): RecordBody {
  const failed = { code: 'HEALTH_FAILED', message: 'x' }
  const state = {
    name,
    ...(name === 'idle' ? {} : { job, since: NOW.wall }),
    ...(name === 'verified' || name === 'armed' ? { bootId: 'boot-1' } : {}),
    ...(name === 'fallen-back' ? { failed } : {}),
  }
  return { ...EMPTY_BODY, state: state as State }
}

describe('every state', () => {
  it('has a deadline, and something happens when it passes and not before', () => {
    for (const name of names) {
      const body = inState(name)
      const deadline = deadlineOf(body, NOW.mono, LIMITS)
      expect(deadline, name).toBe(NOW.mono + LIMITS[STATES[name].deadline])
      const machine: Machine = { body, deadline }
      const early = decide(machine, { kind: 'tick' }, { ...NOW, mono: deadline - 1 }, LIMITS)
      expect([early.body, early.effects], name).toEqual([body, []])
      const late = decide(machine, { kind: 'tick' }, { ...NOW, mono: deadline }, LIMITS)
      expect(late.effects.length + Number(late.body !== body), name).toBeGreaterThan(0)
      // And then there is a next deadline, ahead.
      expect(late.deadline, name).toBeGreaterThan(deadline)
    }
  })

  it('ends where the table says: in its successor, or woken where only a check can move it on', () => {
    for (const name of names) {
      const rule = STATES[name]
      const late = decide({ body: inState(name), deadline: 0 }, { kind: 'tick' }, NOW, LIMITS)
      const after = late.body.state.name
      if (rule.overdue === name) {
        expect([after, late.effects], name).toEqual([name, [{ do: 'wake' }]])
      } else if (name === 'trying') {
        // Through a reboot: the refused try is what the bootloader falls back from.
        expect(late.effects, name).toEqual([{ do: 'write-boot', change: 'refuse' }, { do: 'reboot' }])
        expect(late.body.state, name).toMatchObject({ name: 'trying', failed: { code: 'HEALTH_FAILED' } })
      } else {
        expect(after, name).toBe(rule.overdue)
        expect(late.body.outcomes.at(-1)).toMatchObject({ ok: false, code: 'AGENT_STALLED' })
      }
      expect(names, name).toEqual(expect.arrayContaining([...rule.next]))
      expect(rule.next.length, name).toBeGreaterThan(0)
    }
  })

  it('asks for a reboot again and again when it does not come, whatever the state', () => {
    for (const name of ['armed', 'trying'] as const) {
      const asked = decide({ body: inState(name), deadline: 1e9 }, { kind: 'reboot-asked' }, NOW, LIMITS)
      expect(asked.deadline).toBe(NOW.mono + LIMITS.reboot)
      // A check that ends meanwhile does not move it away.
      const checked = decide(asked, { kind: 'checked' }, NOW, LIMITS)
      expect(checked.deadline).toBe(asked.deadline)
      const late = decide(checked, { kind: 'tick' }, { ...NOW, mono: asked.deadline }, LIMITS)
      expect(late).toMatchObject({ effects: [{ do: 'reboot' }], deadline: asked.deadline + LIMITS.reboot })
      expect(late.body.outcomes.at(-1)?.code).toBe('REBOOT_FAILED')
      const again = decide(late, { kind: 'tick' }, { ...NOW, mono: late.deadline }, LIMITS)
      expect(again.effects).toEqual([{ do: 'reboot' }])
    }
  })

  it('goes past an init that does not reboot a try that failed, and past no other', () => {
    const failed = { code: 'HEALTH_FAILED', message: 'x' }
    const body = inState('trying')
    if (body.state.name !== 'trying') throw new Error('it is')
    let step = decide(
      { body: { ...body, state: { ...body.state, failed } }, deadline: 1e9 },
      { kind: 'reboot-asked' },
      NOW,
      LIMITS,
    )
    const asked = [step.effects]
    for (let n = 0; n < 3; n++) {
      step = decide(step, { kind: 'tick' }, { ...NOW, mono: step.deadline }, LIMITS)
      asked.push(step.effects)
    }
    const [once, forced] = [[{ do: 'reboot' }], [{ do: 'reboot', forced: true }]]
    expect(asked).toEqual([once, once, forced, forced])
  })

  it('a check that has ended moves the deadline of what is at rest, and of nothing else', () => {
    for (const name of names) {
      const machine: Machine = { body: inState(name), deadline: 5 }
      const { deadline } = decide(machine, { kind: 'checked' }, NOW, LIMITS)
      expect(deadline, name).toBe(STATES[name].deadline === 'rest' ? NOW.mono + LIMITS.rest : 5)
    }
  })

  it('stands in the table of docs/architecture.md with the same deadline and successor', () => {
    const page = readFileSync(join(resolve(import.meta.dirname, '../..'), 'docs/architecture.md'), 'utf8')
    for (const name of names) {
      const row = new RegExp(`^\\| \`${name}\` \\| \`(\\w+)\`[^|]*\\| \`([\\w-]+)\`[^|]*\\| ([^|]*) \\|$`, 'm').exec(
        page,
      )
      const next = [...(row?.[3] ?? '').matchAll(/`([\w-]+)`/g)].map(([, found]) => found)
      expect([row?.[1], row?.[2], next], name).toEqual([STATES[name].deadline, STATES[name].overdue, STATES[name].next])
    }
  })
})
