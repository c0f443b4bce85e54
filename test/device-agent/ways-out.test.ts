import { execFileSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { createServer as createTlsServer } from 'node:https'
import { type AddressInfo, createServer } from 'node:net'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { describe, expect, it, onTestFinished } from 'vitest'
import { engineOver } from '../../device/agent/engine-over.ts'
import { PLACE_MS } from '../../device/agent/mirrors.ts'
import type { Engine } from '../../device/agent/ports.ts'
import type { HttpDoorOptions } from '../../device/doors/http.ts'
import { haveTool, scratch } from '../bundle/tools.ts'
import { brokers } from '../mqtt/tools.ts'
import { memorySlots } from './link.ts'
import { World } from './world.ts'

// What keeps a device from its publisher, met with the real doors: each has its code, the agent goes on asking, and when it
// is over the update goes through.

const GONE_MS = 1_200_000

/** Whether anything of this process can still bring an answer: a lookup, a socket, a file; not what only listens or waits. */
function underWay(): boolean {
  return process
    .getActiveResourcesInfo()
    .some((what) => !/^(Pipe|TTY|TCPServer|Timeout|MessagePort|Immediate|Process|Signal)/.test(what))
}

/** A device whose way out is wrong for twenty minutes; from then on the release is there for the asking. */
async function device(address: string, real: (world: World) => (files: World['files'], data: string) => Engine) {
  const world = new World()
  await world.publish({ counter: 3 })
  const channel = world.web.get('http://updates/channels/stable.json')
  world.agentConfig = { channel: address, pollSeconds: 3600, apply: 'install' }
  const broken = real(world)
  world.engine = (files, data) => {
    world.engine = undefined
    const wrong = broken(files, data)
    const well = world.plainEngine()
    return {
      ...well,
      fetchSmall: async (url, limit, signal) => {
        if (world.mono < GONE_MS) return await wrong.fetchSmall(url, limit, signal)
        return url.pathname.startsWith('/channels/') && channel instanceof Uint8Array ? channel : undefined
      },
      open: (_, signal) => well.open('http://updates/bundles/3.bundle', signal),
    }
  }
  // Real sockets and resolvers take real time: 40 ms, or until nothing has been under way for a while.
  world.settle = async () => {
    for (let turn = 0; turn < 4; turn++) await new Promise((resolve) => setImmediate(resolve))
    const asking = () => world.mono < GONE_MS && world.core?.activity.busyWith !== undefined
    for (let ms = 0, quiet = 0; ms < 40 && quiet < 4 && asking(); ms += 2) {
      await sleep(2)
      quiet = underWay() ? 0 : quiet + 1
    }
  }
  world.done = () => world.core?.body.state.name === 'armed'
  await world.powerOn(5 * 3600)
  return world
}

const overHttp =
  (tls: HttpDoorOptions['tls'] = {}) =>
  (world: World) => {
    const clock = { now: () => world.mono, sleep: (ms: number, signal?: AbortSignal) => world.sleep(ms, signal) }
    const door: HttpDoorOptions = { clock, random: () => 0.5, tls }
    return (files: World['files'], data: string) => engineOver(data, files, memorySlots(), undefined, async () => door)
  }

function expectBack(world: World, code: RegExp): void {
  const said = world.lines.join('\n')
  expect(world.core?.body.state.name, said).toBe('armed')
  expect(world.mono, said).toBeGreaterThanOrEqual(GONE_MS)
  expect(world.mono - GONE_MS, said).toBeLessThanOrEqual(300_000)
  const failed = world.core?.body.outcomes.filter(({ ok }) => !ok) ?? []
  expect(failed.length, said).toBeGreaterThan(0)
  for (const outcome of failed) expect(outcome.code, said).toMatch(code)
}

describe('ways out that are wrong', () => {
  it.skipIf(!haveTool('openssl'))('TLS: a certificate that is not valid yet, as for a clock at 1970', async () => {
    const folder = scratch()
    const at = (name: string) => join(folder, name)
    const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'pipe', cwd: folder })
    const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
    openssl('req', '-x509', ...key, '-keyout', 'ca.key', '-out', 'ca.crt', '-days', '30000', '-subj', '/CN=ca')
    openssl('req', ...key, '-keyout', 'web.key', '-out', 'web.csr', '-subj', '/CN=127.0.0.1')
    writeFileSync(at('index'), '')
    writeFileSync(
      at('conf'),
      [
        ...['[ca]', 'default_ca=a', '[a]', 'database=index', 'serial=serial', 'new_certs_dir=.', 'default_md=sha256'],
        ...['policy=p', 'x509_extensions=x', '[p]', 'commonName=supplied', '[x]', 'subjectAltName=IP:127.0.0.1', ''],
      ].join('\n'),
    )
    const signing = ['-cert', 'ca.crt', '-keyfile', 'ca.key', '-in', 'web.csr', '-out', 'web.crt']
    openssl(
      'ca',
      '-batch',
      '-config',
      'conf',
      '-create_serial',
      '-startdate',
      '20450101000000Z',
      '-days',
      '30',
      ...signing,
    )
    const server = createTlsServer({ key: readFileSync(at('web.key')), cert: readFileSync(at('web.crt')) })
    await new Promise<void>((up) => server.listen(0, '127.0.0.1', up))
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const address = `https://127.0.0.1:${port}/channels/stable.json`
    const world = await device(address, overHttp({ ca: readFileSync(at('ca.crt'), 'latin1') }))
    expectBack(world, /^TRANSPORT_TLS$/)
    expect(world.lines.join('\n')).toContain('CERT_NOT_YET_VALID')
  })

  it('DNS: a name that nobody knows', async () => {
    // Too long for a label: no resolver has to be asked.
    const world = await device(`http://${'a'.repeat(64)}.example/channels/stable.json`, overHttp())
    expectBack(world, /^TRANSPORT_LOST$/)
    expect(world.lines.join('\n')).toMatch(/ENOTFOUND|EAI_/)
  })

  // MQTT 3.1.1, table 3.1, and MQTT 5, 3.2.2.2.
  it.each([
    ['bad user name or password', 4, 0x86],
    ['not authorised', 5, 0x87],
  ])('a broker that refuses: %s', async (_, three, five) => {
    const server = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.once('data', (connect) => {
        const version = connect[connect.indexOf('MQTT') + 4]
        socket.end(version === 5 ? Buffer.from([0x20, 3, 0, five, 0]) : Buffer.from([0x20, 2, 0, three]))
      })
    })
    await new Promise<void>((up) => server.listen(0, '127.0.0.1', up))
    onTestFinished(() => void server.close())
    const { port } = server.address() as AddressInfo
    const world = await device(`mqtt://127.0.0.1:${port}/channels/stable.json`, (here) => (files, data) => {
      const clock = { now: () => here.mono, sleep: (ms: number, signal?: AbortSignal) => here.sleep(ms, signal) }
      const made = brokers('device-1', { clock, backoff: { firstMs: 10_000, maxMs: 120_000 } })
      return engineOver(data, files, memorySlots(), undefined, undefined, made)
    })
    expectBack(world, /^TRANSPORT_REFUSED$/)
  })
})

describe('too little memory', () => {
  it('in the middle of an install: it ends with its code, the agent goes on, and the next install works', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'install' }
    await world.publish({ counter: 3 })
    let times = 0
    world.onFill = async () => {
      if (++times === 2) new ArrayBuffer(Number.MAX_SAFE_INTEGER)
    }
    world.done = () => world.core?.body.state.name === 'armed'
    await world.powerOn(2000)
    expect(world.core?.body.state.name).toBe('armed')
    expect(world.core?.body.outcomes.map(({ code }) => code)).toEqual([undefined, 'AGENT_MEMORY', undefined])
    expect(world.core?.body.blocked).toEqual([])
  })
})

describe('a mirror that is dead', () => {
  it.each([
    ['silent', 'file'],
    ['refusing', 'file'],
    ['silent', 'bundle'],
    ['refusing', 'bundle'],
  ])('%s, asked for a %s: the next one is asked half a minute later', async (how, dead) => {
    const world = new World()
    await world.publish({ counter: 3 })
    const file = world.web.get('http://updates/channels/stable.json')
    const mirrors = ['http://mirror/channels/stable.json']
    const channel = 'http://updates/channels/stable.json'
    world.agentConfig = { channel, mirrors, pollSeconds: 3600, apply: 'install' }
    const asked = new Map<string, number>()
    const plain = world.plainEngine()
    const ask = async <T>(what: string, address: string, answer: () => Promise<T>, signal: AbortSignal) => {
      const { host } = new URL(address)
      if (!asked.has(`${what} ${host}`)) asked.set(`${what} ${host}`, world.mono)
      if (host === 'mirror' || what !== dead) return await answer()
      // As the doors do: an answer that is waited for, or eight tries with pauses up to a minute.
      return await new Promise<T>((_, stop) => {
        signal.addEventListener('abort', () => stop(signal.reason), { once: true })
        if (how === 'refusing') void world.sleep(125_000).then(() => stop(new Error('given up')))
      })
    }
    const small = async (url: URL) =>
      url.pathname.startsWith('/channels/') && file instanceof Uint8Array ? file : undefined
    world.engine = () => ({
      ...plain,
      fetchSmall: (url, _, signal) => ask('file', url.href, () => small(url), signal),
      open: (source, signal) =>
        ask('bundle', source, () => plain.open('http://updates/bundles/3.bundle', signal), signal),
    })
    world.done = () => world.core?.body.state.name === 'armed'
    await world.powerOn(1000)
    expect(world.core?.body.state.name, world.lines.join('\n')).toBe('armed')
    const waited = (asked.get(`${dead} mirror`) ?? Number.NaN) - (asked.get(`${dead} updates`) ?? Number.NaN)
    expect(waited).toBe(PLACE_MS)
    expect(world.lines.join('\n')).toContain('gave nothing for 30 s; the next mirror is asked')
  })
})
