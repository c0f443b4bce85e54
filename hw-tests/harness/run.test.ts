import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { afterAll, describe, expect, it } from 'vitest'
import { fakeLab } from '../fixtures/fake-lab.ts'
import { hold } from '../lease/hold.ts'
import { localStore } from '../lease/store.ts'
import type { BoardPlace } from '../places/index.ts'
import { doneFile, labErrorFile } from './report.ts'

const root = resolve(import.meta.dirname, '..', '..')
const folder = mkdtempSync(join(tmpdir(), 'bistable-run-'))
afterAll(() => rmSync(folder, { recursive: true }))
const lab = (health?: string, more?: Partial<BoardPlace>, script?: string) => fakeLab(folder, health, more, script)

/** A whole run of the harness on a board that is a program. */
async function wholeRun(
  place: BoardPlace,
  locks: string,
  more: NodeJS.ProcessEnv = {},
  heard: (said: string) => void = () => {},
  done: readonly string[] = [],
): Promise<{ code: number; said: string; out: string }> {
  const out = mkdtempSync(join(folder, 'run-'))
  writeFileSync(doneFile(out), JSON.stringify(done))
  const places = join(out, 'places.ts')
  writeFileSync(places, `export const PLACES = ${JSON.stringify({ 'fake-1': place })}\n`)
  const kit = mkdtempSync(join(out, 'kit-'))
  writeFileSync(join(kit, 'disk.img'), 'a system')
  writeFileSync(join(kit, 'kit.json'), JSON.stringify({ disk: 'disk.img', product: 'fake', bundles: {} }))
  const vitest = join(root, 'node_modules/vitest/vitest.mjs')
  const config = join(root, 'hw-tests/fixtures/lab.config.ts')
  const { GITHUB_STEP_SUMMARY: _, CI: __, ...env } = process.env
  const args = [vitest, 'run', '--config', config, '--root', join(root, 'hw-tests/fixtures')]
  const child = spawn(process.execPath, args, {
    env: { ...env, HIL_PLACES: places, HIL_PLACE: 'fake-1', HIL_KIT: kit, HIL_RUN: out, HIL_LOCKS: locks, ...more },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  let said = ''
  for (const stream of [child.stdout, child.stderr])
    stream.on('data', (bytes: Buffer) => {
      said += bytes.toString()
      heard(said)
    })
  const code = await new Promise<number>((done) => child.on('close', (status) => done(status ?? -1)))
  return { code, said, out }
}

function verdicts(out: string): string[] {
  const lines = readFileSync(join(out, 'run.jsonl'), 'utf8').trim().split('\n')
  return lines.map((line) => JSON.parse(line).verdict)
}

describe('a whole run', () => {
  it('on a sound lab: what fails is the product, with state, console and the command to do it again', async () => {
    const configfs = join(folder, 'run-configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const storage = { driver: 'usb-gadget', image: join(folder, 'run-card'), controller: 'udc0', configfs } as const
    const { place, orders } = await lab('good', { storage })
    const { name: _, ...wired } = place
    // Another run has the board: this one says who, touches nothing, and waits when it is told to.
    const locks = join(folder, 'run-locks')
    const other = await hold(localStore(locks), 'fake-1', { owner: 'another run' })
    const refused = await wholeRun(wired, locks)
    expect(refused.said).toContain('fake-1 is leased by another run')
    expect(refused.code).toBe(1)
    for (const report of [labErrorFile(refused.out), join(refused.out, 'junit.xml'), join(refused.out, 'summary.md')])
      expect(readFileSync(report, 'utf8')).toContain('is leased by another run')
    let waited: readonly string[] | undefined
    const { code, said, out } = await wholeRun(wired, locks, { HIL_WAIT: '60' }, (text) => {
      if (waited !== undefined || !text.includes('waiting')) return
      waited = orders()
      void other.release()
    })
    expect(waited).toEqual([])
    expect(verdicts(out), said).toEqual(['passed', 'failed', 'passed', 'passed', 'skipped', 'passed'])
    expect(code).toBe(1)
    expect(orders().at(-1)).toBe('off')
    const page = readFileSync(join(out, 'index.html'), 'utf8')
    expect(page).toContain('1 failed')
    expect(page).toContain('device on fake-1, state: userspace')
    expect(page).toContain('HIL_PLACE=fake-1 npx vitest run')
    expect(page).toContain('the place fake-1 has no bad-medium')
    expect(readFileSync(join(out, 'junit.xml'), 'utf8')).toContain(
      `[[ATTACHMENT|${join(out, 'lab-hil-fixture/boots.log')}]]`,
    )
  })

  it('on a broken one: nothing is said about the product; the place is quarantined, also for the next run', async () => {
    const { place, orders } = await lab('good', {}, '[ "$1" = on ] && { echo the relay is silent >&2; exit 1; }')
    const { name: _, storage: __, ...wired } = { ...place, storage: undefined }
    const locks = join(folder, 'broken-locks')
    const configfs = join(folder, 'broken-configfs')
    mkdirSync(join(configfs, 'usb_gadget'), { recursive: true })
    const medium = { driver: 'usb-gadget', image: join(folder, 'broken-card'), controller: 'udc0', configfs } as const
    const first = await wholeRun({ ...wired, storage: medium }, locks)
    expect(verdicts(first.out), first.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped', 'lab'])
    const junit = readFileSync(join(first.out, 'junit.xml'), 'utf8')
    expect(junit).not.toContain('<failure')
    expect(junit.match(/the relay is silent/g)?.length).toBeGreaterThan(2)
    expect(junit).toContain('fake-1 is quarantined since')
    // The third test did not even try.
    expect(orders().filter((order) => order === 'on')).toEqual(['on', 'on'])
    // A run that goes on leaves out what had ended before.
    const done = ['hw-tests/fixtures/lab.hil-fixture.ts boots']
    const second = await wholeRun({ ...wired, storage: medium }, locks, {}, () => {}, done)
    expect(verdicts(second.out)).toEqual(['skipped', 'lab', 'lab', 'passed', 'skipped', 'lab'])
    expect(orders().filter((order) => order === 'on')).toEqual(['on', 'on'])
    expect(existsSync(join(locks, 'health-fake-1.json'))).toBe(true)
  })

  it('without a lease nothing is touched: where a program is missing in CI, and where nothing leases', async () => {
    const { place, orders } = await lab()
    const { name: _, ...wired } = place
    const locks = join(folder, 'unleased-locks')
    const other = await hold(localStore(locks), 'fake-1', { owner: 'another run' })
    const missing = await wholeRun({ ...wired, tools: ['no-such-tool'] }, locks, { CI: 'true' })
    expect(orders()).toEqual([])
    expect(verdicts(missing.out), missing.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped', 'lab'])
    expect(readFileSync(join(missing.out, 'junit.xml'), 'utf8')).toContain('not here: no-such-tool')
    const alone = await wholeRun(wired, locks, { HIL_FIXTURE_SETUP: 'none' })
    expect(verdicts(alone.out), alone.said).toEqual(['lab', 'lab', 'lab', 'passed', 'skipped', 'lab'])
    expect(readFileSync(join(alone.out, 'junit.xml'), 'utf8')).toContain('this run has no lease of fake-1')
    expect(orders()).toEqual([])
    await other.release()
  })
})
