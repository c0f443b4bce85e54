import { closeSync, openSync, readSync, writeFileSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import { encodeBootCfg } from '../../bootloader/boot-cfg.ts'
import type { BackendEdge } from '../../device/agent/backends.ts'
import { makeBootImage } from '../../publisher/boot-image.ts'
import { NO_EDGE } from './backend-edge.ts'

/** Boot images of two slots as the publisher makes them, and a device that has them. */
export async function bootImages(dir: string, kernel: string, initrd: string, args = 'quiet'): Promise<BackendEdge> {
  for (const slot of ['a', 'b'] as const) {
    const workDir = join(dir, `work-${slot}`)
    await mkdir(workDir)
    const words = `bistable.root=${'ab'.repeat(32)} bistable.length=4096 ${args}`
    const cfg = encodeBootCfg({ release: slot === 'a' ? '0.1' : '0.2', args: words })
    await makeBootImage({ kernel, initrd, cfg }, join(dir, `boot-${slot}`), { time: 1_700_000_000, workDir })
  }
  return {
    ...NO_EDGE,
    bootImage: async (slot) => {
      const file = openSync(join(dir, `boot-${slot}`), 'r')
      return {
        read: async (offset, length) => {
          const bytes = new Uint8Array(length)
          readSync(file, bytes, 0, length, offset)
          return bytes
        },
        close: async () => closeSync(file),
      }
    },
  }
}

/** A file whose bytes do not repeat from cluster to cluster. */
export function writeNoise(path: string, length: number): void {
  writeFileSync(
    path,
    Uint8Array.from({ length }, (_, n) => Math.imul(n, 0x9e3779b1) >>> 24),
  )
}
