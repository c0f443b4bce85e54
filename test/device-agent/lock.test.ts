import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { isBistableError } from '../../base/errors.ts'
import { type LockEdge, takeName } from '../../device/control/lock.ts'
import { serveControl } from '../../device/control/server.ts'
import { randomFrom } from '../device-install/model.ts'

/** A folder, and processes that stop before any step of theirs: somebody else goes on, or they are dead from then on. */
class Folder {
  readonly links = new Map<string, string>()
  readonly alive = new Set<string>()

  edge(step: () => Promise<void>): LockEdge {
    const did = async <T>(work: () => T): Promise<T> => {
      await step()
      return work()
    }
    return {
      link: (target, name) => did(() => !this.links.has(name) && this.links.set(name, target) !== undefined),
      target: (name) => did(() => this.links.get(name)),
      replace: (from, name) =>
        did(() => {
          this.links.set(name, this.links.get(from) as string)
          this.links.delete(from)
        }),
      remove: (name) => did(() => void this.links.delete(name)),
      lives: (target) => did(() => this.alive.has(target)),
      pause: () => did(() => undefined),
    }
  }
}

/** Runs processes by turns of chance, each of which may die before each of its steps. @returns how often one held the name */
async function run(seed: number): Promise<number> {
  const random = randomFrom(seed)
  const folder = new Folder()
  // What a dead process has left, or a socket of its own in the place of the link.
  const left = random()
  if (left < 0.3) folder.links.set('name', 'dead')
  else if (left < 0.5) folder.links.set('name', 'name')
  const ready: { readonly go: () => void; readonly kill: () => void }[] = []
  let working = 0
  const holders = new Set<string>()
  let held = 0

  async function one(id: string): Promise<void> {
    const step = () => new Promise<void>((go, die) => ready.push({ go, kill: () => die(new Error('dead')) }))
    const edge = folder.edge(step)
    folder.alive.add(id)
    try {
      if ((await takeName(edge, 'name', id)) !== undefined) return
      held++
      holders.add(id)
      expect([...holders], `seed ${seed}`).toEqual([id])
      await step()
      await step()
      // It gives the name back while it still answers.
      holders.delete(id)
      await edge.remove('name')
    } finally {
      folder.alive.delete(id)
      holders.delete(id)
      working--
    }
  }

  const many = 2 + Math.floor(random() * 4)
  const dying = random() * 0.1
  const all: Promise<unknown>[] = []
  let broken: unknown
  for (let n = 0; n < many; n++) {
    working++
    all.push(
      one(`p${n}`).catch((error: unknown) => {
        if ((error as Error).message !== 'dead') broken ??= error
      }),
    )
  }
  while (working > 0) {
    const [chosen] = ready.splice(Math.floor(random() * ready.length), 1)
    if (random() < dying) chosen?.kill()
    else chosen?.go()
    // What it does until its next step.
    for (let turn = 0; turn < 20; turn++) await Promise.resolve()
  }
  await Promise.all(all)
  if (broken !== undefined) throw broken
  // Whatever happened: the next one gets it, and nothing living is in its way.
  const next = folder.edge(() => Promise.resolve())
  folder.alive.add('last')
  expect(await takeName(next, 'name', 'last'), `seed ${seed}`).toBeUndefined()
  return held
}

const base = mkdtempSync(join(tmpdir(), 'bistable-lock-'))
afterAll(() => rmSync(base, { recursive: true, force: true }))

describe('a name that one process holds', () => {
  it('has one living holder at most, in every order of steps, whoever dies before whichever step; it is never lost', async () => {
    let held = 0
    for (let seed = 0; seed < 3000; seed++) held += await run(seed)
    expect(held).toBeGreaterThan(3000)
  })

  it.each(['nothing', 'a link that leads nowhere', 'a file', 'a holder that died on the way'] as const)(
    'eight at once for the control socket where there is %s: one gets it, and leaves nothing behind',
    async (left) => {
      const run = join(base, left)
      mkdirSync(run)
      const control = join(run, 'agent.sock')
      if (left === 'a file') writeFileSync(control, '')
      else if (left !== 'nothing') symlinkSync('agent-0.sock', control)
      if (left === 'a holder that died on the way') symlinkSync('agent-1.sock', join(run, 'agent-0.sock.over'))
      for (let round = 0; round < 5; round++) {
        const tried = Array.from({ length: 8 }, () =>
          serveControl({ run, control, status: join(run, 'status.sock') }, async () => undefined),
        )
        const ended = await Promise.allSettled(tried)
        const held = ended.filter((one) => one.status === 'fulfilled')
        const refused = ended.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []))
        expect(held).toHaveLength(1)
        for (const reason of refused) {
          expect(isBistableError(reason, 'AGENT_BUSY')).toBe(true)
          expect(String(reason)).toContain(`process ${process.pid} is at work`)
        }
        for (const { value } of held) await value[Symbol.asyncDispose]()
        expect(readdirSync(run)).toEqual([])
      }
    },
  )
})
