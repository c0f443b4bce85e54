import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { MUTANTS, mutated } from './mutants.ts'

const root = resolve(import.meta.dirname, '..', '..')

// That each is caught is shown by `npm run hil-mutants`, which boots them; that they still fit is shown here.
describe('devices broken on purpose', () => {
  it('are seven, with names of their own', () => {
    expect(MUTANTS).toHaveLength(7)
    expect(new Set(MUTANTS.map(({ name }) => name)).size).toBe(7)
  })

  for (const mutant of MUTANTS)
    it(`${mutant.name}: its fault fits into ${mutant.file}, and the test meant for it is there`, () => {
      const text = readFileSync(join(root, mutant.file), 'utf8')
      expect(mutated(mutant, text)).not.toBe(text)
      expect(() => mutated(mutant, '')).toThrow(/0 times/)
      // The name of the test stands in every failure of it: it is no reason.
      expect(mutant.because.test(mutant.test)).toBe(false)
      // Names with a part that is filled in are looked for by what stands before and behind it.
      const suite = readFileSync(join(root, 'hw-tests', 'suites', mutant.suite), 'utf8')
      const [what = '', code] = mutant.test.split(' is refused as ')
      expect(suite).toContain(what)
      if (code !== undefined) expect(suite).toContain(`code: '${code}'`)
    })
})
