import fc from 'fast-check'
import { describe, expect, test } from 'vitest'
import {
  adopt,
  arm,
  type BootWorld,
  BROKEN_AFTER,
  checkState,
  claim,
  commit,
  freshState,
  GOOD_WORLD,
  MAX_GENERATION,
  NO_STARTS,
  onBoot,
  refuse,
  renew,
  rollBack,
  vouch,
} from '../../bootloader/machine.ts'
import { type BootState, otherSlot, type Slot } from '../../bootloader/state.ts'

const fresh = freshState('a')
const code = (name: string) => expect.objectContaining({ code: name })

describe('moves', () => {
  test('an update: claim, arm, try, commit', () => {
    const claimed = claim({ ...fresh, spare: true })
    expect(claimed).toEqual({ generation: 2, primary: 'a', trial: undefined, left: 0, spare: false })
    const armed = arm(claimed, 'b')
    expect(armed).toEqual({ generation: 3, primary: 'a', trial: 'b', left: 3, spare: false })
    const boot = onBoot(armed)
    expect(boot).toMatchObject({ slot: 'b', boot: 'try', why: 'ok', left: 2, newState: { ...armed, left: 2 } })
    expect(commit({ ...armed, left: 2 }, 'b')).toEqual({
      ...{ generation: 4, primary: 'b', trial: undefined, left: 0, spare: true },
    })
  })

  test('a bad release falls back after its tries, and stays back', () => {
    let state = arm(fresh, 'b', 2)
    const seen: string[] = []
    for (let n = 0; n < 4; n++) {
      const boot = onBoot(state)
      seen.push(`${boot.slot} ${boot.boot} ${boot.why}`)
      state = boot.newState ?? state
    }
    expect(seen).toEqual(['b try ok', 'b try ok', 'a fallback tries-spent', 'a fallback tries-spent'])
  })

  test('a refused trial boots the primary at once', () => {
    expect(onBoot(refuse(arm(fresh, 'b'), 'b'))).toMatchObject({ slot: 'a', why: 'tries-spent' })
  })

  test('renewing changes the generation only', () => {
    expect(renew(arm(fresh, 'b'))).toEqual({ ...arm(fresh, 'b'), generation: 3 })
  })

  test('roll back puts the spare on trial', () => {
    const rolling = rollBack({ ...fresh, spare: true })
    expect(onBoot(rolling)).toMatchObject({ slot: 'b', boot: 'try' })
  })

  test('illegal moves have names', () => {
    expect(() => arm(fresh, 'a')).toThrow(code('BOOT_ARM_ACTIVE'))
    expect(() => arm(fresh, 'b', 0)).toThrow(code('BOOT_STATE_INVALID'))
    expect(() => arm(fresh, 'b', 10)).toThrow(code('BOOT_STATE_INVALID'))
    expect(() => commit(fresh, 'b')).toThrow(code('BOOT_COMMIT_NOT_TRIED'))
    expect(() => commit(fresh, 'a')).toThrow(code('BOOT_COMMIT_NOT_TRIED'))
    expect(() => commit(arm(fresh, 'b'), 'a')).toThrow(code('BOOT_COMMIT_NOT_TRIED'))
    expect(() => refuse(fresh, 'b')).toThrow(code('BOOT_REFUSE_NOT_TRIED'))
    expect(() => rollBack(fresh)).toThrow(code('BOOT_NO_SPARE'))
    expect(() => adopt(fresh, 'b')).toThrow(code('BOOT_NO_SPARE'))
    expect(() => vouch(fresh, 'a')).toThrow(code('BOOT_STATE_INVALID'))
    expect(() => adopt({ ...fresh, spare: true }, 'a')).toThrow(code('BOOT_NO_SPARE'))
    expect(() => claim({ ...fresh, generation: MAX_GENERATION })).toThrow(code('BOOT_GENERATION_SPENT'))
    expect(() => checkState({ ...fresh, trial: 'a' })).toThrow(code('BOOT_STATE_INVALID'))
    expect(() => checkState({ ...fresh, left: 1 })).toThrow(code('BOOT_STATE_INVALID'))
  })
})

describe('decisions', () => {
  const world = (change: Partial<BootWorld>): BootWorld => ({ ...GOOD_WORLD, ...change })

  test('a counter that cannot be written boots the primary', () => {
    expect(onBoot(arm(fresh, 'b'), world({ writable: false }))).toMatchObject({
      ...{ slot: 'a', boot: 'fallback', why: 'counter-unwritable', left: 3, newState: undefined },
    })
  })

  test('a primary that never comes up gives way to a spare, and only to a spare', () => {
    const starts = { ...NO_STARTS, a: BROKEN_AFTER }
    expect(onBoot({ ...fresh, spare: true }, world({ starts }))).toMatchObject({ slot: 'b', why: 'primary-broken' })
    expect(onBoot(fresh, world({ starts }))).toMatchObject({ slot: 'a', boot: 'committed', pause: true })
    const both = { ...starts, b: BROKEN_AFTER }
    expect(onBoot({ ...fresh, spare: true }, world({ starts: both }))).toMatchObject({ slot: 'a', pause: true })
    expect(adopt({ ...fresh, spare: true }, 'b')).toMatchObject({ primary: 'b', spare: false })
  })

  test('without any state the slot that came up last boots, until it does not', () => {
    expect(onBoot(undefined)).toMatchObject({ slot: 'a', boot: 'fallback', why: 'state-unreadable' })
    expect(onBoot(undefined, world({ starts: { ...NO_STARTS, up: 'b' } }))).toMatchObject({ slot: 'b' })
    expect(onBoot(undefined, world({ starts: { a: 0, b: 6, up: 'b' } }))).toMatchObject({ slot: 'a' })
  })

  test('a boot image that is not there sends the boot to the other slot', () => {
    const loadable = { a: true, b: false }
    expect(onBoot(arm(fresh, 'b'), world({ loadable }))).toMatchObject({
      ...{ slot: 'a', boot: 'fallback', why: 'image-unreadable', newState: { left: 2 } },
    })
    expect(onBoot(fresh, world({ loadable: { a: false, b: false } }))).toMatchObject({ slot: undefined, pause: true })
  })
})

type Step = 'claim' | 'arm' | 'commit' | 'refuse' | 'rollBack' | 'boot' | 'bad-boot' | 'counter-fails'
const steps = fc.array(
  fc.constantFrom<Step>('claim', 'arm', 'commit', 'refuse', 'rollBack', 'boot', 'bad-boot', 'counter-fails'),
  { maxLength: 40 },
)

describe('from any reachable state', () => {
  /**
   * A device in miniature: which slots hold a system that comes up, and the agent's rules. A slot that is overwritten
   * comes up or not by chance; whatever was committed does come up.
   */
  test('a slot that comes up is reached within MAX_TRIES + 1 boots, and only what ran on trial is committed', () => {
    fc.assert(
      fc.property(steps, fc.infiniteStream(fc.boolean()), (sequence, chance) => {
        let state: BootState = fresh
        let running: { slot: Slot; boot: string } = { slot: 'a', boot: 'committed' }
        const good: Record<Slot, boolean> = { a: true, b: false }
        const boot = (w: BootWorld): void => {
          for (let n = 0; n <= 10; n++) {
            const decision = onBoot(state, w)
            if (decision.slot === undefined) throw new Error('no slot chosen')
            state = decision.newState ?? state
            running = { slot: decision.slot, boot: decision.boot }
            if (good[decision.slot]) return
          }
          throw new Error(`an endless reset: ${JSON.stringify({ state, good })}`)
        }
        for (const step of sequence) {
          const inactive = otherSlot(running.slot)
          if (step === 'boot') boot(GOOD_WORLD)
          if (step === 'counter-fails') boot({ ...GOOD_WORLD, writable: false })
          if (step === 'bad-boot' && state.trial !== undefined) {
            good[state.trial] = false
            boot(GOOD_WORLD)
          }
          if (running.boot !== 'try' && running.slot === state.primary) {
            if (step === 'claim') {
              state = claim(state)
              good[inactive] = false
            }
            if (step === 'arm' && !state.spare) {
              good[inactive] = chance.next().value === true
              state = arm(state, inactive)
            }
            if (step === 'rollBack' && state.spare) state = rollBack(state)
          }
          if (step === 'commit' && running.boot === 'try' && running.slot === state.trial) {
            state = commit(state, running.slot)
            expect(good[state.primary]).toBe(true)
          }
          if (step === 'refuse' && state.trial !== undefined) state = refuse(state, state.trial)
          checkState(state)
          expect(good[state.primary]).toBe(true)
          if (state.spare) expect(good[otherSlot(state.primary)]).toBe(true)
        }
        boot(GOOD_WORLD)
      }),
      { numRuns: 2000 },
    )
  })
})
