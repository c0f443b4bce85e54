import { spawn } from 'node:child_process'
import { Duplex } from 'node:stream'
import { Console } from './console.ts'
import { noise } from './noise.ts'
import { Shell } from './shell.ts'

/** A real shell behind a real pty, for tests of the console: its output may be disturbed. */
export interface PtyShell {
  readonly shell: Shell
  readonly console: Console
  close(): void
}

export function ptyShell(every: number | undefined, seed = 1): PtyShell {
  // The size of a pty is 0 x 0: no line editor, as on a serial console with busybox.
  const child = spawn('socat', ['STDIO', 'EXEC:sh,pty,setsid,ctty,stderr'], { stdio: ['pipe', 'pipe', 'ignore'] })
  const readable = every === undefined ? child.stdout : child.stdout.pipe(noise(every, seed))
  const console = new Console(Duplex.from({ readable, writable: child.stdin }))
  return { shell: new Shell(console), console, close: () => child.kill('SIGKILL') }
}
