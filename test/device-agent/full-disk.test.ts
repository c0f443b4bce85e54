import { describe, expect, it, vi } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { fileErrors } from '../../base/file-errors.ts'
import { World } from './world.ts'

vi.mock('../../keys/ed25519.ts', async (original) => {
  const { knownSignatures } = await import('../helpers/known-signatures.ts')
  return knownSignatures(await original())
})

// The data partition fails at every single change the agent makes to it: once, or from there on for two hours. Whatever
// fails has a code, the system that runs is not touched, and when the disk is well again the update goes through.

const HOUR = 3_600_000
const RESTART_S = 5

interface Run {
  readonly world: World
  /** Changes of files in all. */
  readonly changes: number
  /** Codes of processes that ended. */
  readonly ended: readonly string[]
}

/** Runs a device until release 3 is committed, or six hours are over. @param fails asked at each change, counted from 1 */
async function run(fails: (n: number, world: World) => Error | undefined): Promise<Run> {
  const world = new World()
  world.agentConfig = { ...world.agentConfig, pollSeconds: 3600 }
  await world.publish({ counter: 3 })
  const committed = () => world.core?.body.state.name === 'committed'
  let another = false
  const fellBack = () => world.core?.body.state.name === 'fallen-back' && world.boots.at(-1) === 'a'
  world.done = () => committed() || (fellBack() && !another)
  let changes = 0
  const ended: string[] = []
  world.onFileChange = () => {
    const error = fails(++changes, world)
    if (error !== undefined) throw error
  }
  while (world.mono < 6 * HOUR && !committed()) {
    // A try that could not be recorded is given up like any other; what comes next is another release.
    if (fellBack() && !another) {
      another = true
      await world.publish({ counter: 4 })
    }
    try {
      await world.powerOn((6 * HOUR - world.mono) / 1000)
    } catch (error) {
      if (!isBistableError(error)) throw error
      ended.push(error.code)
      // Init starts it again.
      world.mono += RESTART_S * 1000
    }
  }
  return { world, changes, ended }
}

const full = () => fileErrors.FILE_FULL('cannot write /data/x: no space left')
const readOnly = () => fileErrors.FILE_FAILED('cannot write /data/x: read-only file system (EROFS)')
const io = () => fileErrors.FILE_FAILED('cannot flush /data/x: input/output error (EIO)')

function check({ world, ended }: Run, said: string): void {
  expect(world.core?.body.state.name, said).toBe('committed')
  expect(world.boots[0], said).toBe('a')
  const codes = [...ended, ...(world.core?.body.outcomes ?? []).filter((o) => !o.ok).map((o) => o.code)]
  for (const code of codes) expect(code, said).toMatch(/^(FILE_|RECORD_|AGENT_|HEALTH_|TRY_)/)
  expect(
    world.lines.filter((line) => line.includes('INTERNAL')),
    said,
  ).toEqual([])
}

describe('a data partition that fails', () => {
  it('once, at any change: the update goes through', async () => {
    const { changes } = await run(() => undefined)
    expect(changes).toBeGreaterThan(40)
    for (const make of [full, io])
      for (let at = 1; at <= changes; at++)
        check(await run((n) => (n === at ? make() : undefined)), `${make.name} ${at}`)
  })

  it('from any change on, for two hours: within five minutes of its return the update goes on', async () => {
    const { changes } = await run(() => undefined)
    // Every change in turn, one way or the other; the test above has every one.
    const ways = [full, readOnly, io]
    for (const [turn, make] of ways.entries())
      for (let at = 1 + turn * 4; at <= changes; at += 12) {
        let since: number | undefined
        const ran = await run((n, world) => {
          if (n < at) return undefined
          since ??= world.mono
          return world.mono < since + 2 * HOUR ? make() : undefined
        })
        const said = `${make.name} from ${at}`
        check(ran, said)
        // Two boots with their first pause and checks, and the way back to work.
        expect(ran.world.mono - (since ?? 0) - 2 * HOUR, said).toBeLessThanOrEqual(300_000 + 2 * 60_000 + 300_000)
      }
  })
})
