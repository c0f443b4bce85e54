import { type ChildProcess, execFile } from 'node:child_process'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { createServer, type Server } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { openBootState } from '../../bootloader/bootstate.ts'
import { freshState } from '../../bootloader/machine.ts'
import { encodeFreshness, FRESHNESS_PAYLOAD_TYPE, type FreshnessStatement } from '../../bundle/freshness.ts'
import { openBundle } from '../../bundle/reader.ts'
import type { InstallPlan } from '../../device/install/plan.ts'
import { encodeEnvelope } from '../../keys/dsse.ts'
import { signStatement } from '../../keys/statement.ts'
import { type Made, makeBundle, memorySource, type Plan } from '../bundle/fixture.ts'
import { bootsInto, deviceProgram, madeUpDevice, startAgent as start } from '../helpers/device-process.ts'
import { signedRoot, signer } from '../keys/helpers.ts'

// The device's command as it ships, one bundled file, on a made-up device: real bundle, real slots (files), real boot
// state, real sockets and processes. Only the kernel command line is written by hand.

const base = mkdtempSync(join(tmpdir(), 'bsd-'))
let program = ''
let device = ''
let good: Made
let server: Server
let origin = ''
const web = join(base, 'web')

beforeAll(async () => {
  program = await deviceProgram(base)
  chmodSync(base, 0o755)
  mkdirSync(join(web, 'channels'), { recursive: true })
  mkdirSync(join(web, 'bundles'))
  server = createServer((request, response) => {
    try {
      const bytes = readFileSync(join(web, request.url ?? ''))
      const range = /^bytes=(\d+)-(\d+)?/.exec(request.headers.range ?? '')
      const from = Number(range?.[1] ?? 0)
      const to = Math.min(bytes.length - 1, Number(range?.[2] ?? bytes.length - 1))
      response.setHeader('etag', `"${bytes.length}"`)
      response.setHeader('accept-ranges', 'bytes')
      if (range !== null) response.setHeader('content-range', `bytes ${from}-${to}/${bytes.length}`)
      response.writeHead(range === null ? 200 : 206, { 'content-length': to - from + 1 })
      response.end(bytes.subarray(from, to + 1))
    } catch {
      response.writeHead(404).end()
    }
  })
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  origin = `http://127.0.0.1:${(server.address() as AddressInfo).port}`
  device = await makeDevice('d')
})

afterAll(() => {
  server.close()
  rmSync(base, { recursive: true, force: true })
})

/** Bundles are made inside a test and kept for the ones after it. */
async function kept(name: string, plan?: Plan): Promise<Made> {
  const made = await makeBundle(plan)
  const path = join(base, `${name}.bundle`)
  copyFileSync(made.path, path)
  return { ...made, path }
}

async function makeDevice(name: string): Promise<string> {
  const root = join(base, name)
  mkdirSync(join(root, 'usr/lib/bistable/health.d/required'), { recursive: true })
  const required = ['/usr/lib/bistable/health.d/required/*']
  await madeUpDevice(root, { system: { health: { deadlineSeconds: 20, checkSeconds: 5, required } } })
  writeFileSync(join(root, 'usr/bin/reboot'), `#!/bin/sh\necho rebooted >> ${join(root, 'rebooted')}\n`, {
    mode: 0o755,
  })
  return root
}

interface Ran {
  readonly exit: number
  readonly out: string
  readonly err: string
  readonly json: Record<string, unknown>
}

function run(args: readonly string[], options: { uid?: number; root?: string } = {}): Promise<Ran> {
  const env = { ...process.env, BISTABLE_ROOT: options.root ?? device }
  return new Promise((done) => {
    execFile(
      process.execPath,
      [program, ...args],
      { env, ...(options.uid === undefined ? {} : { uid: options.uid }) },
      (error, out, err) => {
        const exit = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
        let json: Record<string, unknown> = {}
        try {
          json = JSON.parse(out)
        } catch {
          // Text for people.
        }
        done({ exit, out, err, json })
      },
    )
  })
}

async function bootState(root = device) {
  const opened = await openBootState(join(root, 'disk/bootstate'))
  try {
    return (await opened.read()).state
  } finally {
    await opened.close()
  }
}

const startAgent = (root = device) => start(program, root)

const ended = (child: ChildProcess) => new Promise<number | null>((done) => child.on('exit', (code) => done(code)))

describe.sequential('the device command', () => {
  it('shows a new device', async () => {
    good = await kept('good')
    const { exit, json } = await run(['status', '--json'])
    expect(exit).toBe(0)
    expect(json).toMatchObject({
      ok: true,
      state: 'idle',
      running: { slot: 'a', release: '0.2' },
      slots: { a: { role: 'primary' }, b: { role: 'other', release: null } },
      installFloor: '0.2',
      rootVersion: 1,
    })
    expect((await run(['status'])).out).toContain('slot a  * primary')
  })

  it('works without what cannot be read of its data partition: settings and machine id', async () => {
    const root = await makeDevice('unread')
    for (const path of [
      'etc/machine-id',
      'etc/bistable/agent.json',
      'data/bistable/records/0',
      'data/bistable/floor',
    ]) {
      rmSync(join(root, path), { force: true, recursive: true })
      mkdirSync(join(root, path), { recursive: true })
    }
    const { exit, json } = await run(['status', '--json'], { root })
    expect([exit, json['deviceId'], json['problems']]).toEqual([
      0,
      null,
      ['records/0', 'bistable/floor', 'agent.json'].map((path) => expect.stringContaining(path)),
    ])
  })

  it('refuses what is not for this device, and touches nothing', async () => {
    const before = readFileSync(join(device, 'disk/rootfs-b'))
    const cut = join(base, 'cut.bundle')
    writeFileSync(cut, good.bytes.subarray(0, good.bytes.length - 512))
    const trailing = join(base, 'trailing.bundle')
    writeFileSync(trailing, Buffer.concat([good.bytes, Buffer.alloc(512)]))
    const html = join(base, 'page.bundle')
    writeFileSync(html, `<!doctype html>${' '.repeat(2000)}`)
    const old = await makeBundle({
      release: { number: { epoch: 0, counter: 1 }, securityFloor: { epoch: 0, counter: 0 } },
    })
    const board = await makeBundle({ release: { hardware: ['other-board'] } })
    const foreign = await makeBundle({ roots: [await signedRoot({ root: [4], threshold: 1 }, [4])] })
    const cases: [path: string, code: RegExp, exit: number][] = [
      [cut, /^(BUNDLE_TRUNCATED|TRANSPORT_SHORT)$/, 3],
      [trailing, /^BUNDLE_TRAILING_BYTES$/, 3],
      [html, /^(BUNDLE_NOT_A_BUNDLE|TRANSPORT_WRONG_ANSWER)$/, 3],
      [old.path, /^RELEASE_BELOW_FLOOR$/, 5],
      [board.path, /^RELEASE_WRONG_HARDWARE$/, 5],
      [foreign.path, /^(ROOT_|SIGNATURE_)/, 4],
      [join(base, 'none.bundle'), /^TRANSPORT_MISSING$/, 7],
    ]
    for (const [path, code, exit] of cases) {
      const ran = await run(['install', path, '--json'])
      expect(ran.json, path).toMatchObject({ ok: false, error: { code: expect.stringMatching(code) } })
      if (exit !== 3) expect(ran.exit, path).toBe(exit)
      expect(ran.exit, path).not.toBe(0)
    }
    expect(await bootState()).toEqual(freshState('a'))
    expect(readFileSync(join(device, 'disk/rootfs-b')).equals(before)).toBe(true)
  })

  it('installs from a file, arms, and says so', async () => {
    const { exit, out, err } = await run(['install', good.path])
    expect(err).toMatch(/writing rootfs 100%/)
    expect(exit, err).toBe(0)
    expect(out).toContain('release 0.7 (2.0.0) is armed in slot b')
    expect(await bootState()).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
    const status = (await run(['status', '--json'])).json
    expect(status).toMatchObject({
      state: 'armed',
      slots: { b: { role: 'trial', release: '0.7', triesLeft: 3 } },
      lastOutcome: { what: 'install', ok: true, release: '0.7', size: good.bytes.length },
    })
    for (const file of ['release.json', 'boot.idx', 'rootfs.idx', 'inventory.zst', 'roots/1.json'])
      expect(readFileSync(join(device, 'data/bistable/slots/b', file)).length).toBeGreaterThan(0)
    expect((await run(['verify', 'b'])).out).toContain('slot b  2.0.0  ok')
  })

  it('brings a try to a commit, serves status to everyone and changes to root only', async () => {
    const check = join(device, 'usr/lib/bistable/health.d/required/app')
    writeFileSync(check, `#!/bin/sh\necho looking; test -e ${device}/app-is-up\n`, { mode: 0o755 })
    bootsInto(device, 'b', '0.7', 'try', 2)
    const agent = startAgent()
    await agent.until(/state=trying slot=b release=0\.7 left=2/)
    const trying = (await run(['status', '--json'])).json
    expect(trying).toMatchObject({ state: 'trying', running: { slot: 'b', boot: 'try' } })
    if (process.getuid?.() === 0) {
      expect((await run(['status', '--json'], { uid: 65534 })).json).toMatchObject({ state: 'trying' })
      const refused = await run(['commit', '--json'], { uid: 65534 })
      expect(refused).toMatchObject({ exit: 10, json: { error: { code: 'AGENT_NEEDS_ROOT' } } })
    }
    expect((await run(['install', good.path, '--json'])).json).toMatchObject({ error: { code: 'AGENT_STATE' } })
    writeFileSync(join(device, 'app-is-up'), '')
    await agent.until(/committed slot=b release=0\.7/)
    expect(agent.said()).toMatch(/health ok required .*\/app \d+ ms looking/)
    expect(await bootState()).toMatchObject({ primary: 'b', trial: undefined, spare: true })
    expect((await run(['cancel', '--json'])).json).toMatchObject({ error: { code: 'AGENT_IDLE' } })
    const exit = ended(agent.child)
    agent.child.kill('SIGTERM')
    expect(await exit).toBe(0)
    // Outlives the agent: what the initramfs left behind in the try looks for it.
    expect(existsSync(join(device, 'run/bistable/up'))).toBe(true)
    expect(readFileSync(join(device, 'data/bistable/floor'), 'utf8')).toMatch(/^0\.1\n/)
    expect((await run(['health', '--json'])).json).toMatchObject({ ok: true, checks: [{ required: true, ok: true }] })
  })

  it('finds a slot that was changed', async () => {
    const path = join(device, 'disk/rootfs-b')
    const bytes = readFileSync(path)
    bytes[5000] = (bytes[5000] ?? 0) ^ 1
    writeFileSync(path, bytes)
    const { exit, json } = await run(['verify', 'b', '--json'])
    expect(exit).toBe(8)
    expect(json).toMatchObject({ slots: [{ slot: 'b', ok: false }] })
    bytes[5000] = (bytes[5000] ?? 0) ^ 1
    writeFileSync(path, bytes)
  })

  it('checks a channel over HTTP and installs what it names, with reuse of the running slot', async () => {
    const next = await kept('next', { release: { number: { epoch: 0, counter: 8 }, version: '2.1.0' } })
    const { digest } = await openBundle(memorySource(next.bytes), { trusted: next.trusted })
    copyFileSync(next.path, join(web, 'bundles/next.bundle'))
    const statement: FreshnessStatement = {
      type: 'freshness',
      product: 'demo',
      channel: 'stable',
      number: { epoch: 0, counter: 8 },
      release: digest,
      path: 'bundles/next.bundle',
      size: next.bytes.length,
      rootVersion: 1,
      issued: '2026-11-21T00:00:00Z',
      expires: '2099-11-21T00:00:00Z',
    }
    const envelope = await signStatement(FRESHNESS_PAYLOAD_TYPE, encodeFreshness(statement), [signer(21)])
    writeFileSync(join(web, 'channels/stable.json'), encodeEnvelope(envelope))
    const url = `${origin}/channels/stable.json`
    const checked = await run(['check', '--url', url, '--json'])
    expect(checked.json).toMatchObject({ decision: 'update', bundle: `${origin}/bundles/next.bundle` })
    expect((await run(['check', '--url', url])).out).toContain(
      `'bistable install ${origin}/bundles/next.bundle' installs it`,
    )
    const planned = await run(['install', '--plan', `${origin}/bundles/next.bundle`, '--json'])
    expect(planned.json).toMatchObject({
      ok: true,
      images: [{ image: 'boot', fetched: { stored: 0 } }, { image: 'rootfs' }],
    })
    const plan = planned.json as unknown as InstallPlan
    expect(plan.total).toBe(plan.head + plan.attachments)
    const text = (await run(['install', '--plan', `${origin}/bundles/next.bundle`])).out
    expect(text).toMatch(/rootfs: .*\n +[\d.]+ [KM]iB {2}from .*disk\/rootfs-b\n/)
    expect(text).toContain(`in all ${plan.total} bytes`)
    const tight = ['install', `${origin}/bundles/next.bundle`, '--max-bytes', String(plan.total - 1), '--json']
    expect(await run(tight)).toMatchObject({ exit: 5, json: { error: { code: 'INSTALL_BUDGET' } } })
    const enough = ['install', `${origin}/bundles/next.bundle`, '--max-bytes', String(plan.total), '--json']
    const done = await run(enough)
    expect(done.json).toMatchObject({ ok: true, slot: 'a', fetched: 0 })
    expect(await bootState()).toMatchObject({ primary: 'b', trial: 'a', left: 3, spare: false })
    expect((await run(['cancel', '--json'])).json).toMatchObject({ ok: true })
    expect(await bootState()).toMatchObject({ primary: 'b', trial: undefined })
    expect((await run(['check', '--json'])).json).toMatchObject({ error: { code: 'CHANNEL_UNSET' } })
    expect((await run(['check', '--url', `${origin}/channels/none.json`])).exit).toBe(2)
  })

  it('gives a try up when its agent cannot even start', async () => {
    const broken = await makeDevice('broken')
    expect((await run(['install', good.path], { root: broken })).exit).toBe(0)
    bootsInto(broken, 'b', '0.7', 'try', 2)
    writeFileSync(join(broken, 'usr/lib/bistable/system.json'), '{"product":"demo","hardware":[],"typo":1}')
    const ran = await run(['agent', '--json'], { root: broken })
    expect(ran.exit).toBe(2)
    expect(ran.out).toContain('CONFIG_INVALID')
    expect(await bootState(broken)).toMatchObject({ trial: 'b', left: 0 })
    expect(existsSync(join(broken, 'run/bistable/up'))).toBe(false)
    expect(readFileSync(join(broken, 'rebooted'), 'utf8')).toBe('rebooted\n')
  })

  it('looks for sticks where the kernel lists disks, and leaves them alone when udev may not ask', async () => {
    expect(await run(['usb', '--json'])).toMatchObject({ exit: 6, json: { error: { code: 'USB_NONE' } } })
    expect(await run(['usb', '/dev/nothing', '--json'])).toMatchObject({
      exit: 2,
      json: { error: { code: 'USB_NOT_A_STICK' } },
    })
    const event = await run(['usb', '--event', '/dev/sdz1'])
    expect(event).toMatchObject({ exit: 0, out: 'sticks are not used when plugged in: usb.watch is off\n' })
  })

  it('names what it does not understand', async () => {
    for (const args of [['install'], ['status', 'x'], ['nonsense'], ['verify', 'c'], ['check', '--what']])
      expect((await run([...args, '--json'])).json, args.join(' ')).toMatchObject({ error: { code: 'USAGE' } })
    expect((await run(['--help'])).out).toContain('rollback')
  })
})
