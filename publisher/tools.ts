import { type ChildProcessByStdio, spawn } from 'node:child_process'
import type { Readable, Writable } from 'node:stream'
import { systemCode } from '../base/errors.ts'
import { publisherErrors } from './errors.ts'

/**
 * Runs the external programs that the publisher needs: an edge module.
 *
 * Programs are given a small, fixed environment (no TZ, locale or configuration of the caller), never a shell.
 */

/** The Debian package of every program that is run, for the message when it is missing. */
const PACKAGES = {
  mksquashfs: 'squashfs-tools',
  'mkfs.fat': 'dosfstools',
  mcopy: 'mtools',
  mmd: 'mtools',
  sgdisk: 'gdisk',
  mke2fs: 'e2fsprogs',
  debugfs: 'e2fsprogs',
  unshare: 'util-linux',
  flock: 'util-linux',
  btrfs: 'btrfs-progs',
  'mkfs.btrfs': 'btrfs-progs',
} as const

export type ToolName = keyof typeof PACKAGES

export interface ToolOptions {
  readonly cwd?: string
  /** Added to the fixed environment. */
  readonly env?: Readonly<Record<string, string>>
  /** Standard input; streamed with back-pressure. */
  readonly input?: AsyncIterable<Uint8Array>
  readonly signal?: AbortSignal
  /** An open file of ours that the program finds as descriptor 3. */
  readonly inherit?: number
  /** Where to look for programs; tests use it. */
  readonly path?: string
}

/** Bytes of output that are kept: the last ones. */
const KEEP = 16 * 1024

/**
 * Runs `tool` to its end.
 * @returns the last 16 KiB of what it printed on standard output and standard error
 * @throws TOOL_MISSING, TOOL_FAILED; or what `input` threw
 */
export async function runTool(
  tool: ToolName,
  args: readonly string[],
  options: ToolOptions = {},
): Promise<{ readonly out: string; readonly err: string }> {
  const child = spawn(tool, args, {
    stdio: ['pipe', 'pipe', 'pipe', ...(options.inherit === undefined ? [] : [options.inherit])],
    env: {
      // Debian keeps file system tools outside an ordinary user's PATH.
      PATH: options.path ?? `${process.env['PATH'] ?? ''}:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin`,
      LC_ALL: 'C.UTF-8',
      TZ: 'UTC',
      ...options.env,
    },
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.signal === undefined ? {} : { signal: options.signal }),
  }) as ChildProcessByStdio<Writable, Readable, Readable>
  const out = tail(child.stdout)
  const err = tail(child.stderr)
  const ended = new Promise<string>((resolve, reject) => {
    let stopped: Error | undefined
    child.on('error', (error) => {
      // AbortError says nothing of the child being missing.
      if (systemCode(error) === 'ENOENT')
        reject(publisherErrors.TOOL_MISSING(`'${tool}' is not installed (Debian package: ${PACKAGES[tool]})`))
      else if (child.pid === undefined) reject(error)
      // Told to stop, it still runs: whoever cleans up behind it must not be too early.
      else stopped = error
    })
    child.on('close', (code, signal) => (stopped === undefined ? resolve(signal ?? String(code)) : reject(stopped)))
  })
  // Both run at once: a program that dies early must not leave us writing to nobody.
  const fed = feed(child.stdin, options.input)
  const [end, input] = await Promise.allSettled([ended, fed])
  if (end.status === 'rejected') throw end.reason
  if (input.status === 'rejected') throw input.reason
  if (end.value !== '0') {
    const last = `${err()}\n${out()}`.trim().split('\n').slice(-5).join(' / ')
    throw publisherErrors.TOOL_FAILED(`'${tool}' ended with ${end.value}: ${last}`)
  }
  return { out: out(), err: err() }
}

async function feed(stdin: NodeJS.WritableStream, input: AsyncIterable<Uint8Array> | undefined): Promise<void> {
  // A reader that went away ends the feeding; its exit status tells why.
  let gone = false
  let wake: () => void = () => {}
  const onWake = (): void => wake()
  stdin.on('error', () => {
    gone = true
    onWake()
  })
  stdin.on('close', () => {
    gone = true
    onWake()
  })
  stdin.on('drain', onWake)
  try {
    for await (const piece of input ?? []) {
      if (gone) break
      if (stdin.write(piece)) continue
      await new Promise<void>((resolve) => {
        wake = resolve
        if (gone) resolve()
      })
    }
  } finally {
    // Also when the input failed: the program sees an early end and stops.
    stdin.end()
  }
}

function tail(stream: NodeJS.ReadableStream): () => string {
  let kept = ''
  stream.setEncoding('utf8')
  stream.on('data', (text: string) => {
    kept = (kept + text).slice(-KEEP)
  })
  return () => kept
}
