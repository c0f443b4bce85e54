import { once } from 'node:events'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { KiB } from '../../base/bytes.ts'
import { cliErrors, type Invocation, stringOption, type Verb } from '../../base/cli.ts'
import { systemCode, systemReason } from '../../base/errors.ts'
import type { BrokerTls } from '../../broker/connection.ts'
import { rootOf } from '../../broker/topics.ts'
import { readRequired } from '../../keys/files.ts'
import { publisherErrors } from '../errors.ts'
import { type EmbeddedBroker, startBroker } from '../mqtt/embedded.ts'
import { fleetTable } from '../mqtt/fleet.ts'
import { GATHER_MS, MqttPublisher } from '../mqtt/publisher.ts'
import { Screen } from '../mqtt/screen.ts'
import { serveFolder } from '../serve.ts'
import { numberOption, onePositional } from './options.ts'

/** One publish folder by two doors: HTTP, and MQTT on a broker of its own or on the one that is there already. */

const HTTP_PORT = 8080
const MQTT_PORT = 1883
const TABLE_ROWS = 20

export const serveVerb: Verb = {
  name: 'serve',
  usage: 'serve DIR [--port N] [--host ADDRESS] [--broker URL | --mqtt-port N]',
  summary: 'Serve a publish folder over HTTP and MQTT until interrupted, and show what devices report.',
  options: {
    port: { type: 'string', value: 'N', help: `TCP port for HTTP; 0 takes a free one (${HTTP_PORT})` },
    host: { type: 'string', value: 'ADDRESS', help: 'address to listen on (127.0.0.1)' },
    'mqtt-port': {
      type: 'string',
      value: 'N',
      help: `TCP port of the broker inside; 0 takes a free one (${MQTT_PORT})`,
    },
    broker: { type: 'string', value: 'URL', help: 'mqtts://[USER@]BROKER[/PREFIX]: use this broker, start none' },
    'password-file': { type: 'string', value: 'FILE', help: "the user's password there: the first line of FILE" },
    ca: { type: 'string', value: 'FILE', help: "PEM file: the authority of the broker's certificate" },
    cert: { type: 'string', value: 'FILE', help: 'PEM file: our certificate for the broker' },
    key: { type: 'string', value: 'FILE', help: 'PEM file: its key' },
    'no-mqtt': { type: 'boolean', help: 'HTTP only' },
    gather: {
      type: 'string',
      value: 'MS',
      help: `how long a slow device may keep the others waiting, at first (${GATHER_MS})`,
    },
    reports: { type: 'string', value: 'DIR', help: 'where device reports are kept (DIR/.reports)' },
    quiet: { type: 'boolean', help: 'print no line per request, and no table' },
  },
  run: async (call) => {
    const folder = onePositional(call, 'DIR')
    if (!existsSync(folder)) throw cliErrors.USAGE(`${folder} does not exist`)
    checkOptions(call)
    const host = stringOption(call, 'host') ?? '127.0.0.1'
    const quiet = call.options['quiet'] === true
    const live = call.terminal.interactive && !quiet && !call.json
    const screen = live
      ? new Screen(
          (text) => process.stderr.write(text),
          () => process.stderr.columns ?? 80,
          () => process.stderr.rows ?? 24,
        )
      : undefined
    const say = (line: string): void => {
      if (screen !== undefined) screen.line(line)
      else if (!quiet) call.terminal.err(line)
    }
    const http = await listening('HTTP', host, numberOption(call, 'port', 0, HTTP_PORT), (port) =>
      serveFolder(folder, { port, host, log: say }),
    )
    const address = http.address()
    const port = typeof address === 'object' ? address?.port : undefined
    let broker: EmbeddedBroker | undefined
    let publisher: MqttPublisher | undefined
    try {
      const mqtt = await startMqtt(call, folder, host, say)
      broker = mqtt?.broker
      publisher = mqtt?.publisher
      const told = mqtt === undefined ? {} : { mqtt: mqtt.address }
      if (call.json) call.terminal.out(JSON.stringify({ ok: true, host, port, ...told }))
      else {
        call.terminal.out(`serving ${folder} at http://${bracketed(host)}:${port}/`)
        if (mqtt !== undefined) call.terminal.out(`serving ${folder} at ${mqtt.address}/`)
      }
      while (!call.signal.aborted) {
        if (publisher === undefined || screen === undefined) await once(call.signal, 'abort')
        else {
          // The sums, the head, the line of those that are left out, and one for what is typed.
          const most = Math.min(TABLE_ROWS, Math.max(1, (process.stderr.rows ?? 24) - 5))
          const width = (process.stderr.columns ?? 80) - 1
          screen.table(fleetTable(publisher.fleet, Date.now(), most, publisher.sending, width))
          await sleep(1000, undefined, { signal: call.signal }).catch(() => undefined)
        }
      }
      return 0
    } finally {
      http.close()
      http.closeAllConnections()
      await publisher?.close()
      await broker?.close()
    }
  },
}

function checkOptions(call: Invocation): void {
  const given = (name: string) => call.options[name] !== undefined
  const both = (a: string, b: string) => given(a) && given(b)
  for (const [a, b] of [
    ['broker', 'mqtt-port'],
    ['broker', 'no-mqtt'],
    ['no-mqtt', 'mqtt-port'],
  ] as const)
    if (both(a, b)) throw cliErrors.USAGE(`--${a} and --${b} do not go together`)
  if (given('cert') !== given('key')) throw cliErrors.USAGE('--cert and --key go together')
  if (!given('broker') && (given('ca') || given('cert') || given('password-file')))
    throw cliErrors.USAGE('--ca, --cert and --password-file are for a --broker')
}

/** @returns undefined when MQTT is not wanted, or when nobody asked for it and its port is taken */
async function startMqtt(call: Invocation, folder: string, host: string, say: (line: string) => void) {
  if (call.options['no-mqtt'] === true) return undefined
  const common = {
    folder,
    reports: stringOption(call, 'reports') ?? join(folder, '.reports'),
    gatherMs: numberOption(call, 'gather', 0, GATHER_MS),
    say,
  }
  const given = stringOption(call, 'broker')
  if (given !== undefined) {
    const url = URL.canParse(given) ? new URL(given) : undefined
    if (url === undefined || rootOf(url) === undefined)
      throw cliErrors.USAGE('--broker wants mqtt://BROKER or mqtts://BROKER, with a plain path at most')
    await takePassword(call, url)
    const tls = await tlsFrom(call)
    const publisher = await MqttPublisher.start({ ...common, broker: url, tls: async () => tls })
    return { publisher, broker: undefined, address: `${url.protocol}//${url.host}${url.pathname.replace(/\/$/, '')}` }
  }
  const asked = stringOption(call, 'mqtt-port') !== undefined
  // A free port for HTTP means: disturb nobody.
  const otherwise = stringOption(call, 'port') === '0' ? 0 : MQTT_PORT
  try {
    const broker = await listening('MQTT', host, numberOption(call, 'mqtt-port', 0, otherwise), (port) =>
      startBroker(host, port, say),
    )
    const publisher = await MqttPublisher.start({ ...common, broker: broker.url })
    return { publisher, broker, address: `mqtt://${bracketed(host)}:${broker.port}` }
  } catch (error) {
    if (asked || !(error instanceof Error && 'code' in error && error.code === 'SERVE_PORT')) throw error
    call.terminal.err(`${error.message}: HTTP only; choose another with --mqtt-port`)
    return undefined
  }
}

/** Arguments can be seen by every process of the machine, for as long as this one serves. */
async function takePassword(call: Invocation, url: URL): Promise<void> {
  const path = stringOption(call, 'password-file')
  if (path === undefined) {
    if (url.password !== '')
      call.terminal.err('the password in --broker can be seen by every process here: better give it by --password-file')
    return
  }
  if (url.username === '' || url.password !== '')
    throw cliErrors.USAGE('--password-file wants a --broker with a user name and no password: mqtts://USER@BROKER')
  const [line = ''] = Buffer.from(await readRequired(path, 4 * KiB))
    .toString('utf8')
    .split(/\r?\n/, 1)
  url.password = encodeURIComponent(line)
}

async function tlsFrom(call: Invocation): Promise<BrokerTls> {
  const pem = async (name: 'ca' | 'cert' | 'key') => {
    const path = stringOption(call, name)
    return path === undefined ? {} : { [name]: Buffer.from(await readRequired(path, 512 * KiB)).toString('latin1') }
  }
  return { ...(await pem('ca')), ...(await pem('cert')), ...(await pem('key')) }
}

/** @throws SERVE_PORT */
async function listening<T>(what: string, host: string, port: number, start: (port: number) => Promise<T>): Promise<T> {
  try {
    return await start(port)
  } catch (error) {
    const code = systemCode(error) ?? ''
    if (!['EADDRINUSE', 'EACCES', 'EADDRNOTAVAIL', 'ENOTFOUND', 'ERR_SOCKET_BAD_PORT'].includes(code)) throw error
    throw publisherErrors.SERVE_PORT(`cannot listen for ${what} at ${bracketed(host)}:${port}: ${systemReason(error)}`)
  }
}

const bracketed = (host: string): string => (host.includes(':') ? `[${host}]` : host)
