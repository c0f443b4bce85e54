import { execFileSync } from 'node:child_process'
import { closeSync, fsyncSync, openSync, readdirSync, readlinkSync, statfsSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { expect, it } from 'vitest'
import { readAhead } from '../../device/doors/read-ahead.ts'
import { haveTool, noise, run, scratch } from '../bundle/tools.ts'

const TMPFS = 0x01021994

/** Bytes of a file that stand in the page cache. */
const cached = (path: string): number => Number(run('fincore', '-b', '-n', '-r', '-o', 'RES', path).trim())

const openFiles = (): readonly string[] =>
  readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return []
    }
  })

it.skipIf(!haveTool('fincore') || statfsSync(tmpdir()).type === TMPFS)(
  'what is read ahead stands in the page cache, and nothing stays open',
  async () => {
    const path = join(scratch(), 'bundle')
    writeFileSync(path, noise(3_000_001))
    const file = openSync(path, 'r+')
    fsyncSync(file)
    closeSync(file)
    run('dd', `if=${path}`, 'iflag=nocache', 'count=0', 'status=none')
    expect(cached(path)).toBe(0)
    const stop = readAhead(path)
    while (openFiles().includes(path) || cached(path) === 0) await sleep(5)
    await stop()
    expect(cached(path)).toBeGreaterThanOrEqual(3_000_001)
  },
)

it('never fails and never waits: a missing file, a folder, a pipe that nobody fills, stopped at once', async () => {
  const dir = scratch()
  const pipe = join(dir, 'pipe')
  execFileSync('mkfifo', [pipe])
  const large = join(dir, 'large')
  writeFileSync(large, '')
  execFileSync('truncate', ['-s', '1G', large])
  for (const path of [join(dir, 'none'), dir, pipe, large]) await readAhead(path)()
  expect(openFiles().filter((path) => path.startsWith(dir))).toEqual([])
})
