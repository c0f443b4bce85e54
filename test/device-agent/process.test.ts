import { execFile } from 'node:child_process'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from 'vitest'
import { toJournal } from '../../device/agent/real.ts'
import { haveTool } from '../bundle/tools.ts'
import { deviceProgram, madeUpDevice, startAgent } from '../helpers/device-process.ts'

// What the agent is to the system around it: lines for a journal, its claim on processor and disk.

const base = mkdtempSync(join(tmpdir(), 'bistable-test-'))
let program = ''
beforeAll(async () => {
  program = await deviceProgram(base)
})
afterAll(() => rmSync(base, { recursive: true, force: true }))

describe('lines of the agent', () => {
  async function lines(log: string | undefined, more: Record<string, string>) {
    const root = join(base, `${log}-${Object.keys(more).length}`)
    await madeUpDevice(root, { system: { agent: log === undefined ? {} : { log } } })
    const agent = startAgent(program, root, { more: { JOURNAL_STREAM: '', ...more } })
    onTestFinished(() => agent.stop())
    await agent.until(/running slot=a.*\n/)
    return agent.said().split('\n')
  }

  it('carry a priority for the journal, and none for a plain log', async () => {
    expect(await lines('journal', {})).toContain('<6>bistable: running slot=a release=0.2 boot=committed why=ok')
    expect(await lines('plain', { JOURNAL_STREAM: '8:12345' })).toContain(
      'bistable: running slot=a release=0.2 boot=committed why=ok',
    )
  })

  it('by default go by where standard output leads', async () => {
    expect(await lines(undefined, { JOURNAL_STREAM: '8:12345' })).toContain(
      '<6>bistable: running slot=a release=0.2 boot=committed why=ok',
    )
    expect([toJournal('auto', {}), toJournal('auto', { JOURNAL_STREAM: '8:1' })]).toEqual([false, true])
    expect([toJournal('plain', { JOURNAL_STREAM: '8:1' }), toJournal('journal', {})]).toEqual([false, true])
  })
})

describe.skipIf(!haveTool('ionice'))('the claim on processor and disk', () => {
  it('is lowered for every thread of the process, and given back', async () => {
    const repo = resolve(import.meta.dirname, '../..')
    const script = join(base, 'claim.mts')
    writeFileSync(
      script,
      `
import { execFileSync } from 'node:child_process'
import { readdirSync, readFileSync } from 'node:fs'
import { realProcesses } from ${JSON.stringify(join(repo, 'device/agent/real.ts'))}
import { realSurroundings } from ${JSON.stringify(join(repo, 'device/agent/surroundings.ts'))}
const look = () => readdirSync('/proc/self/task').map((thread) => {
  const stat = readFileSync('/proc/self/task/' + thread + '/stat', 'utf8')
  const nice = stat.slice(stat.lastIndexOf(')') + 2).split(' ')[16]
  return nice + ' ' + execFileSync('ionice', ['-p', thread], { encoding: 'utf8' }).trim()
})
const kinds = () => [...new Set(look())]
const { calm } = realSurroundings('', realProcesses(''))
const back = await calm({ nice: 7, io: 'idle' })
const low = kinds()
await back()
const after = kinds()
const none = await calm({ nice: 0, io: 'normal' })
await none()
console.log(JSON.stringify({ low, after }))
`,
    )
    const { stdout } = await promisify(execFile)(process.execPath, ['--import', 'tsx', script], { cwd: repo })
    const { low, after } = JSON.parse(stdout)
    expect(low).toEqual(['7 idle'])
    // Only root may rise again.
    if (process.getuid?.() === 0) expect(after).toEqual(['0 best-effort: prio 4'])
  })
})
