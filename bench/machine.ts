import { readFileSync } from 'node:fs'
import { availableParallelism, loadavg, totalmem } from 'node:os'
import { tool } from './measure.ts'

/** What the figures depend on. */
export interface Machine {
  readonly cores: number
  readonly memoryGiB: number
  readonly system: string
  readonly kernel: string
  readonly node: string
  readonly tools: Readonly<Record<string, string>>
  /** Load of the last minute before the benches: other work disturbs them. */
  readonly load: number
}

const VERSION_FIELD = '${Version}'
const PACKAGES = ['squashfs-tools', 'rauc', 'swupdate', 'qemu-system-x86']

export async function describeMachine(): Promise<Machine> {
  const tools: Record<string, string> = {}
  for (const name of PACKAGES)
    tools[name] = await tool('dpkg-query', ['-W', '-f', VERSION_FIELD, name]).catch(() => 'missing')
  return {
    cores: availableParallelism(),
    memoryGiB: Math.round(totalmem() / 2 ** 30),
    system: /^PRETTY_NAME="(.*)"$/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1] ?? 'unknown',
    kernel: (await tool('uname', ['-r'])).trim(),
    node: process.version,
    tools,
    load: load(),
  }
}

export const load = (): number => Number((loadavg()[0] ?? 0).toFixed(2))
