import type { ChildProcess } from 'node:child_process'

/** A process that works beside the test, and what it says. */
export interface Followed {
  readonly child: ChildProcess
  readonly said: () => string
  /** Waits until it has said this. Fails when it ends first. */
  until(words: RegExp): Promise<void>
  /** Ends it in order. */
  stop(): Promise<void>
}

/** What is kept of what a process says, from its end. */
const KEPT = 1 << 20

/** @param child whose outputs are pipes */
export function follow(child: ChildProcess): Followed {
  let said = ''
  let over = false
  const waiting: (() => void)[] = []
  const wake = () => {
    for (const one of waiting.splice(0)) one()
  }
  for (const stream of [child.stdout, child.stderr])
    stream?.on('data', (piece: Buffer) => {
      said = (said + piece).slice(-KEPT)
      wake()
    })
  const gone = new Promise<void>((done) => {
    child.once('exit', () => {
      over = true
      wake()
      done()
    })
  })
  return {
    child,
    said: () => said,
    until: async (words) => {
      while (!words.test(said)) {
        if (over) throw new Error(`the process ended: ${said}`)
        await new Promise<void>((next) => waiting.push(next))
      }
    },
    stop: async () => {
      if (!over) child.kill('SIGTERM')
      await gone
    },
  }
}
