import { chmodSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import { type AddressInfo, createServer as createTcp, type Server } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { checkHealthPlan, type HealthPlan } from '../../bundle/health-plan.ts'
import { realProcesses } from '../../device/agent/real.ts'
import type { CheckRun } from '../../device/health/checks.ts'
import { runChecks, stayHealthy, waitHealthy } from '../../device/health/health.ts'
import { realProbes } from '../../device/health/probes.ts'
import { brokers, embedded } from '../mqtt/tools.ts'

// Checks of health.json against real servers, a real broker and a systemctl that answers like the real one.

const never = new AbortController().signal
const folder = mkdtempSync(join(tmpdir(), 'bshealth-'))
/** Moves on only when somebody waits: a soak of an hour is over at once, and always after the same rounds. */
let now = 0
const clock = {
  now: () => now,
  wall: () => new Date(now),
  sleep: async (ms: number) => {
    now += ms
  },
  synchronised: async () => true,
}
let answer = { status: 200, body: 'all is well' }
const web = createServer((_, response) => {
  if (answer.status === 0) return
  response.writeHead(answer.status, { location: '/elsewhere' }).end(answer.body)
})
/** Accepts and says nothing. */
const silent = createTcp(() => undefined)
const closed = createTcp()
const ports = { web: 0, silent: 0, closed: 0 }

async function listen(server: Server): Promise<number> {
  await new Promise<void>((ready) => server.listen(0, '127.0.0.1', ready))
  return (server.address() as AddressInfo).port
}

beforeAll(async () => {
  Object.assign(ports, { web: await listen(web), silent: await listen(silent), closed: await listen(closed) })
  await new Promise((done) => closed.close(done))
  // systemd 252: the state on standard output; 0 and 3 of is-active, 0 and 1 of is-failed.
  const script = `#!/bin/sh
case "$1 $2" in
  "is-active app.service") echo active ;;
  "is-active backup.service") echo inactive; exit 3 ;;
  "is-failed backup.service") echo inactive; exit 1 ;;
  "is-active broken.service") echo failed; exit 3 ;;
  "is-failed broken.service") echo failed ;;
  "is-failed gone.service") echo "Failed to connect to bus: No such file or directory" >&2; exit 1 ;;
  "list-units --failed") cat ${folder}/failed 2>/dev/null || true ;;
  "start boot-complete.target") ;;
  *) echo "unexpected $*" >&2; exit 99 ;;
esac
`
  writeFileSync(join(folder, 'systemctl'), script)
  chmodSync(join(folder, 'systemctl'), 0o755)
  process.env['PATH'] = `${folder}:${process.env['PATH']}`
})

afterAll(() => {
  process.env['PATH'] = process.env['PATH']?.slice(folder.length + 1)
  web.closeAllConnections()
  web.close()
  silent.close()
  rmSync(folder, { recursive: true, force: true })
})

function planOf(more: Record<string, unknown>): HealthPlan {
  const checked = checkHealthPlan(more)
  if ('problems' in checked) throw new Error(checked.problems.join())
  return checked.plan
}
const one = (check: Record<string, unknown>) => planOf({ checks: [{ name: 'it', level: 'required', ...check }] })

const around = { processes: realProcesses(''), clock, systemd: false, probes: realProbes(undefined, undefined) }
const config = (plan: HealthPlan) => ({ required: [], wanted: [], checkSeconds: 5, plan })

async function run(check: Record<string, unknown>, more: Partial<typeof around> = {}): Promise<CheckRun | undefined> {
  const report = await runChecks({ ...around, ...more }, config(one(check)), never)
  return report.checks.find(({ name }) => name === 'it')
}

describe('checks over the network', () => {
  it('tcp: something accepts, or the reason is named', async () => {
    expect(await run({ kind: 'tcp', host: '127.0.0.1', port: ports.silent })).toMatchObject({ ok: true, runs: 1 })
    const refused = await run({ kind: 'tcp', host: '127.0.0.1', port: ports.closed })
    expect(refused).toMatchObject({ ok: false, failures: 1, said: expect.stringContaining('ECONNREFUSED') })
  })

  it('http: status and content, redirects not followed', async () => {
    const url = `http://127.0.0.1:${ports.web}/health`
    expect(await run({ kind: 'http', url })).toMatchObject({ ok: true, said: 'answer 200' })
    expect(await run({ kind: 'http', url, contains: 'is well' })).toMatchObject({ ok: true })
    expect(await run({ kind: 'http', url, contains: 'on fire' })).toMatchObject({ ok: false })
    answer = { status: 302, body: '' }
    expect(await run({ kind: 'http', url })).toMatchObject({ ok: false, said: 'answer 302, wanted 2xx' })
    expect(await run({ kind: 'http', url, status: [204, 302] })).toMatchObject({ ok: true })
    answer = { status: 200, body: 'all is well' }
  })

  it('each ends at its own limit', async () => {
    answer = { status: 0, body: '' }
    const url = `http://127.0.0.1:${ports.web}/health`
    const report = await run({ kind: 'http', url, seconds: 1 })
    answer = { status: 200, body: 'all is well' }
    expect(report).toMatchObject({ ok: false, said: expect.stringContaining('no answer within 1 s') })
    const mute = await run({ kind: 'http', url: `http://127.0.0.1:${ports.silent}/`, seconds: 1 })
    expect(mute?.said).toContain('no answer within 1 s')
  })

  it('broker: the tie that updates come through', async () => {
    const { url } = await embedded()
    const ties = brokers('device-1')
    const sees = (channel?: string) => ({ probes: realProbes(ties, channel) })
    expect(await run({ kind: 'broker' }, sees(`mqtt://${url.host}/channels/stable.json`))).toMatchObject({ ok: true })
    expect(await run({ kind: 'broker', url: `mqtt://${url.host}` }, sees())).toMatchObject({ ok: true })
    const gone = `mqtt://127.0.0.1:${ports.closed}/channels/stable.json`
    const none = await run({ kind: 'broker', seconds: 1 }, sees(gone))
    expect(none).toMatchObject({ ok: false, said: expect.stringContaining('no answer within 1 s: ') })
    expect(await run({ kind: 'broker' })).toMatchObject({ ok: false, said: expect.stringContaining('no broker') })
  })
})

describe('systemd units', () => {
  const systemd = { systemd: true }
  it.each([
    ['app.service', 'active', true, 'app.service is active'],
    ['backup.service', 'active', false, 'exit'],
    ['backup.service', 'not-failed', true, 'backup.service is inactive'],
    ['broken.service', 'not-failed', false, 'broken.service is failed'],
    ['gone.service', 'not-failed', false, 'Failed to connect'],
  ])('%s, wanted %s: %s', async (unit, want, ok, said) => {
    const found = await run({ kind: 'unit', unit, want }, systemd)
    expect(found?.ok).toBe(ok)
    if (said !== 'exit') expect(found?.said).toContain(said)
  })

  it('none at all may have failed', async () => {
    expect(await run({ kind: 'no-failed-units' }, systemd)).toMatchObject({ ok: true })
    writeFileSync(join(folder, 'failed'), 'broken.service loaded failed failed Broken\n')
    expect(await run({ kind: 'no-failed-units' }, systemd)).toMatchObject({
      ok: false,
      said: expect.stringContaining('broken.service'),
    })
    rmSync(join(folder, 'failed'))
    expect(await run({ kind: 'no-failed-units' })).toMatchObject({
      ok: false,
      said: expect.stringContaining('systemd'),
    })
  })
})

describe('a soak', () => {
  const url = () => `http://127.0.0.1:${ports.web}/`
  it('asks again, counts runs, and fails with when and why', async () => {
    const plan = planOf({
      everySeconds: 10,
      checks: [
        { name: 'web', level: 'required', kind: 'http', url: url() },
        { name: 'extra', level: 'wanted', kind: 'tcp', host: '127.0.0.1', port: ports.closed },
      ],
    })
    const passed = await waitHealthy(around, config(plan), 5000, never)
    expect(passed).toMatchObject({ ok: true, checks: [{ runs: 1 }, { ok: false, required: false }] })
    const stayed = await stayHealthy(around, config(plan), passed, 15_000, never)
    expect(stayed).toMatchObject({ ok: true, checks: [{ name: 'web', runs: 3, failures: 0 }, { name: 'extra' }] })
    answer = { status: 500, body: '' }
    const broke = await stayHealthy(around, config(plan), stayed, 60_000, never)
    answer = { status: 200, body: 'all is well' }
    expect(broke).toMatchObject({ ok: false, checks: [{ runs: 4, failures: 1 }, {}] })
    expect(broke.checks[0]?.said).toMatch(/^passed, and failed 10 s later: answer 500/)
  })

  it('ends at once when a person has decided', async () => {
    const plan = planOf({ checks: [{ name: 'web', level: 'required', kind: 'http', url: url() }] })
    const passed = await waitHealthy(around, config(plan), 5000, never)
    expect(await stayHealthy(around, config(plan), passed, 3_600_000, never, () => true)).toEqual(passed)
  })
})

describe('health.json', () => {
  it.each([
    [{ check: [] }, 'check'],
    [{ checks: [{ name: 'a', level: 'required', kind: 'tcp', host: 'h' }] }, 'port'],
    [{ checks: [{ name: 'a', level: 'must', kind: 'no-failed-units' }] }, 'level'],
    [{ checks: [{ name: 'a', level: 'wanted', kind: 'unit', unit: '--force' }] }, 'unit'],
    [{ checks: [{ name: 'a', level: 'wanted', kind: 'http', url: 'file:///etc/shadow' }] }, 'url'],
    [{ checks: [{ name: 'a', level: 'wanted', kind: 'program', path: '/x/../y' }] }, 'path'],
    [{ checks: [{ name: 'a', level: 'wanted', kind: 'broker', seconds: 0 }] }, 'seconds'],
    [{ checks: ['a', 'a'].map((name) => ({ name, level: 'wanted', kind: 'no-failed-units' })) }, 'two are named a'],
  ])('refuses %j', (value, what) => {
    const checked = checkHealthPlan(value)
    expect('problems' in checked ? checked.problems.join() : 'accepted').toContain(what)
  })
})
