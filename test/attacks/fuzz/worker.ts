import { hash } from 'node:crypto'
import { type Profiler, Session } from 'node:inspector'
import { parentPort, workerData } from 'node:worker_threads'
import { mutate, numbersFrom } from './mutate.ts'
import { TARGETS, type Target, tryInput } from './targets.ts'

// One target for some seconds, in a thread that may hang or run out of memory without taking the run with it. Inputs
// that reach blocks of our code that none before them reached are kept and changed further: V8 counts blocks itself, so
// no native fuzzer is needed.

export interface Job {
  readonly target: string
  readonly seconds: number
  readonly seed: number
  /** The length of the input under way (4 bytes), then the input: what the parent has when this thread hangs. */
  readonly current: SharedArrayBuffer
  readonly corpus: readonly Uint8Array[]
}

export type Report =
  | { readonly kind: 'finding'; readonly input: Uint8Array; readonly error: string }
  | {
      readonly kind: 'done'
      readonly tried: number
      readonly read: number
      readonly codes: readonly string[]
      readonly blocks: number
      readonly corpus: readonly Uint8Array[]
    }

/** An input that takes longer than this is a finding. */
const SLOW_MS = 2000
const MAX_CORPUS = 1500
/** Inputs between two looks at the counters: a look costs about as much as several inputs. */
const BATCH = 8

class Coverage {
  readonly #session = new Session()
  readonly #seen = new Set<string>()

  constructor() {
    this.#session.connect()
    this.#session.post('Profiler.enable')
    this.#session.post('Profiler.startPreciseCoverage', {
      callCount: true,
      detailed: true,
      allowTriggeredUpdates: false,
    })
  }

  get blocks(): number {
    return this.#seen.size
  }

  /** How many blocks were reached since the last look for the first time ever. */
  news(): number {
    const before = this.#seen.size
    for (const script of this.#take()) {
      // All code of ours is in one file, made by scripts/fuzz.ts; that of packages and of Node.js is not looked at.
      if (!script.url.endsWith('/fuzz/worker.mjs')) continue
      const file = script.scriptId
      // How often counts too, in rough steps: a loop that runs a hundred times is another place than one that runs once.
      for (const { ranges } of script.functions)
        for (const { startOffset, endOffset, count } of ranges)
          if (count > 0) this.#seen.add(`${file} ${startOffset} ${endOffset} ${Math.floor(Math.log2(count) / 2)}`)
    }
    return this.#seen.size - before
  }

  /** In-process sessions answer before `post` returns. */
  #take(): readonly Profiler.ScriptCoverage[] {
    let answer: readonly Profiler.ScriptCoverage[] = []
    this.#session.post('Profiler.takePreciseCoverage', (error, found) => {
      if (error !== null) throw error
      answer = found.result
    })
    return answer
  }
}

async function fuzz(target: Target, job: Job, send: (report: Report) => void): Promise<void> {
  const random = numbersFrom(job.seed)
  const current = new Uint8Array(job.current)
  const length = new DataView(job.current)
  const coverage = new Coverage()
  const seen = new Set<string>()
  const codes = new Set<string>()
  const findings = new Set<string>()
  const corpus: Uint8Array[] = []
  let tried = 0
  let read = 0

  const run = async (input: Uint8Array): Promise<void> => {
    current.set(input.subarray(0, current.length - 4), 4)
    length.setUint32(0, Math.min(input.length, current.length - 4), true)
    const start = performance.now()
    const outcome = await tryInput(target, input)
    tried++
    let error: string | undefined
    if (outcome.kind === 'finding')
      error = outcome.error instanceof Error ? (outcome.error.stack ?? outcome.error.message) : String(outcome.error)
    else if (performance.now() - start > SLOW_MS) error = `took ${Math.round(performance.now() - start)} ms`
    if (outcome.kind === 'read') read++
    if (outcome.kind !== 'finding') codes.add(outcome.code)
    // One of each kind is enough: by where it comes from.
    const where = error?.split('\n').slice(0, 3).join(' ').replace(/\d+/g, '')
    if (error !== undefined && where !== undefined && !findings.has(where)) {
      findings.add(where)
      send({ kind: 'finding', input, error })
    }
  }
  const keep = (input: Uint8Array): void => {
    const name = hash('sha1', input)
    if (seen.has(name) || corpus.length >= MAX_CORPUS) return
    seen.add(name)
    corpus.push(input)
  }

  for (const input of [...(await target.seeds()), ...job.corpus]) {
    await run(input)
    if (coverage.news() > 0) keep(input)
  }
  const end = performance.now() + job.seconds * 1000
  const pick = () => {
    // Newer ones more often: they are at the edge of what is known.
    const back = Math.min(random() % corpus.length, random() % corpus.length)
    return corpus[random() % 3 === 0 ? random() % corpus.length : corpus.length - 1 - back] ?? new Uint8Array()
  }
  while (performance.now() < end) {
    const batch = Array.from({ length: BATCH }, () => mutate(pick(), pick(), random))
    for (const input of batch) await run(input)
    if (coverage.news() === 0) continue
    // One of them did it; the others are kept with it and do no harm.
    for (const input of batch) keep(input)
  }
  send({ kind: 'done', tried, read, codes: [...codes].sort(), blocks: coverage.blocks, corpus })
}

if (parentPort !== null) {
  const port = parentPort
  const job = workerData as Job
  const target = TARGETS.find(({ name }) => name === job.target)
  if (target === undefined) throw new Error(`no target ${job.target}`)
  await fuzz(target, job, (report) => port.postMessage(report))
}
