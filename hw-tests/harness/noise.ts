import { Transform } from 'node:stream'
import type { CommandResult } from './shell.ts'

/** Kernel lines that land anywhere on a console, at exponentially distributed distances: what a shell over serial must survive. */
export function noise(every: number, seed: number): Transform {
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

/** Four commands of different kinds, with what they truly answer. */
export const NOISE_COMMANDS: readonly (readonly [string, CommandResult])[] = [
  [
    'for i in $(seq 40); do echo "line $i of some output"; done',
    { code: 0, output: Array.from({ length: 40 }, (_, i) => `line ${i + 1} of some output\n`).join('') },
  ],
  ['printf "a\\n\\nb\\n"; exit 1', { code: 1, output: 'a\n\nb\n' }],
  ['echo word', { code: 0, output: 'word\n' }],
  ['exit 7', { code: 7, output: '' }],
]

/** One kernel line per so many bytes; undefined: none. */
export const NOISE_LEVELS: readonly (number | undefined)[] = [undefined, 3000, 1000, 300, 100]
