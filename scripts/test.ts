import { spawn } from 'node:child_process'
import { mkdtemp, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

// `npm test`: types, format and lint, unit tests, hardware-in-the-loop tests on the default QEMU place; then one
// closing line. A skipped test is named; in CI it is a failure, since no prerequisite may be missing there.
//
// Device tests begin while unit tests still run: each kind waits now and then (a link that is silent, a device that counts
// down), and what one leaves idle the other uses. What device tests say is shown when the unit tests are over.

interface Report {
  readonly testResults: readonly {
    readonly name: string
    readonly status: string
    readonly message: string
    readonly assertionResults: readonly { readonly fullName: string; readonly status: string }[]
  }[]
}

/** What a program says, kept until it is its turn to be shown. */
class Said {
  #kept: Buffer[] | undefined = []

  take(bytes: Buffer): void {
    if (this.#kept === undefined) process.stdout.write(bytes)
    else this.#kept.push(bytes)
  }

  /** What came so far, and from now on everything as it comes. */
  show(): void {
    const kept = this.#kept ?? []
    this.#kept = undefined
    for (const bytes of kept) process.stdout.write(bytes)
  }
}

function run(command: string, args: readonly string[], said?: Said): Promise<number> {
  return new Promise((resolve, reject) => {
    const out = said === undefined ? 'inherit' : 'pipe'
    const child = spawn(command, args, { stdio: ['ignore', out, out] })
    for (const stream of [child.stdout, child.stderr]) stream?.on('data', (bytes: Buffer) => said?.take(bytes))
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

async function vitest(project: string, scratch: string, said?: Said): Promise<void> {
  const title = `test: vitest, project ${project}\n`
  if (said === undefined) process.stdout.write(title)
  else said.take(Buffer.from(title))
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
  const code = await run('npx', args, said)
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

/** The kit and the saved device of the device tests. What goes wrong here they tell, who then make them again. */
function prepare(): Promise<unknown> {
  // Built before: no unit test meets a command line that is just being written.
  const env = { ...process.env, HIL_KIT_BUILT: '1' }
  const args = ['--import', 'tsx', 'hw-tests/cli/main.ts', 'prepare']
  const child = spawn(process.execPath, args, { stdio: 'ignore', env })
  return new Promise((resolve) => child.on('error', resolve).on('close', resolve))
}

const only = process.argv.slice(2)
const wanted = (part: string) => only.length === 0 || only.includes(part)
const scratch = await mkdtemp(join(tmpdir(), 'bistable-test-'))
try {
  if (wanted('types')) await check('types', 'npx', ['tsc', '--noEmit'])
  if (wanted('lint')) await check('format and lint', 'npx', ['biome', 'check', '.'])
  if (wanted('unit') && wanted('hw')) {
    await check('build', process.execPath, ['scripts/build.mjs'])
    const said = new Said()
    const devices = prepare().then(() => vitest('hw', scratch, said))
    await vitest('unit', scratch)
    said.show()
    await devices
  } else if (wanted('unit')) await vitest('unit', scratch)
  else if (wanted('hw')) await vitest('hw', scratch)
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
