import { readdirSync, readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { describe, expect, it } from 'vitest'
import { defineErrors, EXIT, isBistableError, systemCode } from '../base/errors.ts'
import { collectCatalogue, errorsPage } from '../scripts/errors-page.ts'

const root = resolve(import.meta.dirname, '..')

describe('error catalogue', () => {
  it('equals docs/errors.md in both directions (npm run errors writes the page)', async () => {
    expect(readFileSync(join(root, 'docs', 'errors.md'), 'utf8')).toBe(errorsPage(await collectCatalogue()))
  })

  it('names every code in a test that reaches it', async () => {
    const tests = ['test', 'hw-tests'].flatMap((folder) =>
      readdirSync(join(root, folder), { recursive: true, encoding: 'utf8' })
        .filter((name) => /\.(test|hil)\.ts$/.test(name))
        .map((name) => readFileSync(join(root, folder, name), 'utf8')),
    )
    const text = tests.join('\n')
    const unreached = [...(await collectCatalogue()).keys()].filter((code) => !new RegExp(`\\b${code}\\b`).test(text))
    expect(unreached).toEqual([])
  })

  it('gives each code a sentence of meaning, a next step and a known family', async () => {
    for (const [code, entry] of await collectCatalogue()) {
      expect(code, code).toMatch(/^[A-Z][A-Z0-9]*(_[A-Z0-9]+)*$/)
      expect(entry.meaning, code).toMatch(/^[A-Z“`].*\.$/)
      expect(entry.next, code).toMatch(/^[A-Z`].*\.$/)
      expect(Object.keys(EXIT), code).toContain(entry.family)
    }
  })

  it('carries code, family, exit code, next step, details and cause', () => {
    const table = defineErrors({ SAMPLE_ERROR: { family: 'policy', meaning: 'M.', next: 'N.' } })
    const error = table.SAMPLE_ERROR('found 1, wanted 2', { details: { found: 1 }, cause: new Error('why') })
    expect(isBistableError(error, 'SAMPLE_ERROR')).toBe(true)
    expect(isBistableError(error, 'OTHER')).toBe(false)
    expect(error.exitCode).toBe(5)
    expect(error.toJSON()).toEqual({
      code: 'SAMPLE_ERROR',
      family: 'policy',
      message: 'found 1, wanted 2',
      next: 'N.',
      details: { found: 1 },
    })
    expect(error.cause).toBeInstanceOf(Error)
    expect(systemCode(Object.assign(new Error('x'), { code: 'ENOENT' }))).toBe('ENOENT')
    expect(systemCode('x')).toBeUndefined()
  })
})
