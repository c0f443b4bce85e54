import { spawn } from 'node:child_process'
import { Duplex, Transform } from 'node:stream'
import { afterAll, describe, expect, it } from 'vitest'
import { Console } from './console.ts'
import { frameSum, readFrames, Shell } from './shell.ts'

/** Kernel lines that land anywhere, about one per `every` bytes; the seed is printed with a failure. */
function noise(every: number, seed: number): Transform {
  let state = seed >>> 0
  const random = () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  let left = every * -Math.log(1 - random())
  return new Transform({
    transform(bytes: Buffer, _encoding, done) {
      const out: Buffer[] = []
      for (const byte of bytes) {
        out.push(Buffer.from([byte]))
        if (--left <= 0) {
          out.push(Buffer.from(`[  ${(random() * 100).toFixed(6)}] virtio_blk virtio1: [vda] noise ${state}\r\n`))
          left = every * -Math.log(1 - random())
        }
      }
      done(null, Buffer.concat(out))
    },
  })
}

const children: ReturnType<typeof spawn>[] = []
afterAll(() => {
  for (const child of children) child.kill('SIGKILL')
})

function ptyShell(every: number | undefined, seed = 1): Shell {
  // The size of a pty is 0 x 0: no line editor, as on a serial console with busybox.
  const child = spawn('socat', ['STDIO', 'EXEC:sh,pty,setsid,ctty,stderr'], { stdio: ['pipe', 'pipe', 'ignore'] })
  children.push(child)
  const readable = every === undefined ? child.stdout : child.stdout.pipe(noise(every, seed))
  return new Shell(new Console(Duplex.from({ readable, writable: child.stdin })))
}

describe('framed shell', () => {
  it('ignores frames whose checksum is wrong', () => {
    const good = `<T 1/1 YQo= ${frameSum('1/1 YQo=')}>`
    expect(readFrames(`x${good}y`, 'T').frames.size).toBe(1)
    expect(readFrames(good.replace('YQo', 'YQp'), 'T').frames.size).toBe(0)
  })

  it('returns output and exit code', async () => {
    const shell = ptyShell(undefined)
    await shell.open({ timeoutMs: 20_000 })
    expect(await shell.run('echo one; echo two >&2; exit 7')).toEqual({ code: 7, output: 'one\ntwo\n' })
    expect(await shell.run('true')).toEqual({ code: 0, output: '' })
    expect(await shell.run("printf '%s' \"it's $((6*7)) <>\"")).toEqual({ code: 0, output: "it's 42 <>" })
  })

  it('is right 20 of 20 times with a kernel line every 300 bytes', async () => {
    const shell = ptyShell(300, 20261121)
    await shell.open({ timeoutMs: 60_000 })
    const forty = Array.from({ length: 40 }, (_, i) => `line ${i + 1} of some output\n`).join('')
    for (let round = 0; round < 20; round++) {
      const wide = round % 2 === 0
      const command = wide ? 'for i in $(seq 40);do echo "line $i of some output";done' : `echo ${round}; exit ${round}`
      expect(await shell.run(command)).toEqual(
        wide ? { code: 0, output: forty } : { code: round, output: `${round}\n` },
      )
    }
  })
})
