import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type Server } from 'node:http'
import { type AddressInfo, connect, createServer as createTcpServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { startBroker } from '../publisher/mqtt/embedded.ts'
import { MqttPublisher } from '../publisher/mqtt/publisher.ts'
import { freshness } from '../test/attacks/web.ts'
import { AS_LAUNCHED, askAgent, madeUpDevice, startAgent } from '../test/helpers/device-process.ts'
import type { Followed } from '../test/helpers/process.ts'
import { publishToStart } from './publish-to-start.ts'

// npm run footprint [-- --polls N --starts N --news N --mqtt-seconds N --agent FILE --node NODE --json FILE]
// The agent as it ships, on a made-up device, against a server on this machine: what it costs when nothing happens.

const { values } = parseArgs({
  options: {
    polls: { type: 'string', default: '10000' },
    starts: { type: 'string', default: '7' },
    /** How often a release is published to an idle agent. */
    news: { type: 'string', default: '5' },
    agent: { type: 'string', default: join(import.meta.dirname, '../dist/device/bistable.mjs') },
    node: { type: 'string', default: process.execPath },
    /** How long an idle connection to a broker is looked at; a keep-alive period is a minute. */
    'mqtt-seconds': { type: 'string', default: '181' },
    json: { type: 'string' },
  },
})
const polls = Number(values.polls)
const SAMPLES = 40
const RSS_GOAL_MIB = 64
const START_GOAL_MS = 500
const NEWS_GOAL_MS = 2000
/** What a connection's packets carry beside the bytes we count: IPv4 and TCP headers with timestamps. */
const PACKET_HEADERS = 52

const base = mkdtempSync(join(tmpdir(), 'bistable-footprint-'))
const traffic = { connections: 0, received: 0, sent: 0 }

/** Names what runs already, so that every check ends with "up to date". */
function channelFile(): Promise<Uint8Array> {
  const issued = new Date().toISOString().replace(/\.\d+Z/, 'Z')
  return freshness({ number: { epoch: 0, counter: 2 }, issued, expires: '2099-01-01T00:00:00Z' })
}

async function startServer(): Promise<Server> {
  const channel = await channelFile()
  const server = createServer((call, response) => {
    if (call.url !== '/channels/stable.json') return response.writeHead(404).end()
    response.writeHead(206, {
      'content-length': channel.length,
      'content-range': `bytes 0-${channel.length - 1}/${channel.length}`,
      etag: '"1"',
    })
    return response.end(channel)
  })
  server.on('connection', (socket: Socket) => {
    traffic.connections++
    socket.on('close', () => {
      traffic.received += socket.bytesRead
      traffic.sent += socket.bytesWritten
    })
  })
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  return server
}

async function makeDevice(channel: string, name = 'device'): Promise<string> {
  const root = join(base, name)
  await madeUpDevice(root, { system: { agent: { channel, apply: 'install' } } })
  return root
}

/** An agent that follows a channel on a broker: what passes between them while nothing happens, and for a check. */
async function idleOnBroker(seconds: number) {
  const site = join(base, 'site')
  mkdirSync(join(site, 'channels'), { recursive: true })
  writeFileSync(join(site, 'channels/stable.json'), await channelFile())
  const broker = await startBroker('127.0.0.1', 0, () => undefined)
  const publisher = await MqttPublisher.start({ folder: site, broker: broker.url, say: () => undefined })
  const passed = { bytes: 0, packets: 0 }
  const relay = createTcpServer({ noDelay: true }, (device) => {
    const there = connect(broker.port, '127.0.0.1')
    for (const [from, to] of [
      [device, there],
      [there, device],
    ] as const) {
      from.on('data', (bytes) => {
        passed.bytes += bytes.length
        passed.packets++
        to.write(bytes)
      })
      from.on('error', () => to.destroy())
      from.on('close', () => to.destroy())
    }
  })
  await new Promise<void>((up) => relay.listen(0, '127.0.0.1', up))
  const address = `mqtt://127.0.0.1:${(relay.address() as AddressInfo).port}/channels/stable.json`
  const root = await makeDevice(address, 'mqtt-device')
  const agent = await begin(root)
  try {
    // Its own first check and its first words are over.
    while (!/"lastCheck":\s*\{/.test(await askAgent(root, 'status')))
      await new Promise((again) => setTimeout(again, 1000))
    await new Promise((settled) => setTimeout(settled, 10_000))
    const taken = async (work: () => Promise<unknown>) => {
      const before = { ...passed }
      await work()
      return { bytes: passed.bytes - before.bytes, packets: passed.packets - before.packets }
    }
    const idle = await taken(() => new Promise((over) => setTimeout(over, seconds * 1000)))
    const check = await taken(async () => {
      const answer = await askAgent(root, 'check')
      if (!answer.includes('up-to-date')) throw new Error(answer)
      await new Promise((over) => setTimeout(over, 1000))
    })
    // Each data packet is acknowledged by one without data, at most.
    const dayOf = (n: { bytes: number; packets: number }) => n.bytes + 2 * n.packets * PACKET_HEADERS
    const perDay = (86_400 / seconds) * dayOf(idle) + 24 * dayOf(check)
    return { seconds, idle, check, bytesPerDay: Math.round(perDay), rssKiB: rssKiB(agent.child.pid) }
  } finally {
    await agent.stop()
    await publisher.close()
    relay.close()
    await broker.close()
  }
}

/** Starts the agent and waits until it answers on its socket. */
async function begin(root: string): Promise<Followed & { readonly ms: number }> {
  const started = performance.now()
  const agent = startAgent(resolve(values.agent), root, {
    node: values.node,
    // A device has no certificates of this machine for Node.js to read at each start.
    as: AS_LAUNCHED,
    more: { NODE_EXTRA_CA_CERTS: '', NODE_OPTIONS: '' },
  })
  for (;;) {
    if (agent.child.exitCode !== null) throw new Error(`the agent ended with ${agent.child.exitCode}: ${agent.said()}`)
    if ((await askAgent(root, 'status').catch(() => undefined)) !== undefined) break
    await new Promise((again) => setTimeout(again, 5))
  }
  return { ...agent, ms: performance.now() - started }
}

const rssKiB = (pid: number | undefined) =>
  Number(/VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])
const memoryOf = (pid: number | undefined) => {
  const rollup = readFileSync(`/proc/${pid}/smaps_rollup`, 'utf8')
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+) kB`, 'm').exec(rollup)?.[1])
  return { privateKiB: field('Private_Clean') + field('Private_Dirty'), shareKiB: field('Pss') }
}

/** Least squares: KiB per poll over the given samples. */
function slope(samples: readonly { readonly polls: number; readonly rss: number }[]): number {
  const meanX = samples.reduce((sum, s) => sum + s.polls, 0) / samples.length
  const meanY = samples.reduce((sum, s) => sum + s.rss, 0) / samples.length
  const over = samples.reduce((sum, s) => sum + (s.polls - meanX) * (s.rss - meanY), 0)
  return over / samples.reduce((sum, s) => sum + (s.polls - meanX) ** 2, 0)
}

const server = await startServer()
try {
  const root = await makeDevice(`http://127.0.0.1:${(server.address() as AddressInfo).port}/channels/stable.json`)
  const starts: number[] = []
  for (let n = 0; n < Number(values.starts); n++) {
    const agent = await begin(root)
    starts.push(agent.ms)
    await agent.stop()
  }
  starts.sort((a, b) => a - b)
  const agent = await begin(root)
  await new Promise((settled) => setTimeout(settled, 2000))
  const idle = rssKiB(agent.child.pid)
  const samples: { polls: number; rss: number }[] = []
  const before = { ...traffic }
  for (let n = 1; n <= polls; n++) {
    const answer = await askAgent(root, 'check')
    if (!answer.includes('up-to-date')) {
      // The agent's own poll was at work: asked again.
      if (!answer.includes('AGENT_BUSY')) throw new Error(answer)
      n--
      continue
    }
    if (n % Math.ceil(polls / SAMPLES) === 0) samples.push({ polls: n, rss: rssKiB(agent.child.pid) })
  }
  const peak = Number(/VmHWM:\s+(\d+) kB/.exec(readFileSync(`/proc/${agent.child.pid}/status`, 'utf8'))?.[1])
  const memory = memoryOf(agent.child.pid)
  await agent.stop()
  const bytes = traffic.received + traffic.sent - before.received - before.sent
  const connections = traffic.connections - before.connections
  const mqtt = await idleOnBroker(Number(values['mqtt-seconds']))
  const begins = async (address: string, name: string) => await begin(await makeDevice(address, name))
  const news = (await publishToStart(base, begins, Number(values.news))).toSorted((a, b) => a - b)
  const half = samples.slice(samples.length / 2)
  const figures = {
    polls,
    startMs: { median: Math.round(starts[starts.length >> 1] ?? 0), max: Math.round(starts.at(-1) ?? 0) },
    rssKiB: { idle, last: samples.at(-1)?.rss ?? 0, peak, ...memory },
    slopeKiBPerPoll: slope(half),
    httpPerCheck: { bytes: Math.round(bytes / polls), connections: connections / polls },
    mqtt,
    newsMs: { median: Math.round(news[news.length >> 1] ?? 0), max: Math.round(news.at(-1) ?? 0) },
    samples,
  }
  const { last } = figures.rssKiB
  // Three packets to open, four to close, and one each way with its acknowledgement for every exchange.
  const packets = 11 * figures.httpPerCheck.connections
  const day = 24 * (figures.httpPerCheck.bytes + packets * PACKET_HEADERS)
  const verdict = (ok: boolean) => (ok ? 'reached' : 'MISSED')
  const mib = (kib: number) => `${(kib / 1024).toFixed(1)} MiB`
  console.log(
    `start until the socket answers: median ${figures.startMs.median} ms, longest ${figures.startMs.max} ms of ${starts.length}; goal ${START_GOAL_MS} ms ${verdict(figures.startMs.median < START_GOAL_MS)}`,
  )
  console.log(
    `resident: ${mib(idle)} at rest, ${mib(last)} after ${polls} checks, peak ${mib(peak)}; goal ${RSS_GOAL_MIB} MiB ${verdict(last < RSS_GOAL_MIB * 1024)}`,
  )
  console.log(`  of which private ${mib(memory.privateKiB)}; proportional share ${mib(memory.shareKiB)}`)
  console.log(`slope over the second half: ${(figures.slopeKiBPerPoll * 1000).toFixed(0)} KiB per 1000 checks`)
  console.log(`  ${half.map(({ rss }) => (rss / 1024).toFixed(1)).join(' ')} MiB`)
  console.log('bytes of an idle day, by door:')
  console.log(
    `  http, a check an hour: ${Math.round(day / 1024)} KiB (${figures.httpPerCheck.bytes} bytes and ${figures.httpPerCheck.connections.toFixed(1)} connections a check, packet headers added)`,
  )
  console.log(
    `  mqtt, connected, a check an hour: ${Math.round(mqtt.bytesPerDay / 1024)} KiB (${mqtt.idle.bytes} bytes in ${mqtt.seconds} s, ${mqtt.check.bytes} for a check, packet headers and acknowledgements added); resident ${mib(mqtt.rssKiB)}`,
  )
  console.log('  usb: 0')
  console.log(
    `from publish to start over a broker on this machine: median ${figures.newsMs.median} ms, longest ${figures.newsMs.max} ms of ${news.length}; goal ${NEWS_GOAL_MS} ms ${verdict(figures.newsMs.max < NEWS_GOAL_MS)}`,
  )
  if (values.json !== undefined) writeFileSync(values.json, `${JSON.stringify(figures, null, 2)}\n`)
} finally {
  server.close()
  server.closeAllConnections()
  rmSync(base, { recursive: true, force: true })
}
