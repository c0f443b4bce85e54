import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { type AddressInfo, connect, createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'

/** Mosquitto as a process on a loopback port of its own, with the configuration that we ship or another. */

const REPO = resolve(import.meta.dirname, '../..')
/** Debian has it where an ordinary user's PATH does not look. */
export const MOSQUITTO = ['/usr/sbin/mosquitto', '/usr/bin/mosquitto'].find((path) => existsSync(path))

export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((done) => server.listen(0, '127.0.0.1', done))
  const { port } = server.address() as AddressInfo
  await new Promise((done) => server.close(done))
  return port
}

export interface Mosquitto {
  readonly port: number
  readonly pid: () => number | undefined
  /** SIGKILL: nothing is said to anybody. */
  kill(): Promise<void>
  /** On the same port, with the same configuration. */
  start(): Promise<void>
  readonly log: () => string
}

/**
 * Starts Mosquitto with these lines of configuration; `listener` is given. Whoever starts it kills it.
 * @param verbose logs every packet, which costs more than the packets
 */
export async function startMosquitto(config: readonly string[], folder: string, verbose = true): Promise<Mosquitto> {
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
    pid: () => child?.pid,
    log: () => said,
    kill: async () => {
      if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
      const gone = new Promise((done) => child?.once('exit', done))
      child.kill('SIGKILL')
      await gone
    },
    start: async () => {
      child = spawn(MOSQUITTO ?? 'mosquitto', ['-c', path, ...(verbose ? ['-v'] : [])], {
        stdio: ['ignore', 'pipe', 'pipe'],
      })
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
