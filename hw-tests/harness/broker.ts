import { type ChildProcess, spawn } from 'node:child_process'
import { existsSync } from 'node:fs'
import { copyFile, mkdir, writeFile } from 'node:fs/promises'
import { type AddressInfo, connect, createServer, type Server } from 'node:net'
import { dirname, join } from 'node:path'
import { createInterface } from 'node:readline'
import { LabError } from './lab-error.ts'

/** A real Mosquitto, and `bistable serve` behind it that publishes what a test offers. */

export interface BrokerOptions {
  /** A folder of this broker's own: the publish folder and the configuration. */
  readonly folder: string
  /** The Unix socket that the broker listens on; an emulator leads its guest to it. */
  readonly socket: string
  /** The host name by which the device reaches this machine. */
  readonly host: string
  /** The address in a bench's network that the broker listens on for a real device; without one, the device is emulated. */
  readonly listen?: string
}

/** Port of the broker as an emulated device sees it. */
export const BROKER_PORT = 1883
const START_MS = 60_000
const LOOPBACK = '127.0.0.1'

export class TestBroker {
  readonly #folder: string
  readonly #mosquitto: ChildProcess
  readonly #server: Server
  readonly #host: string
  readonly #listen: string | undefined
  #port = 0
  #publisher: ChildProcess | undefined

  private constructor(options: BrokerOptions, mosquitto: ChildProcess, server: Server) {
    this.#folder = options.folder
    this.#host = options.host
    this.#listen = options.listen
    this.#mosquitto = mosquitto
    this.#server = server
  }

  /** Starts Mosquitto with `listener` and nothing kept on disk; anyone may publish. @throws LabError when it does not start */
  static async start(options: BrokerOptions): Promise<TestBroker> {
    const { folder, socket, listen = LOOPBACK } = options
    await mkdir(join(folder, 'bundles'), { recursive: true })
    const config = join(folder, 'mosquitto.conf')
    // Started by root, it would give up its rights, and could not make the socket.
    const user = process.getuid?.() === 0 ? ['user root'] : []
    const lines = [`listener 0 ${socket}`, 'allow_anonymous true', 'persistence false', ...user]
    await writeFile(config, `${lines.join('\n')}\n`)
    const mosquitto = await started(
      mosquittoProgram() ?? 'mosquitto',
      ['-c', config, '-v'],
      /mosquitto version .* running/,
    )
    // A free port is one that is listened on: Mosquitto itself cannot be told to choose.
    const server = createServer((client) => {
      const broker = connect(socket)
      client.pipe(broker).pipe(client)
      for (const [one, other] of [
        [client, broker],
        [broker, client],
      ] as const)
        one.on('error', () => other.destroy()).on('close', () => other.destroy())
    })
    const made = new TestBroker(options, mosquitto, server)
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      server.listen(0, listen, resolve)
    }).catch(async (cause: unknown) => {
      await made.close()
      throw new LabError(`no broker on ${listen}`, { cause })
    })
    made.#port = (server.address() as AddressInfo).port
    return made
  }

  /** The broker for programs of this machine: "mqtt://127.0.0.1:40123". */
  get local(): string {
    return `mqtt://${this.#listen ?? LOOPBACK}:${this.#port}`
  }

  /** The broker as the device reaches it: "mqtt://10.0.2.100:1883". */
  get address(): string {
    return `mqtt://${this.#host}:${this.#listen === undefined ? BROKER_PORT : this.#port}`
  }

  /**
   * Publishes a bundle of this machine under that name, beside those offered before; returns its address as the device sees
   * it. The publisher is up when this returns. @throws LabError when it does not start
   */
  async offer(name: string, { from }: { readonly from: string }): Promise<string> {
    await copyFile(from, join(this.#folder, 'bundles', name))
    await ended(this.#publisher)
    const serve = [commandLine(), 'serve', this.#folder, '--port', '0', '--broker', this.local]
    this.#publisher = await started(process.execPath, serve, /mqtt: connected to/)
    return `${this.address}/bundles/${name}`
  }

  async close(): Promise<void> {
    await ended(this.#publisher)
    await ended(this.#mosquitto)
    await new Promise<void>((resolve) => this.#server.close(() => resolve()))
  }
}

/** Debian has it where an ordinary user's PATH does not look. */
export function mosquittoProgram(path: string = process.env['PATH'] ?? ''): string | undefined {
  const folders = [...path.split(':'), '/usr/sbin'].filter((folder) => folder !== '')
  return folders.map((folder) => join(folder, 'mosquitto')).find((file) => existsSync(file))
}

/** The command line of the package or the checkout that this file is a part of. */
function commandLine(): string {
  for (let folder = import.meta.dirname; ; folder = dirname(folder)) {
    const file = join(folder, 'bistable.mjs')
    if (existsSync(file)) return file
    if (folder === dirname(folder)) throw new LabError(`no bistable.mjs above ${import.meta.dirname}`)
  }
}

/** Starts a program and waits for its word. @throws LabError when it ends instead, or does not say it */
async function started(program: string, args: readonly string[], word: RegExp): Promise<ChildProcess> {
  // A test run that is killed takes it with it.
  const child = spawn('setpriv', ['--pdeathsig', 'KILL', '--', program, ...args], { stdio: ['ignore', 'pipe', 'pipe'] })
  let said = ''
  let clock: NodeJS.Timeout | undefined
  try {
    await new Promise<void>((done, fail) => {
      clock = setTimeout(() => fail(new LabError(`${program} says nothing: ${said}`)), START_MS)
      child.once('error', (cause) => fail(new LabError(`${program} does not start`, { cause })))
      child.once('exit', (code) => fail(new LabError(`${program} ended with ${code}: ${said}`)))
      for (const stream of [child.stdout, child.stderr])
        createInterface({ input: stream }).on('line', (line) => {
          said = `${said}${line}\n`.slice(-4096)
          if (word.test(line)) done()
        })
    })
  } catch (error) {
    child.kill('SIGKILL')
    throw error
  } finally {
    clearTimeout(clock)
  }
  return child
}

async function ended(child: ChildProcess | undefined): Promise<void> {
  if (child === undefined || child.exitCode !== null || child.signalCode !== null) return
  const gone = new Promise((done) => child.once('exit', done))
  child.kill('SIGKILL')
  await gone
}
