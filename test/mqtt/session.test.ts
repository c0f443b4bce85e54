import { renameSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { describe, expect, it, onTestFinished } from 'vitest'
import { runAgent } from '../../device/agent/loop.ts'
import { Gate } from '../../device/agent/session.ts'
import { Device } from '../attacks/device.ts'
import { forge } from '../attacks/forge.ts'
import { announcing, freshness } from '../attacks/web.ts'
import { scratch } from '../bundle/tools.ts'
import { signedRoot } from '../keys/helpers.ts'
import { embedded, publisher, publishFolder, until } from './tools.ts'

// The agent's standing session: what is announced is looked at at once; what the device does is told.

describe('the session', () => {
  it('an announcement starts the install; the fleet hears what became of it; the agent that ends says goodbye', async () => {
    const anchor = await signedRoot({}, [1, 2])
    const broker = await embedded()
    const bundle = await forge()
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': bundle })
    const { fleet } = await publisher(folder, broker.url)
    const channel = `mqtt://127.0.0.1:${broker.port}/channels/stable.json`
    const device = await Device.make(scratch(), { anchor, channel, apply: 'install', daemon: true })
    const stop = new AbortController()
    const agent = runAgent(device.core, stop.signal)
    onTestFinished(async () => {
      stop.abort()
      await agent
    })
    // Its first poll, at a moment of its own within a minute, is not what is tested here.
    const heard = () => fleet.newest(1)[0]
    await until(() => heard()?.online === true && heard()?.state?.state === 'idle')
    const news = await announcing(bundle, anchor, 'bundles/x.bundle')
    const announce = async (change: object) => {
      const hidden = join(folder, 'channels/.new')
      writeFileSync(hidden, await freshness({ ...news, ...change }))
      renameSync(hidden, join(folder, 'channels/stable.json'))
    }
    await announce({})
    await until(() => device.core.body.state.name !== 'idle')
    await until(() => heard()?.state?.state === 'armed')
    expect(heard()?.state).toMatchObject({
      product: 'demo',
      running: { slot: 'a', release: '0.5' },
      job: { release: '0.7' },
      outcome: { what: 'install', ok: true },
    })
    expect(device.said.some((line) => line.includes('check update'))).toBe(true)
    stop.abort()
    await agent
    await device.ports.brokers?.close()
    await until(() => heard()?.online === false)
  })

  it('A27 floods of announcements: at most one check, then later and later', () => {
    const gate = new Gate()
    const checks: number[] = []
    // One new announcement each millisecond for an hour.
    for (let now = 0; now < 3_600_000; now++) {
      gate.want()
      if (gate.due(now)) checks.push(now)
    }
    expect(checks[0]).toBe(0)
    expect(checks.length).toBeLessThan(15)
    // After an hour of quiet one is as good as the first.
    gate.want()
    gate.due(7_200_000)
    gate.want()
    expect(gate.due(10_800_000)).toBe(true)
    gate.want()
    expect(gate.due(10_800_001)).toBe(false)
    expect(gate.due(10_805_000)).toBe(true)
    expect(gate.want()).toBe(true)
    expect(gate.want()).toBe(false)
  })
})
