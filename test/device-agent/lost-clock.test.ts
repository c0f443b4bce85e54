import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { tlsWords } from '../../base/tls-failure.ts'
import { forwardClock, ranOn, signedFloor } from '../../device/agent/lost-clock.ts'
import { freshness } from '../attacks/web.ts'
import { haveTool, scratch } from '../bundle/tools.ts'
import { askAgent, deviceProgram, madeUpDevice, startAgent } from '../helpers/device-process.ts'
import { signedRoot } from '../keys/helpers.ts'
import { authority, mosquitto, noMosquitto, OPEN, publisher, publishFolder, until } from '../mqtt/tools.ts'
import { World } from './world.ts'

// A device whose clock was lost starts in 1970, where no certificate is valid yet.

const at = (time: string) => Date.parse(time)
const HOUR = 3_600_000

describe('a clock that was put forward', () => {
  it('goes to the newest of the times that were signed', () => {
    expect(signedFloor([])).toBe(0)
    expect(signedFloor([undefined, '2026-01-02T00:00:00Z', '2026-01-03T00:00:00Z', undefined])).toBe(
      at('2026-01-03T00:00:00Z'),
    )
  })

  it('is told from one that somebody set: it has only run on, as well as oscillators do', () => {
    const mark = { wall: at('2026-06-01T00:00:00Z'), up: 20_000 }
    const later = (ms: number, off = 0) => ranOn(mark, { wall: mark.wall + ms + off, up: mark.up + ms })
    expect([later(0), later(300 * 24 * HOUR), later(24 * HOUR, 8_000), later(24 * HOUR, -8_000)]).toEqual(
      Array(4).fill(true),
    )
    // Set from the network: by hours, and by seconds soon after.
    expect([later(HOUR, HOUR), later(HOUR, -HOUR), later(10_000, 2_000)]).toEqual(Array(3).fill(false))
  })

  it('is marked for as long as the system runs, whoever asks; a clock that cannot be set is as it was', async () => {
    const path = join(scratch(), 'clock')
    const ran: (readonly string[])[] = []
    let answer = { exit: 0 as number | undefined, timedOut: false, said: '' }
    const processes = {
      run: async (command: readonly [string, ...string[]]) => {
        ran.push(command)
        return answer
      },
    }
    const clock = forwardClock(path, nodeFiles, processes)
    expect(await clock.untouched()).toBe(false)
    expect(await clock.set(at('2026-06-01T00:00:00.200Z'))).toBeUndefined()
    expect(ran).toEqual([['date', '-u', '-s', `@${at('2026-06-01T00:00:01Z') / 1000}`]])
    expect(await forwardClock(path, nodeFiles, processes).untouched()).toBe(true)

    answer = { exit: 1, timedOut: false, said: 'date: cannot set date: Operation not permitted\n' }
    expect(await clock.set(at('2030-01-01T00:00:00Z'))).toBe(
      'date ended with 1: date: cannot set date: Operation not permitted',
    )
    // This machine's clock does not show 2030: not the agent's own time.
    expect(await clock.untouched()).toBe(false)
    for (const junk of ['', '{}', '{"wall":1,"up":2,"x":3}', 'x'.repeat(1000)]) {
      writeFileSync(path, junk)
      expect(await clock.untouched(), junk).toBe(false)
    }
    expect(tlsWords('CERT_NOT_YET_VALID', new Date(0))).toContain('shows 1970-01-01')
    expect(tlsWords('CERT_SIGNATURE_FAILURE', new Date(0))).toBe('CERT_SIGNATURE_FAILURE')
  })
})

describe('the agent at 1970, not synchronised', () => {
  /** @param sets false: a system that does not let the agent set its clock */
  async function lost(sets: boolean) {
    const world = new World({ counter: 2 })
    const right = world.wall
    await world.publish({ counter: 3 })
    world.wall = 0
    world.synchronised = false
    let own: number | undefined
    world.forward = {
      set: async (to) => {
        if (!sets) return 'not permitted'
        world.wall = to
        own = world.wall - world.mono
        return undefined
      },
      untouched: async () => own === world.wall - world.mono,
    }
    return { world, right }
  }

  it('goes on from the newest signed time, and opens no window by it until somebody knows what time it is', async () => {
    const { world, right } = await lost(true)
    world.agentConfig = { ...world.agentConfig, policy: { download: { windows: ['00:00-24:00'] } } }
    await world.powerOn(600)
    // First the root statement's time, then that of the channel file, which is later.
    const moved = world.lines.filter((line) => line.includes('was put forward to'))
    expect(moved).toHaveLength(2)
    expect(moved[0]).toContain('showed 1970-01-01T00:00:00')
    expect(moved[0]).toContain('put forward to 2026-11-21T00:00:00.000Z, the newest time that was signed')
    expect(world.wall).toBeGreaterThan(at(world.core?.body.verifiedTime ?? ''))
    expect([world.fetches, world.core?.activity.waiting?.code]).toEqual([0, 'POLICY_CLOCK'])
    // Network time at last.
    world.wall = right + HOUR
    await world.powerOn(600)
    expect(world.core?.body.state.name).toBe('armed')
  })

  it('that may not set its clock says so once and works on', async () => {
    const { world } = await lost(false)
    await world.powerOn(600)
    expect(world.wall).toBeLessThan(at('1971-01-01T00:00:00Z'))
    const told = world.lines.filter((line) => line.includes('the clock is lost and cannot be put forward'))
    expect(told.map((line) => line.slice(-13))).toEqual(['not permitted'])
    expect(world.core?.body.state.name).toBe('armed')
  })

  it('leaves a clock alone that is synchronised, or ahead', async () => {
    for (const [wall, synchronised] of [
      [0, true],
      [at('2030-01-01T00:00:00Z'), false],
    ] as const) {
      const { world } = await lost(true)
      Object.assign(world, { wall, synchronised })
      await world.powerOn(200)
      expect(world.lines.filter((line) => line.includes('put forward'))).toEqual([])
    }
  })
})

/** Debian: libfaketime. */
const FAKETIME = ['x86_64', 'aarch64']
  .map((cpu) => `/usr/lib/${cpu}-linux-gnu/faketime/libfaketime.so.1`)
  .find((path) => existsSync(path))

function missingTools(): boolean {
  if (FAKETIME === undefined && process.env['CI'] !== undefined) throw new Error('libfaketime is not installed')
  return FAKETIME === undefined || !haveTool('openssl') || noMosquitto()
}

let program = ''

/** A device whose every process sees the clock that `show` sets; its own `date` sets the same clock. */
async function deviceAt1970(channel: string, ca: string, anchor: Uint8Array, maySet: boolean) {
  const base = scratch()
  const root = join(base, 'device')
  const shown = join(base, 'clock')
  await madeUpDevice(root, {
    anchor,
    system: { agent: { channel, tls: { ca: join(root, 'etc/ca.crt') }, apply: 'install' } },
  })
  writeFileSync(join(root, 'etc/ca.crt'), ca)
  // As the kernel would: what is set runs on. libfaketime takes an offset to the real clock.
  const offset = `printf '%+d\\n' "$((\${3#@} - $(LD_PRELOAD= date +%s)))" > ${shown}`
  const date = maySet ? offset : 'echo date: cannot set date: Operation not permitted >&2; exit 1'
  writeFileSync(join(root, 'usr/bin/date'), `#!/bin/sh\n${date}\n`, { mode: 0o755 })
  const show = (text: string) => writeFileSync(shown, `${text}\n`)
  show(`-${Math.floor(Date.now() / 1000) - 10}`)
  const agent = startAgent(program, root, {
    more: {
      LD_PRELOAD: FAKETIME ?? '',
      FAKETIME_TIMESTAMP_FILE: shown,
      FAKETIME_NO_CACHE: '1',
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
      FAKETIME_DONT_RESET: '1',
    },
  })
  onTestFinished(() => agent.stop())
  await agent.until(/the clock (is lost|showed)/)
  return { agent, show, shown, check: () => askAgent(root, 'check') }
}

describe.skipIf(missingTools())('the real agent at 1970, by a clock that all its processes see', () => {
  const folder = mkdtempSync(join(tmpdir(), 'bistable-test-'))
  beforeAll(async () => {
    program = await deviceProgram(folder)
  })
  afterAll(() => rmSync(folder, { recursive: true, force: true }))

  async function site() {
    const folder = scratch()
    const certificates = authority(folder)
    const own = certificates.issue('broker')
    const seconds = (ms: number) => `${new Date(ms).toISOString().slice(0, 19)}Z`
    const now = Math.ceil(Date.now() / 1000) * 1000
    // Signed after the certificates were issued, so a clock at that time finds them valid.
    const anchor = await signedRoot({ issued: seconds(now + 1000) }, [1, 2])
    const fresh = { number: { epoch: 0, counter: 2 }, issued: seconds(now + 1000), expires: seconds(now + 24 * HOUR) }
    const channel = await freshness(fresh)
    return { folder, certificates, own, anchor, channel }
  }

  it.each(['https', 'mqtts'])('%s: the code, and the next check after the clock was set', async (scheme) => {
    const { folder, certificates, own, anchor, channel } = await site()
    let port: number
    if (scheme === 'https') {
      const server = createTlsServer(own, (request, response) => {
        if (request.url === '/channels/stable.json') response.end(channel)
        else response.writeHead(404).end()
      })
      await new Promise<void>((up) => server.listen(0, '127.0.0.1', up))
      onTestFinished(() => {
        server.closeAllConnections()
        server.close()
      })
      port = (server.address() as AddressInfo).port
    } else {
      const secure = [`certfile ${folder}/broker.crt`, `keyfile ${folder}/broker.key`]
      port = (await mosquitto(['listener 0', ...OPEN, ...secure], folder)).port
      const published = publishFolder(scratch(), { 'channels/stable.json': channel })
      const tls = async () => ({ ca: certificates.ca })
      const serving = await publisher(published, `mqtts://127.0.0.1:${port}`, { tls })
      await until(() => serving.connected)
    }
    const address = `${scheme}://127.0.0.1:${port}/channels/stable.json`

    // Whatever sets the clock there is not the agent.
    const fixed = await deviceAt1970(address, certificates.ca, anchor, false)
    const refused = await fixed.check()
    expect(refused).toContain('TRANSPORT_TLS')
    expect(refused).toContain('CERT_NOT_YET_VALID by the clock of this machine, which shows 1970-01-01')
    expect(fixed.agent.said()).toContain('the clock is lost and cannot be put forward')
    fixed.show('+5')
    const good = await fixed.check()
    expect(good).toContain('"decision":"up-to-date"')
    await fixed.agent.stop()

    // The agent itself.
    const moved = await deviceAt1970(address, certificates.ca, anchor, true)
    expect(await moved.check()).toContain('"decision":"up-to-date"')
    expect(moved.agent.said()).toMatch(/the clock showed 1970-01-01T00:00:1\d\.\d{3}Z and was put forward to 20/)
    // To when the certificates were made, a few seconds ago.
    expect(Math.abs(Number(readFileSync(moved.shown, 'utf8')))).toBeLessThan(600)
  })
})
