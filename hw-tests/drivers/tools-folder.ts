import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll } from 'vitest'

/** A folder for the played tools of a test file, in front of all others on the path; it is removed behind the tests. */
export function toolsFolder(name: string) {
  const folder = mkdtempSync(join(tmpdir(), `bistable-${name}-`))
  const bin = join(folder, 'bin')
  mkdirSync(bin)
  const path = process.env['PATH']
  process.env['PATH'] = `${bin}:${path}`
  afterAll(() => {
    process.env['PATH'] = path
    rmSync(folder, { recursive: true })
  })
  /** What a tool left there. */
  const file = (of: string) => (existsSync(join(bin, of)) ? readFileSync(join(bin, of), 'utf8') : undefined)
  /** How a tool was called, a line each time. */
  const log = (of: string) => (file(`${of}.state.log`) ?? '').trim().split('\n')
  return { folder, bin, file, log }
}
