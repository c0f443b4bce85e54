import { readFileSync } from 'node:fs'

/** What a process did to files, read from the log of `strace -f -y`. */

/** Arguments for strace that `readCalls` understands; the program follows. */
export function straceArgs(log: string): string[] {
  const names = [
    ...[
      'openat',
      'open',
      'creat',
      'write',
      'writev',
      'pwrite64',
      'pwritev',
      'pwritev2',
      'pread64',
      'fsync',
      'fdatasync',
    ],
    ...['rename', 'renameat', 'renameat2', 'unlink', 'unlinkat', 'mkdir', 'mkdirat', 'link', 'linkat', 'symlink'],
    ...['truncate', 'ftruncate', 'fallocate', 'copy_file_range', 'sendfile', 'splice', 'mmap', 'io_uring_enter'],
  ]
  // Without io_uring, which strace cannot look into.
  return [
    '-f',
    '-qq',
    '-y',
    '-s',
    '0',
    '-E',
    'UV_USE_IO_URING=0',
    '-e',
    `trace=${names.join()}`,
    '-e',
    'signal=none',
    '-o',
    log,
  ]
}

export interface Call {
  readonly name: string
  /** The file that it is about; of a rename, the new name. */
  readonly path: string
  /** Of a rename: the old name. */
  readonly from: string | undefined
  /** Bytes from the start of the file, of a call that says so. */
  readonly offset: number | undefined
  /** What it returned: bytes, for reads and writes. */
  readonly result: number
  /** All of its arguments, as strace shows them. */
  readonly text: string
  /** Positions in the log: one that begins behind another's end had that one's effect before it. */
  readonly began: number
  readonly ended: number
}

/** The calls that succeeded, in the order in which they ended. @throws Error on a line that is not understood */
export function readCalls(log: string): Call[] {
  const calls: Call[] = []
  const waiting = new Map<string, { began: number; text: string }>()
  for (const [at, line] of readFileSync(log, 'latin1').split('\n').entries()) {
    if (line === '' || /^\d+ +(\+\+\+|---)/.test(line)) continue
    const [, pid = '', rest = ''] = /^(\d+) +(.*)$/.exec(line) ?? []
    const unfinished = /^(.*) <unfinished \.\.\.>$/.exec(rest)
    if (unfinished !== null) {
      waiting.set(pid, { began: at, text: unfinished[1] ?? '' })
      continue
    }
    const resumed = /^<\.\.\. \w+ resumed>(.*)$/.exec(rest)
    const first = resumed === null ? undefined : waiting.get(pid)
    const whole = first === undefined ? rest : first.text + resumed?.[1]
    const found = /^(\w+)\((.*)\) += (-?\d+|0x[0-9a-f]+|\?)(?:<([^>]*)>)?/.exec(whole)
    if (found === null) throw new Error(`line ${at + 1} of the log of system calls: ${line}`)
    const [, name = '', text = '', result = '', opened] = found
    if (result.startsWith('-') || result === '?') continue
    const names = [...text.matchAll(/"([^"]*)"/g)].map((match) => match[1] ?? '')
    const descriptor = /^\d+<([^>]*)>/.exec(text)?.[1]
    const path = opened ?? descriptor ?? names.at(-1) ?? ''
    const last = /, (\d+)$/.exec(text)?.[1]
    calls.push({
      name,
      path,
      from: name.startsWith('rename') ? names[0] : undefined,
      offset: /^p(read|write)/.test(name) && last !== undefined ? Number(last) : undefined,
      result: Number(result),
      text,
      began: first?.began ?? at,
      ended: at,
    })
  }
  return calls
}
