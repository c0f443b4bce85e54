import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { onTestFinished } from 'vitest'
import { Brokers, type BrokersOptions } from '../../device/doors/brokers.ts'
import { startBroker } from '../../publisher/mqtt/embedded.ts'
import { MqttPublisher, type MqttPublisherOptions } from '../../publisher/mqtt/publisher.ts'

/** Real brokers on loopback ports of their own: Mosquitto as a process, and the embedded one. */

const REPO = resolve(import.meta.dirname, '../..')
/** Debian has it where an ordinary user's PATH does not look. */
const MOSQUITTO = ['/usr/sbin/mosquitto', '/usr/bin/mosquitto'].find((path) => existsSync(path))

/** A missing Mosquitto is a skip on a desk and a failure in CI. */
export function noMosquitto(): boolean {
  if (MOSQUITTO === undefined && process.env['CI'] !== undefined) throw new Error('mosquitto is not installed')
  return MOSQUITTO === undefined
}

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  await new Promise((done) => server.close(done))
  return port
}

export interface Mosquitto {
  readonly port: number
  /** SIGKILL: nothing is said to anybody. */
  kill(): Promise<void>
  /** On the same port, with the same configuration. */
  start(): Promise<void>
  readonly log: () => string
}

/** Starts Mosquitto with these lines of configuration; `listener` is given. Ended with the test. */
export async function mosquitto(config: readonly string[], folder: string): Promise<Mosquitto> {
  const port = await freePort()
  const path = join(folder, `mosquitto-${port}.conf`)
  const listener = config.some((line) => line.startsWith('listener ')) ? [] : [`listener ${port} 127.0.0.1`]
  const lines = [...listener, ...config].map((line) =>
    line.startsWith('listener ') ? `listener ${port} 127.0.0.1` : line,
  )
  // Started by root, it would give up its rights and could not read the test's files.
  writeFileSync(path, `${[...lines, ...(process.getuid?.() === 0 ? ['user root'] : [])].join('\n')}\n`)
  let child: ChildProcess | undefined
  let said = ''
  const broker: Mosquitto = {
    port,
    log: () => said,
    kill: async () => {
      if (child === undefined || child.exitCode !== null) return
      const gone = new Promise((done) => child?.once('exit', done))
      child.kill('SIGKILL')
      await gone
    },
    start: async () => {
      child = spawn(MOSQUITTO ?? 'mosquitto', ['-c', path, '-v'], { stdio: ['ignore', 'pipe', 'pipe'] })
      for (const stream of [child.stdout, child.stderr])
        stream?.on('data', (bytes: Buffer) => {
          said = (said + bytes.toString()).slice(-65_536)
        })
      for (let tries = 0; tries < 200; tries++) {
        if (child.exitCode !== null) throw new Error(`mosquitto ended: ${said}`)
        if (await answers(port)) return
        await sleep(25)
      }
      throw new Error(`mosquitto does not listen: ${said}`)
    },
  }
  onTestFinished(() => broker.kill())
  await broker.start()
  return broker
}

function answers(port: number): Promise<boolean> {
  return new Promise((done) => {
    const socket = connect(port, '127.0.0.1')
    socket.once('connect', () => {
      socket.destroy()
      done(true)
    })
    socket.once('error', () => done(false))
  })
}

/** Anyone may do anything: what the tests of the doors themselves want. */
export const OPEN = ['allow_anonymous true', 'persistence false']

/** The shipped configuration and access list, over certificates in `folder`. */
export function shippedConfig(folder: string): string[] {
  const shipped = join(REPO, 'publisher/mosquitto')
  writeFileSync(join(folder, 'acl'), readFileSync(join(shipped, 'acl')), { mode: 0o600 })
  return readFileSync(join(shipped, 'mosquitto.conf'), 'utf8')
    .replaceAll('/etc/mosquitto/bistable/', `${folder}/`)
    .split('\n')
}

export interface Pem {
  readonly cert: string
  readonly key: string
}

/** A certificate authority made by openssl, and certificates by it. */
export function authority(folder: string): { readonly ca: string; issue(name: string): Pem } {
  mkdirSync(folder, { recursive: true })
  const at = (name: string) => join(folder, name)
  const openssl = (...args: string[]) => execFileSync('openssl', args, { stdio: 'pipe' })
  const key = ['-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes']
  openssl('req', '-x509', ...key, '-keyout', at('ca.key'), '-out', at('ca.crt'), '-days', '30', '-subj', '/CN=test ca')
  const issued = new Map<string, Pem>()
  return {
    ca: readFileSync(at('ca.crt'), 'utf8'),
    issue: (name) => {
      const before = issued.get(name)
      if (before !== undefined) return before
      openssl('req', ...key, '-keyout', at(`${name}.key`), '-out', at(`${name}.csr`), '-subj', `/CN=${name}`)
      writeFileSync(at('ext'), 'subjectAltName=IP:127.0.0.1,DNS:localhost\n')
      const by = ['-CA', at('ca.crt'), '-CAkey', at('ca.key'), '-CAcreateserial']
      openssl(
        'x509',
        '-req',
        '-in',
        at(`${name}.csr`),
        ...by,
        '-days',
        '30',
        '-extfile',
        at('ext'),
        '-out',
        at(`${name}.crt`),
      )
      const made = { cert: readFileSync(at(`${name}.crt`), 'utf8'), key: readFileSync(at(`${name}.key`), 'utf8') }
      issued.set(name, made)
      return made
    },
  }
}

/** Tries again quickly, so that tests do not wait for the pauses of a fleet. */
export const QUICK = { firstMs: 100, maxMs: 300 }

/** A device's brokers, closed with the test. */
export function brokers(device: string, options: BrokersOptions = {}): Brokers {
  const made = new Brokers({ device, backoff: QUICK, lingerMs: 100, ...options })
  onTestFinished(() => made.close())
  return made
}

/** A publisher, closed with the test. */
export async function publisher(
  folder: string,
  broker: string | URL,
  options: Partial<MqttPublisherOptions> = {},
): Promise<MqttPublisher & { said: string[] }> {
  const said: string[] = []
  const made = await MqttPublisher.start({
    folder,
    broker: new URL(broker),
    backoff: QUICK,
    say: (line) => said.push(line),
    ...options,
  })
  onTestFinished(() => made.close())
  return Object.assign(made, { said })
}

/** The embedded broker on a port of its own. */
export async function embedded(port = 0) {
  const said: string[] = []
  const broker = await startBroker('127.0.0.1', port, (line) => said.push(line))
  onTestFinished(() => broker.close())
  return Object.assign(broker, { said })
}

/** A publish folder with these files. */
export function publishFolder(folder: string, files: Readonly<Record<string, Uint8Array | string>>): string {
  for (const name of ['channels', 'assignments', 'roots', 'bundles', 'deltas'])
    mkdirSync(join(folder, name), { recursive: true })
  for (const [path, content] of Object.entries(files)) writeFileSync(join(folder, path), content)
  return folder
}

/** Waits until something holds; the test's own time limit ends a wait that is in vain. */
export async function until(holds: () => boolean): Promise<void> {
  while (!holds()) await sleep(10)
}
