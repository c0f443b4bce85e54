import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expect, test } from 'vitest'
import { runBounded } from '../../bootloader/run-bounded.ts'
import { attrTools } from '../../device/etc/xattrs.ts'

const shell = (text: string) => ['sh', '-c', text] as const

test('all that a program has said arrives, from the folder it was told, and not a byte more than it may say', async () => {
  const cwd = realpathSync(mkdtempSync(join(tmpdir(), 'bistable-run-')))
  try {
    const much = await runBounded(shell('pwd; cat; head -c 3000000 /dev/zero'), 'in', 60_000, {
      cwd,
      maxOut: 4_000_000,
    })
    expect([much.exit, much.out.length, much.out.slice(0, cwd.length + 3)]).toEqual([
      0,
      cwd.length + 3 + 3_000_000,
      `${cwd}\nin`,
    ])
    const more = await runBounded(shell('head -c 3000000 /dev/zero'), '', 60_000, { maxOut: 2_000_000 })
    expect(more).toMatchObject({ exit: undefined, said: 'ended: it said more than 2000000 bytes' })
    expect(await runBounded(shell('true'), '', 60_000, { cwd: join(cwd, 'none') })).toMatchObject({ exit: undefined })
    expect(await attrTools.read(join(cwd, 'none'))).toBeUndefined()
  } finally {
    rmSync(cwd, { recursive: true })
  }
})

test('what a program leaves running, in its group or out of it, is not waited for', async () => {
  const inGroup = await runBounded(shell('sleep 600 & echo $!'), '', 60_000)
  expect(inGroup.exit).toBe(0)
  const left = Number(inGroup.out)
  expect(left).toBeGreaterThan(1)
  // Gone, or dead and not yet buried by whoever inherits it.
  const stat = `/proc/${left}/stat`
  expect(existsSync(stat) ? readFileSync(stat, 'utf8') : ') Z').toMatch(/\) [XZ]/)
  const outside = await runBounded(shell('setsid sh -c "echo \\$\\$; exec sleep 600" & sleep 0.5'), '', 60_000)
  expect(outside.exit).toBe(0)
  process.kill(Number(outside.out), 'SIGKILL')
})
