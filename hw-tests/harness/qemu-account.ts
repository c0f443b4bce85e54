import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Qmp } from './qmp.ts'

/** What an emulator says of itself when a device in it hangs: whether its disk owes an answer, and what its threads wait for. */

const MOST_LINES = 40
interface Queue {
  readonly inuse: number
  readonly 'last-avail-idx': number
  readonly 'shadow-avail-idx': number
  readonly 'used-idx': number
}

/** Lines for the transcript of a failed test, at most 40; what cannot be asked is left out. */
export async function emulatorAccount(qmp: Qmp, pid: number | undefined): Promise<readonly string[]> {
  const disks = await virtioDisks(qmp).catch(() => [])
  const queues = await Promise.all(disks.map((path) => queueLine(qmp, path).catch(() => undefined)))
  const lines = [...queues.flatMap((line) => line ?? []), ...(await counts(qmp).catch(() => [])), ...threads(pid)]
  return lines.slice(0, MOST_LINES).map((line) => `the emulator: ${line}`)
}

async function virtioDisks(qmp: Qmp): Promise<readonly string[]> {
  const devices = (await qmp.send('x-query-virtio')) as { name: string; path: string }[]
  return devices.filter(({ name }) => name === 'virtio-blk').map(({ path }) => path)
}

/** Requests that the guest gave, and that the emulator took, holds, and ended. */
async function queueLine(qmp: Qmp, path: string): Promise<string> {
  const queue = (await qmp.send('x-query-virtio-queue-status', { path, queue: 0 })) as Queue
  return `virtio-blk holds ${queue.inuse} requests; offered ${queue['shadow-avail-idx']}, taken ${queue['last-avail-idx']}, ended ${queue['used-idx']}`
}

interface BlockStats {
  readonly qdev?: string
  readonly stats: Readonly<Record<'rd_operations' | 'wr_operations' | 'flush_operations', number>>
}

async function counts(qmp: Qmp): Promise<readonly string[]> {
  const all = (await qmp.send('query-blockstats')) as BlockStats[]
  return all
    .filter(({ stats }) => stats.rd_operations + stats.wr_operations > 0)
    .map(
      ({ qdev, stats }) =>
        `${qdev ?? 'a disk'} has done ${stats.rd_operations} reads, ${stats.wr_operations} writes, ${stats.flush_operations} flushes`,
    )
}

/** Name, state and place in the kernel of each thread (proc(5)). */
function threads(pid: number | undefined): readonly string[] {
  if (pid === undefined) return []
  const of = (thread: string, file: string): string => {
    try {
      return readFileSync(join('/proc', String(pid), 'task', thread, file), 'utf8').trim()
    } catch {
      return '?'
    }
  }
  try {
    return readdirSync(join('/proc', String(pid), 'task')).map((thread) => {
      const state = /\) (\S)/.exec(of(thread, 'stat'))?.[1] ?? '?'
      return `thread ${of(thread, 'comm')} is in state ${state}, in ${of(thread, 'wchan')}`
    })
  } catch {
    return []
  }
}
