import { execFileSync } from 'node:child_process'
import { hash } from 'node:crypto'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { onTestFinished } from 'vitest'

const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin`, LC_ALL: 'C' }

/** Runs a real tool; fails with its output when it fails. */
export function run(command: string, ...args: string[]): string {
  return execFileSync(command, args, { env, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
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

/** A fresh folder, removed when the test ends. */
export function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'bistable-test-'))
  onTestFinished(() => rmSync(dir, { recursive: true, force: true }))
  return dir
}

/** Bytes that look random and are the same in every run. */
export function noise(length: number, seed = 'noise'): Buffer {
  const out = Buffer.alloc(length)
  let block = Buffer.from(hash('sha512', seed, 'hex'), 'hex')
  for (let at = 0; at < length; at += block.length) {
    block.copy(out, at)
    block = Buffer.from(hash('sha512', block, 'hex'), 'hex')
  }
  return out
}
