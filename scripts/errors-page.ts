import { readdirSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { pathToFileURL } from 'node:url'
import { BistableError, type ErrorEntry, EXIT } from '../base/errors.ts'

// Writes docs/errors.md from the rooms' error tables; `test/errors.test.ts` holds the two equal.

const root = resolve(import.meta.dirname, '..')
export const ROOMS = ['base', 'keys', 'bundle', 'bootloader', 'initramfs', 'publisher', 'device'] as const

/** Every table exported by a module of a room, found by its `catalogue`; the same code twice is an error. */
export async function collectCatalogue(): Promise<Map<string, ErrorEntry & { room: string }>> {
  const all = new Map<string, ErrorEntry & { room: string }>()
  for (const room of ROOMS) {
    const files = readdirSync(join(root, room), { recursive: true, encoding: 'utf8' })
      .filter((name) => /(^|\/)([a-z-]*errors[a-z-]*|cli|strict-json)\.ts$/.test(name))
      .sort()
    for (const name of files) {
      const module = (await import(pathToFileURL(join(root, room, name)).href)) as Record<string, unknown>
      for (const value of Object.values(module)) {
        if (typeof value !== 'object' || value === null || value instanceof BistableError || !('catalogue' in value))
          continue
        for (const [code, entry] of Object.entries(value.catalogue as Record<string, ErrorEntry>)) {
          if (all.has(code)) throw new Error(`${code} is declared by both ${all.get(code)?.room} and ${room}`)
          all.set(code, { ...entry, room })
        }
      }
    }
  }
  return all
}

export function errorsPage(catalogue: Map<string, ErrorEntry & { room: string }>): string {
  const lines = [
    '# Errors',
    '',
    'Every refusal has a stable code, a sentence that says what was found and what was wanted, and a next step. The same',
    'code appears on the command line, in `--json`, in `status` and in logs. This page is made from the tables in the code',
    '(`npm run errors`); a test holds the two equal.',
    '',
    '## Exit codes',
    '',
    '| exit | family |',
    '| --- | --- |',
    '| 0 | success |',
    ...Object.entries(EXIT).map(([family, code]) => `| ${code} | ${family} |`),
    '',
    '`internal` is a defect of ours: please report it. Its code is `INTERNAL`.',
  ]
  for (const room of ROOMS) {
    const rows = [...catalogue].filter(([, entry]) => entry.room === room).sort(([a], [b]) => (a < b ? -1 : 1))
    if (rows.length === 0) continue
    lines.push('', `## ${room}`, '', '| code | family | meaning | next step |', '| --- | --- | --- | --- |')
    for (const [code, e] of rows) lines.push(`| \`${code}\` | ${e.family} | ${e.meaning} | ${e.next} |`)
  }
  return `${lines.join('\n')}\n`
}

if (process.argv.includes('--write')) {
  const page = errorsPage(await collectCatalogue())
  writeFileSync(join(root, 'docs', 'errors.md'), page)
  console.log('docs/errors.md written')
}
