import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { nodeFiles } from '../../base/durable.ts'
import { isBistableError } from '../../base/errors.ts'
import { NO_PLAN } from '../../bundle/health-plan.ts'
import { readPlaces } from '../../device/agent/places.ts'
import { openWatchdog, realProcesses } from '../../device/agent/real.ts'
import { pathsUnder, readConfig } from '../../device/config.ts'
import { ask, NOBODY } from '../../device/control/client.ts'
import { serveControl } from '../../device/control/server.ts'
import { deviceErrors } from '../../device/errors.ts'
import { runChecks, waitHealthy } from '../../device/health/health.ts'
import { codeOfAsync } from '../codes.ts'

const base = mkdtempSync(join(tmpdir(), 'bse-'))
afterAll(() => rmSync(base, { recursive: true, force: true }))
const never = new AbortController().signal
let count = 0
function folder(): string {
  const path = join(base, String(++count))
  mkdirSync(path)
  return path
}

describe('configuration', () => {
  function config(system: unknown, override?: unknown) {
    const root = folder()
    for (const sub of ['usr/lib/bistable', 'etc/bistable']) mkdirSync(join(root, sub), { recursive: true })
    const write = (path: string, value: unknown) =>
      writeFileSync(join(root, path), typeof value === 'string' ? value : JSON.stringify(value))
    if (system !== undefined) write('usr/lib/bistable/system.json', system)
    if (override !== undefined) write('etc/bistable/agent.json', override)
    return readConfig(pathsUnder(root), nodeFiles)
  }
  const minimal = { product: 'demo', hardware: ['x'] }

  it('has defaults, and the device may override the agent only', async () => {
    const agent = { channel: 'http://x/channels/a.json', pollSeconds: 60 }
    const read = await config({ ...minimal, agent }, { apply: 'install', pollSeconds: 5 })
    expect(read.agent).toMatchObject({ ...agent, pollSeconds: 5, apply: 'install', stallSeconds: 120 })
    expect(read.health).toMatchObject({ deadlineSeconds: 120, checkSeconds: 30 })
    expect(read.problems).toBeUndefined()
  })

  it('goes on with what the image says where the settings of the device are wrong, tells it, and reboots for nobody', async () => {
    const image = { ...minimal, agent: { channel: 'http://x/channels/a.json', pollSeconds: 60, apply: 'reboot' } }
    // A power cut leaves an empty file; a newer release may have understood more.
    const whole: unknown[] = ['', '{"poll', '[]', 'null', '\u0000'.repeat(64), 'x'.repeat(70_000)]
    for (const text of whole) {
      const { agent, problems } = await config(image, text)
      expect(agent, String(text)).toMatchObject({ ...image.agent, apply: 'install' })
      expect(problems, String(text)).toEqual([expect.stringMatching(/agent\.json: .*; it does not count$/)])
    }
    const some = await config(image, {
      product: 'other',
      pollSeconds: 5,
      stallSeconds: 'x',
      deviceId: '../x',
      mirrors: [],
    })
    expect(some).toMatchObject({ product: 'demo', agent: { pollSeconds: 5, stallSeconds: 120, apply: 'reboot' } })
    expect(some.deviceId).toBeUndefined()
    expect(some.problems?.map((said) => said.split(': ')[1])).toEqual(['product', 'stallSeconds', 'deviceId'])
    expect((await config(image, { policy: { check: 1 } })).agent.apply).toBe('install')
    expect((await config(image, { policy: 1, apply: 'manual' })).agent.apply).toBe('manual')
  })

  it('names every bad field at once, and says when it is missing', async () => {
    const bad = { hardware: [], healht: {}, agent: { pollSeconds: 0, console: '/etc/passwd' } }
    const error = await config(bad).catch((e: unknown) => e)
    expect(isBistableError(error, 'CONFIG_INVALID')).toBe(true)
    for (const field of ['product', 'hardware', 'healht', 'agent.pollSeconds', 'agent.console'])
      expect(String(error)).toContain(field)
    expect(await codeOfAsync(() => config('not json'))).toBe('CONFIG_INVALID')
    expect(await codeOfAsync(() => config(undefined))).toBe('CONFIG_MISSING')
  })

  it('takes slots by path only in full, and one place for the boot state', async () => {
    const file = join(folder(), 'places.json')
    expect(await readPlaces(file, nodeFiles)).toBeUndefined()
    const twice = '{"bootstate":"/x","boot":{"kind":"partition"}}'
    const bads = ['{', '{"bootstate":"x"}', '{"bootstate":"/x","slots":{}}', '{"boot":{"kind":"lilo"}}', twice]
    for (const bad of bads) {
      writeFileSync(file, bad)
      expect(await codeOfAsync(() => readPlaces(file, nodeFiles)), bad).toBe('CONFIG_INVALID')
    }
    writeFileSync(file, '{"boot":{"kind":"partition","path":"/dev/x"}}')
    expect(await readPlaces(file, nodeFiles)).toEqual({ boot: { kind: 'partition', path: '/dev/x' } })
  })
})

describe('processes and health checks', () => {
  const clock = { now: () => performance.now(), wall: () => new Date(), sleep: wait, synchronised: async () => false }
  async function wait(ms: number): Promise<void> {
    await new Promise((done) => setTimeout(done, Math.min(ms, 20)))
  }
  const processes = realProcesses('')
  function script(dir: string, name: string, text: string): string {
    const path = join(dir, name)
    writeFileSync(path, `#!/bin/sh\n${text}\n`)
    chmodSync(path, 0o755)
    return path
  }

  it('gives exit codes, bounded last words, and ends what hangs with all it started', async () => {
    const dir = folder()
    const loud = script(dir, 'loud', 'yes line | head -c 100000; echo end; exit 3')
    const said = await processes.run([loud], 10_000)
    expect(said).toMatchObject({ exit: 3, timedOut: false })
    expect(said.said.length).toBeLessThanOrEqual(400)
    expect(said.said).toMatch(/end\n$/)
    const pids = join(dir, 'pid')
    const hangs = script(dir, 'hangs', `sleep 1000 & echo $! > ${pids}; wait`)
    const ended = await processes.run([hangs], 300)
    expect(ended).toMatchObject({ exit: undefined, timedOut: true })
    const pid = Number(readFileSync(pids, 'utf8'))
    await expect.poll(() => isGone(pid)).toBe(true)
    expect((await processes.run([join(dir, 'none')], 1000)).said).toContain('ENOENT')
  })

  it('are not kept from being ended when memory is short, as the agent is', async () => {
    const own = '/proc/self/oom_score_adj'
    const before = readFileSync(own, 'utf8')
    // Upwards, which needs no root: what counts is that it is not handed on.
    writeFileSync(own, '500')
    try {
      const waits = script(folder(), 'waits', 'until grep -qx 0 /proc/self/oom_score_adj; do sleep 0.02; done')
      expect(await processes.run([waits], 30_000)).toMatchObject({ exit: 0 })
    } finally {
      writeFileSync(own, before)
    }
  })

  it('runs required and wanted checks by glob, in order, executables only', async () => {
    const dir = folder()
    for (const sub of ['req', 'want']) mkdirSync(join(dir, sub))
    script(join(dir, 'req'), '20-b', 'exit 0')
    script(join(dir, 'req'), '10-a', 'exit 0')
    script(join(dir, 'req'), '.hidden', 'exit 1')
    writeFileSync(join(dir, 'req/README'), 'no check')
    script(join(dir, 'want'), 'x', 'echo weak; exit 1')
    const config = { required: [join(dir, 'req/*')], wanted: [join(dir, 'want/*')], checkSeconds: 5, plan: NO_PLAN }
    const report = await runChecks({ processes, clock, systemd: false }, config, never)
    expect(report.ok).toBe(true)
    expect(report.checks.map((c) => [c.name.slice(dir.length), c.required, c.ok])).toEqual([
      ['/req/10-a', true, true],
      ['/req/20-b', true, true],
      ['/want/x', false, false],
    ])
    expect(report.checks[2]?.said).toContain('weak')
  })

  it('waits for slow ones, keeps asking only those, and fails at the deadline with a reason', async () => {
    const dir = folder()
    const slow = script(dir, 'slow', `echo x >> ${dir}/runs; test $(wc -l < ${dir}/runs) -ge 3`)
    const quick = script(dir, 'quick', `echo x >> ${dir}/quick-runs`)
    const config = { required: [slow, quick], wanted: [], checkSeconds: 5, plan: NO_PLAN }
    const report = await waitHealthy({ processes, clock, systemd: false }, config, 20_000, never)
    expect(report).toMatchObject({ ok: true, checks: [{ runs: 3 }, { runs: 1 }] })
    expect(readFileSync(join(dir, 'quick-runs'), 'utf8')).toBe('x\n')
    const missing = { required: [join(dir, 'nowhere')], wanted: [], checkSeconds: 5, plan: NO_PLAN }
    const failed = await waitHealthy({ processes, clock, systemd: false }, missing, 2100, never)
    expect(failed).toMatchObject({ ok: false, checks: [{ ok: false, said: expect.stringContaining('ENOENT') }] })
  })

  it('asks systemd for boot-complete.target where systemd runs', async () => {
    const asked: (readonly string[])[] = []
    const fake = {
      glob: async () => [],
      run: async (command: readonly [string, ...string[]]) => {
        asked.push(command)
        return { exit: 1, timedOut: false, said: 'Dependency failed' }
      },
    }
    const config = { required: [], wanted: [], checkSeconds: 5, plan: NO_PLAN }
    const report = await runChecks({ processes: fake, clock, systemd: true }, config, never)
    expect(asked).toEqual([['systemctl', 'start', 'boot-complete.target']])
    expect(report.ok).toBe(false)
  })

  it('refuses a glob that names a whole system', async () => {
    const many = { ...processes, glob: async () => Array.from({ length: 65 }, (_, n) => `/x/${n}`) }
    const config = { required: ['/x/*'], wanted: [], checkSeconds: 5, plan: NO_PLAN }
    expect(await codeOfAsync(() => runChecks({ processes: many, clock, systemd: false }, config, never))).toBe(
      'CONFIG_INVALID',
    )
  })

  it('feeds and disarms the watchdog device, and does without one that is busy or missing', async () => {
    const path = join(folder(), 'watchdog')
    writeFileSync(path, '')
    const dog = await openWatchdog(path, () => undefined)
    await dog?.feed()
    await dog?.feed()
    await dog?.disarm()
    expect(readFileSync(path, 'utf8')).toBe('11V')
    const lines: string[] = []
    expect(await openWatchdog(join(base, 'no-dog'), (line) => lines.push(line))).toBeUndefined()
    expect(lines.join()).toContain('ENOENT')
  })
})

function isGone(pid: number): boolean {
  try {
    return readFileSync(`/proc/${pid}/stat`, 'utf8').includes(') Z ')
  } catch {
    return true
  }
}

describe('the control socket', () => {
  const paths = () => {
    const run = join(folder(), 'run')
    return { run, control: join(run, 'agent.sock'), status: join(run, 'status.sock') }
  }
  const quiet = () => undefined

  it('answers, passes progress and errors with their codes, and stops work when the asker goes', async () => {
    const at = paths()
    let stopped = ''
    const lock = await serveControl(at, async (verb, args, emit, signal) => {
      if (verb === 'echo') {
        emit({ progress: 1 })
        return args
      }
      if (verb === 'wait') {
        emit({ line: 'waiting' })
        await new Promise<void>((done) => signal.addEventListener('abort', () => done()))
        stopped = isBistableError(signal.reason) ? signal.reason.code : 'other'
        return undefined
      }
      throw deviceErrors.RELEASE_BLOCKED('no', { next: 'Do that.', details: { n: 1 } })
    })
    const heard: unknown[] = []
    expect(await ask(at.control, 'echo', { a: 1 }, (m) => heard.push(m), never)).toEqual({ a: 1 })
    expect(heard).toEqual([{ progress: 1 }])
    const error = await ask(at.control, 'install', {}, quiet, never).catch((e: unknown) => e)
    expect(error).toMatchObject({ code: 'RELEASE_BLOCKED', next: 'Do that.', exitCode: 5, details: { n: 1 } })
    const stop = new AbortController()
    const waiting = codeOfAsync(() => ask(at.control, 'wait', {}, () => stop.abort(), stop.signal))
    expect(await waiting).toBe('AGENT_CANCELLED')
    await expect.poll(() => stopped).toBe('AGENT_CANCELLED')
    expect(await codeOfAsync(() => ask(at.control, 'Bad/verb', {}, quiet, never))).toBe('AGENT_ANSWER')
    expect(await codeOfAsync(() => ask(at.control, 'echo', { long: 'x'.repeat(20_000) }, quiet, never))).toBe(
      'AGENT_ANSWER',
    )
    await lock[Symbol.asyncDispose]()
    expect(await ask(at.control, 'echo', {}, quiet, never)).toBe(NOBODY)
  })

  it('C11 is two sockets: everything for root, status for all', async () => {
    const at = paths()
    const lock = await serveControl(at, async (verb) => verb)
    expect(statSync(at.control).mode & 0o777).toBe(0o600)
    expect(statSync(at.status).mode & 0o777).toBe(0o666)
    expect(await ask(at.status, 'status', {}, quiet, never)).toBe('status')
    for (const verb of ['install', 'commit', 'rollback', 'reboot', 'cancel', 'check', 'who'])
      expect(await codeOfAsync(() => ask(at.status, verb, {}, quiet, never))).toBe('AGENT_NEEDS_ROOT')
    await lock[Symbol.asyncDispose]()
  })

  it('is a lock: the second is told who holds it; one left by the dead is taken over', async () => {
    const at = paths()
    const lock = await serveControl(at, async () => undefined)
    const second = await serveControl(at, async () => undefined).catch((e: unknown) => e)
    expect(isBistableError(second, 'AGENT_BUSY')).toBe(true)
    expect(String(second)).toContain(String(process.pid))
    expect(await ask(at.control, 'still', {}, quiet, never)).toBeNull()
    await lock[Symbol.asyncDispose]()
    await leaveDeadSocket(at.control)
    expect(existsSync(at.control)).toBe(true)
    const taken = await serveControl(at, async () => 'mine')
    expect(await ask(at.control, 'x', {}, quiet, never)).toBe('mine')
    await taken[Symbol.asyncDispose]()
  })

  it('is held by one that ends in the middle of saying who it is: the agent waits, and gives no try up for it', async () => {
    const at = paths()
    mkdirSync(at.run, { recursive: true })
    for (const last of ['', 'HTTP/1.1 200 OK\r\n\r\n']) {
      const ending = createServer(
        (socket) => void socket.on('error', () => undefined).once('data', () => socket.end(last)),
      )
      await new Promise<void>((resolve) => ending.listen(at.control, resolve))
      expect(await codeOfAsync(() => serveControl(at, async () => undefined))).toBe('AGENT_BUSY')
      await new Promise((resolve) => ending.close(resolve))
    }
  })

  it('bounds what an answer may be', async () => {
    const path = join(folder(), 's')
    const endless = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.write('HTTP/1.1 200 OK\r\n\r\n')
      const pour = () => {
        if (!socket.destroyed && socket.write('x'.repeat(100_000))) setImmediate(pour)
        else socket.once('drain', pour)
      }
      pour()
    })
    await new Promise<void>((ready) => endless.listen(path, ready))
    expect(await codeOfAsync(() => ask(path, 'status', {}, quiet, never))).toBe('AGENT_ANSWER')
    endless.close()
  })
})

/** A socket file that nobody listens on: what a killed process leaves. */
async function leaveDeadSocket(path: string): Promise<void> {
  const { spawn } = await import('node:child_process')
  const text = `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`
  await new Promise((done) => spawn(process.execPath, ['-e', text]).on('exit', done))
}
