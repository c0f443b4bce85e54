import { mkdtempSync, readdirSync, rmSync } from 'node:fs'
import { type IncomingMessage, request } from 'node:http'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { type ErrorEntry, type ErrorFamily, EXIT } from '../../base/errors.ts'
import { encodeMessage, readState } from '../../broker/messages.ts'
import { stateReport } from '../../device/agent/session.ts'
import { statusOf } from '../../device/agent/status.ts'
import { classOf, knownCodes } from '../../device/codes.ts'
import type { Watch } from '../../device/control/events.ts'
import { serveControl } from '../../device/control/server.ts'
import { watchEvents } from '../../device/control/watch.ts'
import { collectCatalogue } from '../../scripts/errors-page.ts'
import { codeOfAsync } from '../codes.ts'
import { World } from './world.ts'

const base = mkdtempSync(join(tmpdir(), 'bsv-'))
afterAll(() => rmSync(base, { recursive: true, force: true }))
let count = 0

async function served(watch: Watch) {
  const run = join(base, String(++count))
  const paths = { run, control: join(run, 'agent.sock'), status: join(run, 'status.sock') }
  const lock = await serveControl(paths, async () => undefined, watch)
  return { ...paths, end: () => lock[Symbol.asyncDispose]() }
}

function open(socketPath: string): Promise<IncomingMessage> {
  return new Promise((done, failed) => request({ socketPath, path: '/v1/events' }, done).on('error', failed).end())
}

describe('server-sent events', () => {
  it('reach everybody on the status socket, in order, and end with the watcher', async () => {
    const watchers = new Set<(notice: object) => void>()
    const at = await served((send) => {
      watchers.add(send)
      return () => watchers.delete(send)
    })
    const stop = new AbortController()
    const heard: unknown[] = []
    const watching = watchEvents([at.status], stop.signal, (name, data) => {
      heard.push([name, data])
      if (heard.length === 2) stop.abort()
    })
    await expect.poll(() => watchers.size).toBe(1)
    for (const send of watchers) {
      send({ line: 'bistable: state=idle\nevent: forged' })
      send({ progress: { what: 'install', phase: 'fill', done: 1, total: 2 } })
    }
    await watching
    // A line break in a line cannot make an event of its own.
    expect(heard).toEqual([
      ['line', 'bistable: state=idle\nevent: forged'],
      ['progress', { what: 'install', phase: 'fill', done: 1, total: 2 }],
    ])
    await expect.poll(() => watchers.size).toBe(0)
    await at.end()
  })

  it('are bounded: eight watchers a socket, and one that does not read misses what it cannot take', async () => {
    let sends: ((notice: object) => void)[] = []
    const at = await served((send) => {
      sends.push(send)
      return () => {
        sends = sends.filter((other) => other !== send)
      }
    })
    const many = await Promise.all(Array.from({ length: 9 }, () => open(at.status)))
    expect(many.map((answer) => answer.statusCode).sort()).toEqual([...new Array(8).fill(200), 503])
    const before = process.memoryUsage().rss
    for (let n = 0; n < 20_000; n++) for (const send of sends) send({ line: 'x'.repeat(1000) })
    // 160 MB were offered.
    expect(process.memoryUsage().rss - before).toBeLessThan(64 * 1024 * 1024)
    for (const answer of many) answer.destroy()
    await expect.poll(() => sends.length).toBe(0)
    expect((await open(at.control)).statusCode).toBe(200)
    await at.end()
  })

  it('are refused with a code when there is nothing to watch', async () => {
    const at = await served(() => undefined)
    const never = new AbortController().signal
    expect(await codeOfAsync(() => watchEvents([at.status], never, () => undefined))).toBe('AGENT_ANSWER')
    await at.end()
    expect(await codeOfAsync(() => watchEvents([at.status], never, () => undefined))).toBe('AGENT_ANSWER')
  })

  it('carry lines and progress of a real install', async () => {
    const world = new World()
    await world.publish({ counter: 3 })
    const heard: Record<string, unknown>[] = []
    await world.powerOn(300, async (core) => {
      core.activity.subscribe((notice) => heard.push({ ...notice }))
    })
    expect(heard).toContainEqual({ line: 'bistable: state=downloading slot=b release=0.3' })
    const progress = heard.filter((notice) => 'progress' in notice)
    expect(progress.at(-1)).toMatchObject({ progress: { what: 'check', phase: 'fill', image: 'rootfs', total: 3 } })
  })
})

describe('the code of an outcome', () => {
  it('has one class, known for every code of the device', async () => {
    const root = resolve(import.meta.dirname, '../../device')
    const files = readdirSync(root, { recursive: true, encoding: 'utf8' }).filter((name) =>
      /(^|\/)errors\.ts$/.test(name),
    )
    expect(files.length).toBeGreaterThanOrEqual(5)
    const codes: string[] = []
    for (const file of files)
      for (const table of Object.values((await import(join(root, file))) as Record<string, object>))
        if ('catalogue' in table) codes.push(...Object.keys(table.catalogue as Record<string, ErrorEntry>))
    expect(codes.filter((code) => !knownCodes().includes(code))).toEqual([])
    const catalogue = await collectCatalogue()
    for (const code of knownCodes()) {
      const family = catalogue.get(code)?.family as ErrorFamily
      expect(classOf({ ok: false, code }), code).toEqual({ family, exit: EXIT[family] })
    }
    expect(classOf({ ok: true })).toEqual({ family: null, exit: 0 })
    expect(classOf({ ok: false, code: 'OF_ANOTHER_VERSION' })).toEqual({ family: 'internal', exit: 1 })
  })

  it('is the same in status as on the command line, and the last hundred are kept', async () => {
    const world = new World()
    await world.publish({ counter: 3, product: 'other' })
    let n = 0
    world.hooks.set('/etc/bistable/hooks.d/pre-check/10-x', () => ({ exit: n++ % 2, said: `number ${n}` }))
    world.agentConfig = { ...world.agentConfig, pollSeconds: 10 }
    await world.powerOn(4000)
    if (world.core === undefined) throw new Error('no core')
    const { outcomes } = await statusOf(world.core)
    expect(outcomes).toHaveLength(100)
    const codes = new Set(outcomes.map(({ code, exit, family }) => `${code} ${family} ${exit}`))
    expect([...codes].sort()).toEqual(['HOOK_REFUSED policy 5', 'RELEASE_WRONG_PRODUCT policy 5', 'undefined null 0'])
    // What the fleet is told of it, as it goes over the wire.
    await world.powerOn(15)
    const newest = (await statusOf(world.core)).outcomes.at(-1)
    const told = readState(encodeMessage(stateReport(world.core)))
    expect(told?.outcome).toMatchObject({ code: newest?.code, message: newest?.message, ok: false })
  })
})
