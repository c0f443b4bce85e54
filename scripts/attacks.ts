import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, relative, resolve } from 'node:path'
import { attackIds, readThreats, testFilesWithIds } from './threats.ts'

// `npm run attacks`: every test that carries an id of docs/threats.md, with the longer runs that the unit tests only
// sample. Ends with one line; anything but "0 accepted" ends with 1. `--hw` adds those that boot an emulator.

interface Report {
  readonly testResults: readonly {
    readonly name: string
    readonly status: string
    readonly message: string
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[]
  }[]
}

const repo = resolve(import.meta.dirname, '..')
const projects = process.argv.includes('--hw') ? ['unit', 'hw'] : ['unit']
const scratch = await mkdtemp(join(tmpdir(), 'bistable-attacks-'))
const problems: string[] = []
/** Ids of tests that passed, and the names of those that did not. */
const passed = new Set<string>()
let failed = 0

function vitest(project: string, files: readonly string[], log: string, output: string): Promise<number> {
  const args = [
    'vitest',
    'run',
    '--project',
    project,
    '--reporter=dot',
    '--reporter=json',
    `--outputFile.json=${output}`,
  ]
  // Names that carry an id; the same rule as ID_IN_NAME in test/attacks/refused.ts.
  const only = ['-t', '(^| )[ABC]([1-9]|[12][0-9]|3[0-4])[: ]']
  return new Promise((done, broken) => {
    const env = { ...process.env, ATTACKS_LOG: log }
    const child = spawn('npx', [...args, ...only, ...files], { cwd: repo, env, stdio: ['ignore', 'ignore', 'inherit'] })
    child.on('error', broken)
    child.on('close', (code) => done(code ?? 1))
  })
}

try {
  const log = join(scratch, 'tried')
  await writeFile(log, '')
  for (const project of projects) {
    const files = testFilesWithIds(repo).filter((path) => path.endsWith('.hil.ts') === (project === 'hw'))
    const output = join(scratch, `${project}.json`)
    const code = await vitest(project, files, log, output)
    const before = failed
    const report = JSON.parse(await readFile(output, 'utf8')) as Report
    for (const file of report.testResults) {
      for (const test of file.assertionResults) {
        const ids = attackIds(test.fullName)
        if (ids.length === 0) continue
        if (test.status === 'passed') for (const id of ids) passed.add(id)
        else if (test.status === 'failed') failed++
        else problems.push(`skipped: ${test.fullName}`)
        if (test.status === 'failed') problems.push(`FAILED: ${test.fullName}`)
      }
      if (file.status === 'failed' && file.assertionResults.length === 0) {
        failed++
        problems.push(`FAILED to load: ${relative(repo, file.name)}: ${file.message.split('\n')[0]}`)
      }
    }
    if (code !== 0 && failed === before) failed++
  }
  const rows = readThreats(await readFile(join(repo, 'docs/threats.md'), 'utf8'))
  for (const row of rows)
    if (row.promised && !passed.has(row.id)) {
      failed++
      problems.push(`FAILED: ${row.id} is promised, and no test of it passed`)
    }
  let tried = 0
  let accepted = 0
  for (const line of (await readFile(log, 'utf8')).split('\n').filter((text) => text !== '')) {
    const [more = 0, bad = 0] = line.split(' ').map(Number)
    tried += more
    accepted += bad
  }
  const nonPromises = rows.filter(({ promised }) => !promised).length
  for (const line of problems) console.log(line)
  const bad = failed > 0 ? `, ${failed} tests failed` : ''
  console.log(`attacks: ${tried} tried, ${accepted} accepted, ${nonPromises} non-promises${bad}`)
  process.exitCode = failed === 0 && accepted === 0 && tried > 0 ? 0 : 1
} finally {
  await rm(scratch, { recursive: true })
}
