import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from 'vitest'
import { initFunctions } from '../helpers/init-functions.ts'
import { have } from '../helpers/run.ts'

/** What the initramfs leaves behind in a try, on this machine: a file for the kernel's trigger, a folder for /run. */

const dir = mkdtempSync(join(tmpdir(), 'bistable-silent-'))
afterAll(() => rmSync(dir, { recursive: true, force: true }))
let count = 0

/** What it asked of the kernel. `while`: what happens while it sleeps. */
function asked(boot: string, during = ''): string {
  const base = join(dir, String(count++))
  mkdirSync(join(base, 'run/bistable'), { recursive: true })
  writeFileSync(join(base, 'trigger'), '')
  const text = initFunctions(['watch_try'], { '/proc/sysrq-trigger': join(base, 'trigger'), '/run ': `${base}/run ` })
  expect(text).toContain(`cd ${base}/run `)
  const script = `boot=${boot} SILENCE=1\n${text}\nwatch_try\nchild=$!\ncd ${base}\n${during}\nwait`
  // A shell that knows no program of its own, with the only one that may be called before the others are gone.
  const bin = join(base, 'bin')
  mkdirSync(bin)
  spawnSync('ln', ['-s', '/bin/sleep', bin])
  const ran = spawnSync('/bin/dash', ['-c', script], { env: { PATH: bin }, encoding: 'utf8' })
  expect([ran.status, ran.stderr]).toEqual([0, ''])
  return readFileSync(join(base, 'trigger'), 'utf8')
}

describe.skipIf(!have('dash', 'sleep'))('a try in which nothing is heard of the agent', () => {
  test('is reset, and no other boot', () => {
    expect(asked('try')).toBe('b\n')
    expect(asked('committed')).toBe('')
    expect(asked('fallback')).toBe('')
  })

  test('goes on when the agent came up meanwhile, by whatever it is seen', () => {
    expect(asked('try', ': >run/bistable/up')).toBe('')
    expect(asked('try', ': >run/bistable/status.sock')).toBe('')
  })

  test('is not reset by what ends the sleep: a shutdown does', () => {
    const end =
      'for task in /proc/[0-9]*; do read -r _ _ _ parent _ 2>/dev/null <$task/stat && [ "$parent" = "$child" ] && kill ${task##*/}; done'
    expect(existsSync('/proc/self/stat')).toBe(true)
    expect(asked('try', `n=0; while [ $n -lt 20 ]; do ${end}; n=$((n + 1)); done`)).toBe('')
  })
})
