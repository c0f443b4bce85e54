import { readdir, readFile } from 'node:fs/promises'
import { constants, setPriority } from 'node:os'
import { join } from 'node:path'
import type { Policy } from '../../bundle/agent-policy.ts'
import { defaultLinks, judgePower } from '../policy/surroundings.ts'
import type { Processes, Surroundings } from './ports.ts'

/** Link, power and priorities of the real machine. What cannot be read says nothing: no policy waits for it. */

const IONICE_MS = 10_000
/** util-linux and busybox alike: class 2 is best effort, 3 idle. */
const IO_CLASS = { normal: ['-c', '2', '-n', '4'], low: ['-c', '2', '-n', '7'], idle: ['-c', '3'] } as const

/** @param root prefix of /proc and /sys, in tests */
export function realSurroundings(root: string, processes: Processes): Surroundings {
  const text = (path: string) => readFile(join(root, '/', path), 'utf8').catch(() => '')
  return {
    links: async () => defaultLinks(await text('proc/net/route'), await text('proc/net/ipv6_route')),
    power: async () => {
      const folder = 'sys/class/power_supply'
      const names = await readdir(join(root, '/', folder)).catch(() => [])
      const supplies = []
      for (const name of names.slice(0, 64)) {
        const at = (file: string) => text(join(folder, name, file))
        const [type, online, capacity, scope] = [
          await at('type'),
          await at('online'),
          await at('capacity'),
          await at('scope'),
        ]
        supplies.push({ type, online, capacity, scope })
      }
      return judgePower(supplies)
    },
    calm: async ({ nice, io }) => {
      if (nice === 0 && io === 'normal') return async () => undefined
      await setClaim(processes, nice, io)
      return () => setClaim(processes, 0, 'normal')
    },
  }
}

async function setClaim(processes: Processes, nice: number, io: Policy['download']['io']): Promise<void> {
  // On Linux both belong to a thread, and files are read and written by the threads of the pool: each is asked.
  const threads = await readdir('/proc/self/task').catch(() => [String(process.pid)])
  for (const thread of threads) {
    try {
      setPriority(Number(thread), nice === 0 ? constants.priority.PRIORITY_NORMAL : nice)
    } catch {
      // Ended meanwhile, or not allowed to rise again: no reason to fail an update.
    }
  }
  await processes.run(['ionice', ...IO_CLASS[io], '-p', ...threads], IONICE_MS)
}
