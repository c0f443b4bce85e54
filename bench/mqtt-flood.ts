import { execFile, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { chmodSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs, promisify } from 'node:util'
import { connectAsync } from 'mqtt'
import { freshness } from '../test/attacks/web.ts'
import { AS_LAUNCHED, askAgent, madeUpDevice, startAgent } from '../test/helpers/device-process.ts'
import { authority, type Pem, shippedConfig, startMosquitto } from '../test/helpers/mosquitto.ts'
import { type FloodFigures, flood, floodClient, publishPacket } from '../test/helpers/mqtt-flood.ts'
import { type Followed, follow } from '../test/helpers/process.ts'

/**
 * npm run mqtt-flood [-- --messages N]: Mosquitto with the configuration that we ship, the publisher and an agent as
 * processes of their own, and clients that send as fast as the broker takes it: a device that asks the publisher for
 * pieces, and somebody with the publisher's stolen certificate who announces news to the devices.
 */

export interface Flooded extends FloodFigures {
  /** Resident KiB before the flood, when it was over, and the most ever, of who had to hear it. */
  readonly rssKiB: { readonly before: number; readonly after: number; readonly peak: number }
}

export interface FloodReport {
  readonly atPublisher: Flooded & { readonly piecesSent: number }
  /** `checks`: of the agent, since the first message. */
  readonly atAgent: Flooded & { readonly checks: number }
  readonly brokerKiB: { readonly before: number; readonly after: number }
}

const memory = (pid: number | undefined, field: 'VmRSS' | 'VmHWM') =>
  Number(new RegExp(`${field}:\\s+(\\d+) kB`).exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1])

export interface FloodPlan {
  /** In each flood. */
  readonly messages: number
  /** Waits for the agent's own first check, which comes within a minute. */
  readonly settle: boolean
  /** How long what follows is looked at. */
  readonly afterMs: number
}

export async function measureFlood({ messages, settle, afterMs }: FloodPlan): Promise<FloodReport> {
  const base = mkdtempSync(join(tmpdir(), 'bistable-flood-'))
  const ends: (() => Promise<unknown>)[] = [async () => rmSync(base, { recursive: true, force: true })]
  try {
    const at = (name: string) => join(base, name)
    const certificates = authority(at('tls'))
    for (const name of ['broker', 'bistable-publisher', 'd1', 'd2']) certificates.issue(name)
    for (const folder of [base, at('tls')]) chmodSync(folder, 0o755)
    const broker = await startMosquitto(shippedConfig(at('tls')), base, false)
    ends.unshift(() => broker.kill())
    const url = `mqtts://127.0.0.1:${broker.port}`
    const { serving, digest } = await startPublisher(at('site'), at('tls'), url)
    ends.unshift(() => serving.stop())
    const agent = await startDevice(base, url)
    ends.unshift(() => agent.stop())
    if (settle) await agent.until(/bistable: check up-to-date/)

    const client = async (who: string, pem: Pem) => {
      const made = await floodClient({ host: '127.0.0.1', port: broker.port, ca: certificates.ca, ...pem }, who)
      ends.unshift(async () => made.destroy())
      return made
    }
    const brokerBefore = memory(broker.pid(), 'VmRSS')
    const heard = async (pid: number | undefined, work: () => Promise<FloodFigures>): Promise<Flooded> => {
      const before = memory(pid, 'VmRSS')
      const done = await work()
      // What is on its way still, and what it brings on.
      await sleep(afterMs)
      return { ...done, rssKiB: { before, after: memory(pid, 'VmRSS'), peak: memory(pid, 'VmHWM') } }
    }
    const device = await client('d2', certificates.issue('d2'))
    const ask = JSON.stringify({ v: 1, bundle: digest, pieces: [[0, 5]], again: true })
    const asks = publishPacket('bistable/devices/d2/ask', ask)
    let piecesSent = 0
    const listener = await connectAsync(url, { ca: certificates.ca, ...certificates.issue('d1'), clientId: 'counts' })
    ends.unshift(() => listener.endAsync(true))
    listener.on('message', () => {
      piecesSent++
    })
    await listener.subscribeAsync('bistable/pieces/+/+')
    const atPublisher = await heard(serving.child.pid, () => flood(device, messages, () => asks))

    const checks = () => agent.said().match(/bistable: (check|[A-Z]+_[A-Z_]+:)/g)?.length ?? 0
    const before = checks()
    const thief = await client('thief', certificates.issue('bistable-publisher'))
    const news = (n: number) => publishPacket('bistable/channels/stable.json', `{"n":${n}}`)
    const atAgent = await heard(agent.child.pid, () => flood(thief, messages, news))
    const brokerKiB = { before: brokerBefore, after: memory(broker.pid(), 'VmRSS') }
    const report = {
      atPublisher: { ...atPublisher, piecesSent },
      atAgent: { ...atAgent, checks: checks() - before },
      brokerKiB,
    }
    // It still does what it is there for.
    await checked(join(base, 'device'))
    return report
  } finally {
    for (const end of ends) await end()
  }
}

/** The command as it is started for a broker that is there, with a bundle and a channel that names what runs already. */
async function startPublisher(site: string, tls: string, url: string): Promise<{ serving: Followed; digest: string }> {
  for (const folder of ['channels', 'bundles']) mkdirSync(join(site, folder), { recursive: true })
  const bundle = randomBytes(1 << 20)
  writeFileSync(join(site, 'bundles/x.bundle'), bundle)
  const issued = new Date().toISOString().replace(/\.\d+Z/, 'Z')
  const current = { number: { epoch: 0, counter: 2 }, issued, expires: '2099-01-01T00:00:00Z' }
  writeFileSync(join(site, 'channels/stable.json'), await freshness(current))
  const files = ['--ca', 'ca.crt', '--cert', 'bistable-publisher.crt', '--key', 'bistable-publisher.key']
  const main = resolve(import.meta.dirname, '../main.ts')
  const args = ['--import', 'tsx', main, 'serve', site, '--port', '0', '--broker', url]
  const serving = follow(
    spawn(process.execPath, [...args, ...files.map((name) => (name.startsWith('--') ? name : join(tls, name)))]),
  )
  await serving.until(/serving .* at mqtts:/)
  return { serving, digest: createHash('sha256').update(bundle).digest('hex') }
}

/** An agent that follows the channel, with the device's own certificate. */
async function startDevice(base: string, url: string): Promise<Followed> {
  const root = join(base, 'device')
  const at = (name: string) => join(base, 'tls', name)
  const tls = { ca: at('ca.crt'), cert: at('d1.crt'), key: at('d1.key') }
  await madeUpDevice(root, { system: { agent: { channel: `${url}/channels/stable.json`, apply: 'install', tls } } })
  writeFileSync(join(root, 'etc/bistable/agent.json'), '{"deviceId":"d1"}')
  // As it ships: its bundle has a way of its own to the MQTT client.
  const build = resolve(import.meta.dirname, '../scripts/build.mjs')
  await promisify(execFile)(process.execPath, [build, join(base, 'dist')])
  const agent = startAgent(join(base, 'dist/device/bistable.mjs'), root, { as: AS_LAUNCHED })
  try {
    await agent.until(/running slot=a/)
    await checked(root)
  } catch (error) {
    await agent.stop()
    throw error
  }
  return agent
}

/** Asks the agent for a check until it finds what is published; it may have left a broker that floods it for a while. */
async function checked(root: string): Promise<void> {
  const ends = performance.now() + 180_000
  for (;;) {
    const answer = await askAgent(root, 'check').catch(String)
    if (answer.includes('"decision":"up-to-date"')) return
    if (performance.now() > ends) throw new Error(`no check works: ${answer}`)
    await sleep(500)
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { messages: { type: 'string', default: '300000' } } })
  const { atPublisher, atAgent, brokerKiB } = await measureFlood({
    messages: Number(values.messages),
    settle: true,
    afterMs: 10_000,
  })
  const mib = (kib: number) => (kib / 1024).toFixed(1)
  const shown = ({ messages, seconds, rssKiB: { before, after, peak } }: Flooded) =>
    `${messages} messages in ${seconds.toFixed(1)} s, ${Math.round(messages / seconds)} a second; resident ${mib(before)} MiB before, ${mib(after)} after, peak ${mib(peak)}`
  console.log(`a device floods the publisher: ${shown(atPublisher)}; ${atPublisher.piecesSent} pieces sent`)
  console.log(`the publisher's key floods the agents: ${shown(atAgent)}; ${atAgent.checks} checks, 10 s later`)
  console.log(`mosquitto: ${mib(brokerKiB.before)} MiB before, ${mib(brokerKiB.after)} after`)
}

if (process.argv[1] === import.meta.filename) await main()
