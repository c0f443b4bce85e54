import { readdirSync, readFileSync } from 'node:fs'
import { basename, join, resolve } from 'node:path'
import { afterAll, expect, it, vi } from 'vitest'

/** docs/hil.md says which suites there are and what runs them: held against the files and against vitest's configuration. */

const root = resolve(import.meta.dirname, '..', '..')
const page = readFileSync(join(root, 'docs', 'hil.md'), 'utf8')
const section = page.split('\n## ').find((part) => part.startsWith('The suites\n')) ?? ''

const rows = section
  .split('\n')
  .filter((line) => line.startsWith('| ') && line.includes('.hil.ts`'))
  .map((line) => line.split(' | ').map((cell) => cell.replace(/^\| | \|$/g, '')))
  .map(([what = '', where = '', runsIn = '']) => ({
    what,
    files: [...where.matchAll(/`([^`]+\.hil\.ts)`/g)].map(([, name = '']) =>
      name.includes('/') ? name : `hw-tests/suites/${name}`,
    ),
    byTest: runsIn.includes('`npm test`'),
    byHil: runsIn.includes('`npm run hil`'),
  }))

const isLong = (file: string) => file.endsWith('.long.hil.ts')

function suitesIn(folder: string): string[] {
  return readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
    .filter((name) => name.endsWith('.hil.ts') && !name.includes('node_modules'))
    .map((name) => join(folder, name))
}

it('every suite that vitest would run is in the tables, and every one in them is there', () => {
  const own = ['hw-tests/suites', 'hw-tests/examples', 'test'].flatMap(suitesIn)
  // Tests of another project, which one of the suites runs.
  const ours = own.filter((file) => !file.startsWith('hw-tests/examples/busybox-board/'))
  expect([...new Set(rows.flatMap(({ files }) => files))].sort()).toEqual(ours.sort())
  expect(rows.length).toBeGreaterThan(20)
})

it('what the tables say of `npm test` and `npm run hil` is what the names of the files say', () => {
  for (const { what, files, byTest, byHil } of rows) {
    expect(byTest, `${what}: by npm test`).toBe(files.some((file) => !isLong(file)))
    if (files.some(isLong)) expect(byHil, `${what}: by npm run hil`).toBe(true)
    // More than `npm test` does of a short one must be said of one that counts.
    if (byTest && byHil && !files.some(isLong))
      expect(readFileSync(join(root, files[0] ?? ''), 'utf8'), basename(files[0] ?? '')).toContain('HIL_LONG')
  }
})

afterAll(() => vi.unstubAllEnvs())
it('vitest leaves out the long ones, and nothing else, unless told', async () => {
  vi.stubEnv('HIL_LONG', undefined)
  const { default: config } = await import('../../vitest.config.ts')
  const projects = config.test?.projects ?? []
  const tests = projects.map((project) => (typeof project === 'object' && 'test' in project ? project.test : undefined))
  const hw = tests.find((test) => test?.name === 'hw')
  expect(hw).toMatchObject({ exclude: ['**/*.long.hil.ts'], retry: 0 })
  expect(hw?.include).toEqual(['hw-tests/{suites,examples}/*.hil.ts', 'test/**/*.hil.ts'])
})
