import { execFileSync } from 'node:child_process'

const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C.UTF-8', TZ: 'UTC' }

/** Runs a real tool; fails with its output when it fails. */
export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 })
}

/** True when the tool is here. In CI a missing tool is an error, elsewhere a named skip. */
export function haveTool(command: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${command}`], { env, stdio: 'ignore' })
    return true
  } catch {
    if (process.env['CI'] !== undefined) throw new Error(`${command} is missing on this machine`)
    return false
  }
}
