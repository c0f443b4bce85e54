import { expect, it, vi } from 'vitest'
import { crewBuffer, spanDigests, useHashCrew } from '../../base/hash-crew.ts'

vi.mock('node:worker_threads', () => ({
  Worker: class {
    constructor() {
      // As Node.js says it where the system gives no thread (pids.max, no memory).
      throw Object.assign(new Error('Worker initialization failure: EAGAIN'), { code: 'ERR_WORKER_INIT_FAILED' })
    }
  },
}))

it('a machine that gives no second thread hashes with one', () => {
  const giveBack = useHashCrew(2)
  expect([crewBuffer(), spanDigests(new Uint8Array(1 << 20), Int32Array.of(0, 1 << 20), 1)]).toEqual([
    undefined,
    undefined,
  ])
  giveBack()
})
