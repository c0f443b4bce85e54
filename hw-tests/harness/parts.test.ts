import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import mqtt, { MqttClient } from 'mqtt'
import { afterAll, describe, expect, it } from 'vitest'
import { choosePlace, missingTools } from '../places/index.ts'
import { type BootEvent, readLine } from './boot-states.ts'
import { mosquittoProgram, TestBroker } from './broker.ts'
import { flipBit, partitionDigest, readGpt } from './disk.ts'
import { Dut, readAnswer } from './dut.ts'
import { judgeBoot, judgeFallBack } from './judge.ts'
import { DutError, LabError } from './lab-error.ts'
import { campaign, seeded } from './random.ts'
import { failureText, transcriptPath } from './report.ts'
import { rangeOf, TestServer } from './server.ts'
import './matchers.ts'

const folder = mkdtempSync(join(tmpdir(), 'bistable-harness-'))
afterAll(() => rmSync(folder, { recursive: true }))

function events(...lines: string[]): BootEvent[] {
  return lines.map((line) => {
    const event = readLine(line)
    if (event === undefined) throw new Error(`no event: ${line}`)
    return event
  })
}
const TRY = 'bistable: boot slot=b boot=try left=2 why=ok release=1.4'
const HOME = 'bistable: boot slot=a boot=committed left=0 why=ok release=1.2'
const BACK = 'bistable: fell back to slot=a release=1.2 from=1.4 reason=HEALTH_FAILED 10-app ended with 1'

describe('judging', () => {
  it('a boot: what was wanted and is not so is said', () => {
    const [boot] = events(TRY)
    if (boot === undefined) throw new Error('no event')
    expect(judgeBoot(boot, { slot: 'b', boot: 'try', why: 'ok' })).toBeUndefined()
    expect(judgeBoot(boot, { slot: 'b' })).toBeUndefined()
    expect(judgeBoot(boot, { slot: 'a', boot: 'committed' })).toMatch(
      /^slot is b, a was wanted; boot is try, committed was wanted: bistable: boot/,
    )
  })

  it('a fall back: waits until the agent says so, then holds it to everything', () => {
    const want = { to: 'a', from: '1.4', tries: 1, reason: 'HEALTH_FAILED' } as const
    expect(judgeFallBack([], want)).toBe('wait')
    expect(judgeFallBack(events(TRY), want)).toBe('wait')
    expect(judgeFallBack(events(TRY, HOME), want)).toBe('wait')
    expect(judgeFallBack(events(TRY, HOME, BACK), want)).toEqual({ ok: true })
    expect(judgeFallBack(events(TRY, HOME, BACK), { ...want, reason: /10-app ended with 1$/ })).toEqual({ ok: true })
    const why = (...args: Parameters<typeof judgeFallBack>) => {
      const verdict = judgeFallBack(...args)
      return verdict === 'wait' || verdict.ok ? verdict : verdict.why
    }
    expect(why(events(TRY, TRY), want)).toMatch(/^2 tries, 1 were wanted/)
    expect(why(events(TRY, HOME, BACK), { ...want, tries: 3 })).toMatch(/^1 tries, 3 were wanted/)
    expect(why(events(TRY, HOME, BACK), { ...want, from: '1.5' })).toMatch(/from 1.5 was wanted/)
    expect(why(events(TRY, HOME, BACK), { ...want, reason: 'TRY_TRIES_SPENT' })).toMatch(/reason TRY_TRIES_SPENT/)
    expect(why(events(TRY, BACK), want)).toMatch(/never started slot a/)
    expect(why(events(TRY, 'bistable: committed slot=b release=1.4'), want)).toMatch(/^it was committed/)
    expect(why(events('bistable: boot slot=b boot=committed left=0 why=ok'), want)).toMatch(/no try/)
  })
})

describe('matchers', () => {
  class Told extends Dut {
    readonly #answer: BootEvent | Error
    constructor(answer: BootEvent | Error) {
      super({ disk: '/nowhere' })
      this.#answer = answer
    }
    override async next() {
      if (this.#answer instanceof Error) throw this.#answer
      return { ...this.#answer, at: 0 }
    }
  }

  it('pass, fail with what the device did, and leave a broken lab a LabError', async () => {
    const [boot] = events(TRY)
    if (boot === undefined) throw new Error('no event')
    await expect(new Told(boot)).toBoot({ slot: 'b', boot: 'try' })
    await expect(expect(new Told(boot)).toBoot({ slot: 'a' })).rejects.toThrow(/slot is b, a was wanted/)
    const late = new Told(new DutError('boot did not come within 1 s'))
    await expect(expect(late).toFallBack({ to: 'a' })).rejects.toThrow(/did not come/)
    const broken = new Told(new LabError('the console closed'))
    await expect(expect(broken).toRun({ slot: 'a', release: '1.2' })).rejects.toThrow(LabError)
    await expect(expect(broken).toBoot({ slot: 'a' })).rejects.toThrow(LabError)
    expect(() => expect('a string').toBoot({ slot: 'a' })).toThrow(TypeError)
  })
})

describe('answers of the agent', () => {
  it('are found among other lines, with the code of the error', () => {
    expect(readAnswer('x', 0, 'noise\n{"ok":true,"slot":"b"}\n')).toEqual({
      code: 0,
      body: { ok: true, slot: 'b' },
      error: undefined,
    })
    expect(readAnswer('x', 5, '{"ok":false,"error":{"code":"SOME_CODE"}}\n').error).toBe('SOME_CODE')
    expect(() => readAnswer('x', 1, 'sh: not found\n')).toThrow(DutError)
  })
})

describe('disk', () => {
  const image = join(folder, 'disk.img')
  writeFileSync(image, '')
  truncateSync(image, 8 * 1024 * 1024)
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
  const made = ['-n', '1:2048:4095', '-c', '1:rootfs-a', '-n', '2:4096:6143', '-c', '2:rootfs-b', image]
  execFileSync('sgdisk', made, { env, stdio: 'ignore' })

  it('finds partitions as sgdisk made them', () => {
    expect(readGpt(readFileSync(image))).toEqual([
      { name: 'rootfs-a', start: 2048 * 512, length: 1024 * 1024 },
      { name: 'rootfs-b', start: 4096 * 512, length: 1024 * 1024 },
    ])
    expect(() => readGpt(Buffer.alloc(4096))).toThrow(LabError)
  })

  it('a flipped bit changes one bit of one partition', async () => {
    const before = readFileSync(image)
    const other = await partitionDigest(image, 'rootfs-a')
    await flipBit(image, 'rootfs-b', 8)
    const after = readFileSync(image)
    const changed = [...before.keys()].filter((at) => before[at] !== after[at])
    expect(changed).toEqual([4096 * 512 + 8])
    expect(after[4096 * 512 + 8]).toBe(1)
    expect(await partitionDigest(image, 'rootfs-a')).toBe(other)
    const zeros = Buffer.alloc(1024 * 1024)
    zeros[8] = 1
    expect(await partitionDigest(image, 'rootfs-b')).toBe(createHash('sha256').update(zeros).digest('hex'))
    await expect(flipBit(image, 'rootfs-c', 0)).rejects.toThrow(LabError)
  })
})

describe('web server', () => {
  it('serves parts, cuts short, is gone and comes back', async () => {
    const server = await TestServer.start('http://10.0.2.100')
    try {
      const bytes = Buffer.from('0123456789'.repeat(10))
      expect(server.offer('/a', { from: bytes })).toBe('http://10.0.2.100/a')
      server.offer('/short', { from: bytes, length: 42 })
      server.offer('/gone', { from: bytes, goneAfter: 30 })
      const get = (path: string, headers: Record<string, string> = {}) =>
        fetch(`http://127.0.0.1:${server.port}${path}`, { headers })
      const part = await get('/a', { Range: 'bytes=10-14' })
      expect([part.status, part.headers.get('content-range'), await part.text()]).toEqual([
        206,
        'bytes 10-14/100',
        '01234',
      ])
      expect((await (await get('/short')).text()).length).toBe(42)
      expect((await get('/nothing')).status).toBe(404)
      await expect(get('/gone').then((r) => r.text())).rejects.toThrow()
      expect([server.gone('/gone'), server.served('/gone')]).toEqual([true, 30])
      await expect(get('/gone')).rejects.toThrow()
      server.heal('/gone')
      expect(await (await get('/gone', { Range: 'bytes=30-' })).text()).toBe(bytes.toString('latin1', 30))
    } finally {
      await server.close()
    }
  })

  it('reads one range, and takes anything else for the whole', () => {
    expect(rangeOf('bytes=5-9', 100)).toEqual([5, 9, true])
    expect(rangeOf('bytes=5-', 100)).toEqual([5, 99, true])
    expect(rangeOf('bytes=5-500', 100)).toEqual([5, 99, true])
    expect(rangeOf(undefined, 100)).toEqual([0, 99, false])
    expect(rangeOf('bytes=0-1,5-6', 100)).toEqual([0, 99, false])
  })
})

describe.skipIf(mosquittoProgram() === undefined && process.env['CI'] === undefined)('broker', () => {
  it('is a Mosquitto of its own, by port and by socket, with a publisher behind it; a new one takes its place', async () => {
    const options = { folder: join(folder, 'broker'), socket: join(folder, 'broker.socket'), host: '10.0.2.100' }
    const bundle = join(folder, 'x.bundle')
    writeFileSync(bundle, 'no bundle, and named as one')
    for (const last of [false, true]) {
      const broker = await TestBroker.start(options)
      const [near, far] = [mqtt.connect(broker.local), new MqttClient(() => connect(options.socket), {})]
      try {
        for (const client of [near, far]) {
          const said = new Map<string, string>()
          client.on('message', (topic, bytes) => said.set(topic, bytes.toString('latin1')))
          await client.subscribeAsync('$SYS/broker/version')
          await expect.poll(() => said.get('$SYS/broker/version'), { timeout: 60_000 }).toMatch(/^mosquitto version/)
        }
        if (last) expect(await broker.offer('x', { from: bundle })).toBe('mqtt://10.0.2.100:1883/bundles/x')
      } finally {
        for (const client of [near, far]) await client.endAsync(true)
        await broker.close()
      }
      await expect(mqtt.connectAsync(broker.local, { reconnectPeriod: 0 })).rejects.toThrow()
    }
  })

  it('that does not start is a broken lab', async () => {
    const options = { folder: join(folder, 'no-broker'), socket: join(folder, 'nowhere', 'socket'), host: 'x' }
    await expect(TestBroker.start(options)).rejects.toThrow(LabError)
  })
})

describe('small parts', () => {
  it('a seed gives the same numbers again, between 0 and 1, spread out', () => {
    const take = (seed: number) => Array.from({ length: 1000 }, seeded(seed))
    expect(take(7)).toEqual(take(7))
    expect(take(7)).not.toEqual(take(8))
    const numbers = take(7)
    expect(Math.min(...numbers)).toBeGreaterThanOrEqual(0)
    expect(Math.max(...numbers)).toBeLessThan(1)
    for (let tenth = 0; tenth < 10; tenth++)
      expect(numbers.filter((n) => Math.floor(n * 10) === tenth).length).toBeGreaterThan(50)
  })

  it('a campaign takes seed and count from the environment and refuses nonsense', () => {
    expect(campaign({}, 5, 4)).toEqual({ seed: 5, count: 4 })
    expect(campaign({ HIL_SEED: '12', HIL_CUTS: '100' }, 5, 4)).toEqual({ seed: 12, count: 100 })
    expect(() => campaign({ HIL_CUTS: 'many' }, 5, 4)).toThrow(/HIL_CUTS is "many"/)
  })

  it('an unknown place is named, with those there are', () => {
    expect(choosePlace(undefined).name).toBe('qemu-x86-grub')
    expect(missingTools(['sh', 'no-such-tool'], '/usr/bin:/bin')).toEqual(['no-such-tool'])
    expect(() => choosePlace('bench-9')).toThrow(/no place bench-9; there are: qemu-x86-grub/)
  })

  it('a failure says where the device stood and how to get there', () => {
    expect(transcriptPath('hw-tests/suites/fall-back.hil.ts', 'An unhealthy release: 1 try!')).toBe(
      'fall-back/an-unhealthy-release-1-try.log',
    )
    const text = failureText({
      place: 'qemu-x86-grub',
      state: 'panic',
      tail: '    1.00  Kernel panic',
      transcript: 'out/hil/x.log',
      file: 'hw-tests/suites/x.hil.ts',
      test: "it's (sometimes) so",
    })
    expect(text).toContain('device on qemu-x86-grub, state: panic')
    expect(text).toContain('    1.00  Kernel panic')
    expect(text).toMatch(/^by hand: {4}npm run hil -- console qemu-x86-grub$/m)
    expect(text).toContain(
      "HIL_PLACE=qemu-x86-grub npx vitest run --project hw hw-tests/suites/x.hil.ts -t 'it.s \\(sometimes\\) so'",
    )
  })
})
