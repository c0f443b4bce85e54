import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { realProcesses } from '../../device/agent/real.ts'
import { BEAT_MS, beatOf, WATCHDOG_SECONDS } from '../../device/agent/service-watchdog.ts'
import { have } from '../helpers/run.ts'
import { World } from './world.ts'

/** The agent's sign of life for systemd. */

const MINUTE = 60_000

describe('signs of life', () => {
  it('come all through an install of hours, and while nothing is under way', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    const installing: [number, number] = [0, 0]
    world.agentConfig = { ...world.agentConfig, stallSeconds: 3600 }
    world.onFill = async (signal) => {
      installing[0] ||= world.mono
      await world.sleep(59 * MINUTE, signal)
      installing[1] = world.mono
    }
    await world.powerOn(4 * 3600)
    expect(world.core?.body.state.name).toBe('armed')
    expect(installing[1] - installing[0]).toBe(177 * MINUTE)
    const beats = world.beats
    const gaps = beats.slice(1).map((at, i) => at - (beats[i] ?? 0))
    expect(Math.max(...gaps)).toBeLessThanOrEqual(BEAT_MS + 1000)
    expect(beats.filter((at) => at > installing[0] && at < installing[1]).length).toBeGreaterThan(170)
    // Many may be lost.
    expect(WATCHDOG_SECONDS * 1000).toBeGreaterThanOrEqual(10 * BEAT_MS)
  })

  it('are not waited for: what tells systemd may hang, and deadlines move on', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    world.onBeat = () => new Promise(() => undefined)
    await world.powerOn(1000)
    expect(world.core?.body.state.name).toBe('armed')
  })

  it('are for a service manager that wants them, and for the agent alone to send', () => {
    const run = () => Promise.reject(new Error('not to be run'))
    expect(beatOf({}, { run })).toBeUndefined()
    const env = { NOTIFY_SOCKET: '/run/x', PATH: '/bin' }
    expect(beatOf(env, { run })).toBeDefined()
    expect(env).toEqual({ PATH: '/bin' })
  })

  it('where the program is missing, nothing is said and nothing fails', async () => {
    await beatOf({ NOTIFY_SOCKET: '/run/x' }, realProcesses('/nowhere'))?.()
  })

  it.skipIf(!have('systemd-notify', 'socat'))('arrive with the time that systemd shall wait', async () => {
    const folder = mkdtempSync(join(tmpdir(), 'bistable-notify-'))
    onTestFinished(() => rmSync(folder, { recursive: true }))
    const socket = join(folder, 'notify')
    const receiver = spawn('socat', ['-u', `UNIX-RECVFROM:${socket}`, '-'], { stdio: ['ignore', 'pipe', 'inherit'] })
    let said = ''
    receiver.stdout.on('data', (piece) => {
      said += piece
    })
    const ended = new Promise((done) => receiver.on('close', done))
    while (!existsSync(socket)) await sleep(10)
    await beatOf({ NOTIFY_SOCKET: socket }, realProcesses(''))?.()
    await ended
    expect(said).toBe(`WATCHDOG_USEC=${WATCHDOG_SECONDS * 1_000_000}\nWATCHDOG=1`)
  })
})
