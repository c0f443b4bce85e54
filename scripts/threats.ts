import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'

/** Reads docs/threats.md and the names of tests; used by `npm run attacks` and by the test that holds both equal. */

export interface Threat {
  readonly id: string
  readonly threat: string
  readonly promise: string
  /** Ids of the tests that show it. */
  readonly tests: readonly string[]
  readonly not: string
  /** False: the page says in plain words that nothing is promised. */
  readonly promised: boolean
}

const ID = /^[ABC][1-9][0-9]?$/
/** How the page says that nothing is promised. */
const NOTHING = /^Not promised\b/

/** The rows of all tables whose first cell is an id. Throws for a row of another shape. */
export function readThreats(page: string): readonly Threat[] {
  const rows: Threat[] = []
  for (const line of page.split('\n')) {
    const cells = line.split(/(?<!\\)\|/).map((cell) => cell.trim())
    const [, id = '', threat = '', promise = '', tests = '', not = ''] = cells
    if (!ID.test(id)) continue
    if (cells.length !== 7) throw new Error(`the row of ${id} has ${cells.length - 2} cells, wanted 5`)
    const named = tests === '' ? [] : tests.split(/[ ,]+/)
    rows.push({ id, threat, promise, tests: named, not, promised: !NOTHING.test(promise) })
  }
  return rows
}

/** The ids that a test's full name carries: "A6 endless data: …". */
export function attackIds(name: string): string[] {
  return [...name.matchAll(/(?:^| )([ABC](?:[1-9]|[12][0-9]|3[0-4]))(?=[: ])/g)].map((match) => match[1] ?? '')
}

/** Test files, unit and hardware, in which a test, a group or a row of a table begins with an id. */
export function testFilesWithIds(repo: string): readonly string[] {
  return [...idsByFile(repo)].filter(([, ids]) => ids.size > 0).map(([path]) => path)
}

/** Per test file (relative path) the ids that its tests carry. Read from the text: nothing is run. */
export function idsByFile(repo: string): ReadonlyMap<string, ReadonlySet<string>> {
  const found = new Map<string, ReadonlySet<string>>()
  for (const folder of ['test', 'hw-tests'])
    for (const name of readdirSync(join(repo, folder), { recursive: true, encoding: 'utf8' })) {
      if (!/\.(test|hil)\.ts$/.test(name) || name.includes('node_modules')) continue
      const path = join(folder, name)
      const ids = new Set<string>()
      for (const [, title = ''] of readFileSync(join(repo, path), 'utf8').matchAll(
        /['"`]((?:[ABC][1-9][0-9]?[: ])[^'"`\n]*)/g,
      ))
        for (const id of attackIds(title)) ids.add(id)
      found.set(path, ids)
    }
  return found
}
