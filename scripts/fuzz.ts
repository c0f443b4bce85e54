import { hash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { parseArgs } from 'node:util'
import { Worker } from 'node:worker_threads'
import { build } from 'esbuild'
import { TARGETS, tryInput } from '../test/attacks/fuzz/targets.ts'
import type { Job, Report } from '../test/attacks/fuzz/worker.ts'

// `npm run fuzz -- --seconds N [--target T] [--seed S]`: coverage-guided, N seconds over all targets together.
// `npm run fuzz -- --replay FILE --target T`: one input, with the error it meets.
// Inputs worth keeping and findings stay in .cache/fuzz; the next run goes on from there.

const { values } = parseArgs({
  options: {
    seconds: { type: 'string', default: '60' },
    target: { type: 'string' },
    seed: { type: 'string', default: String(Date.now() >>> 0) },
    replay: { type: 'string' },
  },
})
const cache = resolve(import.meta.dirname, '../.cache/fuzz')
const targets = TARGETS.filter(({ name }) => values.target === undefined || values.target === name)
const seconds = Number(values.seconds) / targets.length
if (targets.length === 0 || !(seconds > 0)) {
  console.log(`targets: ${TARGETS.map(({ name }) => name).join(' ')}`)
  process.exit(2)
}

function kept(folder: string): Uint8Array[] {
  mkdirSync(folder, { recursive: true })
  return readdirSync(folder).map((name) => new Uint8Array(readFileSync(join(folder, name))))
}

let findings = 0
let tried = 0

function found(target: string, input: Uint8Array, error: string): void {
  findings++
  mkdirSync(join(cache, 'findings'), { recursive: true })
  const path = join(cache, 'findings', `${target}-${hash('sha1', input).slice(0, 12)}`)
  writeFileSync(path, input)
  console.log(`fuzz: ${target} FINDING ${path} (${input.length} bytes)\n${error}`)
}

/** Resolves when the thread is done, hung (it is ended) or out of memory; says what came of it. */
function run(name: string): Promise<string> {
  return new Promise((done) => {
    const folder = join(cache, 'corpus', name)
    const current = new SharedArrayBuffer(4 + 64 * 1024)
    const job: Job = { target: name, seconds, seed: Number(values.seed) >>> 0 || 1, current, corpus: kept(folder) }
    const worker = new Worker(join(cache, 'worker.mjs'), {
      workerData: job,
      resourceLimits: { maxOldGenerationSizeMb: 1024 },
    })
    let said = 'ended without a word'
    const last = () => {
      const length = new DataView(current).getUint32(0, true)
      return Uint8Array.from(new Uint8Array(current, 4, length))
    }
    const hung = setTimeout(
      () => {
        found(name, last(), 'it does not come back')
        said = 'hung'
        void worker.terminate()
      },
      seconds * 1000 + 60_000,
    )
    worker.on('message', (report: Report) => {
      if (report.kind === 'finding') return found(name, report.input, report.error)
      tried += report.tried
      rmSync(folder, { recursive: true, force: true })
      mkdirSync(folder, { recursive: true })
      for (const input of report.corpus) writeFileSync(join(folder, hash('sha1', input)), input)
      said = `${report.tried} tried, ${report.read} read, ${report.codes.length} outcomes, ${report.blocks} blocks, ${report.corpus.length} kept`
    })
    worker.on('error', (error) => found(name, last(), String(error.stack ?? error)))
    worker.on('exit', () => {
      clearTimeout(hung)
      done(said)
    })
  })
}

if (values.replay !== undefined) {
  const [target] = targets
  if (target === undefined || targets.length !== 1) throw new Error('--replay wants one --target')
  console.log(await tryInput(target, new Uint8Array(readFileSync(values.replay))))
} else {
  // One file of our code alone: what the coverage is asked about.
  await build({
    absWorkingDir: resolve(import.meta.dirname, '..'),
    entryPoints: ['test/attacks/fuzz/worker.ts'],
    outfile: join(cache, 'worker.mjs'),
    bundle: true,
    platform: 'node',
    format: 'esm',
    packages: 'external',
    logLevel: 'error',
  })
  for (const { name } of targets) console.log(`fuzz: ${name}: ${await run(name)}`)
  console.log(`fuzz: ${tried} inputs, ${findings} findings, seed ${values.seed}`)
  process.exitCode = findings === 0 ? 0 : 1
}
