import { type ChildProcess, spawn } from 'node:child_process'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { build } from 'esbuild'
import { afterAll, beforeAll, describe, expect, it } from 'vitest'
import { type Operate, serveControl } from '../../device/control/server.ts'
import { deviceErrors } from '../../device/errors.ts'

// The small command that asks an agent. The whole program beside it is one that only says that it was started.
const base = mkdtempSync(join(tmpdir(), 'bistable-ask-'))
const program = join(base, 'agent', 'ask.cjs')
beforeAll(async () => {
  await build({
    absWorkingDir: resolve(import.meta.dirname, '../..'),
    ...{ entryPoints: ['device/ask.ts'], outfile: program, bundle: true, platform: 'node', format: 'cjs' },
    ...{ target: 'node20.19', logLevel: 'error' },
  })
  writeFileSync(join(base, 'agent', 'bistable.mjs'), "console.log('whole', ...process.argv.slice(2))\n")
})
afterAll(() => rmSync(base, { recursive: true, force: true }))

let count = 0
const newRoot = (): string => {
  const root = join(base, String(++count))
  mkdirSync(join(root, 'run/bistable'), { recursive: true })
  return root
}

interface Ended {
  readonly exit: number | null
  readonly out: string
  readonly err: string
}

function start(
  root: string,
  args: readonly string[],
): { readonly child: ChildProcess; readonly ended: Promise<Ended> } {
  const child = spawn(process.execPath, [program, ...args], { env: { ...process.env, BISTABLE_ROOT: root }, cwd: base })
  const said = { out: '', err: '' }
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    said.out += text
  })
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    said.err += text
  })
  return { child, ended: new Promise((done) => child.on('close', (exit) => done({ exit, ...said }))) }
}
const run = (root: string, ...args: string[]): Promise<Ended> => start(root, args).ended

async function withAgent(operate: Operate, work: (root: string) => Promise<void>): Promise<void> {
  const root = newRoot()
  const folder = join(root, 'run/bistable')
  const at = { run: folder, control: join(folder, 'agent.sock'), status: join(folder, 'status.sock') }
  const lock = await serveControl(at, operate)
  try {
    await work(root)
  } finally {
    await lock[Symbol.asyncDispose]()
  }
}

describe('a command where an agent runs', () => {
  it('asks it with what was typed, shows what it says, and ends with its result or its error', async () => {
    const asked: unknown[] = []
    const operate: Operate = async (verb, args, emit) => {
      asked.push([verb, args])
      emit({ line: 'a line' })
      emit({ progress: { phase: 'fill', image: 'rootfs', done: 1, total: 2, fetched: 0 } })
      if (verb === 'reboot') throw deviceErrors.AGENT_STATE('not now', { details: { n: 1 } })
      return { message: 'done' }
    }
    await withAgent(operate, async (root) => {
      const plain = await run(root, 'install', 'x.bundle', '--force', '--max-bytes', '2K', '--reuse', 'y', '--reuse=/z')
      expect(plain).toEqual({ exit: 0, out: 'done\n', err: 'a line\nwriting rootfs 50%\n' })
      expect(await run(root, 'commit', '--json')).toEqual({ exit: 0, out: '{"message":"done","ok":true}\n', err: '' })
      const failed = await run(root, 'reboot', '--hold', '--json')
      expect([failed.exit, JSON.parse(failed.out).error]).toMatchObject([6, { code: 'AGENT_STATE', details: { n: 1 } }])
      expect(await run(root, 'rollback', 'too', 'much')).toMatchObject({ exit: 2, out: '' })
      const place = (name: string) => join(base, name)
      const install = { source: place('x.bundle'), force: true, hold: false, reuse: [place('y'), '/z'], maxBytes: 2048 }
      expect(asked).toEqual([
        ['install', install],
        ['commit', {}],
        ['reboot', { hold: true }],
      ])
    })
  })

  it.each(['SIGINT', 'SIGTERM'] as const)('%s stops the work that was asked for', async (name) => {
    let begun = () => {}
    let stopped = false
    const working = new Promise<void>((resolve) => {
      begun = resolve
    })
    const operate: Operate = async (_verb, _args, _emit, signal) => {
      begun()
      await new Promise<void>((done) => signal.addEventListener('abort', () => done()))
      stopped = true
    }
    await withAgent(operate, async (root) => {
      const { child, ended } = start(root, ['install', '/x'])
      await working
      child.kill(name)
      const { exit, err } = await ended
      expect([exit, err]).toEqual([6, expect.stringContaining('AGENT_CANCELLED: install was stopped')])
      await expect.poll(() => stopped).toBe(true)
    })
  })

  it('leaves to the whole program what wants more than an answer', async () => {
    await withAgent(
      async () => ({ message: 'asked' }),
      async (root) => {
        for (const args of [['status'], ['install', '/x', '--plan'], ['install', '--help'], ['nonsense'], ['cancle']])
          expect(await run(root, ...args)).toEqual({ exit: 0, out: `whole ${args.join(' ')}\n`, err: '' })
        expect((await run(root)).out).toBe('whole\n')
      },
    )
  })
})

it('without an agent, or with a socket that nobody listens on, the whole program runs', async () => {
  const root = newRoot()
  expect(await run(root, 'install', '/x')).toEqual({ exit: 0, out: 'whole install /x\n', err: '' })
  writeFileSync(join(root, 'run/bistable/agent.sock'), '')
  expect(await run(root, 'cancel')).toEqual({ exit: 0, out: 'whole cancel\n', err: '' })
})
