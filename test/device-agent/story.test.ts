import { describe, expect, it, vi } from 'vitest'
import { readExactly } from '../../base/source.ts'
import { checkState } from '../../bootloader/machine.ts'
import { rollBackNow } from '../../device/agent/roll-back.ts'
import { statusOf, statusText } from '../../device/agent/status.ts'
import { cancelNow, commitNow, installFrom, verifySlot } from '../../device/agent/work.ts'
import { doorErrors } from '../../device/doors/errors.ts'
import { codeOfAsync } from '../codes.ts'
import { digestOf, type Release, World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

const BUNDLE = (counter: number) => `http://updates/bundles/${counter}.bundle`
const never = new AbortController().signal
const quiet = { force: false, onProgress: () => undefined }

function last(world: World) {
  return world.core?.body.outcomes.at(-1)
}

describe('a release that is good', () => {
  it('is found, installed, tried and committed; floors rise only then', async () => {
    const world = new World({ counter: 2 })
    await world.publish({ counter: 3, securityFloor: 1 })
    await world.powerOn()
    expect(world.boot).toMatchObject({ primary: 'a', trial: 'b', left: 3 })
    expect(world.core?.body).toMatchObject({ state: { name: 'armed' }, installFloor: { counter: 2 } })
    await world.powerOn()
    expect(world.boots).toEqual(['a', 'b?'])
    expect(world.boot).toMatchObject({ primary: 'b', trial: undefined, spare: true })
    expect(world.core?.body).toMatchObject({
      state: { name: 'committed' },
      installFloor: { epoch: 0, counter: 3 },
      securityFloor: { epoch: 0, counter: 1 },
      slots: { a: { committed: true }, b: { committed: true } },
      blocked: [],
    })
    expect(world.lines).toContain('bistable: state=trying slot=b release=0.3 left=2')
    expect(world.lines).toContain('bistable: committed slot=b release=0.3')
    // Nothing more to do: the same release is not installed again.
    const fetched = world.fetches
    await world.powerOn()
    expect(world.fetches).toBe(fetched)
    expect(world.boots).toEqual(['a', 'b?', 'b'])
  })

  it('waits under the policies manual and install', async () => {
    for (const [apply, state] of [
      ['manual', 'idle'],
      ['install', 'armed'],
    ]) {
      const world = new World()
      world.agentConfig = { ...world.agentConfig, apply }
      await world.publish({ counter: 3 })
      await world.powerOn()
      expect(world.core?.body.state.name).toBe(state)
      expect(world.rebootAsked).toBe(false)
    }
  })

  it('may be slow to become healthy, within the deadline', async () => {
    const world = new World()
    await world.publish({ counter: 3, health: (run) => ({ exit: run < 5 ? 1 : 0 }) })
    await world.run()
    expect(world.core?.body.state.name).toBe('committed')
    expect(world.healthRuns).toBe(5)
  })
})

describe('a release that is bad', () => {
  const cases: [name: string, release: Release, code: string, boots: string[]][] = [
    [
      'fails its health check',
      { counter: 3, health: () => ({ exit: 1, said: 'app down' }) },
      'HEALTH_FAILED',
      ['a', 'b?', 'a'],
    ],
    ['hangs in its health check', { counter: 3, health: () => 'hangs' }, 'HEALTH_FAILED', ['a', 'b?', 'a']],
    ['panics three times', { counter: 3, panics: true }, 'TRY_TRIES_SPENT', ['a', 'b?', 'b?', 'b?', 'a']],
    [
      'is given up by the initramfs',
      { counter: 3, initramfs: 'root hash' },
      'TRY_INITRAMFS',
      ['a', 'b?', 'b?', 'b?', 'a'],
    ],
  ]
  for (const [name, release, code, boots] of cases) {
    it(`${name}: falls back, says why, is not tried again; a corrected one is`, async () => {
      const world = new World()
      await world.publish(release)
      await world.run()
      expect(world.boots).toEqual(boots)
      const body = world.core?.body
      expect(body?.state).toMatchObject({ name: 'fallen-back', failed: { code } })
      expect(body?.blocked.map((b) => b.digest)).toEqual([digestOf(release)])
      expect(body?.installFloor.counter).toBe(2)
      expect(world.lines.join('\n')).toMatch(/fell back to slot=a release=0\.2 from=0\.3 reason=/)
      expect(world.boot?.left).toBe(0)

      const fetched = world.fetches
      await world.powerOn()
      expect(world.fetches).toBe(fetched)
      expect(last(world)).toMatchObject({ what: 'check', message: expect.stringMatching(/^blocked/) })
      expect(world.core?.body.outcomes.filter((o) => o.what === 'fall-back')).toHaveLength(1)

      await world.publish({ counter: 4 })
      await world.run()
      expect(world.core?.body).toMatchObject({ state: { name: 'committed' }, installFloor: { counter: 4 } })
      expect(world.boot?.primary).toBe('b')
    })
  }

  it('is tried again when a person forces it, and leaves the block list when it is healthy', async () => {
    let healthy = false
    const release: Release = { counter: 3, health: () => ({ exit: healthy ? 0 : 1 }) }
    const world = new World()
    await world.publish(release)
    await world.run()
    healthy = true
    let refused = ''
    await world.powerOn(50, async (core) => {
      refused = await codeOfAsync(() => installFrom(core, BUNDLE(3), quiet, never))
      await installFrom(core, BUNDLE(3), { ...quiet, force: true }, never)
    })
    expect(refused).toBe('RELEASE_BLOCKED')
    await world.powerOn()
    expect(world.core?.body).toMatchObject({ state: { name: 'committed' }, blocked: [] })
  })

  it('is not tried at all when the bootloader cannot count, and is refused for later boots', async () => {
    const world = new World()
    world.counterWritable = false
    await world.publish({ counter: 3 })
    await world.run()
    expect(world.boots).toEqual(['a', 'a'])
    expect(world.core?.body.state).toMatchObject({ name: 'fallen-back', failed: { code: 'TRY_COUNTER_UNWRITABLE' } })
    expect(world.boot?.left).toBe(0)
  })

  it('is given up even when the data partition is full', async () => {
    const world = new World()
    await world.publish({ counter: 3, health: () => ({ exit: 1 }) })
    await world.powerOn()
    let full = false
    const ports = world.ports.bind(world)
    world.ports = async (...args) => {
      const made = await ports(...args)
      return { ...made, files: new Proxy(made.files, { get: (t, k) => (k === 'write' && full ? fail : bind(t, k)) }) }
    }
    const fail = async () => {
      throw new Error('no space')
    }
    await world.powerOn(200, async () => {
      full = true
    })
    expect(world.rebootAsked).toBe(true)
    expect(world.boot).toMatchObject({ trial: 'b', left: 0 })
  })
})

function bind(target: object, key: string | symbol): unknown {
  const value = Reflect.get(target, key)
  return typeof value === 'function' ? value.bind(target) : value
}

describe('power cuts', () => {
  // The whole story is a list of changes to disk and boot state; the power goes at each of them once.
  async function enumerate(release: Release, expected: (world: World) => void) {
    const smooth = new World()
    await smooth.publish(release)
    await smooth.run(14, 60)
    expected(smooth)
    for (let cut = 1; cut <= smooth.changes; cut++) {
      const world = new World()
      world.cutAt = cut
      await world.publish(release)
      await world.run(14, 60)
      // Once more without cuts: an interrupted install is taken up by the next poll.
      await world.run(14, 60)
      try {
        expected(world)
        if (world.boot !== undefined) checkState(world.boot)
      } catch (error) {
        throw new Error(`after a cut at change ${cut}: ${world.boots.join(' ')}\n${world.lines.join('\n')}`, {
          cause: error,
        })
      }
    }
    return smooth.changes
  }

  it('at every change of an update end in the new release, committed once, never blocked', async () => {
    const changes = await enumerate({ counter: 3, securityFloor: 2 }, (world) => {
      expect(world.boot).toMatchObject({ primary: 'b', trial: undefined })
      expect(world.core?.body).toMatchObject({
        state: { name: 'committed' },
        installFloor: { counter: 3 },
        securityFloor: { counter: 2 },
        slots: { b: { committed: true } },
        blocked: [],
      })
      expect(world.core?.body.outcomes.filter((o) => o.what === 'commit')).toHaveLength(1)
    })
    console.log(`power cuts: ${changes} in a good update, all end committed`)
    expect(changes).toBeGreaterThan(20)
  })

  it('at every change of an update that raises the security floor end without an older spare', async () => {
    const changes = await enumerate({ counter: 3, securityFloor: 3 }, (world) => {
      expect(world.boot).toMatchObject({ primary: 'b', trial: undefined, spare: false })
      expect(world.core?.body).toMatchObject({ state: { name: 'committed' }, securityFloor: { counter: 3 } })
    })
    console.log(`power cuts: ${changes} in an update that raises the floor, none keeps the old slot as a spare`)
  })

  it('at every change of a failing update end in the old release, with the reason, blocked once', async () => {
    const changes = await enumerate({ counter: 3, health: () => ({ exit: 1 }) }, (world) => {
      expect(world.boots.at(-1)).toBe('a')
      expect(world.boot?.primary).toBe('a')
      expect(world.core?.body).toMatchObject({ state: { name: 'fallen-back' }, installFloor: { counter: 2 } })
      expect(world.core?.body.blocked).toHaveLength(1)
      expect(world.core?.body.outcomes.filter((o) => o.what === 'fall-back')).toHaveLength(1)
    })
    console.log(`power cuts: ${changes} in a failing update, all end in the old release`)
  })
})

describe('what a person does', () => {
  it('cancel stops an install and leaves the running system alone; the next one goes on', async () => {
    const world = new World()
    world.agentConfig = {}
    await world.publish({ counter: 3 })
    let code = ''
    await world.powerOn(5, async (core) => {
      world.onFill = async () => {
        await cancelNow(core)
      }
      code = await codeOfAsync(() =>
        core.exclusive('install', never, (signal) => installFrom(core, BUNDLE(3), quiet, signal)),
      )
      expect(await codeOfAsync(() => cancelNow(core))).toBe('AGENT_IDLE')
    })
    expect(code).toBe('AGENT_CANCELLED')
    expect(world.core?.body.state.name).toBe('idle')
    expect(world.boot).toMatchObject({ primary: 'a', trial: undefined, spare: false })
    expect(last(world)).toMatchObject({ what: 'install', ok: false, code: 'AGENT_CANCELLED' })
  })

  it('arms with no more tries than the bootloader can count', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'install', pollSeconds: 3600 }
    world.maxTries = 1
    await world.publish({ counter: 3 })
    await world.powerOn(100, async (core) => {
      while (core.body.state.name !== 'armed') await core.ports.clock.sleep(1000)
    })
    expect(world.boot).toMatchObject({ trial: 'b', left: 1 })
  })

  it('cancel takes back what is armed', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'install', pollSeconds: 3600 }
    await world.publish({ counter: 3 })
    await world.powerOn(100, async (core) => {
      while (core.body.state.name !== 'armed') await core.ports.clock.sleep(1000)
      await cancelNow(core)
    })
    expect(world.boot?.trial).toBeUndefined()
    world.agentConfig = {}
    await world.powerOn(10)
    expect(world.boots).toEqual(['a', 'a'])
    expect(world.core?.body.blocked).toEqual([])
  })

  it('cancel takes back what is armed also when another install has failed before its first byte', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, apply: 'install', pollSeconds: 3600 }
    world.engine = () => {
      const plain = world.plainEngine()
      const install: typeof plain.install = async (call) => {
        if (call.head.statement.number.counter === 4) throw new Error('no room for it')
        return plain.install(call)
      }
      return { ...plain, install }
    }
    await world.publish({ counter: 3 })
    await world.powerOn(100, async (core) => {
      const state = (): string => core.body.state.name
      while (state() !== 'armed') await core.ports.clock.sleep(1000)
      await world.publish({ counter: 4 })
      core.activity.wake()
      while (state() === 'armed') await core.ports.clock.sleep(1000)
      expect([state(), world.boot?.trial]).toEqual(['idle', 'b'])
      await cancelNow(core)
      expect(await codeOfAsync(() => cancelNow(core))).toBe('AGENT_IDLE')
    })
    expect([world.boot?.trial, world.lines.filter((line) => line.startsWith('during:'))]).toEqual([undefined, []])
  })

  it('rollback tries the old release again, commits it, and does not come back by itself', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    await world.run()
    await world.powerOn(10, async (core) => {
      await rollBackNow(core)
      await core.apply({ kind: 'reboot-asked' })
    })
    expect(world.boot).toMatchObject({ primary: 'b', trial: 'a' })
    await world.run()
    expect(world.boot?.primary).toBe('a')
    expect(world.core?.body).toMatchObject({ state: { name: 'committed' }, installFloor: { counter: 3 } })
    expect(world.core?.body.blocked).toMatchObject([{ digest: digestOf({ counter: 3 }), reason: 'rolled back' }])
    expect(world.boots.slice(-1)).toEqual(['a?'])
    await world.powerOn()
    expect(world.boots.slice(-1)).toEqual(['a'])
  })

  it('a roll back that is taken back leaves the way back open', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    await world.run()
    await world.powerOn(10, async (core) => {
      await rollBackNow(core)
      expect(world.boot).toMatchObject({ trial: 'a', spare: false })
      await cancelNow(core)
      expect(world.boot).toMatchObject({ primary: 'b', trial: undefined, left: 0, spare: true })
      await rollBackNow(core)
    })
    await world.run()
    expect(world.boot).toMatchObject({ primary: 'a', spare: true })
  })

  it('rollback is refused under the security floor and without a spare', async () => {
    const world = new World()
    const codes: string[] = []
    await world.publish({ counter: 3, securityFloor: 3 })
    await world.powerOn(1, async (core) => {
      codes.push(await codeOfAsync(() => rollBackNow(core)))
    })
    await world.run()
    await world.powerOn(1, async (core) => {
      codes.push(await codeOfAsync(() => rollBackNow(core)))
    })
    expect(codes).toEqual(['ROLLBACK_NO_SPARE', 'ROLLBACK_FLOOR'])
  })

  it('commit ends a try at once; install is refused while it lasts', async () => {
    const world = new World()
    await world.publish({ counter: 3, health: () => 'hangs' })
    await world.powerOn()
    const codes: string[] = []
    await world.powerOn(10, async (core) => {
      codes.push(await codeOfAsync(() => installFrom(core, BUNDLE(3), quiet, never)))
      await commitNow(core)
    })
    expect(codes).toEqual(['AGENT_STATE'])
    expect(world.boot?.primary).toBe('b')
    expect(world.core?.body.state.name).toBe('committed')
  })

  it('a second operation is told who is at work', async () => {
    const world = new World()
    await world.powerOn(1, async (core) => {
      const first = core.exclusive('install', never, () => core.ports.clock.sleep(500))
      expect(await codeOfAsync(() => core.exclusive('check', never, async () => undefined))).toBe('AGENT_BUSY')
      await first
    })
    expect(world.lines.filter((line) => line.startsWith('during'))).toEqual([])
  })

  it('status says everything, also as text', async () => {
    const world = new World()
    await world.publish({ counter: 3, initramfs: 'root hash differs' })
    await world.run()
    const core = world.core
    if (core === undefined) throw new Error('no agent ran')
    const status = await statusOf(core)
    expect(status).toMatchObject({
      product: 'demo',
      state: 'fallen-back',
      reason: { code: 'TRY_INITRAMFS', message: 'verity: root hash differs' },
      running: { slot: 'a', release: '0.2', boot: 'fallback', why: 'tries-spent' },
      boot: { backend: { name: 'memory', place: 'memory' }, problem: null },
      slots: {
        a: { role: 'primary', running: true, release: '0.2' },
        b: { role: 'trial', release: '0.3', triesLeft: 0 },
      },
      installFloor: '0.2',
      rootVersion: 1,
      freshness: { newest: '0.3', fresh: true },
      lastFailure: { code: 'TRY_INITRAMFS' },
    })
    const text = statusText(status)
    for (const part of ['fallen-back', 'TRY_INITRAMFS', 'slot b', 'tries left 0', 'blocked 0.3', 'root version 1'])
      expect(text).toContain(part)
    world.synchronised = false
    expect((await statusOf(core)).freshness?.fresh).toBeNull()
  })

  it('verify without a record of the slot says so', async () => {
    const world = new World()
    await world.powerOn(1)
    const core = world.core
    if (core === undefined) throw new Error('no agent ran')
    expect(await codeOfAsync(() => verifySlot(core, 'b', never))).toBe('VERIFY_NO_RELEASE')
    expect(await verifySlot(core, 'a', never)).toMatchObject({ ok: true, version: '1.2' })
  })
})

describe('the loop', () => {
  it('goes on after every failure, says each once, and recovers', async () => {
    const world = new World()
    world.web.set('http://updates/channels/stable.json', doorErrors.TRANSPORT_LOST('no route'))
    await world.powerOn(3000)
    const checks = world.core?.body.outcomes.filter((o) => o.code === 'TRANSPORT_LOST')
    expect(checks).toHaveLength(1)
    expect(world.lines.filter((line) => line.includes('TRANSPORT_LOST')).length).toBeGreaterThan(10)
    await world.publish({ counter: 3 })
    await world.run()
    expect(world.core?.body.state.name).toBe('committed')
  })

  it('stops an install that makes no progress, and tries again later', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    let stuck = 1
    world.onFill = async () => {
      if (stuck-- > 0) await new Promise<void>((_, reject) => setAbort(world, reject))
    }
    await world.run(10, 1000)
    expect(world.core?.body.outcomes.map((o) => o.code)).toContain('AGENT_STALLED')
    expect(world.core?.body.state.name).toBe('committed')
  })

  it('does not take a slow line for a stall: head and inventory may take longer than any pause', async () => {
    const world = new World()
    world.agentConfig = { ...world.agentConfig, stallSeconds: 120, apply: 'install' }
    world.engine = () => {
      const plain = world.plainEngine()
      const slow = async function* () {
        for (let n = 0; n < 10; n++) {
          await world.sleep(60_000)
          yield new Uint8Array(1024)
        }
      }
      return {
        ...plain,
        open: async (...asked) => ({ ...(await plain.open(...asked)), read: slow }),
        head: async (source, ...rest) => {
          await readExactly(source, 0, 10_240)
          return plain.head(source, ...rest)
        },
        install: (call) =>
          plain.install({
            ...call,
            beforeArm: async () => {
              await readExactly(call.source, 0, 10_240)
              await call.beforeArm()
            },
          }),
      }
    }
    await world.publish({ counter: 3 })
    await world.powerOn(3000)
    expect(world.core?.body.outcomes.filter(({ ok }) => !ok)).toEqual([])
    expect(world.core?.body.state.name).toBe('armed')
  })

  it('feeds the watchdog, disarms it on an orderly stop, but not in a try', async () => {
    const world = new World()
    world.agentConfig = {}
    await world.powerOn(100)
    expect(world.feeds.length).toBeGreaterThanOrEqual(10)
    expect(world.disarmed).toBe(1)
    const trying = new World()
    await trying.publish({ counter: 3, health: () => 'hangs' })
    await trying.powerOn()
    const before = trying.disarmed
    await trying.powerOn(10)
    expect(trying.core?.body.state.name).toBe('trying')
    expect(trying.disarmed).toBe(before)
  })

  it('hands the bootloader its argument with the reboot, where systemd takes one', async () => {
    for (const systemd of [true, false]) {
      const world = new World()
      world.rebootArgument = '0 tryboot'
      const ran: string[] = []
      const ports = world.ports.bind(world)
      world.ports = async (...args) => {
        const made = await ports(...args)
        const run: typeof made.processes.run = async (command) => {
          ran.push(command.join(' '))
          return { exit: 0, timedOut: false, said: '' }
        }
        return { ...made, systemd, processes: { ...made.processes, run } }
      }
      await world.powerOn(50, (core) => core.reboot())
      expect(ran).toEqual([systemd ? 'systemctl reboot --reboot-argument=0 tryboot' : 'reboot'])
    }
  })

  it('feeds a watchdog of a few seconds more often', async () => {
    const world = new World()
    world.agentConfig = {}
    world.watchdogSeconds = 6
    await world.powerOn(60)
    const gaps = world.feeds.slice(1).map((at, n) => at - (world.feeds[n] ?? 0))
    expect(gaps.length).toBeGreaterThan(20)
    expect(Math.max(...gaps)).toBeLessThanOrEqual(3000)
  })

  it('asks again for a reboot that does not happen, and the watchdog is left to end it', async () => {
    const world = new World()
    await world.publish({ counter: 3, health: () => ({ exit: 1 }) })
    await world.powerOn()
    const asked: string[] = []
    const ports = world.ports.bind(world)
    world.ports = async (...args) => {
      const made = await ports(...args)
      const run: typeof made.processes.run = async (command, ...rest) => {
        if (command[0] !== 'reboot') return made.processes.run(command, ...rest)
        asked.push(command.join(' '))
        return { exit: 1, timedOut: false, said: 'nope' }
      }
      return { ...made, processes: { ...made.processes, run } }
    }
    await world.powerOn(1000)
    expect(asked.length).toBeGreaterThan(3)
    // An init that does not answer is asked no further: the kernel is.
    expect([...new Set(asked)]).toEqual(['reboot', 'reboot -f'])
    expect(world.core?.body.outcomes.filter((o) => o.code === 'REBOOT_FAILED').length).toBeGreaterThan(0)
    expect(world.core?.body.outcomes.length).toBeLessThan(30)
    const starved = world.mono - (world.feeds.at(-1) ?? 0)
    expect(starved).toBeGreaterThan(300_000)
  })

  it('starts with torn records, and says so', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    await world.run()
    const disk = new Map(world.files.content)
    for (const n of [0, 1]) disk.set(`/data/records/${n}`, Buffer.from('torn'))
    const { MemoryFiles } = await import('./memory-files.ts')
    world.files = new MemoryFiles(disk)
    await world.powerOn(50)
    expect(world.core?.body.outcomes.map((o) => o.code)).toContain('RECORD_INVALID')
    expect(world.core?.body.installFloor.counter).toBe(3)
    expect(world.core?.body.slots.b?.committed).toBe(true)
  })
})

function setAbort(world: World, reject: (reason: unknown) => void): void {
  const poll = setInterval(() => {
    if (world.core?.busyWith === undefined || world.dead) {
      clearInterval(poll)
      return
    }
    if (world.core.body.state.name === 'idle') {
      clearInterval(poll)
      reject(new Error('aborted'))
    }
  }, 1)
}
