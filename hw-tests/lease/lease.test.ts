import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmodSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import fc from 'fast-check'
import { afterAll, describe, expect, it } from 'vitest'
import { LabError } from '../harness/lab-error.ts'
import { chooseStore, hold, share, waitMs } from './hold.ts'
import { acquire, type Leases, leaseText, release, renew } from './lease.ts'
import { remoteStore } from './remote.ts'
import { startLeaseServer } from './server.ts'
import { isGone, type LeaseStore, localStore, thisHolder } from './store.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-lease-'))
const closing: (() => unknown)[] = []
afterAll(async () => {
  for (const close of closing) await close()
  rmSync(folder, { recursive: true })
})

describe('who has a board', () => {
  it('never two at once, whatever runs, runs out, gives back and dies in whatever order', () => {
    const action = fc.record({
      who: fc.integer({ min: 0, max: 3 }),
      what: fc.constantFrom('acquire', 'renew', 'release', 'die' as const),
      after: fc.integer({ min: 0, max: 80 }),
    })
    fc.assert(
      fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
        let leases: Leases = {}
        let now = 0
        const dead = new Set<number>()
        // Until when each believes to have it, from its own answers alone.
        const believes = new Map<number, number>()
        for (const { who, what, after } of actions) {
          now += after
          const token = `t${who}`
          const holder = { bootId: 'b', pidSpace: 'p', pid: who, started: '1' }
          if (dead.has(who)) continue
          if (what === 'die') {
            dead.add(who)
            believes.delete(who)
          } else if (what === 'release') {
            leases = release(leases, 'p', token)
            believes.delete(who)
          } else {
            const answer =
              what === 'acquire'
                ? acquire(leases, { place: 'p', owner: token, token, ttlMs: 100, holder }, now, ({ pid }) =>
                    dead.has(pid),
                  )
                : renew(leases, 'p', token, 100, now)
            leases = answer.leases
            if (answer.granted) believes.set(who, answer.lease.expires)
            else if (what === 'renew') believes.delete(who)
          }
          expect([...believes.values()].filter((until) => until > now).length).toBeLessThanOrEqual(1)
        }
      }),
    )
  })

  it('is told with owner and times', () => {
    const lease = { place: 'rpi-4', owner: 'anna', token: 't', since: 1000, expires: 61_000 }
    expect(leaseText(lease, 31_000)).toBe('rpi-4 is leased by anna for 30 s; it runs out in 30 s unless renewed')
    expect(leaseText(lease, 71_000)).toMatch(/has run out$/)
  })
})

/** Both stores keep the same contract. */
const STORES: Readonly<Record<string, () => Promise<LeaseStore>>> = {
  'a file of this machine': async () => localStore(mkdtempSync(join(folder, 'local-'))),
  'a lease server': async () => {
    const file = join(mkdtempSync(join(folder, 'server-')), 'leases.json')
    const server = await startLeaseServer({ file, token: 'secret' })
    closing.push(() => server.close())
    return remoteStore(`http://127.0.0.1:${server.port}`, 'secret')
  },
}

for (const [name, make] of Object.entries(STORES))
  describe(`leases in ${name}`, () => {
    it('one of many who ask at once gets it; the others are told who', async () => {
      const store = await make()
      const asked = await Promise.allSettled(
        Array.from({ length: 8 }, (_, i) => hold(store, 'board', { owner: `run ${i}` })),
      )
      const got = asked.flatMap((result) => (result.status === 'fulfilled' ? [result.value] : []))
      expect(got).toHaveLength(1)
      for (const result of asked)
        if (result.status === 'rejected') {
          expect(result.reason).toBeInstanceOf(LabError)
          expect(result.reason.message).toMatch(/board is leased by run \d/)
        }
      expect(Object.keys(await store.list())).toEqual(['board'])
      await got[0]?.release()
      expect(await store.list()).toEqual({})
      const next = await hold(store, 'board')
      next.check()
      await next.release()
    })

    it('waits for a place that is given back', async () => {
      const store = await make()
      const first = await hold(store, 'board', { owner: 'first' })
      const said: string[] = []
      const second = hold(store, 'board', {
        owner: 'second',
        waitMs: 20_000,
        askMs: 50,
        say: (line) => said.push(line),
      })
      await expect.poll(() => said.join()).toMatch(/waiting: board is leased by first/)
      await first.release()
      await (await second).release()
    })

    it('a stolen lease ends the work of the one who had it, and he gives back nothing of the thief', async () => {
      const store = await make()
      const victim = await hold(store, 'board', { owner: 'victim', ttlMs: 1500 })
      const said: string[] = []
      const thief = await hold(store, 'board', { owner: 'thief', steal: true, say: (line) => said.push(line) })
      expect(said).toEqual(['lease: taken over from victim'])
      // Not one moment are there two who may touch the board.
      expect(() => victim.check()).toThrow(LabError)
      await expect.poll(() => victim.signal.aborted, { timeout: 60_000 }).toBe(true)
      expect(victim.signal.reason).toBeInstanceOf(LabError)
      expect(() => victim.check()).toThrow(/lease of board is lost: thief has taken it/)
      await victim.release()
      expect((await store.list())['board']?.owner).toBe('thief')
      thief.check()
      await thief.release()
    })

    it('is shared only by those who know it', async () => {
      const store = await make()
      const lease = await hold(store, 'board', { owner: 'anna' })
      const shared = await share(store, 'board', lease.token)
      shared.check()
      await expect(share(store, 'board', '')).rejects.toThrow(LabError)
      await expect(share(store, 'board', '0'.repeat(32))).rejects.toThrow(/no lease of board: board is leased by anna/)
      await lease.release()
      await expect(share(store, 'board', lease.token)).rejects.toThrow(/no lease of board$/)
    })

    it('goes on with heartbeats, and runs out without', async () => {
      const store = await make()
      const lease = await hold(store, 'board', { ttlMs: 1200 })
      const first = (await store.list())['board']?.expires ?? 0
      await expect.poll(async () => (await store.list())['board']?.expires, { timeout: 60_000 }).toBeGreaterThan(first)
      lease.check()
      await lease.release()
      await store.acquire({ place: 'board', owner: 'silent', token: '0123456789abcdef', ttlMs: 1000 })
      const next = await hold(store, 'board', { waitMs: 20_000, askMs: 50 })
      await next.release()
    })
  })

describe('on one machine', () => {
  it('another process holds its board; when it is killed, the board is free at once', async () => {
    const own = mkdtempSync(join(folder, 'process-'))
    const file = resolve(import.meta.dirname, 'holder.fixture.ts')
    const child = spawn(process.execPath, ['--import', 'tsx', file, own, 'board'], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    try {
      await once(child.stdout, 'data')
      const store = chooseStore({ HIL_LOCKS: own })
      await expect(hold(store, 'board')).rejects.toThrow(/board is leased by the other run/)
      child.kill('SIGKILL')
      await once(child, 'close')
      await (await hold(store, 'board')).release()
    } finally {
      child.kill('SIGKILL')
    }
  })

  it('a number that was given out again, or one from before a reboot, is another process', () => {
    const me = thisHolder()
    expect(isGone(me)).toBe(false)
    expect(isGone({ ...me, started: '1' })).toBe(true)
    expect(isGone({ ...me, bootId: 'another' })).toBe(true)
    expect(isGone({ ...me, pid: 2 ** 22 + 5 })).toBe(true)
  })

  it('a process that cannot be looked at is not gone: one of another container, one that /proc hides', () => {
    const me = thisHolder()
    expect(isGone({ ...me, pidSpace: 'pid:[1]', pid: 2 ** 22 + 5 })).toBe(false)
    expect(isGone({ ...me, pidSpace: 'pid:[1]', bootId: 'another' })).toBe(true)
    expect(isGone(me, () => undefined)).toBe(false)
    expect(isGone({ ...me, pid: 2 ** 22 + 5 }, () => undefined)).toBe(true)
  })

  it('a clock that is set gives nobody a board early', async () => {
    const own = mkdtempSync(join(folder, 'clock-'))
    const lease = await hold(localStore(own), 'board', { owner: 'anna' })
    const now = Date.now
    try {
      Date.now = () => now() + 7_200_000
      await expect(hold(localStore(own), 'board')).rejects.toThrow(
        /board is leased by anna for \d s; it runs out in [56]\d s/,
      )
      lease.check()
    } finally {
      Date.now = now
      await lease.release()
    }
  })

  it.skipIf(process.getuid?.() !== 0)(
    'all its users take part: a file that one wrote is replaced by another',
    async () => {
      const shared = mkdtempSync(join(folder, 'users-'))
      for (const passed of [folder, shared]) chmodSync(passed, 0o755)
      const own = join(shared, 'locks')
      await (await hold(localStore(own), 'another')).release()
      const file = resolve(import.meta.dirname, 'holder.fixture.ts')
      const child = spawn(process.execPath, ['--import', 'tsx', file, own, 'board'], {
        stdio: ['ignore', 'pipe', 'pipe'],
        env: { PATH: process.env['PATH'], TMPDIR: own },
        uid: 65534,
        gid: 65534,
      })
      let said = ''
      for (const stream of [child.stdout, child.stderr])
        stream.on('data', (bytes: Buffer) => {
          said += bytes.toString()
        })
      const over = once(child, 'close')
      try {
        await expect.poll(() => said, { timeout: 60_000 }).toMatch(/held|Error/)
        expect(said).toBe('held\n')
        await expect(hold(localStore(own), 'board')).rejects.toThrow(/leased by the other run/)
      } finally {
        child.kill('SIGKILL')
        await over
      }
    },
  )

  it('a folder that was there keeps its rights', async () => {
    const own = mkdtempSync(join(folder, 'mine-'))
    await (await hold(localStore(own), 'board')).release()
    expect(statSync(own).mode & 0o777).toBe(0o700)
  })

  it('how long to wait is a number or a mistake, and no wait without an end', () => {
    expect([waitMs({}), waitMs({ HIL_WAIT: '' }), waitMs({ HIL_WAIT: '600' })]).toEqual([0, 0, 600_000])
    for (const text of ['10m', '-1', 'Infinity', '1e9']) expect(() => waitMs({ HIL_WAIT: text })).toThrow(LabError)
  })

  it('a lease file that cannot be read gives nobody a board', async () => {
    const own = mkdtempSync(join(folder, 'torn-'))
    writeFileSync(join(own, 'leases.json'), '{"board": {"pla')
    await expect(hold(localStore(own), 'board')).rejects.toThrow(/holds no leases/)
    await expect(startLeaseServer({ file: join(own, 'leases.json') })).rejects.toThrow(/holds no leases/)
  })
})

describe('lease server', () => {
  it('keeps leases over a restart, shows no tokens, takes no stranger and no nonsense', async () => {
    const file = join(folder, 'kept.json')
    const first = await startLeaseServer({ file, token: 'secret' })
    const address = `http://127.0.0.1:${first.port}`
    const store = remoteStore(address, 'secret')
    await hold(store, 'board', { owner: 'anna' }).then(() => first.close())
    const second = await startLeaseServer({ file, token: 'secret' })
    closing.push(() => second.close())
    const again = `http://127.0.0.1:${second.port}`
    await expect(hold(remoteStore(again, 'secret'), 'board')).rejects.toThrow(/leased by anna/)
    expect(JSON.parse(readFileSync(file, 'utf8')).board.token).toMatch(/^[0-9a-f]{32}$/)
    expect((await remoteStore(again, 'secret').list())['board']?.token).toBe('')
    await expect(hold(remoteStore(again, 'wrong'), 'board')).rejects.toThrow(/answered 401/)
    const send = (path: string, method: string, body?: string) =>
      fetch(`${again}${path}`, { method, headers: { Authorization: 'Bearer secret' }, ...(body && { body }) })
    expect((await send('/leases/x', 'POST', 'x'.repeat(20_000))).status).toBe(400)
    expect((await send('/leases/x', 'POST', '{"token":"short"}')).status).toBe(400)
    expect((await send('/leases/..%2f', 'POST', '{}')).status).toBe(404)
    expect((await send('/leases/x', 'PATCH', '{"token":"0123456789abcdef"}')).status).toBe(405)
    await expect(startLeaseServer({ file, listen: '0.0.0.0' })).rejects.toThrow(/needs a token/)
  })

  it('that was down for long, or whose clock was wrong, gives nobody a board before its owner must have noticed', async () => {
    const file = join(mkdtempSync(join(folder, 'old-')), 'leases.json')
    const lease = { place: 'board', owner: 'anna', token: '0123456789abcdef', since: 0, expires: 1 }
    writeFileSync(file, JSON.stringify({ board: lease }))
    let now = 1_000_000_000
    const server = await startLeaseServer({ file, now: () => now })
    closing.push(() => server.close())
    const store = remoteStore(`http://127.0.0.1:${server.port}`, '')
    await expect(hold(store, 'board')).rejects.toThrow(/leased by anna/)
    now += 59_000
    await expect(hold(store, 'board')).rejects.toThrow(/leased by anna/)
    now += 1000
    await (await hold(store, 'board')).release()
  })

  it('that goes silent loses the lease when it has run out, and not before', async () => {
    const file = join(mkdtempSync(join(folder, 'silent-')), 'leases.json')
    const server = await startLeaseServer({ file })
    const lease = await hold(remoteStore(`http://127.0.0.1:${server.port}`, ''), 'board', { ttlMs: 1500 })
    await server.close()
    lease.check()
    await expect.poll(() => lease.signal.aborted, { timeout: 60_000 }).toBe(true)
    expect(() => lease.check()).toThrow(/store did not answer in time|no heartbeat/)
    const other = createServer((_, response) => response.end('<html>')).listen(0, '127.0.0.1')
    await once(other, 'listening')
    closing.push(() => other.close())
    const wrong = remoteStore(`http://127.0.0.1:${(other.address() as AddressInfo).port}`, '')
    await expect(wrong.list()).rejects.toThrow(/answered no JSON/)
  })
})
