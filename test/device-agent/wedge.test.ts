import { describe, expect, it } from 'vitest'
import { failureFrom } from '../../device/agent/core.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from './world.ts'

// What hangs or fails below the agent ends with a code, and the next attempt works.

describe('an operation that hangs', () => {
  it('and heeds nothing ends the process with a code; the next process goes on', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    let hangs = true
    world.onFill = () => (hangs ? new Promise(() => undefined) : Promise.resolve())
    expect(await codeOfAsync(() => world.powerOn(2000))).toBe('AGENT_STUCK')
    // 120 s without progress, then a minute to end.
    expect(world.mono).toBeLessThanOrEqual(400_000)
    hangs = false
    await world.powerOn(1000)
    expect(world.core?.body.state.name).toBe('armed')
    expect(world.core?.body.outcomes.map((o) => o.code)).toEqual([undefined, 'AGENT_STALLED', 'AGENT_STUCK', undefined])
  })

  it('is the record itself: the process ends all the same', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    let hangs = false
    world.onWrite = () => (hangs ? new Promise(() => undefined) : Promise.resolve())
    const ended = codeOfAsync(() =>
      world.powerOn(2000, async () => {
        await world.sleep(5000)
        hangs = true
      }),
    )
    expect(await ended).toBe('AGENT_STUCK')
    hangs = false
    await world.powerOn(1000)
    expect(world.core?.body.state.name).toBe('armed')
  })
})

describe('too little memory', () => {
  it('is told by its own code, however it is met', () => {
    const met = [
      () => new ArrayBuffer(1e15),
      () => {
        throw Object.assign(new Error('spawn ENOMEM'), { code: 'ENOMEM', syscall: 'spawn' })
      },
    ]
    const codes = met.map((work) => {
      try {
        work()
        return 'none'
      } catch (error) {
        return failureFrom(error).code
      }
    })
    expect(codes).toEqual(['AGENT_MEMORY', 'AGENT_MEMORY'])
  })
})
