import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline'
import { describe, expect, it, onTestFinished } from 'vitest'
import type { Sha256 } from '../../base/bytes.ts'
import { runCli } from '../../base/cli.ts'
import { readExactly } from '../../base/source.ts'
import { encodeMessage, type StateReport } from '../../broker/messages.ts'
import { deviceTopic } from '../../broker/topics.ts'
import { openMqttDoor } from '../../device/doors/mqtt.ts'
import { Fleet, fleetTable } from '../../publisher/mqtt/fleet.ts'
import { ReportLog } from '../../publisher/mqtt/reports.ts'
import { Screen } from '../../publisher/mqtt/screen.ts'
import { serveVerb } from '../../publisher/verbs/serve.ts'
import { noise, scratch } from '../bundle/tools.ts'
import { authority, brokers, mosquitto, noMosquitto, publishFolder, shippedConfig, until } from './tools.ts'

const REPO = resolve(import.meta.dirname, '../..')
const file = noise(300_000)

/** The command as a user starts it; lines of both outputs. */
function serve(...args: string[]): { lines: string[]; child: ChildProcess; exited: Promise<number | null> } {
  const child = spawn(process.execPath, ['--import', 'tsx', join(REPO, 'main.ts'), 'serve', ...args], { cwd: REPO })
  const lines: string[] = []
  for (const stream of [child.stdout, child.stderr]) createInterface({ input: stream }).on('line', (l) => lines.push(l))
  const exited = new Promise<number | null>((done) => child.once('close', done))
  onTestFinished(async () => {
    child.kill('SIGKILL')
    await exited
  })
  return { lines, child, exited }
}

/** The command in this process, for what it refuses. */
async function here(...args: string[]): Promise<{ code: number; said: string }> {
  const said: string[] = []
  const say = (line: string) => void said.push(line)
  const terminal = { out: say, err: say, interactive: false }
  const code = await runCli([serveVerb], ['serve', ...args], terminal, new AbortController().signal)
  return { code, said: said.join('\n') }
}

const STATE: StateReport = {
  v: 1,
  product: 'demo',
  state: 'committed',
  running: { slot: 'b', release: '0.7', version: '3.1' },
  job: { release: '0.7', digest: 'ab'.repeat(32) as Sha256 },
  outcome: { at: '2026-11-21T12:00:00Z', what: 'commit', ok: true, message: 'slot b is committed' },
}

describe('bistable serve', () => {
  it('serves HTTP and MQTT without any configuration, keeps reports, and ends when told', async () => {
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': file })
    const { lines, child, exited } = serve(folder, '--port', '0')
    const at = () => /mqtt:\/\/127\.0\.0\.1:\d+/.exec(lines.join('\n'))?.[0]
    await until(() => at() !== undefined)
    const http = /http:\/\/127\.0\.0\.1:\d+/.exec(lines.join('\n'))?.[0]
    expect(Buffer.compare(Buffer.from(await (await fetch(`${http}/bundles/x.bundle`)).arrayBuffer()), file)).toBe(0)
    const device = brokers('d1', { presence: true })
    const door = await openMqttDoor(device, `${at()}/bundles/x.bundle`)
    expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
    const lease = device.lease(`${at()}/bundles/x.bundle`)
    await lease.link.publish({ topic: deviceTopic('bistable', 'd1', 'state'), payload: encodeMessage(STATE), qos: 1 })
    // The folder that is served is not where reports can be fetched.
    const kept = join(folder, '.reports/devices.jsonl')
    await until(() => existsSync(kept) && readFileSync(kept, 'utf8').includes('"state":"committed"'))
    expect((await fetch(`${http}/.reports/devices.jsonl`)).status).toBe(404)
    child.kill('SIGTERM')
    expect(await exited).toBe(0)
  })

  it('a port that is taken: an error when it was asked for, HTTP only when it was not', async () => {
    const taken = createServer()
    await new Promise<void>((done) => taken.listen(0, '127.0.0.1', done))
    onTestFinished(() => void taken.close())
    const address = taken.address()
    const port = typeof address === 'object' ? String(address?.port) : ''
    const folder = publishFolder(scratch(), {})
    for (const args of [
      ['--port', port],
      ['--port', '0', '--mqtt-port', port],
    ]) {
      const { code, said } = await here(folder, ...args)
      expect(code).toBe(10)
      expect(said).toContain('SERVE_PORT')
    }
    for (const wrong of [
      ['--broker', 'http://x'],
      ['--broker', 'mqtt://x/+'],
      ['--broker', 'mqtt://x', '--no-mqtt'],
      ['--cert', 'x'],
      ['--ca', 'x'],
      ['--password-file', 'x'],
      ['--broker', 'mqtt://x', '--password-file', 'x'],
      ['--broker', 'mqtt://u:p@x', '--password-file', 'x'],
    ]) {
      expect((await here(folder, '--port', '0', ...wrong)).code, wrong.join(' ')).toBe(2)
    }
  })

  it.skipIf(noMosquitto())('takes its password from a file, and says so when it stands in the arguments', async () => {
    const work = scratch()
    const listed = join(work, 'listed')
    const password = 'p@ss/w:\u00f6rd %41'
    for (const [n, [name, word]] of [['bistable-publisher', password] as const, ['d1', 'two'] as const].entries())
      execFileSync('mosquitto_passwd', ['-b', ...(n === 0 ? ['-c'] : []), listed, name, word])
    const broker = await mosquitto(['allow_anonymous false', `password_file ${listed}`], work)
    const folder = publishFolder(scratch(), { 'bundles/x.bundle': file })
    writeFileSync(join(work, 'word'), `${password}\n`)
    const at = (user: string) => `mqtt://${user}@127.0.0.1:${broker.port}`
    serve(folder, '--port', '0', '--broker', at('bistable-publisher'), '--password-file', join(work, 'word'))
    const door = await openMqttDoor(brokers('d1'), `${at('d1:two')}/bundles/x.bundle`, { askAgainMs: 300 })
    expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
    await door.close()
    const { lines } = serve(folder, '--port', '0', '--broker', at('bistable-publisher:wrong'))
    await until(() => lines.some((line) => line.includes('can be seen by every process')))
    expect(lines.join()).not.toContain('wrong')
  })

  it.skipIf(noMosquitto())(
    'uses a broker that is there, over TLS, and waits for one that is not there yet',
    async () => {
      const work = scratch()
      const certificates = authority(work)
      for (const name of ['broker', 'bistable-publisher', 'd1']) certificates.issue(name)
      const broker = await mosquitto(shippedConfig(work), work)
      await broker.kill()
      const folder = publishFolder(scratch(), { 'bundles/x.bundle': file })
      const own = ['--ca', join(work, 'ca.crt'), '--cert', join(work, 'bistable-publisher.crt')]
      const url = `mqtts://127.0.0.1:${broker.port}`
      const { lines } = serve(
        folder,
        '--port',
        '0',
        '--broker',
        url,
        ...own,
        '--key',
        join(work, 'bistable-publisher.key'),
      )
      await until(() => lines.some((line) => line.includes('ECONNREFUSED')))
      await broker.start()
      const device = brokers('d1', { tls: async () => ({ ca: certificates.ca, ...certificates.issue('d1') }) })
      const door = await openMqttDoor(device, `${url}/bundles/x.bundle`, { askAgainMs: 300 })
      expect(Buffer.compare(await readExactly(door, 0, file.length), file)).toBe(0)
      await door.close()
    },
  )
})

describe('what devices report', () => {
  it('is shown in a table that no device can break out of, newest first', () => {
    const fleet = new Fleet()
    const at = Date.parse('2026-11-21T12:00:00Z')
    expect(fleetTable(fleet, at, 5)).toEqual(['devices 0, 0 online'])
    for (let n = 0; n < 7; n++) fleet.hear(`d${n}`, { leaf: 'link', report: { v: 1, online: true } }, at + n * 1000)
    fleet.hear('d3', { leaf: 'state', report: { ...STATE, state: 'downloading' } }, at)
    fleet.hear(
      'd3',
      { leaf: 'progress', report: { v: 1, phase: 'fill', image: 'rootfs', done: 1, total: 4, fetched: 9 } },
      at,
    )
    const failed = { at: '', what: 'install', ok: false, code: 'BUNDLE_DIGEST', message: 'x' }
    fleet.hear('d4', { leaf: 'state', report: { ...STATE, state: 'idle', outcome: failed } }, at)
    const table = fleetTable(fleet, at + 10_000, 3)
    expect(table[0]).toBe('devices 7, 7 online: 1 downloading, 1 idle, 5 unknown')
    expect(table[2]).toMatch(/^d4 +up +10 s +idle {2}BUNDLE_DIGEST +b 0\.7 3\.1$/)
    expect(table[3]).toMatch(/^d3 +up +10 s +downloading fill \[###\.{9}\] 25 % +b 0\.7 3\.1$/)
    expect(table.at(-1)).toBe('… and 4 more')
    expect(table).toHaveLength(6)
    expect(fleetTable(fleet, at, 3, { pieces: 0, bytes: 0, waiting: 0 })).toHaveLength(6)
    const sending = fleetTable(fleet, at, 3, { pieces: 64, bytes: 2 * 1024 * 1024, waiting: 5 })
    expect(sending[1]).toBe('sent 2.0 MiB in 64 pieces, 5 devices wait for more')

    // On 80 columns: all of the state, and names that can still be told apart.
    const long = new Fleet()
    for (const end of ['a', 'b']) {
      const name = `${'0123456789abcdef'.repeat(2)}${end}`
      long.hear(name, { leaf: 'state', report: { ...STATE, state: 'fallen-back', outcome: failed } }, at)
      long.hear(
        `${name}2`,
        { leaf: 'state', report: { ...STATE, running: { ...STATE.running, version: 'v'.repeat(99) } } },
        at,
      )
    }
    const narrow = fleetTable(long, at, 9, undefined, 79)
    expect(narrow[0]).toBe('devices 4, 0 online: 2 fallen-back, 2 committed')
    expect(narrow.slice(2).map((line) => line.slice(0, 24))).toEqual([
      '0123456789abcdef…bcdefb2',
      '0123456789abcdef…abcdefb',
      '0123456789abcdef…bcdefa2',
      '0123456789abcdef…abcdefa',
    ])
    for (const line of narrow.slice(1))
      expect(line.indexOf(line.includes('b 0.7') ? 'b 0.7' : 'runs'), line).toBeLessThan(79)

    let drawn = ''
    const screen = new Screen(
      (text) => {
        drawn += text
      },
      () => 30,
      () => 3,
    )
    screen.table(['evil \x1b[2J name', 'x'.repeat(100)])
    screen.line('a line')
    screen.table(['less'])
    expect(drawn).toBe(
      `evil \\u001b[2J name\n${'x'.repeat(29)}\n\x1b[2A\x1b[Ja line\nevil \\u001b[2J name\n${'x'.repeat(29)}\n\x1b[2A\x1b[Jless\n`,
    )
  })

  it('tells what is news: a state that changed, a link that changed, never progress', () => {
    const fleet = new Fleet()
    const progress = { v: 1, phase: 'fill', image: null, done: 1, total: 4, fetched: 9 } as const
    expect(fleet.hear('d', { leaf: 'link', report: { v: 1, online: true } }, 0)).toBe(true)
    expect(fleet.hear('d', { leaf: 'link', report: { v: 1, online: true } }, 1)).toBe(false)
    expect(fleet.hear('d', { leaf: 'state', report: STATE }, 2)).toBe(true)
    expect(fleet.hear('d', { leaf: 'state', report: STATE }, 3)).toBe(false)
    expect(fleet.hear('d', { leaf: 'progress', report: progress }, 4)).toBe(false)
    for (let n = 0; n < 20_100; n++) fleet.hear(`d${n}`, { leaf: 'link', report: { v: 1, online: false } }, 5)
    expect(fleet.size).toBe(20_000)
  })

  it('is kept in two files of bounded size, and never holds up what reports', async () => {
    const folder = scratch()
    const log = new ReportLog(folder, 2000)
    for (let round = 0; round < 20; round++) {
      for (let n = 0; n < 5; n++)
        log.add({ at: '2026-11-21T12:00:00Z', device: `d${n}`, link: { online: true }, round })
      await log.flush()
    }
    const now = readFileSync(join(folder, 'devices.jsonl'), 'utf8')
    const before = readFileSync(join(folder, 'devices.1.jsonl'), 'utf8')
    expect(now.length).toBeLessThanOrEqual(2000)
    expect(before.length).toBeLessThanOrEqual(2000)
    expect(JSON.parse(now.trim().split('\n').at(-1) ?? '')).toMatchObject({ device: 'd4', round: 19 })
    for (let n = 0; n < 6000; n++) log.add({ at: '', device: 'd' })
    await log.flush()
    expect(readFileSync(join(folder, 'devices.jsonl'), 'utf8')).toContain('"dropped":1000')
  })
})
