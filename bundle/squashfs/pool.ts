import { existsSync } from 'node:fs'
import { createRequire } from 'node:module'
import { pathToFileURL } from 'node:url'
import { Worker } from 'node:worker_threads'
import { compressBlock, type PackedBlock } from './block-codec.ts'

/**
 * Compresses blocks in worker threads, or, for little work, on the calling thread. Which thread compresses which block
 * follows from time and chance; what comes out does not.
 */
export interface BlockPool {
  /**
   * Compresses `content`, which must own its memory alone and belongs to the pool from here on.
   * Fails with what `failed` made of the reason when a thread does.
   */
  pack(content: Uint8Array<ArrayBuffer>): Promise<PackedBlock>
  /** Memory for `length` bytes of content, from blocks done with where there is some. What it holds is undefined. */
  memory(length: number): Uint8Array<ArrayBuffer>
  /** Ends the threads. Blocks under way are given up. */
  close(): Promise<void>
}

/** Blocks at one thread: the one it works on, and the next, so that it never waits for us. */
const AHEAD = 2
const KEPT_MEMORY = 64

/**
 * @param threads 0: on the calling thread; so too where the threads' program is not beside this one
 * @param failed the error for a thread that failed
 */
export function createPool(level: number, threads: number, failed: (cause: Error) => Error): BlockPool {
  if (threads === 0 || !existsSync(PROGRAM))
    return {
      pack: async (content) => compressBlock(content, level),
      memory: (length) => new Uint8Array(length),
      close: async () => undefined,
    }
  return new ThreadPool(level, threads, failed)
}

interface Job {
  readonly content: Uint8Array<ArrayBuffer>
  readonly resolve: (packed: PackedBlock) => void
  readonly reject: (cause: unknown) => void
}

interface Thread {
  readonly worker: Worker
  /** In the order they were sent, which is the order they come back in. */
  readonly jobs: Job[]
}

interface Answer {
  readonly content: Uint8Array<ArrayBuffer>
  /** Missing when compressing did not make it shorter. */
  readonly packed?: Uint8Array<ArrayBuffer>
}

class ThreadPool implements BlockPool {
  readonly #threads: readonly Thread[]
  readonly #waiting: Job[] = []
  readonly #spare: ArrayBuffer[] = []
  readonly #failed: (cause: Error) => Error
  #failure: Error | undefined
  #closing = false

  constructor(level: number, threads: number, failed: (cause: Error) => Error) {
    this.#failed = failed
    this.#threads = Array.from({ length: threads }, () => this.#start(level))
  }

  pack(content: Uint8Array<ArrayBuffer>): Promise<PackedBlock> {
    return new Promise((resolve, reject) => {
      if (this.#failure !== undefined) return reject(this.#failure)
      this.#waiting.push({ content, resolve, reject })
      this.#send()
    })
  }

  memory(length: number): Uint8Array<ArrayBuffer> {
    const spare = this.#spare.pop()
    return spare !== undefined && spare.byteLength >= length ? new Uint8Array(spare, 0, length) : new Uint8Array(length)
  }

  async close(): Promise<void> {
    this.#closing = true
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }

  #start(level: number): Thread {
    const thread: Thread = { worker: new Worker(...program(level)), jobs: [] }
    thread.worker.on('message', (answer: Answer) => this.#answered(thread, answer))
    thread.worker.on('error', (cause) => this.#fail(cause))
    thread.worker.on('exit', (code) => this.#fail(new Error(`it ended with ${code}`)))
    return thread
  }

  #send(): void {
    for (let depth = 0; depth < AHEAD; depth++)
      for (const { worker, jobs } of this.#threads) {
        if (jobs.length > depth) continue
        const job = this.#waiting.shift()
        if (job === undefined) return
        jobs.push(job)
        worker.postMessage(job.content, [job.content.buffer])
      }
  }

  #answered({ jobs }: Thread, { content, packed }: Answer): void {
    const job = jobs.shift()
    this.#send()
    if (packed === undefined) job?.resolve({ bytes: content, plain: true })
    else {
      if (this.#spare.length < KEPT_MEMORY) this.#spare.push(content.buffer)
      job?.resolve({ bytes: packed, plain: false })
    }
  }

  #fail(cause: Error): void {
    if (this.#closing || this.#failure !== undefined) return
    const failure = this.#failed(cause)
    this.#failure = failure
    for (const job of [...this.#threads.flatMap(({ jobs }) => jobs), ...this.#waiting]) job.reject(failure)
  }
}

const built = !import.meta.url.endsWith('.ts')
const PROGRAM = new URL(built ? './squashfs-worker.mjs' : './worker.ts', import.meta.url)
/** A thread's own memory: blocks are handed over, not copied. */
const LIMITS = { maxYoungGenerationSizeMb: 4, maxOldGenerationSizeMb: 32 }

/** The thread's program: a file beside the built one; among the sources one of them, which wants a loader. */
function program(level: number): ConstructorParameters<typeof Worker> {
  const workerData = { level }
  if (built) return [PROGRAM, { workerData, execArgv: [], resourceLimits: LIMITS }]
  const api = pathToFileURL(createRequire(import.meta.url).resolve('tsx/esm/api'))
  const loader = new URL('./index.mjs', api).href
  const start = `import('${loader}').then(({ register }) => (register(), import('${PROGRAM.href}')))`
  return [start, { eval: true, workerData, execArgv: [] }]
}
