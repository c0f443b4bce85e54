import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

// `npm test`: types, format and lint, unit tests, hardware-in-the-loop tests on the default QEMU place; then one
// closing line. A skipped test is named; in CI it is a failure, since no prerequisite may be missing there.

interface Report {
  readonly testResults: readonly {
    readonly name: string
    readonly status: string
    readonly message: string
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[]
  }[]
}

function run(command: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['ignore', 'inherit', 'inherit'] })
    child.on('error', reject)
    child.on('close', (code) => resolve(code ?? 1))
  })
}

let passed = 0
let failed = 0
const skipped: string[] = []

async function check(name: string, command: string, args: readonly string[]): Promise<void> {
  console.log(`test: ${name}`)
  if ((await run(command, args)) === 0) passed++
  else {
    failed++
    console.log(`test: ${name} FAILED`)
  }
}

async function vitest(project: string, scratch: string): Promise<void> {
  console.log(`test: vitest, project ${project}`)
  const output = join(scratch, `${project}.json`)
  const args = [
    'vitest',
    'run',
    '--project',
    project,
    '--reporter=default',
    '--reporter=json',
    `--outputFile.json=${output}`,
    ...(project === 'hw' ? ['--reporter=./hw-tests/report/reporter.ts'] : []),
  ]
  const code = await run('npx', args)
  const report = JSON.parse(await readFile(output, 'utf8')) as Report
  const before = failed
  for (const file of report.testResults) {
    for (const test of file.assertionResults) {
      if (test.status === 'passed') passed++
      else if (test.status === 'failed') failed++
      else skipped.push(test.fullName)
    }
    // A file that cannot be loaded has no tests of its own to fail.
    if (file.status === 'failed' && file.assertionResults.length === 0) failed++
  }
  if (code !== 0 && failed === before) failed++
}

/**
 * The kit and the saved device of the device tests, made beside the unit tests, which leave a processor idle now and then. What
 * goes wrong here is told by the device tests, which then make them again.
 */
function prepare(): Promise<unknown> {
  const args = ['-n', '10', process.execPath, '--import', 'tsx', 'hw-tests/cli/main.ts', 'prepare']
  // Built before: no unit test meets a command line that is just being written.
  const env = { ...process.env, HIL_KIT_BUILT: '1' }
  const child = spawn('nice', args, { stdio: 'ignore', env })
  return new Promise((resolve) => child.on('error', resolve).on('close', resolve))
}

const only = process.argv.slice(2)
const wanted = (part: string) => only.length === 0 || only.includes(part)
const scratch = await mkdtemp(join(tmpdir(), 'bistable-test-'))
try {
  if (wanted('types')) await check('types', 'npx', ['tsc', '--noEmit'])
  if (wanted('lint')) await check('format and lint', 'npx', ['biome', 'check', '.'])
  let ready: Promise<unknown> | undefined
  if (wanted('unit') && wanted('hw')) {
    await check('build', process.execPath, ['scripts/build.mjs'])
    ready = prepare()
  }
  if (wanted('unit')) await vitest('unit', scratch)
  await ready
  if (wanted('hw')) await vitest('hw', scratch)
} finally {
  await rm(scratch, { recursive: true })
}

for (const name of skipped) console.log(`skipped: ${name}`)
// Vectors with licences of their own lie beside the repository; no set-up can bring them. All else it must have brought.
const lacking = skipped.filter((name) => !name.endsWith('beside the repository)'))
if (process.env['CI'] && lacking.length > 0) {
  console.log(`in CI no prerequisite may be missing: ${lacking.length} skipped count as failed`)
  failed += lacking.length
}
const tail = skipped.length > 0 && !process.env['CI'] ? `, ${skipped.length} skipped` : ''
console.log(`${passed} passed, ${failed} failed${tail}`)
process.exitCode = failed === 0 && passed > 0 ? 0 : 1
