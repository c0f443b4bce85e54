import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, existsSync } from 'node:fs'
import { join } from 'node:path'
import { connect as connectTls } from 'node:tls'
import { connectAsync, type IClientOptions, type MqttClient } from 'mqtt'
import { describe, expect, it, onTestFinished } from 'vitest'
import { MiB } from '../../base/bytes.ts'
import { readExactly } from '../../base/source.ts'
import { openMqttDoor } from '../../device/doors/mqtt.ts'
import { fetchRetained } from '../../device/doors/retained.ts'
import { mayPublish, maySubscribe } from '../../publisher/mqtt/access.ts'
import { countRefusals } from '../attacks/refused.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { codeOfAsync } from '../codes.ts'
import {
  authority,
  brokers,
  embedded,
  mosquitto,
  noMosquitto,
  type Pem,
  publisher,
  publishFolder,
  shippedConfig,
  until,
} from './tools.ts'

// Mosquitto with the configuration and the access list that we ship, over TLS with client certificates.

const file = noise(700_000)

/** Everything that a device or an attacker could want to say or hear. */
const TOPICS = [
  'bistable/channels/stable.json',
  'bistable/roots/2.json',
  'bistable/assignments/d1.json',
  'bistable/assignments/d2.json',
  'bistable/pieces/0123456789abcdef0123456789abcdef/0',
  ...['d1', 'd2'].flatMap((device) =>
    ['ask', 'answer', 'link', 'state', 'progress', 'other'].map((leaf) => `bistable/devices/${device}/${leaf}`),
  ),
  'bistable/devices/d1',
  'bistable/devices/d1/ask/more',
  'bistable/other',
  'elsewhere',
]

async function site() {
  const folder = scratch()
  const certificates = authority(folder)
  for (const name of ['broker', 'bistable-publisher', 'd1', 'd2']) certificates.issue(name)
  chmodSync(folder, 0o755)
  const broker = await mosquitto(shippedConfig(folder), folder)
  const address = `mqtts://127.0.0.1:${broker.port}`
  const tls = (pem: Pem) => async () => ({ ca: certificates.ca, ...pem })
  const raw = async (name: string, options: IClientOptions = {}): Promise<MqttClient> => {
    const client = await connectAsync(address, {
      ...{ ca: certificates.ca, ...certificates.issue(name) },
      ...{ reconnectPeriod: 0, clientId: `${name}-${Math.random()}`, ...options },
    })
    onTestFinished(() => void client.end(true))
    return client
  }
  return { folder, certificates, broker, address, tls, raw }
}

describe.skipIf(noMosquitto())('Mosquitto as shipped', () => {
  it('a device installs over TLS with its own certificate, and nobody gets in without one of ours', async () => {
    const at = await site()
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': file, 'channels/stable.json': '{"a":1}' })
    const own = at.certificates.issue('bistable-publisher')
    const { fleet } = await publisher(folder, at.address, { tls: at.tls(own) })
    const device = brokers('d1', { tls: at.tls(at.certificates.issue('d1')), presence: true })
    expect(await fetchRetained(device, `${at.address}/channels/stable.json`, 100)).toHaveLength(7)
    const door = await openMqttDoor(device, `${at.address}/bundles/x.bundle`)
    expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
    await door.close()
    await until(() => fleet.newest(1)[0]?.online === true)
    await device.close()
    await until(() => fleet.newest(1)[0]?.online === false)

    const other = authority(scratch())
    const wrong = { ...other.issue('d1') }
    const refusals = [
      ['no certificate', async () => ({ ca: at.certificates.ca })],
      ['one by another authority', async () => ({ ca: at.certificates.ca, ...wrong })],
      ['a broker by another authority', async () => ({ ca: other.ca, ...at.certificates.issue('d1') })],
      ['the authorities of the system', async () => at.certificates.issue('d1')],
    ] as const
    // Nor is there a switch in the environment that makes it careless.
    const before = process.env['NODE_TLS_REJECT_UNAUTHORIZED']
    onTestFinished(() => {
      if (before === undefined) delete process.env['NODE_TLS_REJECT_UNAUTHORIZED']
      else process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = before
    })
    for (const [n, [what, tls]] of [...refusals, ...refusals].entries()) {
      if (n === refusals.length) process.env['NODE_TLS_REJECT_UNAUTHORIZED'] = '0'
      const asking = brokers('d1', { tls })
      const code = await codeOfAsync(() =>
        fetchRetained(asking, `${at.address}/channels/stable.json`, 100, { answerMs: 1000 }),
      )
      expect(code, what).toMatch(/^TRANSPORT_(TLS|LOST)$/)
    }
  })

  it('user names and passwords instead of certificates: the same access list, and no password in what is said', async () => {
    const folder = scratch()
    const passwords = { 'bistable-publisher': 'of the publisher', d1: 'p@ss/w:\u00f6rd %', d2: 'two' }
    const listed = join(folder, 'passwords')
    for (const [name, password] of Object.entries(passwords))
      execFileSync('mosquitto_passwd', ['-b', ...(existsSync(listed) ? [] : ['-c']), listed, name, password])
    // The shipped file without what is about certificates.
    const kept = shippedConfig(folder).filter(
      (line) => !/^(cafile|certfile|keyfile|require_|use_identity|tls_)/.test(line),
    )
    const broker = await mosquitto([...kept, `password_file ${listed}`], folder)
    const as = (name: keyof typeof passwords, password = passwords[name]) =>
      `mqtt://${name}:${encodeURIComponent(password)}@127.0.0.1:${broker.port}`
    const site = publishFolder(scratch(), {
      'bundles/x.bundle': file,
      'channels/stable.json': '{"a":1}',
      'assignments/d1.json': '{"for":1}',
    })
    const serving = await publisher(site, as('bistable-publisher'))
    await until(() => serving.connected)
    const device = brokers('d1')
    expect(await fetchRetained(device, `${as('d1')}/channels/stable.json`, 100)).toHaveLength(7)
    const door = await openMqttDoor(device, `${as('d1')}/bundles/x.bundle`)
    expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
    expect(door.name).not.toContain('@')
    await door.close()
    for (const address of [as('d1', 'wrong'), `mqtt://127.0.0.1:${broker.port}`]) {
      const asked = fetchRetained(brokers('d1'), `${address}/channels/stable.json`, 100, { answerMs: 5000 })
      const error = await asked.then(
        () => undefined,
        (failed: Error) => failed,
      )
      expect(error).toMatchObject({ code: 'TRANSPORT_REFUSED' })
      expect(error?.message).not.toMatch(/wrong|@/)
    }
    expect(await fetchRetained(device, `${as('d1')}/assignments/d1.json`, 100)).toHaveLength(9)
    // By its own password under another's name it hears nothing that is said to the other one.
    const posing = fetchRetained(brokers('d1'), `${as('d2')}/assignments/d1.json`, 100, { answerMs: 1500 })
    expect(await codeOfAsync(() => posing)).toMatch(/^TRANSPORT_(STALLED|REFUSED)$/)
    expect(serving.said.join('\n')).not.toMatch(/of the publisher|%20/)
  })

  it('A27 junk, floods and a 256 MB message by one device: another one installs meanwhile, and the publisher sends what it would', async () => {
    const at = await site()
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': file, 'channels/stable.json': '{"a":1}' })
    const own = at.certificates.issue('bistable-publisher')
    const serving = await publisher(folder, at.address, { tls: at.tls(own) })
    await until(() => serving.connected)

    // 256 MB are announced: the broker ends the connection before they are taken.
    const { ca } = at.certificates
    const huge = connectTls({ host: '127.0.0.1', port: at.broker.port, ca, ...at.certificates.issue('d2') })
    onTestFinished(() => void huge.destroy())
    let gone = false
    huge.on('error', () => undefined)
    huge.on('close', () => {
      gone = true
    })
    await once(huge, 'secureConnect')
    const topic = 'bistable/devices/d2/state'
    // CONNECT of MQTT 3.1.1, client identifier d2-huge!.
    huge.write(Buffer.from('101400044d5154540402003c000864322d6875676521', 'hex'))
    await once(huge, 'data')
    huge.write(Buffer.concat([Buffer.from([0x30, 0xff, 0xff, 0xff, 0x7f, 0, topic.length]), Buffer.from(topic)]))
    let taken = 0
    while (!gone) {
      huge.write(Buffer.alloc(65_536))
      taken += 65_536
      await new Promise((turn) => setTimeout(turn, 1))
      expect(taken).toBeLessThan(64 * MiB)
    }

    // Retained junk wherever it may, and where it may not; then 10,000 requests as fast as they go.
    const junk = noise(16_000)
    for (const place of TOPICS) {
      const loud = await at.raw('d2')
      loud.on('error', () => undefined)
      loud.publish(place, junk, { retain: true })
      loud.publish(place, '{"v":1,"bundle":"', { retain: true })
      await ended(loud)
    }
    const flood = await at.raw('d2')
    flood.on('error', () => undefined)
    const digest = createHash('sha256').update(file).digest('hex')
    const ask = JSON.stringify({ v: 1, bundle: digest, pieces: [[0, 5]], again: true })
    let sent = 0
    const flooding = (async () => {
      while (sent < 10_000 && flood.connected) {
        for (let n = 0; n < 100; n++, sent++) flood.publish('bistable/devices/d2/ask', ask)
        await new Promise((turn) => setTimeout(turn, 10))
      }
    })()
    const device = brokers('d1', { tls: at.tls(at.certificates.issue('d1')), presence: true })
    expect(await fetchRetained(device, `${at.address}/channels/stable.json`, 100)).toHaveLength(7)
    for (let round = 0; round < 3; round++) {
      const door = await openMqttDoor(device, `${at.address}/bundles/x.bundle`)
      expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
      await door.close()
    }
    await flooding
    expect(sent).toBe(10_000)
    // Three reads of 22 pieces, and what the one that floods is due for its own asking: each piece once for all its asks.
    expect(serving.sent.pieces).toBeLessThanOrEqual(3 * 22 + 5 * 4)
    const spoken = serving.fleet.newest(10).find((entry) => entry.device === 'd2')
    expect(spoken?.state).toBeUndefined()
    countRefusals(4)
  })
})

/** Who is who on a broker: by certificate on Mosquitto, by client identifier on the embedded one. */
const BROKERS: readonly (readonly [
  string,
  () => Promise<{ raw(name: string, more?: IClientOptions): Promise<MqttClient> }>,
])[] = [
  ['mosquitto', site],
  [
    'the embedded broker',
    async () => {
      const { url, port } = await embedded()
      return {
        raw: async (name, more = {}) => {
          const address = name === 'bistable-publisher' ? url.href : `mqtt://127.0.0.1:${port}`
          const client = await connectAsync(address, { reconnectPeriod: 0, clientId: name, ...more })
          onTestFinished(() => void client.end(true))
          return client
        },
      }
    },
  ],
]

describe.each(BROKERS)('what a device may do on %s', (name, start) => {
  const missing = name === 'mosquitto' && noMosquitto()

  it.skipIf(missing)('A26 spoofed topics: a device says its own words, and nothing else reaches anybody', async () => {
    const at = await start()
    const all = await listening(await at.raw('bistable-publisher'), ['bistable/#'])
    const other = await listening(await at.raw('d2'), [
      'bistable/devices/d2/answer',
      'bistable/channels/stable.json',
      '#',
    ])
    for (const topic of TOPICS) {
      // One that says what it may not may lose its connection for it: each has one of its own.
      const device = await at.raw('d1')
      device.on('error', () => undefined)
      device.publish(topic, 'x')
      await ended(device)
    }
    const device = await at.raw('d1')
    await device.publishAsync('bistable/devices/d1/ask', 'end', { qos: 1 })
    const trusted = await at.raw('bistable-publisher', { clientId: 'other' })
    await trusted.publishAsync('bistable/devices/d2/answer', 'end', { qos: 1 })
    await until(() => all.ended() && other.ended())
    const allowed = TOPICS.filter((topic) => mayPublish('bistable', 'd1', topic))
    expect(allowed).toHaveLength(4)
    expect([...all.heard].sort()).toEqual(allowed.sort())
    expect([...other.heard]).toEqual([])
    countRefusals(TOPICS.length - allowed.length)
  })

  it.skipIf(missing)(
    'A28 wildcards: a device hears what is published for all and for itself, however it asks',
    async () => {
      const at = await start()
      const wanted = ['#', 'bistable/#', 'bistable/+/+', 'bistable/devices/+/answer', '$SYS/#', ...TOPICS]
      const device = await listening(await at.raw('d1'), wanted)
      const trusted = await at.raw('bistable-publisher')
      for (const topic of TOPICS) trusted.publish(topic, 'x')
      await trusted.publishAsync('bistable/devices/d1/answer', 'end', { qos: 1 })
      await until(() => device.ended())
      const allowed = TOPICS.filter((topic) => maySubscribe('bistable', 'd1', topic))
      expect(allowed).toContain('bistable/devices/d1/answer')
      expect([...device.heard].sort()).toEqual(allowed.sort())
      countRefusals(TOPICS.length - allowed.length + 5)
    },
  )

  it.skipIf(missing)('A28 last wills: one that is addressed to another device, or to all, is never sent', async () => {
    const at = await start()
    const all = await listening(await at.raw('bistable-publisher'), ['bistable/#'])
    for (const topic of ['bistable/devices/d2/link', 'bistable/channels/stable.json', 'bistable/devices/d1/link']) {
      const will = { topic, payload: Buffer.from('x'), qos: 1 as const, retain: true }
      const device = await at.raw('d1', { will }).catch(() => undefined)
      device?.on('error', () => undefined)
      // Gone without a goodbye.
      device?.stream.destroy()
    }
    await until(() => all.heard.has('bistable/devices/d1/link'))
    const device = await at.raw('d1')
    await device.publishAsync('bistable/devices/d1/ask', 'end', { qos: 1 })
    await until(() => all.ended())
    expect([...all.heard]).toEqual(['bistable/devices/d1/link'])
    countRefusals(2)
  })
})

/** Subscribes to what it can, and keeps the topics that it hears until somebody says "end". */
async function listening(client: MqttClient, topics: readonly string[]) {
  const heard = new Set<string>()
  let over = false
  client.on('message', (topic, payload) => {
    if (payload.toString() === 'end') over = true
    else heard.add(topic)
  })
  client.on('error', () => undefined)
  for (const topic of topics) await client.subscribeAsync(topic).catch(() => undefined)
  return { heard, ended: () => over }
}

async function ended(client: MqttClient): Promise<void> {
  await Promise.race([client.endAsync(), new Promise((done) => client.stream.once('close', done))])
}
