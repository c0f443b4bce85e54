import { spawn } from 'node:child_process'
import { cp, mkdir, readdir, readFile, rm, symlink, writeFile } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { openKit } from '../hw-tests/harness/kit.ts'
import { savedState } from '../hw-tests/harness/warm.ts'
import { MUTANTS, type Mutant, mutated } from '../hw-tests/mutants/mutants.ts'
import { PLACES } from '../hw-tests/places/index.ts'
import type { Outcome } from '../hw-tests/report/outcome.ts'

// npm run hil-mutants -- [NAME…]: builds each broken device and runs the test that is meant to catch it (HIL_MUTANTS=all: the
// suites of npm test). Ends with 1 when one goes uncaught, is caught by another reason, or the lab is broken.

const root = resolve(import.meta.dirname, '..')
const work = join(root, '.cache', 'mutants')
/** What no build reads, or what is shared. */
const LEFT_OUT = new Set(['.git', '.cache', 'node_modules', 'dist', 'out', 'docs', 'test', 'hw-tests'])
const SHARED = ['node_modules', '.cache/demo', '.cache/kernel', '.cache/node']

function run(args: readonly string[], cwd: string, env: NodeJS.ProcessEnv): Promise<{ code: number; said: string }> {
  return new Promise((done, reject) => {
    const child = spawn(process.execPath, args, { cwd, env, stdio: ['ignore', 'pipe', 'pipe'] })
    let said = ''
    for (const stream of [child.stdout, child.stderr])
      stream.on('data', (bytes: Buffer) => {
        said = (said + bytes.toString()).slice(-64 * 1024)
      })
    child.on('error', reject)
    child.on('close', (code) => done({ code: code ?? 1, said }))
  })
}

const place = { name: 'qemu-x86-grub', ...PLACES['qemu-x86-grub'] }
const all = process.env['HIL_MUTANTS'] === 'all'

/** A kit that has the fault in the parts that the mutant names, and is the good one else. */
async function brokenKit(mutant: Mutant, folder: string, good: string): Promise<string> {
  await rm(folder, { recursive: true, force: true })
  await mkdir(join(folder, '.cache'), { recursive: true })
  for (const name of await readdir(root))
    if (!LEFT_OUT.has(name)) await cp(join(root, name), join(folder, name), { recursive: true })
  for (const name of SHARED) await symlink(join(root, name), join(folder, name))
  const file = join(folder, mutant.file)
  await writeFile(file, mutated(mutant, await readFile(file, 'utf8')))
  const env = { ...process.env, HIL_KIT_FROM: good, HIL_KIT_ONLY: mutant.makes.join(',') }
  const { code, said } = await run(['--import', 'tsx', join(folder, 'scripts', 'hil-kit.ts')], folder, env)
  if (code !== 0) throw new Error(`the kit of ${mutant.name} cannot be made: ${said.slice(-2000)}`)
  return said.trim().split('\n').at(-1) ?? ''
}

async function caught(mutant: Mutant, good: string): Promise<boolean> {
  const folder = join(work, mutant.name)
  const began = Date.now()
  try {
    const kit = await brokenKit(mutant, folder, good)
    const made = Math.round((Date.now() - began) / 1000)
    const reports = join(folder, 'run')
    const name = mutant.test.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')
    const which = all ? [] : [join('hw-tests', 'suites', mutant.suite), '-t', name]
    const vitest = join(root, 'node_modules', 'vitest', 'vitest.mjs')
    const env = { ...process.env, HIL_KIT: kit, HIL_RUN: reports }
    const { said } = await run([vitest, 'run', '--project', 'hw', ...which], root, env)
    const lines = (await readFile(join(reports, 'run.jsonl'), 'utf8').catch(() => ''))
      .split('\n')
      .filter((l) => l !== '')
    const outcomes = lines.map((line) => JSON.parse(line) as Outcome)
    const meant = outcomes.filter((outcome) => outcome.name.includes(mutant.test))
    // Without the facts behind it, which name the test, and with it what it is about.
    const assertion = ({ message }: { readonly message: string }) => message.split('\ndevice on ')[0] ?? ''
    const messages = meant.flatMap(({ errors }) => errors.map(assertion)).join('\n')
    const others = outcomes.filter(({ verdict, name: other }) => verdict === 'failed' && !other.includes(mutant.test))
    const seconds = Math.round((Date.now() - began) / 1000)
    const first = messages.split('\n')[0]
    if (meant.length === 1 && meant[0]?.verdict === 'failed' && mutant.because.test(messages)) {
      const more = others.length > 0 ? `, and by ${others.length} others` : ''
      console.log(
        `caught: ${mutant.name} (${mutant.fault}) by "${mutant.test}"${more}: ${first} (${seconds} s, ${made} of them for its kit)`,
      )
      return true
    }
    console.log(
      `NOT CAUGHT: ${mutant.name} (${mutant.fault}): ${meant[0]?.verdict ?? 'its test did not run'}: ${first || said.slice(-1500)}`,
    )
    return false
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

const wanted = process.argv.slice(2)
const unknown = wanted.filter((name) => !MUTANTS.some((mutant) => mutant.name === name))
if (unknown.length > 0)
  throw new Error(`no mutant ${unknown.join(', ')}; there are: ${MUTANTS.map((m) => m.name).join(', ')}`)
const chosen = MUTANTS.filter(({ name }) => wanted.length === 0 || wanted.includes(name))
const good = await openKit(place)
// Before its parts are linked: most mutants change no disk and begin with its saved device.
await savedState(good, place)
let found = 0
for (const mutant of chosen) if (await caught(mutant, good.folder)) found++
console.log(`${found} of ${chosen.length} broken devices caught by the test meant for them`)
process.exitCode = found === chosen.length ? 0 : 1
