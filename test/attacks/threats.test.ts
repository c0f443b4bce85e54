import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { attackIds, idsByFile, readThreats } from '../../scripts/threats.ts'

const REPO = resolve(import.meta.dirname, '../..')
const page = readFileSync(join(REPO, 'docs/threats.md'), 'utf8')
const rows = readThreats(page)
const inTests = idsByFile(REPO)
/** Ids of tests that run without an emulator: a promise must not rest on those that do alone. */
const unit = new Set([...inTests].flatMap(([path, ids]) => (path.endsWith('.test.ts') ? [...ids] : [])))
const range = (letter: string, last: number) => Array.from({ length: last }, (_, i) => `${letter}${i + 1}`)

describe('the threat page', () => {
  it('has every row of the attack list, once and in order', () => {
    expect(rows.map(({ id }) => id)).toEqual([...range('A', 34), ...range('B', 13), ...range('C', 14)])
  })

  it('has a test for every promise, and no promise without', () => {
    for (const { id, promised, tests, promise } of rows) {
      expect(promise.length, id).toBeGreaterThan(5)
      if (promised) expect(tests, id).toContain(id)
      else expect(tests, id).toEqual([])
      for (const test of tests) expect(unit, `${id} names the test ${test}`).toContain(test)
    }
  })

  it('has every id that a test carries, as a promise', () => {
    const promised = rows.filter((row) => row.promised).map(({ id }) => id)
    for (const [path, ids] of inTests) for (const id of ids) expect(promised, `${path} carries ${id}`).toContain(id)
  })

  it('says in words what is not promised', () => {
    const none = rows.filter((row) => !row.promised)
    expect(none.map(({ id }) => id)).toEqual(['A12', 'A33', 'C9'])
    for (const { id, promise } of none) expect(promise.length, id).toBeGreaterThan(40)
  })
})

describe('reading the page and the tests', () => {
  it('finds ids at the start of a name or behind a space, and nothing else', () => {
    expect(attackIds('A6 endless data: the channel file')).toEqual(['A6'])
    expect(attackIds('the door A6 A17: slow')).toEqual(['A6', 'A17'])
    expect(attackIds('A35 A0 B1x xB1 C1- D2 A6')).toEqual([])
  })

  it('refuses a row of another shape', () => {
    expect(() => readThreats('| A1 | threat | promise |')).toThrow(/A1/)
    expect(readThreats('| A1 | t | Not promised: x | | n |')).toMatchObject([{ promised: false, tests: [] }])
  })
})
